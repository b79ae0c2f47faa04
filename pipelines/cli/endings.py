"""Endings: what other rooms want done when a command ends. They register it, so that `cli` imports none of them.

How: `pipelines.cli.main` opens `endings()` around the work. Ray's session registers its shutdown and the place of its
logs, MLflow's client the line that says how to open its store. Outside a command (in a notebook or a worker)
registering does nothing.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

Rows = list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Ending:
    """What one part wants done at the end."""

    say: Callable[[], str | None] = lambda: None  # a line for stderr once the work is over, whether it succeeded or not
    failure_rows: Callable[[], Rows] = list  # (label, text) that a failure's report shows
    close: Callable[[], None] = lambda: None  # called last, and at once after an interruption; may be called twice


@dataclass
class Endings:
    """The endings of one command, by name, in the order in which they were registered."""

    by_name: dict[str, Ending] = field(default_factory=dict)

    def say(self) -> None:
        """Print the lines on stderr."""
        for ending in self.by_name.values():
            if line := ending.say():
                print(line, file=sys.stderr, flush=True)

    def failure_rows(self) -> Rows:
        """The rows for a failure's report."""
        return [row for ending in self.by_name.values() for row in ending.failure_rows()]

    def close(self) -> None:
        """Close everything, what was registered last first."""
        with contextlib.ExitStack() as stack:
            for ending in self.by_name.values():
                stack.callback(ending.close)


_open: list[Endings] = []  # of the commands at work in this process, innermost last


def at_end(name: str, ending: Ending) -> None:
    """Register an ending with the command at work; a name that is registered already is left alone."""
    if _open:
        _open[-1].by_name.setdefault(name, ending)


@contextlib.contextmanager
def endings() -> Iterator[Endings]:
    """Collect the endings that are registered inside the block, and close them when it is left."""
    found = Endings()
    _open.append(found)
    try:
        yield found
    finally:
        _open.remove(found)
        found.close()
