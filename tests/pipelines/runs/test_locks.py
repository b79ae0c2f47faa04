"""One process at a time; a lock ends with its process."""

import errno
import fcntl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.cli.paths import REPOSITORY
from pipelines.runs.locks import Held, is_held, locked

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


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="No locks available"), locked(tmp_path / ".lock"):
        raise AssertionError("a lock that is needed was not there")
    with locked(tmp_path / ".lock", needed=False):
        pass
    assert not (tmp_path / ".lock").exists()


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), locked(tmp_path / "missing" / ".lock"):
        raise AssertionError("there is no folder")
