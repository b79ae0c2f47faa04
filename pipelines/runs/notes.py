"""What a command leaves beside its output for those who come later: how it was started, and why it failed.

How: a stage wraps its work in `working_in(folder)`. At the start `command.json` says which command line works there, on how
much, and with which versions and hardware (`pipelines.runs.environment`); `failure.json` is written when the work raises and goes when
the same work starts again or succeeds. Both are notes: no result depends on them, nothing is hashed with them. `jobs/status.py`
and the reports read them.
Ours: an interrupted command (Ctrl-C, a kill) leaves no failure: its output is merely not finished.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from g3pt.data.storage import Location

COMMAND_FILE, FAILURE_FILE = "command.json", "failure.json"


@contextlib.contextmanager
def working_in(
    folder: str | Location, *, total: int | None = None, unit: str = "objects", flags: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """Around a stage's work in `folder` (made if missing); `total` is all there is to do in `unit`s, finished ones counted."""
    from g3pt.data.storage import location
    from g3pt.training.exports import write_json
    from pipelines.cli.errors import UsageError
    from pipelines.cli.failures import root_cause
    from pipelines.cli.main import this_command
    from pipelines.cli.plain_text import without_login
    from pipelines.runs.environment import environment

    folder = location(folder)
    folder.mkdir(parents=True, exist_ok=True)
    note = {
        "command": without_login(this_command()),
        "working_dir": str(Path.cwd()),
        "started": time.time(),
        "total": total,
        "unit": unit,
    }
    note |= {"host": socket.gethostname(), "pid": os.getpid()}  # whether somebody still works there
    note |= {"environment": environment()}
    write_json(folder / COMMAND_FILE, note | ({"flags": dict(flags)} if flags else {}))
    (folder / FAILURE_FILE).unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        if not isinstance(root_cause(error), UsageError):
            note_failure(folder, error)
        raise


def note_failure(folder: str | Location, error: BaseException) -> None:
    """Write `failure.json`: the root cause's one line as `error`, with `step`, `doing`, `where` and `traceback` where they are known."""
    from g3pt.data.storage import location
    from g3pt.training.exports import write_json
    from pipelines.cli.failures import Failure

    with contextlib.suppress(OSError):  # a full disk must not hide the error
        write_json(location(folder) / FAILURE_FILE, {**Failure.of(error).to_dict(), "time": time.time()})


def read_note(folder: str | Path, name: str) -> dict[str, Any] | None:
    """`command.json` or `failure.json` of a folder; None if it is missing or unreadable."""
    try:
        found = json.loads((Path(folder) / name).read_text())
    except (OSError, ValueError, RecursionError):  # the last for a file of a thousand brackets
        return None
    return found if isinstance(found, dict) else None
