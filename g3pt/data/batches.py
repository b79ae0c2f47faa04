"""Training batches whose content depends only on (seed, samples seen), so that a resumed run continues them exactly.

Each epoch visits the objects in an order shuffled from (seed, epoch); a batch may span two epochs. Worker r of w takes
every w-th object of each global batch. Points within an object are windows of the stored points (`window`) from (seed,
sample number). A generator's batches: pipelines/train/car_batches.py.

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
    num_objects: int, batch_size: int, start_sample: int, rank: int = 0, world_size: int = 1
) -> Iterator[np.ndarray]:
    """Sample numbers of this worker's share of each global batch, from `start_sample` on, without end."""
    if batch_size % world_size:
        raise ValueError(f"global batch {batch_size} is not a multiple of {world_size} workers")
    if num_objects < 1:
        raise ValueError("no object to train on: the split has no row with status ok")
    while True:
        yield np.arange(start_sample + rank, start_sample + batch_size, world_size)
        start_sample += batch_size


def batch_indices(
    num_objects: int, batch_size: int, seed: int, start_sample: int, rank: int = 0, world_size: int = 1
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(Sample numbers, object indices) of this worker's share of each global batch, from `start_sample` on,
    without end.
    """
    orders: dict[int, np.ndarray] = {}
    for samples in global_batches(num_objects, batch_size, start_sample, rank, world_size):
        epochs = samples // num_objects
        for epoch in set(epochs.tolist()) - set(orders):
            orders = {e: o for e, o in orders.items() if e >= epochs[0]} | {
                epoch: sample_order(num_objects, seed, epoch)
            }
        yield samples, np.array([orders[int(e)][s % num_objects] for e, s in zip(epochs, samples, strict=True)])


def window(values: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` consecutive rows from a random start, wrapping around.

    Stored points are in random order, so this is a random sample.
    """
    return values[window_rows(len(values), count, rng)]


def window_rows(num_stored: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """The row numbers of a `window`."""
    if count > num_stored:
        raise ValueError(
            f"asked for {count} points of {num_stored} stored; preprocess with more or lower the preset's count"
        )
    return (rng.integers(num_stored) + np.arange(count)) % num_stored


class SurfaceBatches:
    """CVQ's batches from one split's `surface`, `sharp`, `near_points`, `volume_points` and packed occupancies.

    `objects`: the columns as arrays, or a `g3pt.data.streaming.ShardedObjects`.
    """

    def __init__(
        self, objects: Any, config: CVQConfig, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.objects, self.config, self.batch_size, self.seed = objects, config, batch_size, seed
        self.rank, self.world_size = rank, world_size

    def __call__(self, start_sample: int) -> Iterator[dict[str, Tensor]]:
        """Batches from sample `start_sample` on, without end."""
        for samples, rows in self._rows(start_sample):
            drawn = [self._draw(row, int(s)) for s, row in zip(samples, rows, strict=True)]
            yield {name: torch.from_numpy(np.stack([one[name] for one in drawn])) for name in drawn[0]}

    def _rows(self, start_sample: int) -> Iterator[tuple[np.ndarray, list[dict[str, np.ndarray]]]]:
        if not isinstance(self.objects, dict):
            yield from self.objects.rows(self.batch_size, self.seed, start_sample, self.rank, self.world_size)
            return
        count = len(self.objects["surface"])
        for samples, indices in batch_indices(
            count, self.batch_size, self.seed, start_sample, self.rank, self.world_size
        ):
            yield samples, [{name: values[i] for name, values in self.objects.items()} for i in indices]

    def _draw(self, row: dict[str, np.ndarray], sample: int) -> dict[str, np.ndarray]:
        config, rng = self.config, np.random.default_rng([self.seed, sample])
        surface = window(row["surface"], config.num_points, rng)
        pools = [("volume", config.num_volume_queries), ("near", config.num_near_queries)]
        points, inside = [], []
        for pool, count in pools:
            stored = row[f"{pool}_points"]
            chosen = window_rows(len(stored), count, rng)
            points.append(stored[chosen])
            inside.append(unpack_rows(row[f"{pool}_occupancy"], chosen))
        batch = {
            "surface_BP6": surface.astype(np.float32),
            "points_BQ3": np.concatenate(points).astype(np.float32),
            "occupancy_BQ": np.concatenate(inside),
            "near_BQ": np.repeat([False, True], [count for _, count in pools]),
        }
        if config.num_sharp_points:
            batch["sharp_BP6"] = window(row["sharp"], config.num_sharp_points, rng).astype(np.float32)
        return batch


def unpack_rows(packed: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Bits `rows` of a little-endian packed array, as booleans."""
    return (packed[rows >> 3] >> (rows & 7).astype(np.uint8) & 1).astype(bool)


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
