"""Exports a run's last or best weights, also of a run that is not finished:
`python -m pipelines.train.export RUN --output FOLDER`.

How: a finished run has both exports already, and one of them is copied. Otherwise the weights are those of the newest
readable checkpoint; the run's data must still be where it was.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from pipelines.cli.errors import UsageError, bad_input
from pipelines.runs.identity import RunSpec
from pipelines.runs.locks import alone_in
from pipelines.train import worker
from pipelines.train.checkpoints import newest_checkpoint


@dataclass(frozen=True, kw_only=True)
class ExportFlags:
    """Export the weights of a training run, finished or not."""

    run: tyro.conf.Positional[str]
    """training run"""
    output: str
    """folder to make"""
    weights: Literal["last", "best"] = "last"
    """averaged weights: the newest, or those of the record with the lowest validation loss"""


def export(flags: ExportFlags, build: str = worker.BUILD_STAGE) -> str:
    """Write the export and return its folder. UsageError if the run has no such weights."""
    run_dir, output = Path(flags.run), Path(flags.output)
    if output.exists():
        raise UsageError(f"{output} exists already: remove it or name another --output")
    with bad_input():
        if not (run_dir / "config.json").is_file():
            raise ValueError(f"{run_dir}: not a training run (no config.json)")
    with alone_in(output, is_file=True):
        if (run_dir / "_SUCCESS").exists():
            _copy(run_dir, output, flags.weights)
        else:
            _from_checkpoint(run_dir, output, flags.weights, build)
    return str(output)


def _copy(run_dir: Path, output: Path, weights: str) -> None:
    source = run_dir / (worker.BEST_EXPORT if weights == "best" else worker.EXPORT)
    if not source.is_dir():
        raise UsageError(_no_best(run_dir))
    temporary = output.with_name(f".{output.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary)
    temporary.rename(output)


def _from_checkpoint(run_dir: Path, output: Path, weights: str, build: str) -> None:
    spec = RunSpec.from_dict(json.loads((run_dir / "config.json").read_text(encoding="utf-8")))
    name, state = newest_checkpoint(run_dir / "checkpoints")
    if state is None:
        raise UsageError(f"{run_dir}: has no readable checkpoint yet, so there are no weights to export")
    fit: dict[str, Any] = state["fit"]() if callable(state["fit"]) else state["fit"]
    best = fit.get("best")
    if weights == "best" and not best:
        raise UsageError(_no_best(run_dir))
    with bad_input():
        stage = worker.resolve(build)(spec, 0, 1)
    chosen = best["weights"] if weights == "best" else fit["model"] | fit["average"]
    stage.model.load_state_dict(chosen, strict=False)
    about = {"samples": best["samples"], "validation_loss": best["value"]} if weights == "best" else None
    worker.export(stage, stage.model.eval(), output, about)


def _no_best(run_dir: Path) -> str:
    return f"{run_dir}: has no best weights: no record of its last phase has a validation loss"


if __name__ == "__main__":
    from pipelines.cli.main import main

    main(
        ExportFlags,
        export,
        example="python -m pipelines.train.export out/runs/cvq-nano-s0-1a2b3c4d --output out/cvq-best --weights best",
    )
