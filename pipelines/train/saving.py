"""Saves the states of a training run while it goes on: a copy in main memory is taken in the step, a thread writes it.

How: `Saver` copies the tensors that training changes, which is all that the step waits for (`copied_bytes`). A second
state waits until the first is written. Where steps are short and a state is large, `is_due` keeps states apart by time:
rank 0 asks its clock at each step that may save. States below SMALL bytes are written in the step: a thread gains
nothing there. A sharded state is copied and written by all workers, each its own slices, over a process group of its
own, so that its exchanges do not mix with those of the training.

Ours: all of it; torch.distributed.checkpoint's async_save takes no state of one process, and copies frozen tensors.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.train.checkpoints import remove_unfinished, save_checkpoint

if TYPE_CHECKING:
    from torch import Tensor

SMALL = 2**26  # bytes of a state
GPU_MINUTES = 10.0  # between checkpoints of a run on GPUs; on a CPU `checkpoint_every` alone decides


class Saver:
    """Saves to `folder` on this worker. `held` returns the record that the journal holds back.

    `saves` is False for a worker that saves nothing: of a run that is not sharded only rank 0 does.
    """

    def __init__(
        self,
        folder: Path,
        parallel: Any,
        *,
        held: Callable[[], Any],
        num_to_keep: int,
        kept: tuple[int, ...] = (),
        minutes: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self.parallel, self.held = folder, parallel, held
        self.num_to_keep, self.kept, self.minutes, self.clock = num_to_keep, kept, minutes, clock
        self.saves = parallel.rank == 0 or parallel.is_sharded
        self.copied_bytes = 0  # of the last state
        self.group: Any = None
        self._began, self._thread, self._error = clock(), None, None
        if parallel.rank == 0:
            remove_unfinished(folder)
        if parallel.is_sharded:
            from torch.distributed import new_group

            self.group = new_group(backend="gloo")

    def is_due(self) -> bool:
        """Whether the last state is written and was begun long enough ago. Rank 0 speaks for all."""
        if self.parallel.rank > 0:
            return False
        is_written = self._thread is None or not self._thread.is_alive()
        return is_written and self.clock() - self._began >= 60 * self.minutes

    def __call__(self, state: dict[str, Any], samples: int) -> None:
        """Save a state of `fit`. Raises what went wrong with the one before."""
        if not self.saves:
            return
        self.wait()
        self._began = self.clock()
        whole = {"samples": samples, "held": self.held(), "fit": state}
        size = changing_bytes(state)
        self.copied_bytes = size if size >= SMALL else 0
        if size < SMALL:
            self._write(whole)
            return
        self._thread = threading.Thread(target=self._write_later, args=({**whole, "fit": copied(state)},), name="save")
        self._thread.start()

    def wait(self) -> None:
        """Return when the last state is on disk. Raises what went wrong with it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Return when nothing is written any more: for a run that ends by an error of its own."""
        if self._thread is not None:
            self._thread.join()

    def _write_later(self, whole: dict[str, Any]) -> None:
        try:
            self._write(whole)
        except BaseException as error:  # raised again where the training waits
            self._error = error

    def _write(self, whole: dict[str, Any]) -> None:
        save_checkpoint(
            self.folder,
            whole,
            self.num_to_keep,
            self.kept,
            is_sharded=self.parallel.is_sharded,
            rank=self.parallel.rank,
            group=self.group,
        )


def changing_bytes(state: Mapping[str, Any]) -> int:
    """Bytes of this worker's tensors in a state. The best weights do not count: training replaces them, whole."""
    return sum(_local(tensor).nbytes for name in state if name != "best" for tensor in _tensors(state[name]))


def copied(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state with copies in main memory of all that training changes."""
    import torch

    found = {name: value if name == "best" else _copied(value) for name, value in state.items()}
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # the copies are made beside one another
    return found


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _copied(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_copied(inner) for inner in value]
    return _on_host(value) if hasattr(value, "untyped_storage") else value


def _on_host(tensor: Tensor) -> Tensor:
    """A copy in main memory, with the same placement if the tensor is sharded."""
    import torch

    mine = _local(tensor.detach())
    copy = torch.empty_like(mine, device="cpu", pin_memory=mine.is_cuda).copy_(mine, non_blocking=True)
    if mine is tensor or not hasattr(tensor, "_spec"):
        return copy
    return type(tensor)(copy, tensor._spec, requires_grad=False)  # type: ignore[call-arg]


def _local(tensor: Tensor) -> Tensor:
    from g3pt.training.parallel import local

    return local(tensor)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Mapping):
        return [tensor for inner in value.values() for tensor in _tensors(inner)]
    if isinstance(value, list):
        return [tensor for inner in value for tensor in _tensors(inner)]
    return [value] if hasattr(value, "untyped_storage") else []
