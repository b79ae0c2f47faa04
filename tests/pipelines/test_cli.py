"""Exit codes, one clear line, and the last line of stdout."""

from dataclasses import dataclass

import pytest

from pipelines import cli
from pipelines.errors import UsageError, bad_input


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
        cli.main(ToyFlags, run, example="python toy.py", args=args)
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


def test_failure_is_1_and_interruption_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--count", "8") == 1
    assert capsys.readouterr().err.splitlines()[-1] == "failed: RuntimeError: broke"
    assert call("--count", "9") == 130
    assert "the same command resumes" in capsys.readouterr().err


def test_usage_error_is_found_inside_rays_wrapping() -> None:
    wrapped = UsageError("traceback and all")
    wrapped.cause = UsageError("one clear line")
    assert cli.usage_message(wrapped) == "one clear line"
