"""Stage, everything a training run needs beside the loop (model, data, evaluation, export), and `build_stage`, which
makes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from g3pt.config import TrainConfig
from pipelines.train.feed import FEED, Feed

if TYPE_CHECKING:
    from pipelines.runs.identity import RunSpec


class Stage(Protocol):
    """A model with its data: `batches` to train on, `evaluate` on the validation split, `final` on the test split,
    `export`.
    """

    model: nn.Module
    train_config: TrainConfig

    def batches(self, start_sample: int) -> Iterator[dict[str, Tensor]]:
        """This worker's share of each global batch, from sample number `start_sample` on."""
        ...

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Metrics of validation objects, computed during training."""
        ...

    def evaluate_raw(self, model: nn.Module) -> dict[str, float]:
        """The validation loss of weights that are not averaged; its keys end in `_raw`."""
        ...

    def best_by(self, record: Mapping[str, float]) -> float | None:
        """The validation loss of a ledger record by which the best weights are chosen; None for records
        that do not count.
        """
        ...

    def final(self, model: nn.Module) -> dict[str, float]:
        """Metrics of test objects, computed once at the end."""
        ...

    def object_losses(self) -> dict[str, Any]:
        """Columns of the test objects' losses (`id`, then numbers) as `final` found them; empty for a stage without."""
        ...

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the finished model to `folder`."""
        ...


def build_stage(spec: RunSpec, rank: int = 0, world_size: int = 1, feed: Feed = FEED) -> Stage:
    """The stage named by `spec.stage` ('cvq' or 'car'), with its data loaded."""
    if spec.stage == "cvq":
        from pipelines.train.cvq import CVQStage

        return CVQStage(spec, rank, world_size, feed)
    if spec.stage == "car":
        from pipelines.train.car import CARStage

        return CARStage(spec, rank, world_size, feed)
    raise ValueError(f"unknown stage {spec.stage!r}; there are cvq and car")
