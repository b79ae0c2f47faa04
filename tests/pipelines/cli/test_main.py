"""Exit codes, one clear line, and the last line of stdout."""

import dataclasses
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.cli.errors import bad_input
from pipelines.cli.paths import REPOSITORY


@pytest.fixture(autouse=True)
def logs_go_with_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures keep their log file; keep it out of the machine's /tmp."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@dataclass(frozen=True, kw_only=True)
class ToyFlags:
    """A toy command."""

    count: int = 1
    """how many"""
    dry_run: bool = False
    """print only"""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"--count must be positive, got {self.count}")


def run(flags: ToyFlags) -> str | None:
    print("noise")
    if flags.count == 7:
        with bad_input():
            raise ValueError("no\nsuch thing")
    if flags.count == 8:
        raise RuntimeError("broke")
    if flags.count == 9:
        raise KeyboardInterrupt
    return None if flags.dry_run else "/somewhere"


def call(*args: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main.main(ToyFlags, run, example="python toy.py", args=args)
    return stop.value.code


def test_result_is_all_of_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert call() == 0
    assert capsys.readouterr().out == "result: /somewhere\n"


def test_a_dry_run_prints_its_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--dry-run") == 0
    assert capsys.readouterr().out == "noise\n"


@pytest.mark.parametrize("args", [("--cuont", "1"), ("--count", "x"), ("--count", "0"), ("--count", "7")])
def test_bad_usage_is_one_line_and_exit_2(args: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.startswith("error: ") for line in err.splitlines() if line != "noise"] == [True]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--count", "x"), "--count must be a whole number, got 'x' (see --help)"),
        (("--most", "1.5"), "--most must be a whole number, got '1.5' (see --help)"),
        (("--share", "1,2"), "--share must be a number, got '1,2' (see --help)"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_its_flag(
    args: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Numbers:
        count: int = 1
        most: int | None = None
        share: float | None = None

    with pytest.raises(SystemExit):
        main.parse(Numbers, example="", args=args)
    assert capsys.readouterr().err == f"error: {says}\n"


def test_failure_is_1_and_interruption_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--count", "8") == 1
    assert "failed: RuntimeError: broke" in capsys.readouterr().err.splitlines()
    assert call("--count", "9") == 130
    assert capsys.readouterr().err.splitlines()[-2:] == ["interrupted", f"  resume   {main.this_command()}"]


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("args", [("--dry-run",), ("--help",), ()])
def test_a_reader_that_leaves_ends_the_command_quietly(
    args: tuple[str, ...], unbuffered: str, repository: Path
) -> None:
    """With `| head -0` the other end of the pipe is closed before the first line."""
    program = (
        "import sys; sys.stdin.read(); from tests.pipelines.cli.test_main import *; main.main(ToyFlags, run, "
        "example='', args=sys.argv[1:])"
    )
    pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    process = subprocess.Popen(
        [sys.executable, "-c", program, *args], cwd=repository, env=environment, text=True, **pipes
    )
    process.stdout.close()
    process.stdin.close()
    err = process.stderr.read()
    assert process.wait(timeout=60) == main.EXIT_NO_READER
    assert err in ("", "noise\n")


def test_a_broken_pipe_of_the_work_itself_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    def breaks(flags: ToyFlags) -> None:
        raise BrokenPipeError("the child died")

    with pytest.raises(SystemExit) as stop:
        main.main(ToyFlags, breaks, example="", args=())
    assert stop.value.code == 1
    assert capsys.readouterr().err.splitlines()[0] == "failed: BrokenPipeError: the child died"


FOREIGN = """
import sys
from dataclasses import dataclass
from pipelines.cli.main import main

@dataclass(frozen=True, kw_only=True)
class Flags:
    \'\'\'A toy command.\'\'\'
    dry_run: bool = False
    \'\'\'print only\'\'\'
    fails: bool = False
    \'\'\'fail\'\'\'

def run(flags):
    print("plan: caf\\u00e9 \\u4e2d \\ud83d")
    if flags.fails:
        raise RuntimeError("caf\\u00e9 is broken")
    return "/tmp/caf\\u00e9"

main(Flags, run, example="python toy.py")
"""


@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}])
def test_a_terminal_without_the_letters_gets_escapes_instead_of_a_crash(locale: dict[str, str]) -> None:
    no_utf8 = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))}
    for flags, code, words in (
        ((), 0, (b"result: /tmp/caf", b"plan: caf")),
        (("--dry-run",), 0, (b"plan: caf", b"\\u4e2d")),
        (("--fails",), 1, (b"failed: RuntimeError: caf",)),
    ):
        done = subprocess.run(
            [sys.executable, "-c", FOREIGN, *flags],
            capture_output=True,
            env=environment | no_utf8 | locale,
            cwd=REPOSITORY,
        )
        assert done.returncode == code, done.stderr
        assert all(word in done.stdout + done.stderr for word in words) and b"UnicodeEncodeError" not in done.stderr
