"""plan.csv of a study: what each run was planned to cost, beside what it did.

How: the planned columns are written before a run starts and never changed. Steps that runs of a trajectory share are
planned, and counted, for the run that takes them. The actual seconds are those of its steps, from the ledger:
evaluations, the start of processes and steps that an interruption repeated are not in them. The last row, `sum`, adds
up all runs; its ratio is that of the runs that have both numbers.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from g3pt.config import CARConfig, CVQConfig, TrainConfig, from_dict
from g3pt.scaling.points import write_rows
from pipelines.runs.identity import RunSpec
from pipelines.runs.ledger import Ledger
from pipelines.study.points import operations, step_seconds
from pipelines.train import follow
from pipelines.train.counts import car_operations
from pipelines.train.trajectory import branch_samples, branched_at, trajectory

PLAN_FILE, SUM = "plan.csv", "sum"
PLANNED, ACTUAL = ("planned_steps", "planned_flops", "planned_seconds"), ("steps", "flops", "seconds", "ratio")
Rate = Callable[[RunSpec], float | None]  # planned seconds of one sample; None: nothing says


def write_plan(specs: Sequence[RunSpec], study: Path, rate: Rate, held_out: Collection[str] = ()) -> None:
    """Write plan.csv of runs that start longest first, those named in `held_out` last."""
    known = {row["run"]: row for row in read_plan(study)}
    starts = planned_starts(sorted(specs, key=lambda spec: (spec.name in held_out, -config_of(spec).steps)))
    rows = []
    for spec in sorted(specs, key=lambda spec: (spec.preset, spec.seed, config_of(spec).steps)):
        config = config_of(spec)
        samples = config.steps * config.batch_size
        about = {"run": spec.name, "size": spec.preset, "seed": spec.seed, "samples": samples}
        about |= {"held_out": int(spec.name in held_out)} | planned(spec, samples - starts[spec.name], rate)
        before = known.get(spec.name, {})
        if before.get("planned_seconds") or about["planned_seconds"] is None:
            about |= {name: before[name] for name in PLANNED if name in before}
        rows.append(about | actual(spec, study, about["planned_seconds"]))
    write_rows([*rows, sum_of(rows)], study / PLAN_FILE)


def planned(spec: RunSpec, samples: int, rate: Rate) -> dict[str, Any]:
    """The planned columns of a run that takes so many samples itself."""
    seconds = rate(spec)
    return {
        "planned_steps": samples // config_of(spec).batch_size,
        "planned_flops": samples * operations_per_sample(spec),
        "planned_seconds": None if seconds is None else round(samples * seconds, 1),
    }


def planned_starts(order: Sequence[RunSpec]) -> dict[str, int]:
    """Run -> samples at which it starts from the checkpoint of one before it, if each keeps what later ones need."""
    found, reached = dict[str, int](), dict[str, int]()
    for spec in order:
        key, branch = trajectory(spec), branch_samples(config_of(spec))
        found[spec.name] = min(branch, reached.get(key, 0)) if key else 0
        reached[key] = max(branch, reached.get(key, 0))
    return found


def actual(spec: RunSpec, study: Path, planned_seconds: Any) -> dict[str, Any]:
    """Steps, operations and seconds that a finished run took itself, and its seconds over the planned ones; None for a
    run that is not finished.
    """
    run_dir = study / "runs" / spec.name
    if not follow.is_finished(run_dir):
        return dict.fromkeys(ACTUAL)
    records, start = Ledger.of(run_dir).read(), branched_at(run_dir)
    samples = int(records[-1]["step"]) - start
    mine = [part for record, part in zip(records, step_seconds(records), strict=True) if record["step"] > start]
    return {
        "steps": samples // config_of(spec).batch_size,
        "flops": operations(run_dir, samples),
        "seconds": round(sum(mine), 1),
        "ratio": round(sum(mine) / float(planned_seconds), 4) if planned_seconds else None,
    }


def sum_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row of sums. A column without a number stays empty."""
    found: dict[str, Any] = {"run": SUM}
    for name in (*PLANNED, "steps", "flops", "seconds"):
        values = [float(row[name]) for row in rows if row[name] not in (None, "")]
        found[name] = round(sum(values), 1) if values else None
    both = [row for row in rows if row["ratio"] is not None]
    taken, wanted = (sum(float(row[name]) for row in both) for name in ("seconds", "planned_seconds"))
    return found | {"ratio": round(taken / wanted, 4) if wanted else None}


def read_plan(study: Path) -> list[dict[str, str]]:
    """The rows of the study's plan.csv; none without one."""
    try:
        with open(study / PLAN_FILE, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []


def stated_rate(flops_per_s: float | None) -> Rate:
    """The seconds of one sample at so many operations per second, as --flops-per-s says."""
    return lambda spec: operations_per_sample(spec) / flops_per_s if flops_per_s else None


def operations_per_sample(spec: RunSpec) -> int:
    """Operations of training on one sample, by the configurations of the run and its tokenizer."""
    from g3pt.training import flops
    from g3pt.training.exports import read_export_config

    codec = from_dict(CVQConfig, read_export_config(spec.paths["tokenizer"])["model"])
    model = from_dict(CARConfig, spec.config["model"])
    return flops.car_training(car_operations(model, codec), model)


def config_of(spec: RunSpec) -> TrainConfig:
    """How the run trains."""
    return from_dict(TrainConfig, spec.config["train"])
