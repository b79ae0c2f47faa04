"""How a training worker gets its batches: from a node's cache or not, made in its own process or in several.

No part of a run's identity: the batches are the same.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from g3pt.data.cache import ColumnCache
from g3pt.data.loading import Make, loaded
from g3pt.data.streaming import ShardedObjects
from pipelines.cli.progress import say
from pipelines.train.node_cache import AUTO, OFF

MOST_LOADERS = 8  # --loader-workers auto
LOADER_BYTES = 2**27  # of shared memory that the batches of a process are taken to need


@dataclass(frozen=True, kw_only=True)
class Feed:
    """How the batches come to be."""

    cache: str = OFF  # auto, off or a folder
    loader_workers: int = 0  # processes that make a worker's batches; 0: the worker itself

    def over(self, objects: Any, cache: ColumnCache | None) -> Feed:
        """The same for these objects: without loader processes if each of them would read all of a streamed split."""
        if not self.loader_workers or cache is not None or not isinstance(objects, ShardedObjects):
            return self
        say("  loader processes need a cache for a split that does not fit in memory: the worker makes its batches")
        return dataclasses.replace(self, loader_workers=0)


FEED = Feed()


def fed(make: Make, start_sample: int, feed: Feed) -> Iterator[dict[str, Any]]:
    """The batches of `make` from a sample on, without end."""
    return loaded(make, start_sample, feed.loader_workers)


def loaders(wanted: int | str, on_gpu: bool, local_world_size: int = 1) -> int:
    """The number of loader processes of a worker that `--loader-workers` means.

    auto: none on a CPU; beside a GPU the worker's share of the node's CPUs less two, at most MOST_LOADERS, and no more
    than its share of the free shared memory holds.
    """
    if wanted != AUTO:
        return int(wanted)
    if not on_gpu:
        return 0
    cpus, memory = (count // local_world_size for count in (len(os.sched_getaffinity(0)), _free_shared_memory()))
    return max(0, min(MOST_LOADERS, cpus - 2, memory // LOADER_BYTES))


def _free_shared_memory() -> int:
    """Free bytes of /dev/shm, which is small in many containers."""
    return shutil.disk_usage("/dev/shm").free
