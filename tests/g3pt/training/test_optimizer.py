"""Schedules at points of their formulas, parameter groups by name, and how a step's change
of activations depends on the width.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from g3pt.config import CAR_PRESETS, CVQ_PRESETS, CARConfig, TrainConfig
from g3pt.data.batches import SurfaceBatches
from g3pt.models.car import G3PT
from g3pt.models.tokenizer import CVQ
from g3pt.training.fit import AskedToStop, fit
from g3pt.training.optimizer import learning_rate, make_optimizer, set_learning_rate
from tests.g3pt.models.test_tokenizer import TINY, spheres
from tests.g3pt.tiny import random_batch, tiny_g3pt, tiny_tokenizer

CONFIG = TrainConfig(steps=100, batch_size=8, learning_rate=2.0, warmup_share=0.1)
WSD = dataclasses.replace(CONFIG, schedule="wsd", cooldown_share=0.2)
WIDTHS = (24, 72, 144)
# Layers whose outputs are compared: hidden states, and what is read from them.
WATCHED = {
    "car": ("car.blocks.0.attention", "car.blocks.0", "car.blocks.1.mlp", "car.blocks.1", "car.head.outs.1"),
    "cvq": ("encoder.blocks.0.mlp", "encoder.blocks.0", "decoder.blocks.0"),
}


@pytest.mark.parametrize(
    ("config", "rates"),
    [
        (CONFIG, {0: 0.2, 4: 1.0, 9: 2.0, 10: 2.0, 32: 1 + math.cos(math.pi * 22 / 90), 55: 1.0,
                  99: 1 - math.cos(math.pi / 90)}),
        (WSD, {0: 0.2, 9: 2.0, 10: 2.0, 79: 2.0, 80: 2.0, 81: 2 - 2 * math.sqrt(1 / 20), 85: 1.0,
               99: 2 - 2 * math.sqrt(19 / 20)}),
    ],
)  # fmt: skip
def test_schedules_have_the_values_of_their_formulas(config: TrainConfig, rates: dict[int, float]) -> None:
    assert {step: learning_rate(config, step) for step in rates} == pytest.approx(rates)
    assert all(learning_rate(config, step) > 0 for step in range(config.steps)), "every step trains"


def test_a_warm_up_is_a_share_of_the_steps_or_a_number_of_objects() -> None:
    for steps in (100, 1000):
        assert dataclasses.replace(CONFIG, steps=steps).warmup_steps == steps / 10
        in_objects = dataclasses.replace(CONFIG, steps=steps, warmup_samples=81)
        assert in_objects.warmup_steps == 11 and learning_rate(in_objects, 10) == 2 > learning_rate(in_objects, 9)
    assert learning_rate(dataclasses.replace(CONFIG, warmup_samples=0), 0) == 2
    assert learning_rate(TrainConfig(steps=1, batch_size=1, learning_rate=1.0), 0) == 1, "a run of one step"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"schedule": "linear"}, "unknown schedule 'linear'"),
        ({"warmup_share": 1.5}, r"warmup_share must be a share in \[0, 1\], got 1.5"),
        ({"warmup_samples": -1}, "warmup_samples must not be negative, got -1"),
        ({"warmup_samples": 800}, "100 steps are too few for 100 steps of warm-up and 1 of a falling rate"),
        ({"schedule": "wsd", "warmup_share": 0.9}, "100 steps are too few for 90 steps of warm-up and 20 of"),
        ({"beta2": 1.0}, r"beta2 must be in \[0, 1\), got 1.0"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative, got -0.1"),
        ({"base_width": 0}, "base_width must be positive, got 0"),
    ],
)
def test_invalid_optimisation_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(CONFIG, **changes)


def by_name(model: nn.Module, config: TrainConfig, key: str) -> dict[str, float]:
    """A value of the optimiser's groups, by the name of the parameter."""
    optimizer = make_optimizer(model, config)
    values = {id(p): group[key] for group in optimizer.param_groups for p in group["params"]}
    return {name: values[id(p)] for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", ["car", "cvq"])
def test_only_weights_of_linear_and_convolutional_layers_are_decayed(kind: str) -> None:
    model = tiny_g3pt() if kind == "car" else CVQ(dataclasses.replace(TINY, num_sharp_points=8))
    decay = by_name(model, dataclasses.replace(CONFIG, weight_decay=0.3), "weight_decay")
    assert set(decay.values()) == {0.0, 0.3}
    spared = {name for name, value in decay.items() if value == 0}
    if kind == "car":
        embeddings = {f"car.head.earlier.{k}.weight" for k in range(4)} | {"image_encoder.model.positions"}
        embeddings |= {f"car.{name}" for name in ("start", "levels", "positions")}
        embeddings |= {name for name in decay if "text_encoder" in name and name.endswith("_embedding.weight")}
        assert len(embeddings) == 10, "words and positions of the text encoder"
    else:
        embeddings = {"encoder.queries", "decoder.places", "cqt.base"}
        embeddings |= {f"cqt.downs.{k}.{name}" for k in range(3) for name in ("queries", "key_places")}
        embeddings |= {f"cqt.ups.{k}.{name}" for k in range(3) for name in ("queries", "token_places", "sink")}
    assert spared == embeddings | {name for name in decay if model.get_parameter(name).ndim < 2}


def test_hidden_matrices_learn_at_a_rate_that_falls_with_the_width() -> None:
    config = dataclasses.replace(CONFIG, base_width=8)
    car = by_name(tiny_g3pt(), config, "rate")
    block = ("attention.to_qkv", "attention.to_out", "mlp.0", "mlp.2", "modulation")
    assert {name for name, rate in car.items() if rate != 1} == {
        *(f"car.blocks.{k}.{layer}.weight" for k in range(2) for layer in block), "car.modulation.weight",
        *(f"car.head.{part}.{k}.weight" for k in range(5) for part in ("outs", "mixes")),
    }  # fmt: skip
    assert set(car.values()) == {1.0, 8 / 32}
    cvq = CVQ(TINY)
    fixed = {name for name, rate in by_name(cvq, config, "rate").items() if rate == 1 and name.endswith("weight")}
    linear = {f"{name}.weight" for name, layer in cvq.named_modules() if isinstance(layer, nn.Linear)}
    assert fixed & linear == {
        "encoder.embed.project.weight", "decoder.embed.project.weight", "cqt.last_up.weight",
        *(f"cqt.ups.{k}.embed.weight" for k in range(3)),
    }  # fmt: skip
    assert set(by_name(cvq, CONFIG, "rate").values()) == {1.0}, "without a base width all learn at one rate"


def test_every_step_sets_each_group_s_rate_and_the_moments_follow_the_configuration() -> None:
    config = dataclasses.replace(CONFIG, base_width=8, beta2=0.9)
    optimizer = make_optimizer(tiny_g3pt(), config)
    set_learning_rate(optimizer, config, 32)
    peak = learning_rate(config, 32)
    assert {(group["rate"], group["lr"]) for group in optimizer.param_groups} == {(1.0, peak), (0.25, peak / 4)}
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.9)}


@pytest.mark.parametrize(("table", "nano"), [(CAR_PRESETS, "nano"), (CVQ_PRESETS, "nano")])
def test_the_rates_of_all_presets_hold_at_the_width_of_nano(table: dict[str, tuple], nano: str) -> None:
    assert {train.base_width for _, train in table.values()} == {table[nano][0].width}


def widened(kind: str, width: int) -> tuple[nn.Module, dict[str, Any]]:
    """A model of that width with a batch."""
    if kind == "car":
        torch.manual_seed(0)
        config = CARConfig(depth=2, width=width, num_heads=width // 12, image_encoder="none", drop_both=0.0)
        model: nn.Module = G3PT(config, tiny_tokenizer())
        return model, random_batch(model, 8)
    shares = {"continuous_share": 0.0, "pyramid_share": 0.0}
    wide = dataclasses.replace(TINY, width=width, num_heads=width // 12, **shares)
    return CVQ(wide), next(SurfaceBatches(spheres(8), wide, 8, 0)(0))


def outputs(model: nn.Module, kind: str, batch: dict[str, Any]) -> dict[str, Tensor]:
    """What the watched layers return for the batch."""
    seen: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: seen.setdefault(name, out))
        for name in WATCHED[kind]
    ]
    with torch.no_grad():
        model.eval()(batch, 0)
    for hook in hooks:
        hook.remove()
    return seen


def growth(kind: str, base_width: int | None, steps: int = 3) -> dict[str, float]:
    """How many times more a layer's outputs change within some steps at the largest width than at the smallest."""
    changes: dict[str, list[float]] = {}
    for width in WIDTHS:
        model, batch = widened(kind, width)
        before = outputs(model, kind, batch)
        config = TrainConfig(
            steps=100, batch_size=len(next(iter(batch.values()))), learning_rate=5e-3, warmup_share=0.0,
            weight_decay=0.0,
            base_width=base_width, log_every=100,
        )  # fmt: skip
        asked = iter([False] * (steps - 1) + [True])

        def batches(_: int, batch: dict[str, Any] = batch) -> Iterator[dict[str, Any]]:
            while True:
                yield dict(batch)

        with contextlib.suppress(AskedToStop):
            fit(
                model=model, batches=batches, config=config, report=lambda _: None, stop=lambda asked=asked: next(asked)
            )
        for name, after in outputs(model, kind, batch).items():
            changes.setdefault(name, []).append(float((after - before[name]).square().mean().sqrt()))
    return {name: sizes[-1] / sizes[0] for name, sizes in changes.items()}


@pytest.mark.parametrize("kind", WATCHED)
def test_a_step_changes_activations_equally_at_every_width(kind: str) -> None:
    """muP's coordinate check, over widths of 24 to 144."""
    equal, single = growth(kind, base_width=WIDTHS[0]), growth(kind, base_width=None)
    assert all(0.5 < factor < 1.5 for factor in equal.values()), equal
    assert all(factor > 1.8 for factor in single.values()), single
