"""One run of MLflow written again from the files of its work: for a new store, or one that did not answer at the time.

What the store has already stays as it is, so that a second call adds nothing.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

from pipelines.runs.ledger import Ledger
from pipelines.runs.notes import COMMAND_FILE, FAILURE_FILE, driver_is_gone, read_note
from pipelines.tracking.cards import Card
from pipelines.tracking.client import Mirror, Tracking, best_effort
from pipelines.tracking.killed import last_change, write_run_file
from pipelines.tracking.nodes import NodeMirror
from pipelines.tracking.tracked import Outcome, common_tags, finish, known_run, newest

LIVELY_S = 3600.0  # a run writes a record or a checkpoint more often


def relog(
    tracking: Tracking, card: Card, output: str | Path, describe: Callable[[Outcome], None], parent: str | None = None
) -> tuple[str, bool]:
    """(id of the run that shows the work in `card.folder`, whether the store was changed).

    `describe` adds to an Outcome what is shown of finished work beside its ledger.

    The run is the one that mlflow.json names, else one with the same folder, else a new one.
    """
    folder = Path(str(card.folder))
    ledger, note = Ledger.of(folder), command_of(folder)
    status, ended, last = status_of(folder), last_change(folder), ledger.last_samples()
    known = known_run(folder)
    if known is None or not tracking.has_run(known):
        known = tracking.run_of(tracking.experiment(card.experiment_name), folder)
    if known and tracking.status_of(known) == status and (last is None or tracking.last_step(known) >= last):
        if known != known_run(folder):
            write_run_file(folder, tracking.uri, known, status)
        return known, False
    tags = {**common_tags(card, output, note), **card.tags}
    run_id = tracking.open_run(card.experiment_name, card.name, card.params, tags, parent, known, started_at(folder))
    if run_id != known and card.dataset:
        tracking.log_dataset(run_id, card.dataset)
    Mirror(tracking, run_id, ledger).copy()
    NodeMirror(tracking, run_id, folder).copy()
    outcome = Outcome(run_id=run_id, failure=str((read_note(folder, FAILURE_FILE) or {}).get("error", "")))
    if status == "FINISHED":
        best_effort(f"describing {card.name}", lambda: describe(outcome))
    if (folder / "report.html").is_file():
        outcome.page = folder / "report.html"
    finish(tracking, run_id, card, output, outcome, newest(ledger), note)
    tracking.close_run(run_id, status, ended)
    write_run_file(folder, tracking.uri, run_id, status)
    return run_id, True


def is_at_work(folder: Path) -> bool:
    """Whether a command may be working in the folder, which then logs the run itself: one that lives on this machine,
    or one of another machine that wrote something within LIVELY_S.
    """
    note = command_of(folder)
    if (folder / "_SUCCESS").exists() or read_note(folder, FAILURE_FILE) is not None or not note:
        return False
    if note.get("host") == socket.gethostname():
        return not driver_is_gone(folder)
    return time.time() - last_change(folder) < LIVELY_S


def status_of(folder: Path) -> str:
    """The status of the run of work that has ended."""
    if (folder / "_SUCCESS").exists():
        return "FINISHED"
    return "KILLED" if read_note(folder, FAILURE_FILE) is None else "FAILED"


def started_at(folder: Path) -> float | None:
    """When the work began, as far as its files say: its first record, else the start of its last command."""
    with_time = [record["time"] for record in Ledger.of(folder).read() if "time" in record]
    found = [float(value) for value in (*with_time[:1], command_of(folder).get("started")) if value]
    return min(found, default=None)


def command_of(folder: Path) -> dict[str, object]:
    """The command.json of the folder, or of the study that it is a run of; empty without one."""
    return read_note(folder, COMMAND_FILE) or read_note(folder.parent.parent, COMMAND_FILE) or {}
