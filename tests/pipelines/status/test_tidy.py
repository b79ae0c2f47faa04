"""jobs/tidy.py: what it removes, what it keeps, and that nothing of an output at work is touched."""

import fcntl
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.status import tidy as tidying
from pipelines.status.inventory import find
from pipelines.status.tidy import TidyFlags, dead_sessions, tidy
from tests.pipelines import toy_folders as toy
from tests.pipelines.toy_data import write_toy_tokenizer

CVQ = "runs/cvq-toy-s0-11111111"
STUDY_RUN = "study/runs/car-5k-s0-33333333"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    export = write_toy_tokenizer(tmp_path / "export")
    return toy.write_everything(tmp_path / "out", export)


@pytest.fixture(scope="module")
def dead() -> Iterator[int]:
    """The id of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    yield child.pid


def checkpoint(run: Path, samples: int, size: int = 1000) -> Path:
    path = run / "checkpoints" / f"samples-{samples:012d}.pt"
    path.write_bytes(b"x" * size)
    return path


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def test_finished_outputs_have_no_leftovers(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(root)
    tidy(TidyFlags(dir=str(root)))
    assert said(capsys) == "removed 0 files and folders, 0 B\n"
    assert files(root) == before


def test_each_kind_of_leftover_goes_and_nothing_else(root: Path, dead: int, capsys: pytest.CaptureFixture[str]) -> None:
    before, states = files(root), {item.path: item.state for item in find(root)}
    old = [checkpoint(root / CVQ, 120), checkpoint(root / CVQ, 200)]
    torn = root / CVQ / "checkpoints" / ".samples-000000000160.pt.1"
    torn.write_bytes(b"y" * 50)
    scratch = root / "study" / "ray" / "a" / "tuner.pkl"
    scratch.parent.mkdir(parents=True)
    scratch.write_bytes(b"z" * 500)
    half = root / "data" / f".shard-00000.parquet.{dead}.tmp"
    half.write_bytes(b"w" * 7)
    left = [*old, torn, scratch, half]
    tidy(TidyFlags(dir=str(root), dry_run=True))
    printed = said(capsys)
    assert f"checkpoints of a finished run: {CVQ} (2)" in printed and "Ray's own files: study (1)" in printed
    assert printed.splitlines()[-1] == "would remove 5 files and folders, 2.5 KiB"
    assert all(path.exists() for path in left), "a dry run removes nothing"
    tidy(TidyFlags(dir=str(root)))
    assert said(capsys).splitlines()[-1] == "removed 5 files and folders, 2.5 KiB"
    assert files(root) == before
    assert {item.path: item.state for item in find(root)} == states


def test_a_shard_of_another_dataset_goes_and_is_made_again_later(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = next((root / "data" / "derived").iterdir())
    assert len(list(table.glob("*.parquet"))) == 2
    toy.other_bytes(root / "data")
    tidy(TidyFlags(dir=str(root)))
    assert "derived shards of another version of the dataset: data/derived/" in said(capsys)
    assert [path.name for path in table.glob("*.parquet")] == ["shard-00001.parquet"]


def test_a_dataset_without_dataset_json_keeps_its_tables(root: Path) -> None:
    (root / "data" / "dataset.json").unlink()
    table = next((root / "data" / "derived").iterdir())
    tidy(TidyFlags(dir=str(root)))
    assert len(list(table.glob("*.parquet"))) == 2


def test_runs_of_a_study_keep_their_branch_points(root: Path) -> None:
    kept = [checkpoint(root / STUDY_RUN, samples) for samples in (40, 120, 200)]
    tidy(TidyFlags(dir=str(root)))
    assert all(path.exists() for path in kept)


def test_an_unfinished_run_keeps_its_checkpoints_and_loses_what_was_torn(root: Path) -> None:
    run = root / CVQ
    (run / "_SUCCESS").unlink()
    kept = [checkpoint(run, 40), checkpoint(run, 80)]
    torn = run / "checkpoints" / ".gone-samples-000000000040.dcp"
    torn.mkdir()
    then = time.time() - 3 * 3600
    for path in (run, run / "metrics.jsonl", run / "command.json", run / "checkpoints"):
        os.utime(path, (then, then))
    tidy(TidyFlags(dir=str(root)))
    assert all(path.exists() for path in kept) and not torn.exists()


@pytest.mark.parametrize("lock", [".lock", ".worker.lock"])
def test_nothing_of_an_output_at_work_is_touched(
    root: Path, dead: int, lock: str, capsys: pytest.CaptureFixture[str]
) -> None:
    left = [checkpoint(root / CVQ, 40), root / CVQ / f".config.json.{dead}.tmp"]
    left[1].touch()
    with open(root / CVQ / lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        tidy(TidyFlags(dir=str(root)))
    assert f"in use, skipped: {CVQ}" in said(capsys) and all(path.exists() for path in left)
    tidy(TidyFlags(dir=str(root)))
    assert not any(path.exists() for path in left)


def test_the_runs_of_a_study_at_work_are_not_touched(root: Path) -> None:
    scratch = root / STUDY_RUN / "ray"
    scratch.mkdir()
    with open(root / "study" / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        tidy(TidyFlags(dir=str(root)))
        assert scratch.exists()
    tidy(TidyFlags(dir=str(root)))
    assert not scratch.exists()


def test_a_temporary_file_of_a_living_process_stays_for_a_day(root: Path) -> None:
    mine = root / "data" / f".dataset.json.{os.getpid()}.tmp"
    mine.touch()
    tidy(TidyFlags(dir=str(root)))
    assert mine.exists()
    os.utime(mine, (0, 0))
    tidy(TidyFlags(dir=str(root)))
    assert not mine.exists()


def test_a_link_is_removed_and_what_it_points_to_stays(root: Path, tmp_path: Path) -> None:
    """`ray` as a link to a scratch disk is somebody's choice."""
    other = tmp_path / "scratch"
    other.mkdir()
    (other / "mine").touch()
    (root / CVQ / "ray").symlink_to(other)
    tidy(TidyFlags(dir=str(root)))
    assert (other / "mine").exists() and (root / CVQ / "ray").is_symlink()


def test_hard_links_free_nothing(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.link(checkpoint(root / CVQ, 40), tmp_path / "other")
    tidy(TidyFlags(dir=str(root)))
    assert said(capsys).splitlines()[-1] == "removed 1 files and folders, 0 B"


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for a socket's."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def test_sessions_of_ray_that_live_stay(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(short_folder))
    names = ["session_2026-01-01_00-00-00_000001_1", "session_2026-01-01_00-00-00_000002_2", "session_latest", "other"]
    for name in names:
        (short_folder / "ray" / name / "sockets").mkdir(parents=True)
    code = "import time; print(flush=True); time.sleep(60)"
    named = subprocess.Popen([sys.executable, "-c", code, f"--session={names[0]}"], stdout=subprocess.PIPE)
    assert named.stdout is not None and named.stdout.readline(), "its command line can be read only once it runs"
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(short_folder / "ray" / names[1] / "sockets" / "raylet"))
            server.listen()
            assert dead_sessions() == []
        assert [path.name for path in dead_sessions()] == [names[1]]
    finally:
        named.kill()
        named.communicate()
    assert [path.name for path in dead_sessions()] == names[:2]


def test_no_folder_is_bad_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main.main(TidyFlags, tidying.tidy, example="", args=[str(tmp_path / "none")], keep_stdout=True)
    assert stop.value.code == 2 and "no such folder" in capsys.readouterr().err
