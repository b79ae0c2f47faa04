"""Workers of a gloo group, forked from the test process: no import is made twice, and no Ray is started."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.die_with_parent import die_with_parent


def forked(size: int, folder: Path, compute: Callable[[int], Any], timeout_s: float = 120) -> list[Any]:
    """What `compute(rank)` returned on each of `size` workers."""
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_work, args=(rank, size, folder, compute)) for rank in range(size)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout_s)
    for worker in workers:
        worker.kill()  # only if it hangs
    assert [worker.exitcode for worker in workers] == [0] * size
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _work(rank: int, size: int, folder: Path, compute: Callable[[int], Any]) -> None:
    die_with_parent()
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/meet",
            rank=rank,
            world_size=size,
            timeout=datetime.timedelta(seconds=60),
        )
        torch.save(compute(rank), folder / f"{rank}.pt")
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)  # not pytest's own ending
