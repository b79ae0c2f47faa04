"""Schedules of the learning rate at points of their formulas, and what AdamW is given."""

import dataclasses
import math
from typing import Any

import pytest
from torch import nn

from g3pt.config import TrainConfig
from g3pt.training.optimizer import learning_rate, make_optimizer, set_learning_rate

CONFIG = TrainConfig(steps=100, batch_size=8, learning_rate=2.0, warmup_share=0.1)
WSD = dataclasses.replace(CONFIG, schedule="wsd", cooldown_share=0.2)


@pytest.mark.parametrize(
    ("config", "rates"),
    [
        (CONFIG, {0: 0.2, 4: 1.0, 9: 2.0, 10: 2.0, 32: 1 + math.cos(math.pi * 22 / 90), 55: 1.0, 99: 1 - math.cos(math.pi / 90)}),
        (WSD, {0: 0.2, 9: 2.0, 10: 2.0, 79: 2.0, 80: 2.0, 81: 2 - 2 * math.sqrt(1 / 20), 85: 1.0, 99: 2 - 2 * math.sqrt(19 / 20)}),
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


def test_matrices_are_decayed_and_biases_and_norms_are_not() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    assert by_name(model, dataclasses.replace(CONFIG, weight_decay=0.3), "weight_decay") == {
        "0.weight": 0.3,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
    }


def test_every_step_sets_the_rate_and_the_moments_follow_the_configuration() -> None:
    config = dataclasses.replace(CONFIG, beta2=0.9)
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    optimizer = make_optimizer(model, config)
    set_learning_rate(optimizer, config, 32)
    assert {group["lr"] for group in optimizer.param_groups} == {learning_rate(config, 32)}
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.9)}
