"""Objects of a split that does not fit memory, shard by shard, in an order that follows from (seed, epoch) alone.

Two shuffles: each epoch puts the shards in a new order and takes them in groups of a few; a group's objects are shuffled together. So an
object meets those of its group's other shards, which are others in each epoch. Any sample number can be started at: groups
before it are counted, not read. The next group is read by a thread while this one is used, so two groups lie in memory.

Every worker reads every group and uses its share of it: that keeps the order independent of the number of workers, and costs each of
them the reading of all (`benchmarks/tokenizer.py` measures the rate).
Ours, wholly. Shapes: N objects of the split.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from g3pt import datasets, reading
from g3pt.batches import global_batches, prefetched
from g3pt.selection import ALL, Selection

IN_MEMORY_BYTES = 8 * 2**30  # a split up to so many bytes is read whole by each worker
GROUP_BYTES = 2 * 2**30  # of one group
Row = dict[str, np.ndarray]


class ShardedObjects:
    """N objects in shards of `counts`; `load(shards)` gives the arrays of some, object after object, in the order named."""

    def __init__(self, counts: Sequence[int], load: Callable[[list[int]], dict[str, np.ndarray]], group_size: int) -> None:
        self.counts, self.load, self.group_size = np.asarray(counts), load, group_size

    def __len__(self) -> int:
        return int(self.counts.sum())

    def groups(self, seed: int, epoch: int) -> list[list[int]]:
        """The shards of each group of one epoch."""
        filled = np.flatnonzero(self.counts)
        order = np.random.default_rng([seed, epoch, len(self)]).permutation(filled).tolist()
        return [order[i : i + self.group_size] for i in range(0, len(order), self.group_size)]

    def rows(self, batch_size: int, seed: int, start_sample: int, rank: int = 0, world_size: int = 1) -> Iterator[tuple[np.ndarray, list[Row]]]:
        """Endlessly: (sample numbers, objects) of this worker's share of each global batch, from `start_sample` on."""
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
        """Groups from the one that holds `start_sample` on, without end."""
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


def training_objects(
    dataset: datasets.DatasetInfo,
    columns: Sequence[str],
    selection: Selection = ALL,
    *,
    in_memory_bytes: int = IN_MEMORY_BYTES,
    group_bytes: int = GROUP_BYTES,
) -> dict[str, np.ndarray] | ShardedObjects:
    """The train split: as arrays if it fits, else as shards to stream. Which of the two follows from the dataset alone."""
    shapes = [dataset.config.tensors[name] for name in columns]
    row_bytes = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for dtype, shape in shapes)
    if dataset.splits.get("train", 0) * row_bytes <= in_memory_bytes:
        return reading.load_arrays(dataset, "train", columns, selection=selection)
    shards = sorted(dataset.shards)
    counts = [reading.count_objects(dataset, shard, "train", selection) for shard in shards]
    group_size = max(1, group_bytes // max(1, row_bytes * max(counts)))

    def load(group: list[int]) -> dict[str, np.ndarray]:
        names = [shards[i] for i in group]
        return reading.load_shards(dataset, "train", columns, names, sum(counts[i] for i in group), selection)

    return ShardedObjects(counts, load, group_size)
