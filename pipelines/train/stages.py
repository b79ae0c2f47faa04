"""What a training run needs beside the loop: one object per stage, built alike by a Ray worker, a test or a notebook."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from g3pt.config import TrainConfig

if TYPE_CHECKING:
    from pipelines.runs.identity import RunSpec


class Stage(Protocol):
    """A model with its data: `batches` to train on, `evaluate` on val while training, `final` on test once, `export`."""

    model: nn.Module
    train_config: TrainConfig

    def batches(self, start_sample: int) -> Iterator[dict[str, Tensor]]:
        """This worker's share of each global batch from a sample on."""
        ...

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Validation record."""
        ...

    def final(self, model: nn.Module) -> dict[str, float]:
        """Test record, written once at the end."""
        ...

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the finished model."""
        ...


def build_stage(spec: RunSpec, rank: int = 0, world_size: int = 1) -> Stage:
    """The stage that `spec.stage` names ('cvq' or 'car'), its data loaded."""
    if spec.stage == "cvq":
        from pipelines.train.cvq import CVQStage

        return CVQStage(spec, rank, world_size)
    if spec.stage == "car":
        from pipelines.train.car import CARStage

        return CARStage(spec, rank, world_size)
    raise ValueError(f"unknown stage {spec.stage!r}; there are cvq and car")
