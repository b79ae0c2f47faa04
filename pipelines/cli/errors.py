"""The one exception that means "you asked for something impossible": exit code 2 with one clear line.

How: pipelines raise `UsageError`; `pipelines.cli.main.main` prints its message on one line and exits 2. `bad_input` turns the
ValueError or missing file of a `g3pt` boundary check (a dataset of another schema, an unfinished run) into a `UsageError`.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(Exception):
    """Bad flags or bad input: the message is one clear line for the person who typed the command."""


class NotWell(Exception):
    """What a command was asked to look at is not as it should be, and it has said so: exit code 1 without another word."""


@contextmanager
def bad_input(prefix: str = "") -> Iterator[None]:
    """Re-raise ValueError and FileNotFoundError from the block as UsageError; wrap only checks of input in it."""
    try:
        yield
    except (ValueError, FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"{prefix}{one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """The error's message on a single line; its class name when the message is empty."""
    return " ".join(str(error).split()) or type(error).__name__
