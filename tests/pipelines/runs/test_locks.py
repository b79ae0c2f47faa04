"""One process at a time; a lock ends with its process."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.cli.errors import UsageError
from pipelines.cli.paths import REPOSITORY
from pipelines.runs import locks
from pipelines.runs.locks import Held, Holder, alone_in, is_held, locked

HOLDER = """
import sys, time
from pathlib import Path
from pipelines.runs.locks import locked

with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(file: Path, seconds: float) -> subprocess.Popen[str]:
    """Another process that has the lock."""
    command = [sys.executable, "-c", HOLDER, str(file), str(seconds)]
    found = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert found.stdout.readline() == "locked\n"
    return found


def test_a_lock_is_held_by_one_and_gone_with_it(tmp_path: Path) -> None:
    file = tmp_path / ".lock"
    with holder(file, 60) as other:
        assert is_held(file)
        with pytest.raises(Held), locked(file):
            raise AssertionError("two hold the lock")
        other.kill()
    assert not is_held(file)
    with locked(file):
        assert is_held(file)
    assert not file.exists() and not is_held(file)


@pytest.mark.parametrize("wait_s", [30.0, None])
def test_it_can_be_waited_for(tmp_path: Path, wait_s: float | None) -> None:
    file = tmp_path / ".lock"
    with holder(file, 0.5):
        started = time.monotonic()
        with locked(file, wait_s=wait_s):
            assert 0.1 < time.monotonic() - started < 20
            with pytest.raises(Held), locked(file):  # the file that its holder removed was made anew
                raise AssertionError("two hold the lock")


@pytest.fixture
def without_flock(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A file system on which flock fails with the parametrised error."""

    def refuse(*_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


WITHOUT_FLOCK = pytest.mark.parametrize("without_flock", [errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS], indirect=True)


@WITHOUT_FLOCK
def test_without_flock_a_lock_is_held_by_one_and_gone_with_it(tmp_path: Path, without_flock: None) -> None:
    file = tmp_path / ".lock"
    with locked(file):
        assert is_held(file)
        with pytest.raises(Held) as held, locked(file):
            raise AssertionError("two hold the lock")
        assert held.value.holder.pid == os.getpid() and held.value.holder.host == socket.gethostname()
    assert list(tmp_path.iterdir()) == [] and not is_held(file)
    with locked(file, wait_s=None):
        assert is_held(file)


@WITHOUT_FLOCK
@pytest.mark.parametrize("links", [True, False])
def test_without_flock_a_dead_holder_keeps_nobody_away(
    tmp_path: Path, without_flock: None, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On this host its process tells, on another the time that has passed without a sign of life."""
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
    file = tmp_path / ".lock"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = {"pid": ended.pid, "host": socket.gethostname(), "since": 0.0, "token": "a"}
    file.write_text(json.dumps(here))
    assert not is_held(file)
    with locked(file):
        assert Holder.read(file).pid == os.getpid()
    file.write_text(json.dumps(here | {"host": "elsewhere"}))
    assert is_held(file)
    with pytest.raises(Held), locked(file):
        raise AssertionError("its holder may live")
    os.utime(file, (time.time() - locks.STALE_S - 5,) * 2)
    with locked(file):
        assert is_held(file)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("without_flock", [errno.ENOTSUP], indirect=True)
def test_without_flock_a_holder_shows_that_it_lives(
    tmp_path: Path, without_flock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "BEAT_S", 0.05)
    file = tmp_path / ".lock"
    with locked(file):
        os.utime(file, (0, 0))
        deadline = time.monotonic() + 10
        while file.stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        file.write_text(json.dumps({"pid": 1, "host": "elsewhere", "since": 0.0, "token": "taken"}))
    assert Holder.read(file).token == "taken", "a lock that another process has taken is left to it"


RACER = """
import errno, fcntl, sys, time
from pathlib import Path
from pipelines.runs.locks import locked

def refuse(*_):
    raise OSError(errno.ENOTSUP, "not supported")

fcntl.flock = refuse
lock, marks = Path(sys.argv[1]), Path(sys.argv[2])
for _ in range(5):
    with locked(lock, wait_s=None):
        assert not marks.exists(), "two hold the lock"
        marks.touch()
        time.sleep(0.02)
        marks.unlink()
"""


def test_without_flock_processes_take_turns(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text(
        json.dumps({"pid": 2**22 + 1, "host": socket.gethostname(), "since": 0.0, "token": "dead"})
    )
    command = [sys.executable, "-c", RACER, str(tmp_path / ".lock"), str(tmp_path / "mark")]
    racers = [subprocess.Popen(command, cwd=REPOSITORY) for _ in range(4)]
    assert [racer.wait(timeout=60) for racer in racers] == [0] * 4
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_says_nothing_about_locks_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="Input/output error"), locked(tmp_path / ".lock"):
        raise AssertionError("no lock, but the block runs")
    assert list(tmp_path.iterdir()) == []


def test_a_second_command_is_told_who_works_there(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with holder(tmp_path / ".c.json.lock", 60) as other:
        with (
            pytest.raises(
                UsageError, match=rf"c.json: another command is working there \(process {other.pid} on .*, since 20"
            ),
            alone_in(tmp_path / "c.json", is_file=True),
        ):
            raise AssertionError("two work there")
        other.kill()
    told = pytest.raises(UsageError, match=f"{folder}: another command is working there")
    with alone_in(folder), told, alone_in(folder):
        raise AssertionError("two work there")
    assert [path.name for path in tmp_path.iterdir()] == [".c.json.lock"], "an empty folder goes again"


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), locked(tmp_path / "missing" / ".lock"):
        raise AssertionError("there is no folder")
