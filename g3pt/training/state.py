"""The state of a training between two steps: what is saved, and how it is read back, whole or sharded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from g3pt.config import TrainConfig
from g3pt.training.average import WeightAverage
from g3pt.training.best import Best
from g3pt.training.parallel import SingleProcess, shard_like
from g3pt.training.step_records import Step, go_on_with_record
from g3pt.training.stored_state import Like

Resume = (
    dict[str, Any] | Callable[[Like], dict[str, Any]]
)  # a state, or a function that reads one into existing tensors


def state_dict(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage, done: int, config: TrainConfig
) -> dict[str, Any]:
    """What resuming after `done` steps needs; the tensors are the model's own, sharded if it is. Frozen parameters are
    left out: whoever makes the model has them.
    """
    frozen = frozen_names(model, average)
    return {
        "steps_done": done,
        "batch_size": config.batch_size,
        "model": {name: tensor for name, tensor in model.state_dict().items() if name not in frozen},
        "optimizer": optimizer.state_dict(),
        "average": average.tensors,
        "average_updates": average.updates,
    }


def load_state(
    resume: Resume,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage,
    config: TrainConfig,
    parallel: SingleProcess,
    best: Best | None = None,
) -> tuple[int, list[Step], list[int]]:
    """Restore a state, sharded as the model is now; returns the number of steps done, the steps so far of the next
    record, and the steps skipped lately.
    """
    state = resume(filled_in_place(model, optimizer, average)) if callable(resume) else resume
    if state["batch_size"] != config.batch_size:
        raise ValueError(
            f"checkpoint was made with a global batch of {state['batch_size']}, this run has {config.batch_size}"
        )
    frozen = frozen_names(model, average)
    model.load_state_dict(
        {
            name: now if name in frozen else shard_like(state["model"][name], now)
            for name, now in model.state_dict().items()
        }
    )
    parameters = numbered(optimizer)
    moments = {int(i): kept for i, kept in state["optimizer"]["state"].items()}
    if not callable(resume):  # else the tensors were made for this optimiser
        moments = {i: {k: own(v, parameters[i]) for k, v in kept.items()} for i, kept in moments.items()}
    optimizer.load_state_dict({**state["optimizer"], "state": moments})
    for name, tensor in average.tensors.items():
        tensor.copy_(shard_like(state["average"][name], tensor))
    average.updates = {name: state["average_updates"][name] for name in average.tensors}
    if best is not None and "best" in state:
        best.load(state["best"], average.tensors, parallel)
    begun = go_on_with_record(state, model, is_first=parallel.rank == 0)
    return int(state["steps_done"]), begun, list(state.get("skipped", []))


def frozen_names(model: nn.Module, average: WeightAverage) -> set[str]:
    """Names of the parameters that are never trained, and so have no average."""
    return {name for name, _ in model.named_parameters() if name not in average.tensors}


def own(moment: Tensor, parameter: Tensor) -> Tensor:
    """A moment of a state as one that an optimiser may keep: sharded as its parameter, and a copy."""
    return shard_like(moment, parameter).clone() if moment.ndim else moment.clone()


def filled_in_place(model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage) -> Like:
    """Maps a stored tensor to the one to fill: the model's, the average's, or a new moment
    that is sharded as its parameter.
    """
    parameters, weights = numbered(optimizer), model.state_dict()

    def place(name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        part, _, rest = name.partition("/")
        if part == "optimizer" and shape:  # optimizer/state/<number>/<moment>
            return torch.zeros_like(parameters[int(rest.split("/")[1])])
        trained = average.tensors.get(rest.partition("/")[2])
        if part == "best" and hasattr(trained, "placements"):  # best/weights/<name>; whole ones stay in main memory
            return torch.zeros_like(trained)
        known = {"model": weights, "average": average.tensors}.get(part, {})
        return known[rest] if rest in known else torch.empty(shape, dtype=dtype)

    return place


def numbered(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The parameters in the order by which the optimiser's state numbers them."""
    return [p for group in optimizer.param_groups for p in group["params"]]
