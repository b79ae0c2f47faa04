"""jobs/status.py: exit codes, the table on a terminal and in a pipe, JSON, and escaping of hostile text."""

import io
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.cli.plain_text import duration, plain, shortened
from pipelines.status import job
from pipelines.status.inventory import find
from pipelines.status.job import StatusFlags
from tests.pipelines import toy_folders as toy
from tests.pipelines.toy_data import write_toy_tokenizer

HOSTILE = "a\nb\x1b[31mred\x1b]0;title\x07\u202eevil\u200f\x85\u2028c\x9bd"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("status")
    return toy.write_everything(folder / "out", write_toy_tokenizer(folder / "export"))


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """A copy to change, with the inputs of the original."""
    return Path(shutil.copytree(finished, tmp_path / "out"))


def call(*args: str | Path) -> int:
    with pytest.raises(SystemExit) as stop:
        main.main(StatusFlags, job.status, example="", args=[str(arg) for arg in args], keep_stdout=True)
    return stop.value.code


def test_exit_codes(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(root) == 0
    (root / "runs/cvq-toy-s0-11111111/_SUCCESS").unlink()
    assert call(root) == 1
    assert capsys.readouterr().err == "", "what is not done is no failure of the command"
    assert call(tmp_path / "nowhere") == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/nowhere: no such folder\n"
    (tmp_path / "empty").mkdir()
    assert call(tmp_path / "empty") == 0
    assert "contains nothing made by this pipeline" in capsys.readouterr().out


def test_through_a_pipe_a_thing_is_one_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = root / "runs/car-toy-s0-22222222"
    (run / "_SUCCESS").unlink()
    toy.write(run / "failure.json", {"error": "ValueError: loss is nan"})
    assert call(root) == 1
    lines = {line.split()[2]: line for line in capsys.readouterr().out.splitlines()}
    assert len(lines) == 7, "the two finished runs of the study are folded in"
    assert (
        lines["runs/car-toy-s0-22222222"].split()
        == (
            f"failed run runs/car-toy-s0-22222222 100% ValueError: loss is nan; 200 samples; next: python "
            f"jobs/train_car.py --output {run_of(root)}"
        ).split()
    )
    assert "14 objects; 2 not ok (failed/corrupt 2)" in lines["data"] and "next" not in lines["data"]


def run_of(root: Path) -> str:
    """The --output in the runs' commands, which the copy keeps."""
    return json.loads((root / "runs/car-toy-s0-22222222/command.json").read_text())["command"].split()[-1]


def test_json_is_the_same(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "meshes/s1.glb").unlink()
    assert call(root, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["root"], found["done"]) == (str(root), False)
    rows = {row["path"]: row for row in found["items"]}
    assert len(rows) == 9 and rows["study/runs/car-5k-s0-33333333"]["parent"] == "study"
    assert rows["meshes"] == {
        "kind": "generation", "path": "meshes", "state": "failed", "done": 3, "total": 4, "unit": "samples",
        "seconds_left": None,
        "working": None, "idle_seconds": None, "reason": "1 of 3 meshes missing, the first is s1.glb", "notes": [],
        "alarm": "", "failures": {"empty": 1},
        "next": rows["meshes"]["next"], "parent": None,
    }  # fmt: skip
    assert rows["meshes"]["next"].startswith("python jobs/generate.py")


def test_data_cannot_steer_the_terminal(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "runs/car-toy-s0-22222222/_SUCCESS").unlink()
    toy.write(root / "runs/car-toy-s0-22222222/failure.json", {"error": HOSTILE})
    (root / "meshes").rename(root / HOSTILE.replace("\x1b]0;title\x07", ""))
    dataset = json.loads((root / "data/dataset.json").read_text())
    toy.write(root / "data/dataset.json", dataset | {"failures": {HOSTILE: 2}})
    toy.note(root / "study", f"python {HOSTILE}")
    (root / "study/_SUCCESS").unlink()
    os.utime(root / "study", (0, 0))
    os.utime(root / "study/command.json", (0, 0))
    assert call(root) == 1
    table = io.StringIO()
    job.print_table(find(root), root, file=table)
    for out in (capsys.readouterr().out, table.getvalue()):
        assert "\\x1b[31mred" in out and "python a\\nb" in out
        assert not set(out) & set(HOSTILE) - set("ab[31mred]0;titlevilcd\n")
        assert all(line.split()[0] not in ("b", "b\\x1b[31mred") for line in out.splitlines() if line.strip())
    assert plain("\ud800") == "\\ud800" and plain("été 日本") == "été 日本"


def test_a_missing_folder_with_a_hostile_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path / "x\x1b[2J\u202e") == 2
    assert "\x1b" not in capsys.readouterr().err


class Terminal(io.StringIO):
    """A stream that looks like a terminal to the command."""

    def isatty(self) -> bool:
        return True


def on_a_terminal(root: Path, columns: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """The output of the command on a terminal of this many columns."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(columns))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Terminal())
        assert call(root) == 0
        return sys.stdout.getvalue()


def test_a_terminal_gets_colours_and_a_table_that_fits_unless_told_not_to(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "meshes").rename(root / ("long-" * 30))
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = on_a_terminal(root, 200, monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    colourless = on_a_terminal(root, 80, monkeypatch)
    assert "\x1b[32mdone" in coloured and "\x1b" not in colourless
    for width, text in ((100, coloured), (80, colourless)):
        rows = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in text.splitlines()]
        assert max(map(len, rows)) <= width and any("…" in row for row in rows) and "7 done" in rows


def test_a_command_is_shown_once_for_all_that_it_brings_further(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cvq-toy-s0-11111111", "car-toy-s0-22222222"):
        toy.write(root / "runs" / name / "failure.json", {"error": "x"})
        (root / "runs" / name / "_SUCCESS").unlink()
        toy.note(root / "runs" / name, "python jobs/quickstart.py " + "--very-long " * 20)
    table = io.StringIO()
    job.print_table(find(root), root, file=table)
    assert table.getvalue().count("python jobs/quickstart.py " + "--very-long " * 19) == 1
    assert "runs/car-toy-s0-22222222, runs/cvq-toy-s0-11111111" in table.getvalue()


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (89, "89 s"), (91, "2 min"), (7200, "2.0 h"), (3e5, "3.5 days")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_a_shortened_path_keeps_its_ends() -> None:
    assert shortened("a/b", 10) == "a/b"
    assert shortened("runs/sweep/car-nano-s0-12345678", 20) == "runs/sw…-s0-12345678"
