"""Objects of a split that does not fit memory, read shard by shard, in an order that follows from (seed, epoch) alone.

Two shuffles: each epoch permutes the shards and divides them into groups of a few; the objects of a group are shuffled
together. So an object meets other objects in each epoch. Reading can start at any sample number: groups before it are
counted, not read. A thread reads the next group while this one is used, so two groups are in memory.

Every worker reads every group and uses its share of it. That keeps the order independent of the number of workers, at
the cost that each of them reads everything (`benchmarks/tokenizer.py` measures the rate).
Ours: all of it. Shapes: N objects of the split.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from g3pt.data import datasets, reading
from g3pt.data.batches import global_batches, prefetched
from g3pt.data.selection import ALL, Selection

IN_MEMORY_BYTES = 8 * 2**30  # splits up to this size are read whole by each worker
GROUP_BYTES = 2 * 2**30  # of one group
Row = dict[str, Any]


class ShardedObjects:
    """N objects in shards of `counts` objects; `load(shards)` returns the arrays of some shards, in the given order."""

    def __init__(self, counts: Sequence[int], load: Callable[[list[int]], dict[str, Any]], group_size: int) -> None:
        self.counts, self.load, self.group_size = np.asarray(counts), load, group_size

    def __len__(self) -> int:
        return int(self.counts.sum())

    def groups(self, seed: int, epoch: int) -> list[list[int]]:
        """The shards of each group of one epoch."""
        filled = np.flatnonzero(self.counts)
        order = np.random.default_rng([seed, epoch, len(self)]).permutation(filled).tolist()
        return [order[i : i + self.group_size] for i in range(0, len(order), self.group_size)]

    def rows(
        self, batch_size: int, seed: int, start_sample: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[np.ndarray, list[Row]]]:
        """(Sample numbers, objects) of this worker's share of each global batch, from `start_sample` on,
        without end.
        """
        with contextlib.closing(prefetched(self._loaded(seed, start_sample), 1)) as groups:
            group = next(groups)
            for samples in global_batches(len(self), batch_size, start_sample, rank, world_size):
                rows = []
                for sample in samples.tolist():
                    while sample >= group["end"]:
                        group = next(groups)
                    index = group["order"][sample - group["start"]]
                    rows.append({name: values[index] for name, values in group["arrays"].items()})
                yield samples, rows

    def _loaded(self, seed: int, start_sample: int) -> Iterator[dict[str, Any]]:
        """Groups from the one with `start_sample` on, without end."""
        epoch = start_sample // len(self)
        start = epoch * len(self)
        while True:
            for number, shards in enumerate(self.groups(seed, epoch)):
                count = int(self.counts[shards].sum())
                if start + count > start_sample:
                    order = np.random.default_rng([seed, epoch, len(self), number]).permutation(count)
                    yield {"start": start, "end": start + count, "order": order, "arrays": self.load(shards)}
                start += count
            epoch += 1


@dataclass(frozen=True, kw_only=True)
class Joined:
    """Columns of another table, `num_bytes` per object; `join(arrays, shards)` adds them to the columns
    of some shards, by id.
    """

    num_bytes: int
    join: Callable[[dict[str, Any], list[int]], dict[str, Any]]


def training_objects(
    dataset: datasets.DatasetInfo,
    columns: Sequence[str],
    selection: Selection = ALL,
    *,
    joined: Joined | None = None,
    sized_by: Sequence[str] | None = None,
    in_memory_bytes: int = IN_MEMORY_BYTES,
    group_bytes: int = GROUP_BYTES,
) -> dict[str, Any] | ShardedObjects:
    """The train split: arrays if the columns `sized_by` fit memory, else shards to stream.

    The choice depends on the dataset alone.
    """
    row_bytes = object_bytes(dataset, columns if sized_by is None else sized_by) + (joined.num_bytes if joined else 0)
    if dataset.splits.get("train", 0) * row_bytes <= in_memory_bytes:
        arrays = reading.load_arrays(dataset, "train", columns, selection=selection)
        return joined.join(arrays, sorted(dataset.shards)) if joined else arrays
    shards = sorted(dataset.shards)
    counts = [reading.count_objects(dataset, shard, "train", selection) for shard in shards]
    group_size = max(1, group_bytes // max(1, row_bytes * max(counts)))

    def load(group: list[int]) -> dict[str, Any]:
        names = [shards[i] for i in group]
        arrays = reading.load_shards(dataset, "train", columns, names, sum(counts[i] for i in group), selection)
        return joined.join(arrays, names) if joined else arrays

    return ShardedObjects(counts, load, group_size)


def object_bytes(dataset: datasets.DatasetInfo, columns: Sequence[str]) -> int:
    """Bytes of an object's columns in memory: tensors by their shape, text and views
    by the mean over the shards' footers.
    """
    tensors = {
        name: int(np.prod(shape)) * np.dtype(dtype).itemsize for name, (dtype, shape) in dataset.config.tensors.items()
    }
    others = [name for name in columns if name not in tensors]
    total = sum(reading.stored_bytes(dataset, shard, others) for shard in dataset.shards) if others else 0
    return sum(tensors.get(name, 0) for name in columns) + -(-total // max(1, dataset.counts.get("ok", 0)))
