"""How several processes train one model: data-parallel (DDP) or fully sharded (FSDP2), behind the interface
that `fit` uses.

DDP keeps the whole model on each worker and averages gradients. FSDP2 gives each worker a slice of every trained tensor
(weights, gradients, AdamW's moments, averaged weights) and gathers a block's weights while it computes; models mark
their blocks with `ShardUnit`. On several nodes each node has the whole model in slices (HSDP), so that blocks are
gathered within it. Gradients of micro-batches add up on each worker and are exchanged once per step. Both run on NCCL
and on gloo. Frozen tensors (a generator's tokenizer) and buffers stay whole everywhere. All workers store a sharded
state together (g3pt/training/stored_state.py); any number of workers of either kind reads it back.

No worker holds a sharded model whole while it trains: evaluation gathers one block at a time, too. Only the finished
model is gathered, on rank 0 (4 bytes per parameter).
Ours: in a bf16 run the generator's blocks are gathered in bf16: half the traffic and memory; gradients are summed over
workers in float32. What is in no block, and the whole tokenizer, is gathered in float32, because FSDP2 fixes the type
of gradients when it first runs, and the tokenizer's phases change which tensors have one.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

PARALLEL = ("ddp", "fsdp")


class ShardUnit:
    """Mixin of a module whose weights FSDP2 gathers together; models mark their transformer blocks with it."""

    gathered_in_bf16: ClassVar[bool] = False  # in a bf16 run: half the traffic and memory of float32


class SingleProcess:
    """One process. `rank` and `world_size` say which share of a global batch it takes."""

    is_sharded = False

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size

    def shard(self, model: nn.Module, precision: str = "fp32") -> None:
        """Shard `model` in place. Called once, when the model is on its device and before the optimiser is made."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """The module to call instead of `model`; called again whenever the set of trained tensors changes."""
        return model

    def accumulating(self, wrapped: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """A context in which gradients add up without being exchanged, as more of the batch follows."""
        return contextlib.nullcontext()

    def agree(self, said: bool) -> bool:
        """Whether `said` is true on any worker; every worker must call it."""
        return said

    def agree_soon(self, said: bool) -> bool:
        """The same without waiting for other workers: what they said at the call before this one.

        One process gets its answer at once.
        """
        return said

    def settle(self) -> None:
        """Wait for the last answer of `agree_soon`; every worker calls it when it has no more to say."""

    @contextlib.contextmanager
    def holding(self, model: nn.Module, weights: dict[str, Tensor]) -> Iterator[None]:
        """A context in which `model` has these `weights` and any of its methods may be called.

        Meanwhile `weights` has those of the model: no second copy of it is in memory.
        """
        exchange(model, weights)
        try:
            yield
        finally:
            exchange(model, weights)

    def finished(self, model: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
        """The whole model with these `weights` in place of its trained ones, in evaluation mode."""
        copy_into(model, weights)
        return model.eval()


class ProcessGroup(SingleProcess):
    """Workers of one process group."""

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__(rank, world_size)
        # in main memory, so that agreeing does not synchronise a GPU
        self._words = dist.new_group(backend="gloo") if dist.get_backend() == "nccl" else None
        self._asked: tuple[Tensor, dist.Work] | None = None

    def agree(self, said: bool) -> bool:
        yes = torch.tensor(int(said))
        dist.all_reduce(yes, dist.ReduceOp.MAX, group=self._words)
        return bool(yes)

    def agree_soon(self, said: bool) -> bool:
        before, yes = self._asked, torch.tensor(int(said))
        self._asked = yes, dist.all_reduce(yes, dist.ReduceOp.MAX, group=self._words, async_op=True)
        if before is None:
            return False
        before[1].wait()
        return bool(before[0])

    def settle(self) -> None:
        if self._asked is not None:
            self._asked[1].wait()
            self._asked = None


class DataParallel(ProcessGroup):
    """DDP. Every tensor that requires a gradient must get one in each step. Models reduce their own buffers."""

    def wrap(self, model: nn.Module) -> nn.Module:
        from torch.nn.parallel import DistributedDataParallel

        device = next(model.parameters()).device
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # names a successor of broadcast_buffers that does not exist yet
            return DistributedDataParallel(
                model,
                device_ids=[device] if device.type == "cuda" else None,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,  # else the buckets are a second copy of the gradients
            )

    def accumulating(self, wrapped: nn.Module) -> contextlib.AbstractContextManager[Any]:
        return wrapped.no_sync()


class FullyShard(ProcessGroup):
    """FSDP2: one transformer block at a time is gathered, computed and freed; what is in no block belongs
    to the root.

    `per_node` of the workers are on one node. If all nodes have as many, and there are several, the model is sharded
    within a node and the nodes' gradients are averaged (HSDP); else it is sharded over all workers.
    """

    is_sharded = True

    def __init__(self, rank: int, world_size: int, per_node: int = 1) -> None:
        super().__init__(rank, world_size)
        found: list[int] = [0] * world_size
        dist.all_gather_object(found, per_node)
        hybrid = set(found) == {per_node} and 1 < per_node < world_size and world_size % per_node == 0
        self.shards = per_node if hybrid else world_size

    @contextlib.contextmanager
    def accumulating(self, wrapped: nn.Module) -> Iterator[None]:
        wrapped.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            wrapped.set_requires_gradient_sync(True)

    def shard(self, model: nn.Module, precision: str = "fp32") -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        self._shell = shell_of(model)
        # Inputs are not cast: the residual stream between blocks stays float32, as under autocast alone.
        lower = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
        self._in_bf16 = precision == "bf16" and any(
            isinstance(module, ShardUnit) and module.gathered_in_bf16 for module in model.modules()
        )
        sizes, names = (self.world_size // self.shards, self.shards), ("node", "worker")
        first = int(sizes[0] == 1)  # one node needs no dimension
        mesh = init_device_mesh(next(model.parameters()).device.type, sizes[first:], mesh_dim_names=names[first:])
        frozen = {p for p in model.parameters() if not p.requires_grad}
        for block in trained_blocks(model):
            fully_shard(
                block,
                mesh=mesh,
                mp_policy=lower if block.gathered_in_bf16 and self._in_bf16 else MixedPrecisionPolicy(),
            )
        fully_shard(model, mesh=mesh, ignored_params=frozen)

    @contextlib.contextmanager
    def holding(self, model: nn.Module, weights: dict[str, Tensor]) -> Iterator[None]:
        """As for one process.

        What is in no block stays gathered meanwhile: evaluation calls methods without FSDP's hooks.
        """
        with super().holding(model, weights):
            model.unshard()
            try:
                with bf16_where(self._in_bf16, next(model.parameters()).device):  # the type of the gathered weights
                    yield
            finally:
                model.reshard()

    @torch.no_grad()
    def finished(self, model: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
        """The whole model on rank 0, a model without memory elsewhere.

        Other workers hold one whole tensor at a time.
        """
        buffers, found = dict(model.named_buffers()), self._shell
        weights = dict(model.named_parameters()) | weights
        for name, shell in list(found.named_parameters()):
            value = whole(weights[name]).detach()
            if self.rank == 0:
                owner, _, leaf = name.rpartition(".")
                setattr(
                    found.get_submodule(owner), leaf, nn.Parameter(value.clone(), requires_grad=shell.requires_grad)
                )
        for name, _ in list(found.named_buffers()):
            owner, _, leaf = name.rpartition(".")
            setattr(found.get_submodule(owner), leaf, buffers[name])
        return found.eval()


def bf16_where(wanted: bool, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Autocast to bf16 if `wanted`, else nothing."""
    return torch.autocast(device.type, torch.bfloat16) if wanted else contextlib.nullcontext()


def float32_on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """No autocast, whatever surrounds it."""
    return torch.autocast(device.type, enabled=False)


def shell_of(model: nn.Module) -> nn.Module:
    """A copy of `model` whose parameters take no memory.

    Frozen encoders, which are not in its module tree, are shared.
    """
    known: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad) for p in model.parameters()
    }
    known |= {id(encoder): encoder for encoder in getattr(model, "frozen", {}).values()}
    return copy.deepcopy(model, known)


def trained_blocks(model: nn.Module) -> list[Any]:
    """The shard units of `model` that have a trained parameter, in the model's order."""
    return [
        module
        for module in model.modules()
        if isinstance(module, ShardUnit) and any(p.requires_grad for p in module.parameters())
    ]


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """Parameters that FSDP2 gathers: those of the largest block, and those in no block."""

    block: int
    outside: int
    narrow: bool  # blocks are gathered in bf16 in a bf16 run


def gathered(model: nn.Module) -> Gathered:
    """How much of a sharded `model` a worker gathers while it trains."""
    blocks = trained_blocks(model)
    sizes = [sum(p.numel() for p in block.parameters()) for block in blocks]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Gathered(
        block=max(sizes),
        outside=trained - sum(sizes),
        narrow=all(block.gathered_in_bf16 for block in blocks),
    )


def make_parallel(kind: str, rank: int, world_size: int, per_node: int = 1) -> SingleProcess:
    """The parallelism `kind` (ddp or fsdp) over the existing process group, of which this node has `per_node` workers;
    one worker needs neither.
    """
    if kind not in PARALLEL:
        raise ValueError(f"unknown parallelism {kind!r}; choose one of {', '.join(PARALLEL)}")
    if world_size == 1:
        return SingleProcess()
    return DataParallel(rank, world_size) if kind == "ddp" else FullyShard(rank, world_size, per_node)


# --- sums over workers ------------------------------------------------------------------------------------------------
# All use the default group: under DDP and FSDP2 alike each of its workers has its own share of the batch.


def num_workers() -> int:
    """Workers of the process group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_workers(x: Tensor) -> Tensor:
    """The sum of `x` over all workers, in place; every worker must call it."""
    if num_workers() > 1:
        dist.all_reduce(x)
    return x


def mean_over_workers(x: Tensor) -> Tensor:
    """The mean of `x` over all workers; every worker must call it. Overwrites `x`."""
    return sum_over_workers(x) / num_workers() if num_workers() > 1 else x


def means_over_workers(values: list[float], device: torch.device) -> list[float]:
    """The mean of each value over all workers, who must all call it; on `device`, if they talk over GPUs."""
    if num_workers() == 1:
        return values
    return mean_over_workers(torch.tensor(values, dtype=torch.float64, device=device)).tolist()


# --- tensors that may be sharded --------------------------------------------------------------------------------------


def local(tensor: Tensor) -> Tensor:
    """This worker's slice, as a view; the tensor itself if it is not sharded."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor; every worker must call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole `tensor`, which every worker has, sharded as `like` is; a sharded one is returned as it is."""
    if not hasattr(like, "placements") or hasattr(tensor, "placements"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def assign(parameter: Tensor, value: Tensor) -> None:
    """Set a parameter, sharded or not, to a whole `value`."""
    local(parameter).copy_(local(shard_like(value, parameter)))


@torch.no_grad()
def copy_into(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Set parameters of `model` from `weights`, by name; both are sharded in the same way."""
    parameters = dict(model.named_parameters())
    for name, tensor in weights.items():
        parameters[name].copy_(tensor)


@torch.no_grad()
def exchange(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Exchange the values of `weights` and of the parameters with their names, one tensor at a time."""
    parameters = dict(model.named_parameters())
    for name, tensor in weights.items():
        held, other = local(parameters[name]), local(tensor)
        kept = held.clone()
        held.copy_(other)
        other.copy_(kept)
