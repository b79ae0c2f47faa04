"""The memory that a training step needs on a worker, measured on a machine that need not have it.

What stays for the whole run (weights, gradients, AdamW's moments, averages) is counted from the number of parameters.
What a forward and a backward pass hold beside it is measured: `rehearse` runs both on torch's fake tensors, which have
shapes and types but no memory, and follows every storage from its allocation until it is freed. So the code itself says
what autograd keeps, what autocast casts, and which temporaries exist at the peak; no formula has to follow a change of
the model.

Ours: all of it. Fake tensors are on the CPU, also where torch has CUDA, and `as_on_gpu` adds what CUDA's autocast
computes in float32 and the CPU's does not. Not counted: the CUDA context, libraries' workspaces, and gaps in the
allocator's blocks.
Shapes: none; models bring their own.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from g3pt.training.parallel import Gathered, bf16_where


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one worker while it trains."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    best: int  # the best weights, where they are on the device
    batch: int  # the worker's share of a batch
    activations: int  # what the forward and the backward pass hold beside all this, at their peak

    @property
    def total(self) -> int:
        """The sum."""
        return self.state + self.batch + self.activations

    @property
    def state(self) -> int:
        """What stays for the whole run."""
        return self.weights + self.gradients + self.optimizer + self.average + self.best


def training_memory(
    trained: int,
    activations: int,
    *,
    frozen: int = 0,
    batch: int = 0,
    shards: int = 1,
    gathered: Gathered | None = None,
    precision: str = "fp32",
    accumulates: bool = True,
    whole_gradients: bool = False,
) -> Memory:
    """Memory of a worker that trains `trained` parameters in `shards` shards; `frozen` ones are whole on each worker.

    `activations` are those of `rehearse`. A worker that `accumulates` gradients of micro-batches, or is one of several,
    holds all of them throughout; otherwise they come while activations go. DDP's buckets are the gradients.
    Of a sharded model a worker holds whole: the current block and the next one, what is in no block, and the gradients
    of one block (as computed, and in float32 for the sum) and of what is in no block. It also holds its share of the
    best weights, which are in main memory otherwise; and `whole_gradients`, where it computes several micro-batches
    before they are exchanged.
    """
    held = -(-trained // shards)
    weights = gradients = 0
    if gathered is not None and shards > 1:
        width = 2 if gathered.narrow and precision == "bf16" else 4
        weights = 2 * width * gathered.block + 4 * gathered.outside
        gradients = (width + 4) * gathered.block + 4 * gathered.outside
        gradients += 4 * trained if whole_gradients else 0
    return Memory(
        weights=4 * (held + frozen) + weights,
        gradients=4 * held + gradients,
        optimizer=8 * held,
        average=4 * held,
        best=4 * held if shards > 1 else 0,
        batch=batch,
        activations=activations if accumulates else max(0, activations - 4 * held),
    )


@dataclass(frozen=True, kw_only=True)
class Activations:
    """What a forward and a backward pass hold at their peak, beside weights, gradients and batch."""

    fixed: int  # whatever the number of objects: weights that autocast has cast, and temporary gradients
    per_object: int
    batch_per_object: int  # bytes of an object in a batch

    def of(self, objects: int) -> int:
        """Bytes for this many objects at once."""
        return self.fixed + objects * self.per_object


def rehearse(
    model: nn.Module, batch_of: Callable[[int], dict[str, Any]], precision: str = "fp32", *, narrow: bool = False
) -> Activations:
    """Measure steps of `model` over one object and over two, on fake tensors.

    `batch_of` returns the batch of a number of objects. The model loses its weights; it may be one without memory (on
    the meta device). `narrow`: FSDP2 gathers the blocks in bf16, so that autocast casts none of their weights.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    for module in model.modules():
        if narrow and getattr(module, "gathered_in_bf16", False):
            module.to(torch.bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.random.fork_rng(devices=[]):
        model._apply(lambda tensor: torch.empty_like(tensor, device="cpu")).train()
        batches = [batch_of(objects) for objects in (1, 2)]
        with as_on_gpu():
            one, two = (live_bytes(model, batch, precision) for batch in batches)
    batch_bytes = sum(value.nbytes for value in batches[0].values() if isinstance(value, Tensor))
    return Activations(fixed=2 * one - two, per_object=two - one, batch_per_object=batch_bytes)


def live_bytes(model: nn.Module, batch: dict[str, Any], precision: str) -> int:
    """Bytes that a forward and a backward pass over `batch` hold at their peak, beside it, weights and gradients."""
    trained = [p for p in model.parameters() if p.requires_grad]
    hooks = [p.register_post_accumulate_grad_hook(_drop_gradient) for p in trained]  # as if added to one that is there
    with LiveBytes() as live:
        with bf16_where(precision == "bf16", torch.device("cpu")):
            loss, _ = model(batch)
        loss.backward()
    for hook in hooks:
        hook.remove()
    return live.peak


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


class LiveBytes(TorchDispatchMode):
    """Follows the storages that are made in its context. `now`: their bytes; `peak`: the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        made = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in given:  # no view of an input
                self._see(leaf.untyped_storage())
        return made

    def _see(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, name: int, num_bytes: int) -> None:
        self._known.discard(name)
        self.now -= num_bytes


@contextlib.contextmanager
def as_on_gpu() -> Iterator[None]:
    """A context in which norms under autocast are computed in float32, as on CUDA;
    autocast on the CPU leaves them in bf16.

    It replaces functions of `torch.nn.functional`, because a TorchFunctionMode does not reach what the backward pass
    recomputes.
    """
    kept = {name: getattr(F, name) for name in ("layer_norm", "group_norm", "normalize")}

    def widened(name: str) -> Callable[..., Tensor]:
        return lambda x, *args, **kwargs: kept[name](_wide(x), *args, **kwargs)

    def normalize(x: Tensor, dim: int) -> Tensor:
        kind = torch.float32 if torch.is_autocast_enabled("cpu") else None
        return x / torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=kind).clamp_min(1e-12)

    try:
        F.layer_norm, F.group_norm, F.normalize = widened("layer_norm"), widened("group_norm"), normalize
        yield
    finally:
        F.layer_norm, F.group_norm, F.normalize = kept.values()


def _wide(x: Tensor) -> Tensor:
    return x.float() if torch.is_autocast_enabled("cpu") else x
