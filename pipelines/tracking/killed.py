"""Runs of MLflow whose command was killed: nobody closed them, so MLflow shows them as running for ever.

How: a training run's or study's folder names its MLflow run in mlflow.json, with the status that it has there. If that
is RUNNING while the command and the lock are gone (`pipelines.runs.notes.driver_is_gone`), the run is closed: by
`jobs/status.py`, or by the next command that opens a run beside it. The same command started again continues the run.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from pipelines.cli.plain_text import without_login
from pipelines.runs.ledger import LEDGER_FILE
from pipelines.runs.notes import FAILURE_FILE, RUN_FILE, driver_is_gone, read_note
from pipelines.tracking.client import SQLITE, Tracking

_looked_at: set[Path] = set()  # folders whose runs this process has looked at


def write_run_file(folder: Path, uri: str, run_id: str, status: str, is_told: bool = True) -> None:
    """Record beside the output which run of which store shows it, and the status that the run has there.

    `is_told` says whether a finished run was described.
    """
    from g3pt.training.exports import write_json

    shown = {"run_id": run_id, "tracking_uri": without_login(uri), "status": status}
    write_json(folder / RUN_FILE, shown | {"closed": status == "FINISHED" and is_told})


def close_killed_beside(folder: Path) -> list[Path]:
    """Close the runs of killed commands in the other folders beside `folder`, once per process and parent folder."""
    if folder.parent in _looked_at:
        return []
    _looked_at.add(folder.parent)
    return close_killed(other for other in sorted(folder.parent.iterdir()) if other != folder)


def close_killed(folders: Iterable[Path]) -> list[Path]:
    """Close the MLflow runs of those folders whose command was killed, as KILLED, or as FINISHED if the work is
    finished. Returns the folders.
    """
    closed = []
    for folder in folders:
        note = read_note(folder, RUN_FILE)
        if (
            note is None
            or note.get("closed")
            or note.get("status", "RUNNING") != "RUNNING"
            or not driver_is_gone(folder)
        ):
            continue
        uri = own_login(str(note["tracking_uri"]))
        if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
            continue  # moved away
        tracking, success = Tracking(uri), folder / "_SUCCESS"
        if tracking.status_of(note["run_id"]) == "RUNNING":
            status = "FINISHED" if success.exists() else "KILLED"
            tracking.close_run(note["run_id"], status, last_change(folder))
            # A finished run stays to be described by its next command (`tracked.is_told`).
            write_run_file(folder, uri, note["run_id"], status, is_told=False)
            closed.append(folder)
    return closed


def last_change(folder: Path) -> float:
    """When the work in a folder ended, or was last seen: the time of its end, its failure, its records or its start."""
    files = (folder / name for name in ("_SUCCESS", FAILURE_FILE, LEDGER_FILE, RUN_FILE))
    return next((file.stat().st_mtime for file in files if file.exists()), folder.stat().st_mtime)


def own_login(uri: str) -> str:
    """A recorded URI, which has no login, with that of MLFLOW_TRACKING_URI if both name the same store."""
    own = os.environ.get("MLFLOW_TRACKING_URI", "")
    return own if own and without_login(own) == uri else uri
