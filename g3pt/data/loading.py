"""Batches made by processes of their own (torch's DataLoader), so that making them does not hold up the thread that
launches a model's kernels.

How: process k of n makes batches k, k + n, k + 2 n, ...; they arrive in order, in shared memory. An error of a process
is raised unchanged in place of its batch. The processes are forks: what the parent has read is shared with them. They
leave signals to their parent. If that is killed, they end within some seconds (torch's own watch).

Ours: all of it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

Batch = dict[str, Any]
Make = Callable[..., Iterator[Batch]]  # (start_sample, turn, turns) -> every turns-th batch, from batch `turn` on
LIVES_ON_S = 10.0
AHEAD = 2  # batches that a process makes ahead
NO_SHARED_MEMORY = "Bus error"  # how torch says that /dev/shm is full


def loaded(make: Make, start_sample: int, num_processes: int) -> Iterator[Batch]:
    """The batches of `make` from a sample on, made by `num_processes` processes; by none if that is 0.

    Closing the iterator ends the processes.
    """
    if num_processes < 1:
        yield from make(start_sample)
        return
    loader = DataLoader(
        _Turns(make, start_sample),
        batch_size=None,
        num_workers=num_processes,
        prefetch_factor=AHEAD,
        multiprocessing_context="fork",
        worker_init_fn=_begin,
        generator=torch.Generator(),  # the default one belongs to the training
    )
    batches: Any = iter(loader)
    try:
        for batch in batches:
            if isinstance(batch, _Failed):
                raise batch.error
            yield batch
    except RuntimeError as error:
        if NO_SHARED_MEMORY not in str(error):
            raise
        raise OSError(
            f"{num_processes} loader processes need more shared memory than /dev/shm has: give the container more, or "
            f"use fewer of them"
        ) from error
    finally:
        _end(batches)


class _Failed:
    """An error in place of a batch."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class _Turns(IterableDataset):
    """The batches of one process."""

    def __init__(self, make: Make, start_sample: int) -> None:
        self.make, self.start_sample = make, start_sample

    def __iter__(self) -> Iterator[Batch | _Failed]:
        process = get_worker_info()
        assert process is not None
        try:
            yield from self.make(self.start_sample, process.id, process.num_workers)
        except Exception as error:  # carried to the parent, whatever it is
            yield _Failed(error)


def _begin(_: int) -> None:
    """Leave Ctrl-C to the parent, and SIGTERM too, for it may want batches until it has saved. A process that was
    asked to end and that nobody ended, because the iterator was not closed, ends LIVES_ON_S seconds later.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.setitimer(signal.ITIMER_REAL, LIVES_ON_S))
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))


def _end(batches: Any) -> None:
    """End the processes now, not when the iterator is collected: an error's traceback keeps it."""
    batches._shutdown_workers()
    for process in batches._workers:
        if process.is_alive():
            process.kill()
            process.join()
