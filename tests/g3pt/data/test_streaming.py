"""Batches made ahead are the same batches; streamed shards show each object once an epoch, resume anywhere,
whoever reads.
"""

import dataclasses
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from g3pt.data import reading, streaming
from g3pt.data.batches import SurfaceBatches, prefetched, rand_rows, rows_of
from g3pt.data.selection import Selection
from g3pt.data.streaming import ShardedObjects
from tests.g3pt.data.test_records import ok_row, write
from tests.g3pt.models.test_tokenizer import TINY, spheres

COUNTS = [3, 0, 5, 2, 4]
N = sum(COUNTS)


class Shards:
    """Objects that hold their own number, in shards of `COUNTS`; remembers what was loaded."""

    def __init__(self) -> None:
        self.loaded: list[list[int]] = []
        self.first = np.cumsum([0, *COUNTS])

    def __call__(self, shards: list[int]) -> dict[str, np.ndarray]:
        self.loaded.append(shards)
        return {"number": np.concatenate([np.arange(self.first[s], self.first[s + 1]) for s in shards])}


def take(count: int, **given: Any) -> np.ndarray:
    stream = ShardedObjects(COUNTS, Shards(), 2).rows(batch_size=4, seed=0, **given)
    return np.array([[int(row["number"]) for row in rows] for _, rows in itertools.islice(stream, count)])


def test_each_epoch_streams_each_object_once_in_its_own_order() -> None:
    shown = take(3 * N // 2, start_sample=0).reshape(-1)[: 3 * N].reshape(-1, N)
    assert all(sorted(epoch) == list(range(N)) for epoch in shown)
    assert not np.array_equal(shown[0], shown[1])


def test_a_group_s_shards_are_shuffled_together_and_regrouped_each_epoch() -> None:
    objects = ShardedObjects(COUNTS, Shards(), 2)
    groups = [objects.groups(0, epoch) for epoch in range(6)]
    assert all(sorted(itertools.chain(*epoch)) == [0, 2, 3, 4] and max(map(len, epoch)) == 2 for epoch in groups)
    assert len({str(sorted(map(sorted, epoch))) for epoch in groups}) > 1
    shards = np.repeat(range(len(COUNTS)), COUNTS)[take(4, start_sample=0).reshape(-1)[:N]]
    assert (np.diff(shards) != 0).sum() > len(COUNTS), "objects of a group's shards alternate"


@pytest.mark.parametrize("start", [0, 3, N - 1, N, 5 * N + 6])
def test_streaming_from_any_sample_goes_on_in_the_same_order(start: int) -> None:
    whole = take(2 + (start + 12) // 4, start_sample=0).reshape(-1)
    assert np.array_equal(whole[start : start + 8], take(2, start_sample=start).reshape(-1))


def test_groups_before_the_start_are_not_read_and_two_at_most_ahead() -> None:
    load = Shards()
    objects = ShardedObjects(COUNTS, load, 2)
    stream = objects.rows(
        batch_size=2, seed=0, start_sample=3 * N + int(sum(COUNTS[s] for s in objects.groups(0, 3)[0]))
    )
    next(stream)
    stream.close()
    assert load.loaded[0] == objects.groups(0, 3)[1] and len(load.loaded) <= 4


def test_two_workers_stream_what_one_does() -> None:
    whole = take(5, start_sample=2)
    halves = [take(5, start_sample=2, rank=rank, world_size=2) for rank in range(2)]
    assert np.array_equal(whole, np.stack(halves, axis=-1).reshape(5, 4))


def test_a_tokenizer_reads_the_same_points_from_shards_and_from_memory() -> None:
    arrays = {name: values for name, values in spheres(8).items() if name != "eval_surface"}
    (samples, rows) = next(ShardedObjects([8], lambda _: arrays, 1).rows(8, 0, 0))
    batches = SurfaceBatches(ShardedObjects([8], lambda _: arrays, 1), TINY, 8, 0)
    expected = SurfaceBatches(arrays, TINY, 8, 0)
    streamed = next(batches(0))
    for name, values in expected.batch(samples, rows).items():
        assert torch.equal(streamed[name], values), name


def numbers(stop: int | None = None) -> Iterator[dict[str, torch.Tensor]]:
    for i in itertools.count():
        if i == stop:
            raise OSError("the disk is gone")
        yield {"x": torch.tensor([i])}


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_batches_made_ahead_are_the_same_and_end_with_their_iterator(depth: int) -> None:
    stream = prefetched(numbers(), depth)
    assert [int(next(stream)["x"]) for _ in range(6)] == list(range(6))
    stream.close()
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())
    assert [int(batch["x"]) for batch in prefetched(itertools.islice(numbers(), 3), depth)] == [0, 1, 2]


@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_of_the_thread_comes_where_its_batch_would(depth: int) -> None:
    stream = prefetched(numbers(stop=2), depth)
    assert [int(next(stream)["x"]) for _ in range(2)] == [0, 1]
    with pytest.raises(OSError, match="disk is gone"):
        next(stream)


def test_random_rows_do_not_depend_on_how_the_batch_is_cut() -> None:
    def drawn(rank: int, world_size: int) -> torch.Tensor:
        torch.manual_seed(0)
        return rand_rows(rows_of({}, 6, rank, world_size), 3)

    torch.manual_seed(0)
    plain = torch.rand(6, 3)
    assert torch.equal(drawn(0, 1), plain)
    assert torch.equal(torch.stack([drawn(0, 2), drawn(1, 2)], dim=1).reshape(6, 3), plain)
    torch.manual_seed(0)
    assert torch.equal(rand_rows({"x": torch.zeros(6)}, 3), plain)


def test_a_dataset_too_large_for_memory_is_streamed_with_its_licences(tmp_path: Path) -> None:
    rows = [ok_row(f"x{number}") | {"license": "CC0-1.0" if number % 2 else "MIT"} for number in range(40)]
    info = write(tmp_path, rows, num_shards=3)
    columns = ("surface", "near_occupancy")
    wanted = streaming.Reading(dataset=info, columns=columns, selection=Selection(licenses=("MIT",)))
    held = streaming.training_objects(wanted)
    assert isinstance(held, dict)
    row_bytes = 8 * 6 * 2 + 2
    assert wanted.row_bytes == row_bytes
    streamed = streaming.training_objects(dataclasses.replace(wanted, in_memory_bytes=0, group_bytes=20 * row_bytes))
    assert isinstance(streamed, ShardedObjects) and len(streamed) == len(held["surface"]) and streamed.group_size >= 1
    shown = [row for _, some in itertools.islice(streamed.rows(1, 0, 0), len(streamed)) for row in some]
    for name in columns:
        ours, theirs = (
            {np.ascontiguousarray(value).tobytes() for value in values}
            for values in ([row[name] for row in shown], held[name])
        )
        assert ours == theirs, name
    count = reading.count_objects(info, 0, "train")
    named = reading.load_shards(info, "train", ("surface", "caption"), [0], count)
    assert (
        named["caption"] == [row["caption"] for row in reading.read_rows(info, ["caption"], "train", shards=[0])]
        and len(named["surface"]) == count
    )
    for wrong in (count - 1, count + 1):
        with pytest.raises(ValueError, match="changed while it was read"):
            reading.load_shards(info, "train", columns, [0], wrong)


def test_a_shard_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    info = write(tmp_path, [ok_row(f"x{number}") for number in range(6)])
    content = info.shard_path(0).read_bytes()
    for broken in (content[:-40], content[:200] + b"\0" * (len(content) - 208) + content[-8:]):
        info.shard_path(0).write_bytes(broken)
        with pytest.raises(ValueError, match="shard-00000.parquet cannot be read: "):
            reading.load_arrays(info, "train", ("surface",))
