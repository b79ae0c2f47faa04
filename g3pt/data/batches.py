"""Training batches whose content depends only on (seed, samples seen), so that a resumed run continues them exactly.

Each epoch visits the objects in an order shuffled from (seed, epoch); a batch may span two epochs. Worker r of w takes
every w-th object of each global batch. Points within an object are consecutive stored ones from a start that follows
from (seed, sample number). A generator's batches: pipelines/train/car_batches.py.

Shapes: N objects, P surface points, Q query points; tensors with suffix B are batches.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from g3pt.config import CVQConfig

# Part of a run's hash. Raise it when a seed gives other objects, points or views than before: an unfinished run must
# not be resumed with them. Runs before version 2 have none; they drew query points with replacement and validated on
# the first ids.
DATA_ORDER = 2


def sample_order(num_objects: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the objects in one epoch, (num_objects,)."""
    return np.random.default_rng([seed, epoch, num_objects]).permutation(num_objects)


def global_batches(
    num_objects: int,
    batch_size: int,
    start_sample: int,
    rank: int = 0,
    world_size: int = 1,
    turn: int = 0,
    turns: int = 1,
) -> Iterator[np.ndarray]:
    """Sample numbers of this worker's share of each global batch, from `start_sample` on, without end.

    A process that makes every `turns`-th batch begins with batch `turn`.
    """
    if batch_size % world_size:
        raise ValueError(f"global batch {batch_size} is not a multiple of {world_size} workers")
    if num_objects < 1:
        raise ValueError("no object to train on: the split has no row with status ok")
    start_sample += turn * batch_size
    while True:
        yield np.arange(start_sample + rank, start_sample + batch_size, world_size)
        start_sample += turns * batch_size


def batch_indices(
    num_objects: int,
    batch_size: int,
    seed: int,
    start_sample: int,
    rank: int = 0,
    world_size: int = 1,
    turn: int = 0,
    turns: int = 1,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(Sample numbers, object indices) of this worker's share of each global batch, from `start_sample` on,
    without end. `turn` and `turns` as in `global_batches`.
    """
    orders: dict[int, np.ndarray] = {}
    for samples in global_batches(num_objects, batch_size, start_sample, rank, world_size, turn, turns):
        epochs = samples // num_objects
        for epoch in set(epochs.tolist()) - set(orders):
            orders = {e: o for e, o in orders.items() if e >= epochs[0]} | {
                epoch: sample_order(num_objects, seed, epoch)
            }
        yield samples, np.array([orders[int(e)][s % num_objects] for e, s in zip(epochs, samples, strict=True)])


def unpack_rows(packed: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Bits `rows` of a little-endian packed array, as booleans."""
    return (packed[rows >> 3] >> (rows & 7).astype(np.uint8) & 1).astype(bool)


def window_start(num_stored: int, count: int, rng: np.random.Generator) -> int:
    """A random first row of `count` consecutive ones, wrapping around.

    Stored points are in random order, so such rows are a random sample.
    """
    if count > num_stored:
        raise ValueError(
            f"asked for {count} points of {num_stored} stored; preprocess with more or lower the preset's count"
        )
    return int(rng.integers(num_stored))


def copy_window(values: np.ndarray, start: int, drawn: np.ndarray) -> None:
    """Fill `drawn` with rows of `values` from `start` on, wrapping around. Reads no other rows."""
    first = min(len(drawn), len(values) - start)
    drawn[:first] = values[start : start + first]
    drawn[first:] = values[: len(drawn) - first]


def copy_bits(packed: np.ndarray, start: int, drawn: np.ndarray) -> None:
    """The same for the bits of a little-endian packed array, as booleans."""
    first = min(len(drawn), 8 * len(packed) - start)
    drawn[:first] = _bits(packed, start, start + first)
    drawn[first:] = _bits(packed, 0, len(drawn) - first)


def _bits(packed: np.ndarray, start: int, stop: int) -> np.ndarray:
    whole = np.unpackbits(packed[start >> 3 : (stop + 7) >> 3], bitorder="little")
    return whole[start & 7 : (start & 7) + stop - start]


class SurfaceBatches:
    """CVQ's batches from one split's `surface`, `sharp`, `near_points`, `volume_points` and packed occupancies.

    `objects`: the columns as arrays, or a `g3pt.data.streaming.ShardedObjects`.
    """

    def __init__(
        self, objects: Any, config: CVQConfig, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.objects, self.config, self.batch_size, self.seed = objects, config, batch_size, seed
        self.rank, self.world_size = rank, world_size

    def __call__(self, start_sample: int, turn: int = 0, turns: int = 1) -> Iterator[dict[str, Tensor]]:
        """Batches from sample `start_sample` on, without end. `turn` and `turns` as in `global_batches`."""
        for samples, rows in self._rows(start_sample, turn, turns):
            yield self.batch(samples, rows)

    def batch(self, samples: np.ndarray, rows: list[dict[str, np.ndarray]]) -> dict[str, Tensor]:
        """The batch of these objects. Points have the type in which they are stored, float16."""
        config, size = self.config, len(rows)
        stored = rows[0]["surface"].dtype
        queries = config.num_volume_queries + config.num_near_queries
        drawn = {
            "surface_BP6": np.empty((size, config.num_points, 6), stored),
            "points_BQ3": np.empty((size, queries, 3), stored),
            "occupancy_BQ": np.empty((size, queries), bool),
            "near_BQ": np.tile(np.arange(queries) >= config.num_volume_queries, (size, 1)),
        }
        if config.num_sharp_points:
            drawn["sharp_BP6"] = np.empty((size, config.num_sharp_points, 6), stored)
        for place, (sample, row) in enumerate(zip(samples.tolist(), rows, strict=True)):
            self._draw({name: values[place] for name, values in drawn.items()}, row, sample)
        return {name: torch.from_numpy(values) for name, values in drawn.items()}

    def _rows(
        self, start_sample: int, turn: int, turns: int
    ) -> Iterator[tuple[np.ndarray, list[dict[str, np.ndarray]]]]:
        where = (self.batch_size, self.seed, start_sample, self.rank, self.world_size, turn, turns)
        if not isinstance(self.objects, dict):
            yield from self.objects.rows(*where)
            return
        for samples, indices in batch_indices(len(self.objects["surface"]), *where):
            yield samples, [{name: values[i] for name, values in self.objects.items()} for i in indices]

    def _draw(self, drawn: dict[str, np.ndarray], row: dict[str, np.ndarray], sample: int) -> None:
        """Fill an object's part of a batch."""
        rng, first = np.random.default_rng([self.seed, sample]), self.config.num_volume_queries
        copy_window(
            row["surface"], window_start(len(row["surface"]), self.config.num_points, rng), drawn["surface_BP6"]
        )
        for pool, part in (("volume", slice(0, first)), ("near", slice(first, None))):
            points, inside = drawn["points_BQ3"][part], drawn["occupancy_BQ"][part]
            start = window_start(len(row[f"{pool}_points"]), len(points), rng)
            copy_window(row[f"{pool}_points"], start, points)
            copy_bits(row[f"{pool}_occupancy"], start, inside)
        if "sharp_BP6" in drawn:
            copy_window(row["sharp"], window_start(len(row["sharp"]), len(drawn["sharp_BP6"]), rng), drawn["sharp_BP6"])


# --- rows, and batches made ahead -------------------------------------------------------------------------------------


def rows_of(
    batch: dict[str, Any], num_rows: int, rank: int = 0, world_size: int = 1, device: str | torch.device = "cpu"
) -> dict[str, Any]:
    """The batch with its objects' rows in the global batch, `row_B`, and the size of that batch, `num_rows`."""
    return {**batch, "row_B": torch.arange(rank, num_rows, world_size, device=device), "num_rows": num_rows}


def rand_rows(batch: dict[str, Any], *shape: int) -> Tensor:
    """Uniform numbers (B, *shape) in [0, 1) on the batch's device, which depend on an object's row in the global batch.

    All workers and micro-batches draw for the whole global batch from the step's seed and take their rows, so that an
    object gets the same numbers however the batch is divided. A batch without rows (outside `fit`) counts as whole.
    """
    row_B = batch.get("row_B")
    if row_B is None:
        some = next(iter(batch.values()))
        return torch.rand(len(some), *shape, device=some.device)
    return torch.rand(batch["num_rows"], *shape, device=row_B.device)[row_B]


def prefetched(batches: Iterator[dict[str, Any]], depth: int, pin: bool = False) -> Iterator[dict[str, Any]]:
    """The same batches, up to `depth` of them made ahead by a thread, in pinned memory with `pin`.

    A depth of 0 uses no thread.

    An error of the thread is raised in place of its batch. Closing the iterator ends the thread.
    """
    if depth < 1:
        yield from batches
        return
    ready: queue.Queue[tuple[dict[str, Any] | None, BaseException | None]] = queue.Queue(depth)
    closed = threading.Event()
    thread = threading.Thread(target=_make_ahead, args=(batches, ready, closed, pin), name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            batch, error = ready.get()
            if error is not None:
                raise error
            if batch is None:
                return
            yield batch
    finally:
        closed.set()
        thread.join()
        if hasattr(batches, "close"):
            batches.close()


def _make_ahead(batches: Iterator[dict[str, Any]], ready: queue.Queue[Any], closed: threading.Event, pin: bool) -> None:
    def put(item: tuple[Any, BaseException | None]) -> None:
        while not closed.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return

    try:
        for batch in batches:
            put(({name: value.pin_memory() for name, value in batch.items()} if pin else batch, None))
            if closed.is_set():
                return
        put((None, None))
    except BaseException as error:  # carried to the caller, whatever it is
        put((None, error))
