"""From the numbers of single steps, on their device, to the record of several: read together, averaged over workers.

A state that is saved between two records contains the steps so far of the next one.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from g3pt.training.parallel import means_over_workers
from g3pt.training.skipped import skipped_record

Record = dict[str, float]
Step = tuple[int, Tensor, Tensor, dict[str, Tensor], Tensor]  # number, loss, gradient norm, logs, 1 if it was skipped


class Read(NamedTuple):
    """A step whose numbers are in main memory: loss, gradient norm and logs by name."""

    step: int
    values: dict[str, float]
    is_skipped: bool


def read_steps(pending: list[Step]) -> list[Read]:
    """The steps since the last record, read from their device together."""
    named = [{"loss": loss, "grad_norm": grad_norm, **logs, "skip": skip} for _, loss, grad_norm, logs, skip in pending]
    values = iter(read_scalars([tensor for scalars in named for tensor in scalars.values()]))
    found = [{name: next(values) for name in scalars} for scalars in named]
    return [Read(taken[0], scalars, bool(scalars.pop("skip"))) for taken, scalars in zip(pending, found, strict=True)]


def read_scalars(scalars: list[Tensor]) -> list[float]:
    """The values of scalar tensors of one device, moved to main memory at once."""
    kinds = {tensor.dtype: [i for i, other in enumerate(scalars) if other.dtype == tensor.dtype] for tensor in scalars}
    stacks = [torch.stack([scalars[i] for i in places]).double() for places in kinds.values()]
    values = torch.cat(stacks).tolist() if stacks else []
    order = [i for places in kinds.values() for i in places]
    return [value for _, value in sorted(zip(order, values, strict=True))]


def mean_record(taken: list[Read], device: torch.device) -> Record:
    """Means over the steps since the last record and over workers, and the steps that were skipped,
    which no mean contains.

    A value that only some steps logged is averaged over those.
    """
    sums: dict[str, list[float]] = {}
    skipped = [read.step for read in taken if read.is_skipped]
    for read in taken:
        for name, value in read.values.items() if not read.is_skipped else ():
            sums.setdefault(name, []).append(value)
    if not sums:
        return skipped_record(skipped)
    means = means_over_workers([sum(values) / len(values) for values in sums.values()], device)
    return dict(zip(sums, means, strict=True)) | skipped_record(skipped)


def begun_record(taken: list[Read], model: nn.Module, device: torch.device) -> dict[str, Any]:
    """The steps so far of the next record, over all workers, who must all call it; empty right after a record."""
    if not taken:
        return {}
    return {
        "begun": [[read.step, {} if read.is_skipped else mean_record([read], device)] for read in taken],
        "window": model.window_state() if hasattr(model, "window_state") else {},
    }


def go_on_with_record(state: dict[str, Any], model: nn.Module, is_first: bool) -> list[Step]:
    """The steps that `begun_record` stored.

    Every worker gets the means; only the first gets the counts, as those are summed.
    """
    if state.get("window"):
        model.load_window(state["window"], is_first)
    exact = {"dtype": torch.float64, "device": next(model.parameters()).device}
    found = []
    for step, values in state.get("begun", []):  # a skipped step has no values
        logs = {name: torch.tensor(value, **exact) for name, value in values.items()}
        skip = torch.tensor(float(not values), dtype=torch.float32, device=exact["device"])
        loss, grad_norm = (logs.pop(name, torch.tensor(math.nan, **exact)) for name in ("loss", "grad_norm"))
        found.append((step, loss, grad_norm, logs, skip))
    return found
