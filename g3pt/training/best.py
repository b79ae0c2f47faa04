"""The averaged weights of the best validation record, kept beside the last ones.

How: `fit` calls `consider` after each evaluation. The weights are part of the checkpoint, so that a resumed run keeps
the same ones. One process, and rank 0 of DDP, keeps them in main memory; a sharded model's workers keep their own
slices on the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from g3pt.training.parallel import SingleProcess, shard_like, whole


class Best:
    """`by` returns a record's validation loss, None for a record that does not count; the lowest is the best."""

    def __init__(self, by: Callable[[Mapping[str, float]], float | None]) -> None:
        self.by = by
        self.value, self.samples = math.inf, 0
        self.weights: dict[str, Tensor] = {}  # trained parameters, averaged, and buffers, by their names in the state

    def consider(
        self, record: Mapping[str, float], model: nn.Module, average: Mapping[str, Tensor], parallel: SingleProcess
    ) -> None:
        """Keep the weights if `record` is better than those before it. Every worker must call it."""
        value = self.by(record)
        if not parallel.agree(value is not None and value < self.value) or value is None:
            return
        self.value, self.samples = value, int(record["step"])
        if parallel.is_sharded:
            self.weights = {name: tensor.clone() for name, tensor in averaged_state(model, average).items()}
        elif parallel.rank == 0:
            self.weights = {name: tensor.cpu().clone() for name, tensor in averaged_state(model, average).items()}

    def state(self) -> dict[str, Any]:
        """What `load` takes; empty before the first record that counts."""
        if math.isinf(self.value):
            return {}
        return {"best": {"value": self.value, "samples": self.samples, "weights": self.weights}}

    def load(self, stored: dict[str, Any], average: Mapping[str, Tensor], parallel: SingleProcess) -> None:
        """Go on from the entry `best` of a checkpoint, sharded as `average` is now."""
        self.value, self.samples = float(stored["value"]), int(stored["samples"])
        for name, tensor in stored["weights"].items():
            is_slice = parallel.is_sharded and name in average
            self.weights[name] = shard_like(tensor, average[name]) if is_slice else tensor.to("cpu", copy=True)

    def gather(self, parallel: SingleProcess) -> None:
        """Make the weights whole on rank 0 and forget them elsewhere. Every worker must call it."""
        gathered = {name: whole(tensor).cpu() for name, tensor in self.weights.items()}
        self.weights = gathered if parallel.rank == 0 else {}


def averaged_state(model: nn.Module, average: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of `model` without frozen parameters, with the averages in place of the trained ones."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    return {
        name: average.get(name, tensor).detach() for name, tensor in model.state_dict().items() if name not in frozen
    }
