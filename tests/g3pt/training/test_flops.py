"""Counted operations are those that torch counts on the real passes."""

import dataclasses

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.generator_step import count
from g3pt.config import CAR_PRESETS, CVQ_PRESETS, CVQConfig, TrainConfig
from g3pt.models.diagnostics import diagnose, validation_loss
from g3pt.models.tokenizer import CVQ
from g3pt.training import flops
from tests.g3pt.models.test_tokenizer import TINY, first_batch, spheres

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


@pytest.mark.parametrize("changes", VARIANTS[:2])
def test_an_evaluation_s_operations_are_those_that_torch_counts(changes: dict) -> None:
    config = dataclasses.replace(TINY, **changes)
    model, arrays = CVQ(config).requires_grad_(False), spheres(3, num_points=config.num_encode_points)
    counts = []
    for compute in (lambda: validation_loss(model, arrays), lambda: diagnose(model, arrays)):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            compute()
        counts.append(counter.get_total_flops() / 3)
    assert flops.cvq_evaluation(config, arrays["volume_points"].shape[1]) == (sum(counts), counts[1])


def test_every_preset_is_counted_and_larger_ones_cost_more() -> None:
    costs = [flops.cvq_training(config, "joint") for config, _ in CVQ_PRESETS.values()]
    assert costs == sorted(costs) and costs[0] > 1e8
    assert [
        flops.car_training(10, dataclasses.replace(CAR_PRESETS["1.5B"][0], checkpoint_layers=r)) for r in (0, 1)
    ] == [30, 40]


def test_a_step_at_the_largest_width_is_counted_on_the_meta_device() -> None:
    """Forward as the formula says; the step three times that, and each block once more, as it is computed again;
    what is read wants no gradient.
    """
    config = dataclasses.replace(CAR_PRESETS["1.5B"][0], depth=2, checkpoint_layers=True)
    one, two = (count("1.5B", dataclasses.replace(config, depth=depth), CVQ_PRESETS["nano"][0]) for depth in (1, 2))
    assert two["forward_flop"] == two["forward_formula"]
    codec, blocks = CVQ_PRESETS["nano"][0], 2 * (two["forward_flop"] - one["forward_flop"])
    read = flops.linear(
        (two["tokens"] - 1) * codec.width + 257 * 1024 + 1024 + 768, config.width, 1
    )  # aligned tokens, image twice, text
    assert two["step_flop"] == 3 * two["forward_flop"] + blocks - read
    assert two["step_flop"] < two["step_formula"]
