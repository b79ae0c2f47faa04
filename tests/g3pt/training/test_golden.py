"""Golden values: every field of every preset, and the loss of 20 steps of both `nano` models.

A change of these is a change of results: it belongs in a commit of its own that says why.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from g3pt.config import CAR_PRESETS, CVQ_PRESETS, TrainConfig, car_preset, cvq_preset
from g3pt.data.batches import SurfaceBatches
from g3pt.models.car import G3PT
from g3pt.models.tokenizer import CVQ
from g3pt.training.fit import fit
from tests.g3pt.models.test_tokenizer import spheres
from tests.g3pt.tiny import random_batch

PRESETS = Path(__file__).with_name("presets.txt")
STEPS, BATCH = 20, 16


def preset_lines() -> list[str]:
    """One line for each preset: its name and all of its fields."""
    tables = {"cvq": CVQ_PRESETS, "car": CAR_PRESETS}
    return [
        f"{stage} {name} {json.dumps([dataclasses.asdict(config) for config in preset])}"
        for stage, table in tables.items()
        for name, preset in table.items()
    ]


def test_every_field_of_every_preset_is_as_written_down() -> None:
    assert preset_lines() == PRESETS.read_text().splitlines()


def losses(model: torch.nn.Module, batches: Any, train: TrainConfig) -> list[float]:
    """Mean loss of each half of the steps."""
    records: list[dict[str, float]] = []
    train = dataclasses.replace(train, steps=STEPS, batch_size=BATCH, log_every=STEPS // 2, eval_every=STEPS)
    fit(model=model, batches=batches, config=train, report=records.append)
    return [record["loss"] for record in records]


def test_twenty_steps_of_the_nano_tokenizer_give_the_golden_loss() -> None:
    model, train = cvq_preset("nano")
    batches = SurfaceBatches(spheres(32, num_points=4096), model, BATCH, seed=0)
    assert losses(CVQ(model), batches, train) == pytest.approx([0.9853432, 0.8807384], rel=1e-3)


def test_twenty_steps_of_the_nano_generator_give_the_golden_loss() -> None:
    torch.manual_seed(0)
    model, train = car_preset("nano")
    generator = G3PT(model, CVQ(cvq_preset("nano")[0]))
    batch = random_batch(generator, BATCH)
    assert losses(generator, lambda _: iter([batch] * STEPS), train) == pytest.approx(
        [15.4565529, 14.4461035], rel=1e-3
    )
