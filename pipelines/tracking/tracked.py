"""One MLflow run around a piece of work, whether it succeeds, fails or is killed.

How: `logged(card, output)` writes the run when the work is over, with the work's start and end times: for stages whose
result is a folder or a file. `followed(card, output, ...)` opens the run at the start, copies the ledger and the
numbers of the nodes during the work, and continues the same run when killed work starts again (OUTPUT/mlflow.json names
it): for training runs and studies. Both yield an `Outcome` for the work to fill.
Ours: interrupted work and bad input leave no run, unless the run existed before.
"""

from __future__ import annotations

import contextlib
import getpass
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from g3pt.data.storage import Location, is_remote
from pipelines.cli.errors import UsageError
from pipelines.cli.failures import Failure
from pipelines.cli.main import this_command
from pipelines.runs.environment import environment
from pipelines.runs.ledger import Ledger, Record
from pipelines.runs.notes import RUN_FILE, read_note
from pipelines.tracking import cards
from pipelines.tracking.cards import Card
from pipelines.tracking.client import Mirror, Tracking, best_effort, group_folder, tracking_uri
from pipelines.tracking.experiments import EXPERIMENTS
from pipelines.tracking.killed import close_killed_beside, write_run_file
from pipelines.tracking.models import Model, link_evaluation, log_model
from pipelines.tracking.nodes import NodeMirror

WritePage = Callable[[Path], Path]  # writes the HTML report about a folder or file; returns the report's path


@dataclass
class Outcome:
    """What the work reports about itself; every field may stay empty."""

    name: str = ""  # the run's name, if it was not known at the start
    params: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    artifacts: list[Location] = field(default_factory=list)
    dataset: cards.DatasetInput | None = None  # made by the work
    page: Path | None = None  # the HTML report, if the work wrote it itself
    model: Model | None = None  # made by the work
    failure: str = ""
    nothing_done: bool = False  # then no run is written
    run_id: str | None = None  # of a run opened by `followed`


@contextlib.contextmanager
def logged(card: Card, output: str | Path, page: WritePage | None = None) -> Iterator[Outcome]:
    """Write a run to the store of `output` when the block is over, with the report that `page` writes."""
    outcome, started = Outcome(), time.time()
    try:
        yield outcome
    except (UsageError, KeyboardInterrupt):
        outcome.nothing_done = True
        raise
    except Exception as error:
        outcome.failure = reason(error)
        raise
    finally:
        if not outcome.nothing_done:
            tell(card, output, outcome, started, page)


def tell(card: Card, output: str | Path, outcome: Outcome, started: float, page: WritePage | None = None) -> None:
    """Write the report beside the output and the run in MLflow; a failure of either is a warning."""
    ended = time.time()
    if not outcome.failure and outcome.page is None:
        outcome.page = write_page(card, page)
    best_effort(f"logging {card.name} to MLflow", lambda: log_run(card, output, outcome, started, ended))


def log_run(card: Card, output: str | Path, outcome: Outcome, started: float, ended: float) -> None:
    """Write the whole run."""
    tracking = Tracking(tracking_uri(output))
    run_id = tracking.open_run(card.experiment_name, outcome.name or card.name, card.params, started=started)
    finish(tracking, run_id, card, output, outcome)
    tracking.close_run(run_id, "FAILED" if outcome.failure else "FINISHED", ended)


def write_page(card: Card, page: WritePage | None) -> Path | None:
    """Write the HTML report about the card's folder.

    None for a bucket (reports read local folders), and after a failure, with one warning.
    """
    if page is None or is_remote(card.folder):
        return None
    return best_effort(f"the report about {card.name}", lambda: page(card.folder))


@contextlib.contextmanager
def followed(
    card: Card,
    output: str | Path,
    *,
    finished: Callable[[], bool],
    ledger: Ledger | None = None,
    parent: str | None = None,
    page: WritePage | None = None,
) -> Iterator[Outcome]:
    """Keep a run open inside the block.

    `finished` returns afterwards whether the work is complete. If MLflow fails the block runs without it.
    """
    outcome = Outcome()
    tracking = best_effort("opening MLflow's store", lambda: Tracking(tracking_uri(output)))
    outcome.run_id = tracking and best_effort("opening the MLflow run", lambda: _open(tracking, card, output, parent))
    if outcome.run_id:
        best_effort("closing runs of killed commands", lambda: close_killed_beside(card.folder))
    status = "FAILED"
    try:
        with contextlib.ExitStack() as copying:
            if tracking and outcome.run_id and ledger:
                copying.enter_context(Mirror(tracking, outcome.run_id, ledger))
                copying.enter_context(NodeMirror(tracking, outcome.run_id, ledger.path.parent))
            yield outcome
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    except Exception as error:
        outcome.failure = outcome.failure or reason(error)
        raise
    finally:
        ended = time.time()
        if finished():
            ended = min(ended, _success_time(card.folder))
            status, outcome.page = "FINISHED", write_page(card, page)
        if tracking and outcome.run_id:
            numbers = newest(ledger) if ledger else {}
            best_effort(
                "describing the run in MLflow",
                lambda: finish(tracking, outcome.run_id, card, output, outcome, numbers),
            )
            best_effort("closing the MLflow run", lambda: _close(tracking, card.folder, outcome.run_id, status, ended))


def _close(tracking: Tracking, folder: Path, run_id: str, status: str, ended: float) -> None:
    tracking.close_run(run_id, status, ended)
    write_run_file(folder, tracking.uri, run_id, status)


def is_told(folder: Path) -> bool:
    """Whether the run of the finished work in `folder` was closed: its driver may have been killed while a worker
    finished the work. True if no run was opened.
    """
    note = read_note(folder, RUN_FILE)
    return note is None or note.get("closed") is True


def _success_time(folder: Path) -> float:
    """When the work in the folder was finished: the runs of a study end one by one but are closed together."""
    try:
        return (folder / "_SUCCESS").stat().st_mtime
    except OSError:
        return time.time()


def _open(tracking: Tracking, card: Card, output: str | Path, parent: str | None) -> str:
    """Open the run that the folder's mlflow.json names, or a new one, which is then recorded there."""
    known = known_run(card.folder)
    tags = {**common_tags(card, output), **card.tags, "mlflow.note.content": cards.note(card, this_command(), {}, {})}
    run_id = tracking.open_run(card.experiment_name, card.name, card.params, tags, parent, known)
    write_run_file(card.folder, tracking.uri, run_id, "RUNNING")
    if run_id == known:
        tracking.clear_tag(run_id, "g3pt.failure")
    elif card.dataset:
        tracking.log_dataset(run_id, card.dataset)
    return run_id


def finish(
    tracking: Tracking,
    run_id: str,
    card: Card,
    output: str | Path,
    outcome: Outcome,
    numbers: Mapping[str, float] | None = None,
    note: Mapping[str, Any] | None = None,
) -> None:
    """Log final numbers, files, tags and the description; `numbers` have been logged already.

    `note` is the command.json of the work, if it was another command's.
    """
    if outcome.metrics:
        step = tracking.last_step(run_id) + 1  # 0, or the step after the last one of a resumed run
        tracking.log_records(run_id, [{"step": float(step), **outcome.metrics}])
    tracking.log_records(run_id, outcome.records)
    links, found = upstream(tracking, card.models)
    tags = {**common_tags(card, output, note), **card.tags, **found, **outcome.tags, "g3pt.failure": outcome.failure}
    tags["mlflow.note.content"] = cards.note(
        card, tags["g3pt.command"], results(card, {**(numbers or {}), **outcome.metrics}), links, outcome.failure
    )
    tracking.set_tags(run_id, {key: value for key, value in tags.items() if value})
    for dataset in filter(None, (outcome.dataset, None if outcome.run_id else card.dataset)):
        tracking.log_dataset(run_id, dataset)
    tracking.log_params(run_id, outcome.params)
    if outcome.page:  # the same name in every run, also for an evaluation's STEM.html
        tracking.client.log_text(run_id, outcome.page.read_text(encoding="utf-8"), "report.html")
    tracking.log_artifacts(run_id, [path for path in outcome.artifacts if path.is_file()])
    best_effort(
        "logging the model to MLflow", lambda: _log_models(tracking, run_id, card, outcome, numbers or {}, found)
    )


def _log_models(
    tracking: Tracking,
    run_id: str,
    card: Card,
    outcome: Outcome,
    numbers: Mapping[str, float],
    found: Mapping[str, str],
) -> None:
    """The model that the work made, with its test metrics; an evaluation's numbers go to the model that it read."""
    if outcome.model:
        tested = {name: value for name, value in numbers.items() if name.startswith("test/")}
        log_model(tracking, run_id, outcome.model, card.name, {**card.params, **outcome.params}, tested)
    if card.stage == "evaluate" and "g3pt.model_run_id" in found:
        link_evaluation(tracking, run_id, found["g3pt.model_run_id"], outcome.metrics)


def results(card: Card, numbers: Mapping[str, float]) -> dict[str, str]:
    """The numbers that the experiment's table shows, with their intervals."""
    found = {}
    for name in EXPERIMENTS[card.experiment_name].metrics:
        if name in numbers and not name.endswith(("_low", "_high")):
            interval = (
                f" ({numbers[f'{name}_low']:.4g} to {numbers[f'{name}_high']:.4g})" if f"{name}_low" in numbers else ""
            )
            found[name] = f"{numbers[name]:.4g}{interval}"
    return found


def newest(ledger: Ledger) -> dict[str, float]:
    """The last value of each number in a ledger, by MLflow's names."""
    return {key: value for record in ledger.read() for key, value in cards.shown_record(record).items()}


def common_tags(card: Card, output: str | Path, note: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Tags of every run: where its output is, the command, the hardware and the versions.

    The last three are those of `note`, a command.json, or of this command.
    """
    note = note or {"command": this_command(), "environment": environment()}
    about, program = note["environment"], note["command"].split()
    commit, packages = about["git_commit"], about["packages"]
    hardware = (
        f"{about['cores']} x {about['cpu']}, {about['memory_bytes'] / 2**30:.0f} GiB, "
        f"{', '.join(about['gpus']) or 'no GPU'}"
    )
    return {
        "g3pt.stage": card.stage, "g3pt.group": str(group_folder(output)), "g3pt.path": str(card.folder),
        "g3pt.command": note["command"],
        "g3pt.hardware": hardware,
        "g3pt.versions": f"python {about['python']}, torch {packages['torch']}, ray {packages['ray']}",
        "g3pt.dirty": str(commit.endswith("-dirty")).lower(), "mlflow.source.git.commit": commit,
        "mlflow.source.name": Path(program[1] if len(program) > 1 else sys.argv[0]).name,
        "mlflow.source.type": "LOCAL", "mlflow.user": _user(),
    }  # fmt: skip


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        return "unknown"


def upstream(tracking: Tracking, models: Mapping[str, Path]) -> tuple[dict[str, str], dict[str, str]]:
    """(Markdown links to the runs that made these models, tags with their ids).

    A model that no run of this store made is named by its path.
    """
    links, tags = {}, {}
    for role, path in models.items():
        run_id = known_run(path.parent if path.name in ("export", "export-best") else path)
        links[role] = cards.code(path)
        if run_id is not None and tracking.has_run(run_id):
            experiment = tracking.client.get_run(run_id).info.experiment_id
            links[role] = (
                f"[{cards.model_name(path)}](#/experiments/{experiment}/runs/{run_id}?workflowType=machine_learning)"
            )
            tags[f"g3pt.{role}_run_id"] = run_id
    return links, tags


def known_run(folder: Path) -> str | None:
    """The id of the MLflow run recorded in a training run's or study's folder; None without a record."""
    return (read_note(folder, RUN_FILE) or {}).get("run_id")


def reason(error: BaseException) -> str:
    """The error as in failure.json: type and message on one line."""
    return Failure.of(error).error
