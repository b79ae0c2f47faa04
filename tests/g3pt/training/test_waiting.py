"""No step waits for its device: what would read a number from a GPU, or copy one to it, is counted while models train
on the CPU.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from g3pt.config import TrainConfig
from g3pt.data.batches import SurfaceBatches
from g3pt.models.tokenizer import CVQ
from g3pt.training import fit as fitting
from g3pt.training.fit import fit
from g3pt.training.parallel import SingleProcess
from tests.g3pt.models.test_tokenizer import TINY, spheres
from tests.g3pt.tiny import random_batch, tiny_g3pt

STEPS, BATCH = 6, 4
TRAIN = TrainConfig(
    steps=STEPS, batch_size=BATCH, learning_rate=1e-3, log_every=STEPS, eval_every=STEPS, checkpoint_every=STEPS
)
PHASES = {"continuous_share": 0.34, "pyramid_share": 0.33}
READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal.default", "repeat_interleave.Tensor")
TO_HOST = {Tensor.tolist, Tensor.cpu, Tensor.numpy, Tensor.__array__}
COPIES = ("lift_fresh",)  # a tensor made from numbers of the host


class Waits:
    """Counts operations for which a GPU would be waited for, by what the loop is doing: "data", "step" or "record"."""

    def __init__(self) -> None:
        self.doing = "data"
        self.counts: collections.Counter[tuple[str, str]] = collections.Counter()

    def see(self, name: str) -> None:
        self.counts[self.doing, name] += 1

    def of(self, doing: str) -> dict[str, int]:
        return {name: count for (where, name), count in self.counts.items() if where == doing}


class Dispatched(TorchDispatchMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function).removeprefix("aten.")
        masks = name.startswith("index") and any(
            isinstance(index, Tensor) and index.dtype == torch.bool
            for index in (args[1] if isinstance(args[1], (list, tuple)) else ())
        )
        if masks or name.startswith(READS + COPIES):
            self.waits.see(name)
        return function(*args, **(kwargs or {}))


class Called(TorchFunctionMode):
    """The methods that move a tensor to the host without an operation of their own on the CPU."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in TO_HOST:
            self.waits.see(function.__name__)
        return function(*args, **(kwargs or {}))


def waits_of(model: nn.Module, batches: Any, monkeypatch: pytest.MonkeyPatch, **given: Any) -> Waits:
    """What one training waits for; its one record comes after the last step."""
    waits = Waits()

    def told(start_sample: int) -> Iterator[dict[str, Any]]:
        for batch in batches(start_sample):
            waits.doing = "step"
            yield batch
            waits.doing = "data"

    def reading(pending: Any) -> Any:
        waits.doing = "record"
        return read(pending)

    read = fitting.read_steps
    monkeypatch.setattr(fitting, "read_steps", reading)
    with Dispatched(waits), Called(waits):
        fit(model=model, batches=told, config=TRAIN, report=lambda _: None, **given)
    return waits


@pytest.mark.parametrize("quantizer", ["fsq", "lfq"])
def test_no_step_of_a_tokenizer_waits_in_any_phase(quantizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(TINY, **PHASES, quantizer=quantizer)
    phases: list[str] = []

    class Told(CVQ):
        def forward(self, batch: dict[str, Tensor], step: int = 0) -> Any:
            phases.append(self.phase)
            return super().forward(batch, step)

    model = Told(config)
    waits = waits_of(model, SurfaceBatches(spheres(8), config, BATCH, 0), monkeypatch, micro_batch=2, stop=bool)
    assert list(dict.fromkeys(phases)) == ["continuous", "pyramid", "joint"] and bool(model.has_base)
    assert waits.of("step") == {"lift_fresh.default": 1}, "the places of a table of codes, once per run"
    assert waits.of("record").pop("tolist") == 1, "all numbers of all steps move together"


def test_no_step_of_a_generator_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a trained text encoder, images, dropped conditions and fewer scales at first."""
    model = tiny_g3pt(progressive_share=0.5)
    batch = random_batch(model, BATCH)
    waits = waits_of(model, lambda _: itertools.repeat(batch), monkeypatch)
    assert waits.of("step") == {}
    assert waits.of("record") == {"tolist": 1}


def test_a_resumed_tokenizer_knows_its_base_without_reading_it(monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(TINY, **PHASES)
    before = CVQ(config)
    before.set_phase(STEPS, STEPS)
    model = CVQ(config)
    model.load_state_dict(before.state_dict())
    base = model.cqt.base.detach().clone().add_(1.0)
    with torch.no_grad():
        model.cqt.base.copy_(base)
    model.set_phase(STEPS, STEPS)
    assert before.knows_base and model.knows_base and torch.equal(model.cqt.base, base), "it is not set again"
    model.load_state_dict(CVQ(config).state_dict())
    assert not model.knows_base


def test_one_process_hears_a_request_to_stop_at_once() -> None:
    alone = SingleProcess()
    assert alone.agree_soon(True) and not alone.agree_soon(False)
    alone.settle()
