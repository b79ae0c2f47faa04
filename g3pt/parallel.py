"""How several processes train one model: data-parallel (DDP) or fully sharded (FSDP2), behind the few things that `fit` asks for.

DDP keeps the whole model on each worker and averages gradients. FSDP2 gives each worker a slice of every trained tensor (weights,
gradients, AdamW's moments, averaged weights) and gathers a block's weights while it computes. Both run on NCCL and on gloo; frozen
tensors (a generator's tokenizer) and buffers stay whole everywhere. A checkpoint holds whole tensors either way, gathered on rank 0,
so that a run can go on under the other one, or alone.

Ours: evaluation and export of a sharded model use a whole copy of it, in main memory between times. That, and the whole
checkpoint, needs 4 and 16 bytes a parameter of rank 0's memory: fine up to some 1e9 parameters; beyond, torch.distributed.checkpoint.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

PARALLEL = ("ddp", "fsdp")


class Alone:
    """One process. `rank` of `world_size` says which share of a global batch a process takes."""

    is_sharded = False

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size

    def shard(self, model: nn.Module) -> None:
        """Called once, with the model on its device and before the optimiser is made."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """What is called in place of `model`; asked for anew whenever the set of trained tensors changes."""
        return model

    def accumulating(self, wrapped: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """Within the block gradients add up and need not be exchanged: more of the batch follows."""
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def holding(self, model: nn.Module, weights: dict[str, Tensor]) -> Iterator[nn.Module]:
        """Within the block, a whole model with these `weights`: `model` itself, which gets its own back afterwards."""
        current = {name: p.detach().clone() for name, p in model.named_parameters()}
        copy_into(model, weights)
        try:
            yield model
        finally:
            copy_into(model, current)

    def finished(self, model: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
        """The whole model with these `weights`, for good."""
        copy_into(model, weights)
        return model.eval()


class DataParallel(Alone):
    """DDP. Every tensor that wants a gradient must get one in each step. Models reduce their own buffers."""

    def wrap(self, model: nn.Module) -> nn.Module:
        from torch.nn.parallel import DistributedDataParallel

        device = next(model.parameters()).device
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the successor of broadcast_buffers does not exist yet, it says itself
            return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None, broadcast_buffers=False)

    def accumulating(self, wrapped: nn.Module) -> contextlib.AbstractContextManager[Any]:
        return wrapped.no_sync()


class FullyShard(Alone):
    """FSDP2: a transformer block is gathered, computed and let go at a time; whatever is in no block belongs to the root."""

    is_sharded = True

    def shard(self, model: nn.Module) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self._whole = copy.deepcopy(model).cpu()
        mesh = init_device_mesh(next(model.parameters()).device.type, (self.world_size,))
        frozen = {p for p in model.parameters() if not p.requires_grad}
        for module in list(model.modules()):
            if isinstance(module, _blocks()) and not frozen.issuperset(module.parameters()):
                fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh, ignored_params=frozen)

    @contextlib.contextmanager
    def holding(self, model: nn.Module, weights: dict[str, Tensor]) -> Iterator[nn.Module]:
        device = next(model.parameters()).device
        try:
            yield self._fill(model, weights).to(device)
        finally:
            self._whole.cpu()

    def finished(self, model: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
        device = next(model.parameters()).device
        return self._fill(model, weights).to(device).eval()

    @torch.no_grad()
    def _fill(self, model: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
        """The whole copy with these weights and the model's state; every worker must call it."""
        for name, p in self._whole.named_parameters():
            p.copy_(whole(weights[name]))
        buffers = dict(model.named_buffers())
        for name, buffer in self._whole.named_buffers():
            buffer.copy_(buffers[name])
        return self._whole


def _blocks() -> tuple[type[nn.Module], ...]:
    from g3pt.layers import CrossBlock, SelfBlock
    from g3pt.transformer import Block

    return Block, CrossBlock, SelfBlock


def make_parallel(kind: str, rank: int, world_size: int) -> Alone:
    """`ddp` or `fsdp` over the process group that exists; with one worker neither is needed."""
    if kind not in PARALLEL:
        raise ValueError(f"unknown parallelism {kind!r}; choose one of {', '.join(PARALLEL)}")
    if world_size == 1:
        return Alone()
    return (DataParallel if kind == "ddp" else FullyShard)(rank, world_size)


# --- tensors that may be sharded --------------------------------------------------------------------------------------


def local(tensor: Tensor) -> Tensor:
    """This worker's part, as a view."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it; every worker must ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole `tensor`, which every worker has, cut as `like` is."""
    if not hasattr(like, "placements"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def assign(parameter: Tensor, value: Tensor) -> None:
    """Set a parameter, sharded or not, to a whole `value`."""
    local(parameter).copy_(local(shard_like(value, parameter)))


@torch.no_grad()
def copy_into(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Set the parameters named in `weights`, which are cut as the model's are."""
    for name, p in model.named_parameters():
        p.copy_(weights[name])


def gathered(state: Any, keep: bool) -> Any:
    """A state dict with whole tensors, in main memory where sharded ones were; with `keep` False their place holds None.

    One tensor is whole at a time, and a worker that does not keep it lets it go; all take part in each.
    """
    if isinstance(state, dict):
        return {key: gathered(value, keep) for key, value in state.items()}
    if isinstance(state, list):
        return [gathered(value, keep) for value in state]
    if isinstance(state, Tensor) and hasattr(state, "full_tensor"):
        value = state.full_tensor()
        return value.cpu() if keep else None
    return state
