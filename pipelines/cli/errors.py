"""UsageError, the exception for bad flags and bad input: exit code 2 with one clear line.

How: pipelines raise `UsageError`; `pipelines.cli.main.main` prints its message on one line and exits 2. `bad_input`
turns a ValueError or a missing file, as raised by `g3pt` for a dataset of another schema or an unfinished run, into a
`UsageError`.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(Exception):
    """Bad flags or bad input: the message is one clear line for the person who typed the command."""


class NotWell(Exception):
    """The thing that a command inspected has a problem, which the command has already printed: exit code 1, no further
    message.
    """


@contextmanager
def bad_input(prefix: str = "") -> Iterator[None]:
    """Re-raise ValueError and FileNotFoundError from the block as UsageError. Use it around checks of input only."""
    try:
        yield
    except (ValueError, FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"{prefix}{one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """The error's message on a single line; its class name when the message is empty."""
    return " ".join(str(error).split()) or type(error).__name__
