"""Counted operations are those that torch counts on the real passes; estimated activations are near what autograd saves."""

import dataclasses
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.generator_step import count
from g3pt.config import CAR_PRESETS, CVQ_PRESETS, CVQConfig, TrainConfig
from g3pt.models.tokenizer import CVQ
from g3pt.training import flops
from tests.g3pt.models.test_tokenizer import TINY, first_batch
from tests.g3pt.tiny import given_conditions, random_batch, tiny_g3pt

VARIANTS = [
    {},
    {"num_sharp_points": 16, "checkpoint_layers": True},
    {"latent_queries": "learned", "quantizer": "lfq"},
    {"resampling": "pooled", "encoder_layers": 0},
    {"resampling": "slices", "scales": (4, 4, 8)},
]
STEP_OF = {"continuous": 0, "pyramid": 30, "joint": 90}  # of 100


def counted(config: CVQConfig, phase: str, objects: int = 4) -> int:
    """What torch counts in a forward and a backward pass, an object."""
    model, batch = CVQ(config), first_batch(config, objects)
    model.set_phase(STEP_OF[phase], 100)
    assert model.phase == phase
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(batch)[0].backward()
    return counter.get_total_flops() / objects


@pytest.mark.parametrize("changes", VARIANTS)
def test_a_tokenizer_s_operations_are_those_that_torch_counts(changes: dict) -> None:
    config = dataclasses.replace(TINY, **changes)
    for phase in flops.PHASES:
        assert flops.cvq_training(config, phase) == counted(config, phase), phase


def test_forward_alone_and_the_whole_run_add_up() -> None:
    model, batch = CVQ(TINY), first_batch(TINY, 2)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(batch)
    assert sum(cost.forward for cost in flops.cvq_parts(TINY).values()) == counter.get_total_flops() / 2
    train = TrainConfig(steps=10, batch_size=3, learning_rate=1.0)
    steps = {"continuous": 2, "pyramid": 3, "joint": 5}
    assert flops.cvq_run(TINY, train) == 3 * sum(n * flops.cvq_training(TINY, phase) for phase, n in steps.items())


@pytest.mark.parametrize("changes", [*VARIANTS, {"width": 64, "num_points": 256, "num_near_queries": 256}])
def test_activations_are_near_what_autograd_saves(changes: dict) -> None:
    config = dataclasses.replace(TINY, **changes)
    model, batch = CVQ(config), first_batch(config, 8)
    model.set_phase(STEP_OF["joint"], 100)
    with flops.SavedBytes(model) as saved:
        loss, _ = model(batch)
    assert flops.cvq_activations(config, 8) == pytest.approx(saved.total, rel=0.15)
    loss.backward()


def test_a_generator_s_activations_are_near_what_autograd_saves() -> None:
    model = tiny_g3pt(image_encoder="none").train()
    batch = random_batch(model, 8)
    with torch.no_grad():
        text_BC, _ = given_conditions(model, batch)
        aligned_BTA = model.aligned_inputs(batch["codes_BS"])
    blocks, saved = model.car.blocks, 0
    hidden_BSD, condition_BD = model.car.embed(aligned_BTA, 8, 0, len(model.scales)), model.car.condition(text_BC, None)
    for block in blocks:
        with flops.SavedBytes(model) as kept:
            hidden_BSD = block(hidden_BSD, condition_BD, model.car.attended(len(model.scales)))
        saved += kept.total
    assert flops.car_activations(model.config, sum(model.scales), 8) == pytest.approx(saved, rel=0.2)


def test_memory_falls_with_shards_but_for_what_is_gathered_and_bf16_adds_its_copy() -> None:
    assert flops.training_memory(1000, 0).total == 20_000
    assert flops.training_memory(1000, 7, precision="bf16", frozen=10).total == 22_000 + 40 + 7
    blocks = flops.Gathered(block=100, outside=200, narrow=True)
    fp32, bf16 = (
        flops.training_memory(1000, 0, shards=4, gathered=blocks, precision=precision) for precision in ("fp32", "bf16")
    )
    assert (fp32.weights, fp32.gradients, fp32.optimizer, fp32.average) == (
        1000 + 2 * 400 + 800,
        1000 + 2 * 400 + 800,
        2000,
        1000,
    )
    assert (bf16.weights, bf16.gradients) == (1000 + 2 * 200 + 800 + 2 * 200, 1000 + (200 + 400) + 800), (
        "outside is gathered in float32, then cast"
    )
    wide = flops.training_memory(
        1000, 0, shards=4, gathered=dataclasses.replace(blocks, narrow=False), precision="bf16"
    )
    assert wide.weights == fp32.weights + 2 * 1000, (
        "the tokenizer's blocks are gathered in float32, and autocast keeps their copies"
    )
    assert flops.training_memory(1000, 0, gathered=blocks) == flops.training_memory(1000, 0)


@pytest.mark.parametrize(("trained", "casts"), [(True, 1), (False, 3)])
def test_autocast_keeps_the_copies_of_trained_weights_alone(trained: bool, casts: int) -> None:
    """Three calls cast a trained weight once, and keep it; a frozen one every time."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Casts(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen += function is torch.ops.aten._to_copy.default and args[0].shape == (5, 7)
            return function(*args, **(kwargs or {}))

    layer, counted = torch.nn.Linear(7, 5).requires_grad_(trained), Casts()
    with counted, torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            layer(torch.ones(2, 7))
    assert counted.seen == casts


def test_every_preset_is_counted_and_larger_ones_cost_more() -> None:
    costs = [flops.cvq_training(config, "joint") for config, _ in CVQ_PRESETS.values()]
    assert costs == sorted(costs) and costs[0] > 1e8
    assert all(
        flops.cvq_activations(config, 1, "bf16") < flops.cvq_activations(config, 1)
        for config, _ in CVQ_PRESETS.values()
    )
    assert flops.car_training(10, CAR_PRESETS["nano"][0]) == 30 and flops.car_training(10, CAR_PRESETS["1.5B"][0]) == 40


def test_a_step_at_the_largest_width_is_counted_on_the_meta_device() -> None:
    """Forward as the formula says; the step three times that, and each block once more, as it is computed again; what is read wants no gradient."""
    config = dataclasses.replace(CAR_PRESETS["1.5B"][0], depth=2)
    one, two = (count("1.5B", dataclasses.replace(config, depth=depth), CVQ_PRESETS["nano"][0]) for depth in (1, 2))
    assert two["forward_flop"] == two["forward_formula"]
    codec, blocks = CVQ_PRESETS["nano"][0], 2 * (two["forward_flop"] - one["forward_flop"])
    read = flops.linear(
        (two["tokens"] - 1) * codec.width + 257 * 1024 + 1024 + 768, config.width, 1
    )  # aligned tokens, image twice, text
    assert two["step_flop"] == 3 * two["forward_flop"] + blocks - read
    assert two["step_flop"] < two["step_formula"]
    between = (two["tokens"] + 257) * config.width * 4  # a block's input is all that it keeps
    assert two["kept_bytes_fp32"] - one["kept_bytes_fp32"] == between
