"""Preprocessing and its output folder: a full or read-only disk, foreign files, two runs at once,
and what an edit redoes.
"""

import errno
import multiprocessing
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from g3pt.data import datasets, records
from pipelines.cli.errors import UsageError
from pipelines.cli.failures import safe_on_disk
from pipelines.cluster import storage
from pipelines.preprocess import shards as stage
from pipelines.preprocess.config import PreprocessConfig
from pipelines.preprocess.job import preprocess
from pipelines.preprocess.output import alone_in
from pipelines.preprocess.plan import ShardTask
from pipelines.preprocess.sandbox import Result
from pipelines.runs.locks import LOCK_FILE
from pipelines.tracking import tracked

SMALL = {"resolution": 32, "num_surface": 64, "num_sharp": 32, "num_queries": 256}
NUM_SHARDS = 4


class FakeBox:
    """A sandbox that returns rows without geometry."""

    def call(self, _function: str, arguments: dict) -> Result:
        config, item = PreprocessConfig(**arguments["config"]), arguments["item"]
        row = records.empty_row(item["id"], config.record) | {
            name: item[name] for name in ("source", "path", "content_sha256", "caption")
        }
        row["surface"] += len(item["id"])
        return Result(status="ok", table=records.rows_to_table([row | {"status": "ok"}], config.record))


@pytest.fixture(autouse=True)
def without_geometry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "_sandbox", lambda _: FakeBox())
    monkeypatch.setattr(tracked, "tell", lambda *_: None)
    monkeypatch.setattr("pipelines.preprocess.job._card", lambda _: [])


@pytest.fixture
def meshes(tmp_path: Path) -> Path:
    folder = tmp_path / "meshes"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.obj").write_text(f"v 0 0 {number}\n")
    return folder


def config(meshes: Path, output: Path, **change: object) -> PreprocessConfig:
    return PreprocessConfig(
        **{"source": "dir", "input": str(meshes), "output": str(output), "num_shards": NUM_SHARDS, **SMALL, **change}
    )


def here(tasks: Sequence[ShardTask], settings: PreprocessConfig) -> Iterator[dict]:
    for task in tasks:
        yield stage.process_shard(task, settings)


def run(settings: PreprocessConfig) -> dict[str, tuple[bytes, int]]:
    """Run it; returns content and modification time of each shard."""
    preprocess(settings, here)
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in Path(settings.output).glob("*.parquet")}


# --------------------------------------------------------------------------------------------------------------- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 60 kB; skips the test if it cannot be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def test_a_full_disk_leaves_whole_shards_and_the_same_command_goes_on(
    tmp_path: Path, meshes: Path, small_disk: Path
) -> None:
    whole = run(config(meshes, tmp_path / "whole"))
    target = small_disk / "data"
    with pytest.raises(OSError, match="No space left on device") as caught:
        run(config(meshes, target))
    assert caught.value.errno == errno.ENOSPC and any(
        "shards are finished" in line for line in safe_on_disk(caught.value)
    )
    left = {file.name for file in target.iterdir()}
    assert not [name for name in left if name.startswith(".")] and "dataset.json" not in left
    shards = {name.removesuffix(".parquet") for name in left if name.endswith(".parquet")}
    assert 0 < len(shards) < NUM_SHARDS
    remount(small_disk, "size=10m")
    assert {name: content for name, (content, _) in run(config(meshes, target)).items()} == {
        name: content for name, (content, _) in whole.items()
    }
    assert datasets.open_dataset(target).fingerprint == datasets.open_dataset(tmp_path / "whole").fingerprint


def test_a_read_only_output_is_one_line(meshes: Path, small_disk: Path) -> None:
    remount(small_disk, "ro")
    with pytest.raises(UsageError, match=f"--output {small_disk}/a/data cannot be written: Read-only file system"):
        run(config(meshes, small_disk / "a" / "data"))
    assert not list(small_disk.iterdir())


# -------------------------------------------------------------------------------------------------------- whose folder


@pytest.mark.parametrize("name", ["photo.jpg", "shard-00001.parquet", "shard-1x.parquet", "runs/x.txt"])
def test_other_peoples_files_are_refused_and_left_alone(tmp_path: Path, meshes: Path, name: str) -> None:
    (tmp_path / "data" / name).parent.mkdir(parents=True)
    (tmp_path / "data" / name).write_text("mine")
    with pytest.raises(UsageError, match="contains other files and no dataset .*: choose a new or empty folder"):
        run(config(meshes, tmp_path / "data"))
    assert [
        path.relative_to(tmp_path / "data").as_posix() for path in (tmp_path / "data").rglob("*") if path.is_file()
    ] == [name]


def test_unfinished_shards_of_another_schema_are_refused_and_left_alone(tmp_path: Path, meshes: Path) -> None:
    before = run(config(meshes, tmp_path / "data"))
    (tmp_path / "data" / "dataset.json").unlink()
    for sidecar in (tmp_path / "data").glob("shard-*.json"):
        sidecar.write_text(
            sidecar.read_text().replace(f'"schema_version": {records.SCHEMA_VERSION}', '"schema_version": 1')
        )
    with pytest.raises(UsageError, match="contains shards of schema version 1, this program writes version"):
        run(config(meshes, tmp_path / "data", seed=1))
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "data").glob("*.parquet")} == {
        name: when for name, (_, when) in before.items()
    }


def test_an_unfinished_run_of_ones_own_is_taken_up(tmp_path: Path, meshes: Path) -> None:
    before = run(config(meshes, tmp_path / "data"))
    for file in [*(tmp_path / "data").glob("shard-*.json"), tmp_path / "data" / "dataset.json"]:
        file.unlink()
    (tmp_path / "data" / "notes.txt").write_text("mine")
    assert run(config(meshes, tmp_path / "data")).keys() == before.keys()


# ---------------------------------------------------------------------------------------------------------- two at once


def test_a_second_run_on_the_same_output_is_one_line_and_changes_nothing(tmp_path: Path, meshes: Path) -> None:
    def while_another_starts(tasks: Sequence[ShardTask], settings: PreprocessConfig) -> Iterator[dict]:
        with pytest.raises(
            UsageError, match=rf"another command is working there \(process {os.getpid()} on .*\); wait until it ends"
        ):
            run(config(meshes, tmp_path / "data", seed=1))
        yield from here(tasks, settings)

    preprocess(config(meshes, tmp_path / "data"), while_another_starts)
    assert datasets.open_dataset(tmp_path / "data").counts == {"ok": 12}
    assert not (tmp_path / "data" / LOCK_FILE).exists()


def test_a_shard_that_does_not_arrive_ends_the_run(
    tmp_path: Path, meshes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker on another machine wrote it into a folder of its own: no dataset without its shards."""
    monkeypatch.setattr(storage, "SEEN_WITHIN_S", 0.1)

    def elsewhere(tasks: Sequence[ShardTask], settings: PreprocessConfig) -> Iterator[dict]:
        for task in tasks:
            found = stage.process_shard(task, settings)
            for file in (tmp_path / "data").glob("shard-*"):
                file.unlink()
            yield found | {"node": "10.0.0.2"}

    with pytest.raises(
        storage.NotShared, match=r"shard-0000\d.parquet: worker 10.0.0.2 wrote it, this machine does not see it"
    ):
        preprocess(config(meshes, tmp_path / "data"), elsewhere)
    assert not (tmp_path / "data" / "dataset.json").exists()


def test_a_cluster_that_cannot_be_used_leaves_a_finished_dataset_as_it_is(tmp_path: Path, meshes: Path) -> None:
    run(config(meshes, tmp_path / "data"))
    (meshes / "3.obj").write_text("v 9 9 9\n")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()}

    def no_ray(tasks: Sequence[ShardTask], settings: PreprocessConfig) -> Iterator[dict]:
        raise UsageError("Ray did not start in 3 tries")

    with pytest.raises(UsageError, match="Ray did not start"):
        preprocess(config(meshes, tmp_path / "data"), no_ray)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()} == before


def hold(folder: str, ready: "multiprocessing.synchronize.Event") -> None:
    with alone_in(folder):
        ready.set()
        multiprocessing.Event().wait()


def test_the_lock_of_a_killed_run_holds_nobody_off(tmp_path: Path, meshes: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Event()
    other = spawn.Process(target=hold, args=(str(tmp_path / "data"), ready))
    other.start()
    assert ready.wait(60)
    with pytest.raises(UsageError, match="another command is working there"):
        run(config(meshes, tmp_path / "data"))
    other.kill()
    other.join()
    assert (tmp_path / "data" / LOCK_FILE).exists() and len(run(config(meshes, tmp_path / "data"))) == NUM_SHARDS


def test_folders_made_for_nothing_go_again(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="contains no objects"):
        run(config(tmp_path / "empty", tmp_path / "a" / "b"))
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


# ------------------------------------------------------------------------------------------------------------- edits


def test_exactly_the_shards_of_files_added_edited_and_removed_are_redone(tmp_path: Path, meshes: Path) -> None:
    def touched(*names: str) -> set[str]:
        return {f"{records.shard_name(records.shard_index(name, NUM_SHARDS))}.parquet" for name in names}

    before = run(config(meshes, tmp_path / "data"))
    for change, names in (
        (lambda: (meshes / "new.obj").write_text("v 1 1 1\n"), ("new.obj",)),
        (lambda: (meshes / "3.obj").write_text("v 9 9 9\n"), ("3.obj",)),
        (lambda: (meshes / "5.obj").unlink(), ("5.obj",)),
        (lambda: (meshes / "7.obj").rename(meshes / "8b.obj"), ("7.obj", "8b.obj")),
    ):
        change()
        after = run(config(meshes, tmp_path / "data"))
        assert {name for name in after if after[name] != before.get(name)} == touched(*names) & after.keys(), names
        before = after
    fresh = run(config(meshes, tmp_path / "fresh"))
    assert {name: content for name, (content, _) in fresh.items()} == {
        name: content for name, (content, _) in before.items()
    }
