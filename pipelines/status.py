"""What stands in a folder: runs, datasets and studies below it, read from their files alone."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro

from pipelines.errors import UsageError
from pipelines.runs import Ledger


@dataclass(frozen=True, kw_only=True)
class StatusFlags:
    """Show the datasets, runs and studies in a folder: finished, how far, last loss."""

    dir: tyro.conf.Positional[str]
    """folder to look through"""


def status(flags: StatusFlags) -> str:
    """Print one line for each thing found; the folder."""
    folder, root = flags.dir, Path(flags.dir)
    if not root.is_dir():
        raise UsageError(f"{folder}: no such folder")
    lines = list(describe(root))
    print("\n".join(lines) if lines else f"{folder}: no dataset, run or study here")
    return str(root)


def describe(root: Path) -> Iterator[str]:
    """One line for each dataset, run and study at or below `root`, in order of path."""
    for file in sorted(root.rglob("*.json")):
        if "mlartifacts" in file.parts:  # MLflow's copies
            continue
        if file.name == "dataset.json":
            found = json.loads(file.read_text())
            yield f"dataset  {file.parent}  {found['counts']}"
        elif file.name == "config.json" and (file.parent / "checkpoints").is_dir():
            yield describe_run(file.parent)
        elif file.name == "study.json":
            state = "finished" if (file.parent / "fit.json").exists() else "unfinished"
            yield f"study    {file.parent}  {state}, {len(json.loads(file.read_text())['runs'])} runs"


def describe_run(run_dir: Path) -> str:
    """A run's line."""
    train = json.loads((run_dir / "config.json").read_text())["config"]["train"]
    records, total = Ledger(run_dir / "metrics.jsonl").read(), train["steps"] * train["batch_size"]
    last = records[-1] if records else {"step": 0}
    state = "finished" if (run_dir / "_SUCCESS").exists() else "unfinished"
    loss = f", loss {last['loss']:.4g}" if "loss" in last else ""
    return f"run      {run_dir}  {state}, {int(last['step'])} of {total} samples{loss}"
