"""A node's cache gives the batches of a run without one, is filled once, and outlives whoever is killed."""

import dataclasses
import itertools
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from g3pt.data import datasets
from g3pt.data.batches import SurfaceBatches
from g3pt.data.cache import ColumnCache, Source
from g3pt.data.records import RecordConfig, shard_index
from g3pt.data.selection import ALL, Selection
from g3pt.data.streaming import Reading, ShardedObjects, training_objects
from pipelines.train import node_cache as filling
from pipelines.train.cache_uses import remove_unused
from pipelines.train.cvq import TRAIN_COLUMNS
from pipelines.train.node_cache import node_cache
from tests.g3pt.data.test_records import failed_row, ok_row, write
from tests.g3pt.models.test_tokenizer import TINY

FORK = multiprocessing.get_context("fork")
CONFIG = RecordConfig(num_surface=TINY.num_points + 40, num_sharp=8, num_queries=256)
NUM_SHARDS = 5
EMPTY = 3  # a shard without rows


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> datasets.DatasetInfo:
    """Rows of all splits, some of them failed."""
    names = [name for name in map("x{}".format, range(60)) if shard_index(name, NUM_SHARDS) != EMPTY]
    rows = [
        failed_row(name, CONFIG) if number % 9 == 4 else ok_row(name, CONFIG) | {"license": ("MIT", "CC0")[number % 2]}
        for number, name in enumerate(names)
    ]
    return write(tmp_path_factory.mktemp("cached"), rows, CONFIG, NUM_SHARDS)


def reading(info: datasets.DatasetInfo, streamed: bool = False, selection: Selection = ALL) -> Reading:
    wanted = Reading(dataset=info, columns=TRAIN_COLUMNS, selection=selection)
    return dataclasses.replace(wanted, in_memory_bytes=0, group_bytes=20 * wanted.row_bytes) if streamed else wanted


def taken(objects: object, start: int, count: int, rank: int = 0, world_size: int = 1) -> list[dict]:
    stream = SurfaceBatches(objects, TINY, 12, 0, rank, world_size)(start)
    found = list(itertools.islice(stream, count))
    stream.close()
    return found


def equal(ours: list[dict], theirs: list[dict]) -> bool:
    return all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(ours, theirs, strict=True)
    )


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], list[str]]:
    """What was copied by this process and its forks, as "shard column"."""
    log, original = tmp_path / "copies", ColumnCache.fill

    def fill(self: ColumnCache, shard: int, source: Source) -> None:
        original(self, shard, source)
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{shard} {source.name}\n")

    monkeypatch.setattr(ColumnCache, "fill", fill)
    return lambda: log.read_text(encoding="utf-8").splitlines() if log.exists() else []


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("selection", [ALL, Selection(licenses=("MIT",))])
def test_batches_are_those_without_a_cache_for_any_number_of_workers_from_any_sample_on(
    info: datasets.DatasetInfo, streamed: bool, selection: Selection, tmp_path: Path
) -> None:
    wanted = reading(info, streamed, selection)
    plain, cached = training_objects(wanted), training_objects(wanted, node_cache(wanted, str(tmp_path)))
    assert isinstance(cached, ShardedObjects) == isinstance(plain, ShardedObjects) == streamed
    for start in (0, 7, 12 * 30 + 5):
        for world_size in (1, 2, 3, 4):
            for rank in range(world_size):
                where = (start, 3, rank, world_size)
                assert equal(taken(cached, *where), taken(plain, *where)), where


def test_four_workers_of_a_node_copy_each_column_once_and_a_moved_dataset_nothing(
    info: datasets.DatasetInfo, tmp_path: Path, copies: Callable[[], list[str]]
) -> None:
    with FORK.Pool(4) as pool:
        pool.starmap(_fill, [(info, str(tmp_path / "cache"), rank) for rank in range(4)], 1)
    expected = {f"{shard} {name}" for shard in range(NUM_SHARDS) for name in ("id", "license", *TRAIN_COLUMNS)}
    assert sorted(copies()) == sorted(expected)
    moved = datasets.open_dataset(shutil.copytree(info.path, tmp_path / "moved"))
    cache = node_cache(reading(moved), str(tmp_path / "cache"))
    assert len(copies()) == len(expected)
    assert equal(taken(training_objects(reading(moved), cache), 5, 4), taken(training_objects(reading(info)), 5, 4))


def _fill(info: datasets.DatasetInfo, folder: str, rank: int) -> None:
    assert node_cache(reading(info), folder, rank) is not None


def test_a_killed_copy_counts_for_nothing(info: datasets.DatasetInfo, tmp_path: Path) -> None:
    for number, method in enumerate(("replace", "stat"), start=1):  # before the file has its name, and before its stamp
        folder = tmp_path / str(number)
        process = FORK.Process(target=_killed_at, args=(info, folder, method))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        cache = ColumnCache(folder, info)
        left = [path for path in folder.rglob("*") if path.suffix in (".tmp", ".arrow")]
        assert left and not all(cache.has(0, Source(name)) for name in TRAIN_COLUMNS)
        found = training_objects(reading(info), node_cache(reading(info), str(folder)))
        assert equal(taken(found, 0, 4), taken(training_objects(reading(info)), 0, 4))
        assert not list(folder.rglob(".*.tmp"))


def _killed_at(info: datasets.DatasetInfo, folder: Path, method: str) -> None:
    from g3pt.data import cache, storage

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if method == "replace":
        storage.os.replace = die
    else:
        cache._stamp = die
    node_cache(reading(info), str(folder))


def test_a_copy_that_was_cut_or_changed_is_made_again(
    info: datasets.DatasetInfo, tmp_path: Path, copies: Callable[[], list[str]]
) -> None:
    cache = node_cache(reading(info), str(tmp_path))
    assert cache is not None
    cut, touched = (cache._file(shard, Source("surface")) for shard in (0, 1))
    os.truncate(cut, 100)
    os.utime(touched, (1, 1))
    before = len(copies())
    found = training_objects(reading(info), node_cache(reading(info), str(tmp_path)))
    assert copies()[before:] == ["0 surface", "1 surface"]
    assert equal(taken(found, 0, 4), taken(training_objects(reading(info)), 0, 4))


def test_without_room_or_a_folder_of_its_own_a_run_reads_the_dataset_and_says_so_once(
    info: datasets.DatasetInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(filling.shutil, "disk_usage", lambda _: usage._replace(free=int(0.05 * usage.total) + 100))
    assert node_cache(reading(info), str(tmp_path / "full")) is None
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    assert node_cache(reading(info), str(tmp_path / "file")) is None
    monkeypatch.setattr(filling.os, "getuid", lambda: 12345)
    assert node_cache(reading(info), str(tmp_path / "other")) is None
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 3 and "can be used" in told[0] and "another user" in told[2]
    assert all("without" in line for line in told)


def test_auto_copies_only_large_splits(
    info: datasets.DatasetInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling.tempfile, "gettempdir", lambda: str(tmp_path))
    assert node_cache(reading(info), "auto") is None and node_cache(reading(info), "off") is None
    monkeypatch.setattr(filling, "AUTO_BYTES", 1)
    assert node_cache(reading(info), "auto") is not None and node_cache(reading(info), "off") is None
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o077 == 0


def test_a_mapped_column_is_its_file(info: datasets.DatasetInfo, tmp_path: Path) -> None:
    """Its values are read when they are used, not before."""
    cache = node_cache(reading(info), str(tmp_path))
    assert cache is not None
    surface = cache.open(0, Source("surface"))
    file = cache._file(0, Source("surface"))
    assert not surface.flags.owndata and not surface.flags.writeable
    content = bytearray(file.read_bytes())
    place = content.index(surface[0].tobytes())
    with open(file, "r+b") as opened:
        opened.seek(place)
        opened.write(b"\0" * surface[0].nbytes)
    assert not surface[0].any(), "the file itself"


def test_copies_that_no_living_process_uses_go_by_age_and_for_room(
    info: datasets.DatasetInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, other = tmp_path / "cache", dataclasses.replace(info, shards={0: "f" * 64, 1: "e" * 64})
    using = FORK.Process(target=_use_until_killed, args=(info, str(folder)))
    using.start()
    mine = [ColumnCache(folder, info).folder_of(shard) for shard in info.shards]
    while not (folder / "ready").exists():
        assert using.is_alive()
        time.sleep(0.05)
    old, newer = (ColumnCache(folder, other).folder_of(shard) for shard in (0, 1))
    (folder / "somebody's").mkdir()
    for age_days, copies in ((31, old), (2, newer), *((40, copies) for copies in mine)):
        copies.mkdir(exist_ok=True)
        os.utime(copies, (time.time() - 86400 * age_days,) * 2)

    def there() -> list[bool]:
        return [path.exists() for path in (old, newer, *mine)]

    assert remove_unused(folder, lambda: 0) == 1 and there() == [False, True] + [True] * NUM_SHARDS
    assert remove_unused(folder, lambda: 10 * (not newer.exists()), need=10) == 1
    assert there() == [False, False] + [True] * NUM_SHARDS, "in use, whatever is needed"
    using.kill()
    using.join()
    newer.mkdir()
    assert remove_unused(folder, lambda: 0) == NUM_SHARDS and there() == [False, True] + [False] * NUM_SHARDS
    assert not list((folder / "uses").iterdir()) and (folder / "somebody's").exists()

    usage = shutil.disk_usage(tmp_path)

    def almost_full(_: Path) -> object:
        return usage._replace(free=int(0.05 * usage.total) + (100 if newer.exists() else 10**9))

    monkeypatch.setattr(filling.shutil, "disk_usage", almost_full)
    assert node_cache(reading(info), str(folder)) is not None and not newer.exists()
    assert "removed the copies of 1 shards" in capsys.readouterr().err
    assert remove_unused(folder, lambda: 0, need=1) == 0, "this process uses the rest"


def _use_until_killed(info: datasets.DatasetInfo, folder: str) -> None:
    assert node_cache(reading(info), folder) is not None
    (Path(folder) / "ready").touch()
    time.sleep(600)
