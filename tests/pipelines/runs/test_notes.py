"""Notes beside an output: the command at the start and the failure at the end; none for an interruption."""

import sys
from pathlib import Path

import pytest

from pipelines.cli.errors import UsageError
from pipelines.runs.notes import COMMAND_FILE, FAILURE_FILE, read_note, working_in


def test_command_and_failure_are_noted_and_a_new_start_clears_the_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["jobs/preprocess.py", "--output", "my data"])
    with pytest.raises(RuntimeError), working_in(tmp_path / "out", total=7, flags={"limit": 7}):
        raise RuntimeError("two\nlines")
    found = read_note(tmp_path / "out", COMMAND_FILE)
    assert found["command"] == "python jobs/preprocess.py --output 'my data'"
    assert (found["total"], found["unit"], found["flags"]) == (7, "objects", {"limit": 7})
    assert read_note(tmp_path / "out", FAILURE_FILE)["error"] == "RuntimeError: two lines"
    with working_in(tmp_path / "out"):
        assert read_note(tmp_path / "out", FAILURE_FILE) is None


def test_a_login_in_the_command_is_not_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["jobs/x.py", "--ray-address", "ray://me:secret@head:10001"])
    with working_in(tmp_path):
        pass
    assert read_note(tmp_path, COMMAND_FILE)["command"] == "python jobs/x.py --ray-address ray://head:10001"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, UsageError])
def test_an_interruption_is_no_failure(tmp_path: Path, stop: type[BaseException]) -> None:
    with pytest.raises(stop), working_in(tmp_path):
        raise stop("stop")
    assert read_note(tmp_path, FAILURE_FILE) is None


def test_a_torn_note_reads_as_none(tmp_path: Path) -> None:
    (tmp_path / COMMAND_FILE).write_text('{"command": ')
    assert read_note(tmp_path, COMMAND_FILE) is None
