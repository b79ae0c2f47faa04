"""Objects of a split that does not fit memory, read shard by shard, in an order that follows from (seed, epoch) alone.

Two shuffles: each epoch permutes the shards and divides them into groups of a few; the objects of a group are shuffled
together. So an object meets other objects in each epoch. Reading can start at any sample number: groups before it are
counted, not read. A thread reads the next group while this one is used, so two groups are in memory.

Every worker reads every group and uses its share of it, which keeps the order independent of the number of workers.
With a node's cache (g3pt/data/cache.py) a worker touches only what it uses, in the same order.
Ours: all of it. Shapes: N objects of the split.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from g3pt.data import datasets, reading
from g3pt.data.batches import global_batches, prefetched
from g3pt.data.cache import ID, LICENSE, ColumnCache, Mapped, Source
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
        self,
        batch_size: int,
        seed: int,
        start_sample: int,
        rank: int = 0,
        world_size: int = 1,
        turn: int = 0,
        turns: int = 1,
    ) -> Iterator[tuple[np.ndarray, list[Row]]]:
        """(Sample numbers, objects) of this worker's share of each global batch, from `start_sample` on,
        without end. `turn` and `turns` as in `global_batches`.
        """
        start_sample += turn * batch_size
        with contextlib.closing(prefetched(self._loaded(seed, start_sample), 1)) as groups:
            group = next(groups)
            for samples in global_batches(len(self), batch_size, start_sample, rank, world_size, 0, turns):
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
    """Columns of other tables, `num_bytes` per object; `join(arrays, shards)` adds them to the columns
    of some shards, by id. `sources` says where a cache copies the same columns from.
    """

    num_bytes: int
    join: Callable[[dict[str, Any], list[int]], dict[str, Any]]
    sources: Mapping[str, Source] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What is read of a dataset's train split, and how much memory it may take."""

    dataset: datasets.DatasetInfo
    columns: Sequence[str]
    selection: Selection = ALL
    joined: Joined | None = None
    sized_by: Sequence[str] | None = None  # the columns that count for the size, if not all
    in_memory_bytes: int = IN_MEMORY_BYTES
    group_bytes: int = GROUP_BYTES

    @property
    def row_bytes(self) -> int:
        """Bytes of an object in memory."""
        counted = self.columns if self.sized_by is None else self.sized_by
        return object_bytes(self.dataset, counted) + (self.joined.num_bytes if self.joined else 0)

    @property
    def num_bytes(self) -> int:
        """Bytes of the split in memory."""
        return self.dataset.splits.get("train", 0) * self.row_bytes

    @property
    def fits_memory(self) -> bool:
        """Whether the split is read whole. It decides the order of the objects, so it depends on the dataset alone."""
        return self.num_bytes <= self.in_memory_bytes

    def group_size(self, counts: Sequence[int]) -> int:
        """Shards of a streamed group."""
        return max(1, self.group_bytes // max(1, self.row_bytes * max(counts)))

    @property
    def sources(self) -> dict[str, Source]:
        """Where a cache copies each column from."""
        return {name: Source(name) for name in self.columns} | dict(self.joined.sources if self.joined else {})


def training_objects(wanted: Reading, cache: ColumnCache | None = None) -> dict[str, Any] | ShardedObjects:
    """The train split: its columns if they fit memory, else shards to stream. With a filled cache nothing is read
    before it is used, and the objects and their order are the same.
    """
    if cache is not None:
        return _mapped_objects(wanted, cache)
    dataset, columns, selection, joined = wanted.dataset, wanted.columns, wanted.selection, wanted.joined
    shards = sorted(dataset.shards)
    if wanted.fits_memory:
        arrays = reading.load_arrays(dataset, "train", columns, selection=selection)
        return joined.join(arrays, shards) if joined else arrays
    counts = [reading.count_objects(dataset, shard, "train", selection) for shard in shards]

    def load(group: list[int]) -> dict[str, Any]:
        names = [shards[i] for i in group]
        arrays = reading.load_shards(dataset, "train", columns, names, sum(counts[i] for i in group), selection)
        return joined.join(arrays, names) if joined else arrays

    return ShardedObjects(counts, load, wanted.group_size(counts))


def _mapped_objects(wanted: Reading, cache: ColumnCache) -> dict[str, Any] | ShardedObjects:
    shards = sorted(wanted.dataset.shards)
    ids = [cache.open(shard, ID).to_pylist() for shard in shards]
    kept = [_selected(wanted.selection, cache, shard, names) for shard, names in zip(shards, ids, strict=True)]

    def mapped(group: Sequence[int], places: list[int], rows: list[int]) -> dict[str, Any]:
        opened = {name: [cache.open(shards[i], one) for i in group] for name, one in wanted.sources.items()}
        return {name: Mapped(values, places, rows) for name, values in opened.items()}

    def load(group: Sequence[int]) -> dict[str, Any]:
        places = np.repeat(np.arange(len(group)), [len(kept[i]) for i in group])
        return mapped(group, places.tolist(), np.concatenate([kept[i] for i in group]).tolist())

    if not wanted.fits_memory:
        counts = [len(rows) for rows in kept]
        return ShardedObjects(counts, load, wanted.group_size(counts))
    order = sorted((ids[place][row], place, row) for place, rows in enumerate(kept) for row in rows.tolist())
    return mapped(range(len(shards)), [place for _, place, _ in order], [row for *_, row in order])


def _selected(selection: Selection, cache: ColumnCache, shard: int, ids: Sequence[str]) -> np.ndarray:
    """The rows of a shard's copies that the selection keeps."""
    licenses = cache.open(shard, LICENSE).to_pylist()
    kept = [selection.keeps({"id": name, "license": terms}) for name, terms in zip(ids, licenses, strict=True)]
    return np.flatnonzero(kept)


def object_bytes(dataset: datasets.DatasetInfo, columns: Sequence[str]) -> int:
    """Bytes of an object's columns in memory: tensors by their shape, text and views
    by the mean over the shards' footers.
    """
    tensors = {
        name: int(np.prod(shape)) * np.dtype(dtype).itemsize for name, (dtype, shape) in dataset.config.tensors.items()
    }
    others = [name for name in columns if name not in tensors]
    total = sum(reading.stored_bytes(dataset.shard_path(shard), others) for shard in dataset.shards) if others else 0
    return sum(tensors.get(name, 0) for name in columns) + -(-total // max(1, dataset.counts.get("ok", 0)))
