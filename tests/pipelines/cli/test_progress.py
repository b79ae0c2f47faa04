"""Progress: few lines in a log, one rewritten line per task on a terminal, and a rate that leaves out the start-up."""

import io
import re
from collections.abc import Callable

import pytest

from pipelines.cli import progress
from pipelines.cli.progress import Progress, clock, say

LINE = re.compile(r"progress( [a-z_]+=[^ =]+)+")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the clock."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, seconds)


def fields(line: str) -> dict[str, str]:
    assert LINE.fullmatch(line), line
    return dict(part.split("=") for part in line.split()[1:])


def test_elsewhere_than_on_a_terminal_a_line_every_ten_seconds_and_one_at_each_end(at: Callable[[float], None]) -> None:
    stream = io.StringIO()
    with Progress("preprocess", 1000, "objects", stream=stream) as shown:
        for second in range(1, 26):
            at(second)
            shown.show(4 * second, failed=second)
        at(29)
        shown.show(1000, failed=25)
        at(30)
    lines = stream.getvalue().splitlines()
    assert [fields(line)["done"] for line in lines] == ["0", "40", "80", "1000"]
    assert [fields(line)["state"] for line in lines] == ["running"] * 3 + ["done"]
    assert fields(lines[1]) == {
        "stage": "preprocess", "state": "running", "done": "40", "total": "1000", "unit": "objects", "rate": "4",
        "failed": "10", "left_s": "240",
    }  # fmt: skip
    assert fields(lines[-1])["seconds"] == "30"
    assert not set("\r\x1b") & set(stream.getvalue())


def test_the_rate_leaves_out_the_workers_start(at: Callable[[float], None]) -> None:
    shown = Progress("preprocess", 20, "objects", stream=io.StringIO())
    at(100)
    shown.show(5)
    at(100.1)
    shown.show(9)
    assert shown.rate is None, "a burst of several workers' first results"
    at(102)
    shown.show(10)
    assert (shown.rate, shown.left_s) == (2.5, 4.0)


def test_a_resumed_run_starts_where_it_stands_and_its_own_rate_wins(at: Callable[[float], None]) -> None:
    stream = io.StringIO()
    with (
        pytest.raises(KeyboardInterrupt),
        Progress("train", 100, "samples", run="car-nano", done=40, tokens_per_unit=85, stream=stream) as shown,
    ):
        at(11)
        shown.show(50, rate=5.0, loss=0.25)
        raise KeyboardInterrupt
    first, middle, last = map(fields, stream.getvalue().splitlines())
    assert (first["done"], first["run"]) == ("40", "car-nano") and "rate" not in first
    assert (middle["rate"], middle["left_s"], middle["loss"], middle["tokens_per_s"]) == ("5", "10", "0.25", "425")
    assert (last["state"], last["done"]) == ("stopped", "50")


def screen(text: str) -> list[str]:
    """The text as a terminal shows it, with carriage return, line feed, cursor up and overwriting."""
    rows, row, column = [""], 0, 0
    for part in re.findall(r"\r|\n|\x1b\[A|\x1b\[[0-9;]*[A-Za-z]|[^\r\n\x1b]+", text):
        if part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
            rows += [""] * (row + 1 - len(rows))
        elif part == "\x1b[A":
            row = max(0, row - 1)
        else:
            rows[row] = rows[row][:column].ljust(column) + part + rows[row][column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in rows if line.strip()]


def test_on_a_terminal_each_run_has_a_line_and_leaves_one(at: Callable[[float], None]) -> None:
    stream = Terminal()
    with (
        Progress("train", 100, "samples", run="car-20k", stream=stream) as one,
        Progress("train", 100, "samples", run="car-80k", stream=stream) as two,
    ):
        assert [line.split()[0] for line in screen(stream.getvalue())] == ["car-20k"], "a run that waits shows nothing"
        at(1)
        one.show(10, rate=10.0, loss=0.5)
        two.show(20, rate=10.0, loss=0.75)
        say("a warning", stream)
        warning, first, second = screen(stream.getvalue())
        assert warning == "a warning"
        assert (
            "10/100 samples, 9 s left, 10/s, loss 0.5" in first
            and "20/100 samples, 8 s left, 10/s, loss 0.75" in second
        )
        two.show(100, rate=10.0)
        one.show(100, rate=10.0)
    shown = screen(stream.getvalue())
    assert [line.partition(":")[0].strip() for line in shown] == ["a warning", "car-80k", "car-20k"]
    assert "car-80k: 100/100 samples, 10/s, loss 0.75, 1 s" in shown[1]


@pytest.mark.parametrize(("environment", "rewrites"), [({}, True), ({"TERM": "dumb"}, False)])
def test_a_dumb_terminal_gets_the_lines_for_machines(
    environment: dict[str, str], rewrites: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", environment.get("TERM", "xterm"))
    assert Progress("tokens", 1, "objects", stream=Terminal()).on_terminal == rewrites


def test_times_are_short() -> None:
    assert [clock(seconds) for seconds in (0.4, 59, 185, 7800)] == ["0 s", "59 s", "3:05", "2:10:00"]
