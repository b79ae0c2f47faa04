"""Notes that a command writes beside its output: how it was started (command.json) and why it failed (failure.json).

How: a stage wraps its work in `working_in(folder)`. At the start it writes `command.json` with the command line, the
amount of work, the versions and the hardware (`pipelines.runs.environment`). `failure.json` is written when the work
raises, and removed when it starts again. No result depends on these notes and no hash covers them. `jobs/status.py` and
the reports read them.
Ours: an interrupted command (Ctrl-C, a kill) leaves no failure.json: its output is merely unfinished.
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
RUN_FILE = "mlflow.json"  # which run of MLflow shows the output (pipelines.tracking.killed)


@contextlib.contextmanager
def working_in(
    folder: str | Location, *, total: int | None = None, unit: str = "objects", flags: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """Around a stage's work in `folder`, which is made if missing.

    `total` is all the work in `unit`s, including what is finished already.
    """
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
    note |= {"host": socket.gethostname(), "pid": os.getpid()}  # status checks whether the process is still alive
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
    """Write `failure.json`: the root cause on one line as `error`, and `step`, `doing`, `where` and `traceback` if
    known.
    """
    from g3pt.data.storage import location
    from g3pt.training.exports import write_json
    from pipelines.cli.failures import Failure

    with contextlib.suppress(OSError):  # a full disk must not hide the error
        write_json(location(folder) / FAILURE_FILE, {**Failure.of(error).to_dict(), "time": time.time()})


def read_note(folder: str | Path, name: str) -> dict[str, Any] | None:
    """The content of `command.json` or `failure.json`; None if it is missing or unreadable."""
    try:
        found = json.loads((Path(folder) / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # RecursionError: a file of a thousand brackets
        return None
    return found if isinstance(found, dict) else None


def driver_is_gone(folder: Path) -> bool:
    """Whether the command that worked in `folder` ran on this machine and has ended, and no process holds the lock.

    A run of a study has no command.json of its own: that of the study counts. False if the command ran elsewhere.
    """
    from pipelines.runs.locks import LOCK_FILE, is_held, process_lives

    note = read_note(folder, COMMAND_FILE) or read_note(folder.parent.parent, COMMAND_FILE) or {}
    if note.get("host") != socket.gethostname() or not isinstance(note.get("pid"), int):
        return False
    return not process_lives(note["pid"]) and not is_held(folder / LOCK_FILE)
