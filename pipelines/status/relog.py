"""Write the MLflow runs of training runs and studies again from their files: python -m pipelines.status.relog out/runs

How: every run and study below the folder has its configuration, ledger and results beside it. What MLflow shows of it
is made from these (`pipelines.tracking.relog`), in the store that the command itself would use: that of
MLFLOW_TRACKING_URI, else mlflow.db beside the folder of runs or the study. Runs of a study become its children.
Datasets, generations and evaluations have no ledger: their commands log them when they are started again.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro

from pipelines.cli.errors import NotWell, UsageError, one_line
from pipelines.cli.main import main
from pipelines.cli.plain_text import plain
from pipelines.runs.identity import RunSpec
from pipelines.status.inventory import walk
from pipelines.status.items import Unreadable, read_object
from pipelines.study import job as study
from pipelines.tracking.client import Tracking, tracking_uri
from pipelines.tracking.relog import is_at_work, relog
from pipelines.train import follow


@dataclass(frozen=True, kw_only=True)
class RelogFlags:
    """Log the training runs and studies of a folder to MLflow again, from their files;
    what MLflow has already stays.
    """

    dir: tyro.conf.Positional[str]
    """folder of runs, a run, a study, or any folder above them"""


def relog_all(flags: RelogFlags) -> None:
    """Log every run and study at or below the folder. NotWell if one could not be read."""
    root = Path(flags.dir).expanduser()
    if not root.is_dir():
        raise UsageError(f"{plain(flags.dir)}: no such folder")
    kinds = {place.path: place.kind for place in walk(Path(os.path.abspath(root)))}
    added = there = bad = 0
    for folder in [
        *(path for path, kind in kinds.items() if kind == "study"),
        *(p for p in kinds if kinds[p] == "run"),
    ]:
        if kinds.get(folder.parent.parent) == "study" and folder.parent.name == "runs":
            continue  # logged with its study
        try:
            changed = relog_study(folder) if kinds[folder] == "study" else relog_run(folder, folder.parent)
        except (Unreadable, ValueError, KeyError, TypeError, OSError) as error:
            print(f"{plain(folder)}: cannot be logged: {plain(one_line(error))}", flush=True)
            bad += 1
            continue
        added, there = added + sum(changed), there + len(changed) - sum(changed)
    print(f"relog: {added} runs logged, {there} were complete in MLflow, {bad} cannot be read", flush=True)
    if bad:
        raise NotWell


def relog_study(folder: Path) -> list[bool]:
    """Log a study and its runs, unless it is at work; whether each of them changed the store."""
    if is_at_work(folder):
        print(f"{plain(folder)}: at work, its own command logs it", flush=True)
        return []
    about = read_object(folder / "study.json")
    specs, flags = [RunSpec.from_dict(run) for run in about["runs"]], study.SweepFlags(**about["flags"])
    tracking, shown = Tracking(tracking_uri(folder)), study.card(flags, specs, folder)
    parent, changed = relog(tracking, shown, folder, partial(study.describe_study, folder))
    runs = [folder / "runs" / spec.name for spec in specs]
    return [changed, *itertools.chain(*(relog_run(run, folder, parent) for run in runs if run.is_dir()))]


def relog_run(folder: Path, output: Path, parent: str | None = None) -> list[bool]:
    """Log a run, unless it is at work; whether it changed the store."""
    if parent is None and is_at_work(folder):
        print(f"{plain(folder)}: at work, its own command logs it", flush=True)
        return []
    spec = RunSpec.from_dict(read_object(folder / "config.json"))
    tracking, shown = Tracking(tracking_uri(output)), follow.card(spec, folder, "scaling" if parent else "")
    _, changed = relog(tracking, shown, output, partial(follow.describe_finished, spec, folder), parent)
    return [changed]


if __name__ == "__main__":
    main(RelogFlags, relog_all, example="python -m pipelines.status.relog out/runs")
