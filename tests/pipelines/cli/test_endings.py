"""Functions that parts of the pipeline register for the end of a command."""

import pytest

from pipelines.cli import main
from pipelines.cli.endings import Ending, at_end, endings
from tests.pipelines.cli.test_main import ToyFlags


def test_endings_are_closed_last_first_even_if_one_fails() -> None:
    closed: list[str] = []

    def fail() -> None:
        closed.append("second")
        raise OSError("no answer")

    with pytest.raises(OSError), endings():
        at_end("first", Ending(close=lambda: closed.append("first")))
        at_end("second", Ending(close=fail))
        at_end("first", Ending(close=lambda: closed.append("registered twice")))
    assert closed == ["second", "first"]


def test_outside_a_command_nothing_is_registered() -> None:
    closed: list[str] = []
    at_end("notebook", Ending(close=lambda: closed.append("notebook")))
    with endings() as ends:
        assert ends.by_name == {}
    assert closed == []


@pytest.mark.parametrize("error", [None, RuntimeError("broke"), KeyboardInterrupt()])
def test_a_command_says_and_closes_what_was_registered(
    error: BaseException | None, capsys: pytest.CaptureFixture[str]
) -> None:
    closed: list[str] = []

    def run(flags: ToyFlags) -> None:
        ending = Ending(
            say=lambda: "it is logged there",
            failure_rows=lambda: [("Toy", "its logs are here")],
            close=lambda: closed.append("closed"),
        )
        at_end("toy", ending)
        if error is not None:
            raise error

    with pytest.raises(SystemExit):
        main.main(ToyFlags, run, example="python toy.py", args=[])
    said = capsys.readouterr().err
    assert said.count("it is logged there") == 1
    assert ("its logs are here" in said) == isinstance(error, RuntimeError)
    assert set(closed) == {"closed"}
