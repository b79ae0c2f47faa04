"""A scaling study: CAR runs of several sizes and seeds, then a law fitted to their test losses.

How: every run is an ordinary run of `pipelines.train.run` below STUDY/runs, so a killed study resumes and keeps
finished runs. No trial is stopped early: every point of the fit is a finished run. Elsewhere: plan.py says which runs,
trials.py trains them, points.py reads and fits their losses.
"""

import dataclasses
import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.cli.errors import UsageError, bad_input
from pipelines.cli.failures import on_disk
from pipelines.cli.main import absolute
from pipelines.cli.progress import say
from pipelines.cluster.storage import join
from pipelines.cluster.waiting import refuse_impossible
from pipelines.runs.identity import RunSpec
from pipelines.runs.locks import alone_in
from pipelines.runs.notes import working_in
from pipelines.runs.settings import changes, check_unchanged, flag
from pipelines.study.accounts import write_plan
from pipelines.study.ceiling import ceiling_of
from pipelines.study.config import SweepFlags
from pipelines.study.cost import codec_of, expected, print_plan, refuse_wide
from pipelines.study.pause import pausable, pause
from pipelines.study.plan import Row, plan, unlike
from pipelines.study.plan_file import plan_of
from pipelines.study.points import collect, fit_and_draw, write_forecast, write_points
from pipelines.study.probe import is_encoded, planned_rate, probe
from pipelines.study.rates import lines, sweep_rows, tune_rates
from pipelines.study.shown import STUDY_FILES, card, describe_study
from pipelines.study.tidy import finish, say_lost
from pipelines.study.trials import check_finished, placed, study_need, train_all
from pipelines.tracking.client import best_effort
from pipelines.tracking.tracked import WritePage, followed, is_told
from pipelines.train import checkpoints, follow
from pipelines.train import run as train
from pipelines.train.counts import count_car
from pipelines.train.jobs import car_spec, encode, with_features
from pipelines.train.memory import AUTO


def scaling_sweep(flags: SweepFlags, page: WritePage | None = None) -> str | None:
    """Run the study; return its folder, or None for a dry run."""
    if flags.pause or flags.finish:
        return str((pause if flags.pause else finish)(Path(absolute(flags.output))))
    rows = plan(flags)
    if flags.dry_run:
        print_plan(rows, flags)
        return None
    if "://" in flags.output:
        raise UsageError(
            f"{flags.output}: studies on an object store are not supported yet; use a local or shared folder"
        )
    if flags.probe:
        return str(measure(rows, flags))
    if line := unlike(rows):
        say(f"  {line}")
    if flags.max_interval is not None:
        refuse_wide(expected(rows, codec_of(flags)[0]), flags.max_interval)
    if flags.tune_lr:
        return str(find_rule(flags, Path(absolute(flags.output)), page))
    specs = [spec_of(row, flags) for row in rows]
    held_out = {spec.name for spec, row in zip(specs, rows, strict=True) if row.held_out}
    return str(run_study(specs, Path(absolute(flags.output)), flags, page, held_out))


def measure(rows: Sequence[Row], flags: SweepFlags) -> Path:
    """Write probe.json below --output; returns the folder. Real batches are used if the dataset is encoded already."""
    study = Path(absolute(flags.output))
    make = partial(spec_of, flags=flags) if is_encoded(flags.data, flags.tokenizer) else None
    probe(rows, make, codec_of(flags)[0], dataclasses.replace(flags, output=str(study)))
    return study


def spec_of(row: Row, flags: SweepFlags) -> RunSpec:
    """The identity of a planned run."""
    return car_spec(flags.data, flags.tokenizer, row.size, row.model, row.train)


def encoding_workers(flags: SweepFlags) -> int:
    """CPUs that encode the dataset; of GPUs all are used."""
    return 1 if flags.num_workers == AUTO else max(1, flags.num_workers)


def find_rule(flags: SweepFlags, study: Path, page: WritePage | None = None) -> Path:
    """Train sweeps of the learning rate and write lr.json and lr.png; finished runs are kept. Returns the folder."""
    swept, _ = sweep_rows(flags)
    first = spec_of(swept[0], flags)
    with alone_in(study):
        join(flags.ray_address, writes=[study], reads=train.inputs_of(first))
        refuse_impossible(study_need(flags))

        def finish(specs: Sequence[RunSpec]) -> None:
            planned = placed(with_features(specs, flags), flags)
            train_all(planned, study, flags, page=page)
            check_finished(planned, study)

        with working_in(study, unit="runs", flags=dataclasses.asdict(flags)), pausable(study):
            encode(first, encoding_workers(flags), flags.ray_address, flags.device)
            found = tune_rates(flags, study, lambda row: spec_of(row, flags), finish)
    print("\n".join(lines(found)), flush=True)
    return study


def run_study(
    specs: Sequence[RunSpec],
    study: Path,
    flags: SweepFlags,
    page: WritePage | None = None,
    held_out: Collection[str] = (),
) -> Path:
    """Train unfinished runs, then write points, fit and curve. Runs named in `held_out` start only after a forecast of
    them was written. A complete study is left alone.
    """
    check_settings(specs, study, flags)
    check_forecast(study, held_out)
    if is_finished(specs, study) and all(map(is_told, [study, *(study / "runs" / spec.name for spec in specs)])):
        print(f"{study}: finished already", flush=True)
        return study
    with alone_in(study):
        join(flags.ray_address, writes=[study], reads=train.inputs_of(specs[0]))
        refuse_impossible(study_need(flags))
        _run_study(specs, study, flags, page, held_out)
    return study


def check_forecast(study: Path, held_out: Collection[str]) -> None:
    """UsageError for a run that is to be predicted, and was trained before there was a forecast or is not in that which
    there is: a forecast is never replaced.
    """
    from g3pt.scaling.forecast import read_forecast

    file = study / "forecast.json"
    if file.exists():
        with bad_input():
            known = {rung["run"] for rung in read_forecast(file)["rungs"]}
        if not set(held_out) <= known:
            raise UsageError(
                f"--held-out: {file} was written for other runs and is never replaced: choose another --output"
            )
        return
    begun = [name for name in held_out if _is_begun(study / "runs" / name)]
    if begun:
        raise UsageError(f"--held-out: {study / 'runs' / begun[0]} was trained before there was a forecast of it")


def check_settings(specs: Sequence[RunSpec], study: Path, flags: SweepFlags) -> None:
    """UsageError if a finished study would lose runs by other flags, or a run of it cannot go on, unless --replace is
    given.

    Further sizes and seeds are added to a study. Changed data or weights at the same paths are changed inputs.
    """
    for spec in specs:
        train.check_run(spec, study / "runs" / spec.name, replace=flags.replace)
    if not (study / "_SUCCESS").exists():
        return
    known = json.loads((study / "study.json").read_text(encoding="utf-8"))
    if {run["name"] for run in known["runs"]} <= {spec.name for spec in specs}:
        return
    names = ("sizes", "samples", "held_out", "warmup_samples", "lr_rule", "seeds", "steps", "batch_size", "set")
    stored = {flag(name): known["flags"].get(name) for name in names} | _paths(known["runs"][0]["paths"])
    wanted = {flag(name): getattr(flags, name) for name in names} | _paths(specs[0].paths)
    check_unchanged(f"--output {study}", changes(stored, wanted), replace=flags.replace)


def _paths(paths: Mapping[str, str]) -> dict[str, str]:
    return {flag(role): paths[role] for role in ("data", "tokenizer") if role in paths}


def _run_study(
    specs: Sequence[RunSpec], study: Path, flags: SweepFlags, page: WritePage | None, held_out: Collection[str]
) -> None:
    """The body of `run_study`, once no other process works on the study."""
    from g3pt.training.exports import write_json

    (study / "_SUCCESS").unlink(missing_ok=True)  # of the same study with other runs
    about = {"runs": [spec.to_dict() for spec in specs], "flags": dataclasses.asdict(flags), "plan": plan_of(flags)}
    write_json(study / "study.json", about)
    note = working_in(study, total=len(specs), unit="runs", flags=dataclasses.asdict(flags))
    with note, on_disk(lambda: _finished_runs(specs, study)), pausable(study):
        specs = placed(with_features(specs, flags), flags)
        say_lost(specs, study)
        keep_rule(flags.lr_rule, study)
        write_costs = partial(write_plan, specs, study, planned_rate(str(study), flags.flops_per_s), held_out)
        write_costs()
        encode(specs[0], encoding_workers(flags), flags.ray_address, flags.device)
        ceiling = ceiling_of(flags.ceiling, specs[0])
        with followed(
            card(flags, specs, study), study, finished=lambda: (study / "_SUCCESS").exists(), page=page
        ) as parent:
            first = [spec for spec in specs if spec.name not in held_out]
            train_and_fit(first, study, flags, ceiling, parent.run_id, page)
            write_costs()
            if len(first) < len(specs):
                ahead = [spec for spec in specs if spec.name in held_out]
                write_forecast(study, [rung(spec) for spec in ahead], ceiling)
                train_and_fit(specs, study, flags, ceiling, parent.run_id, page, held_out)
                write_costs()
            best_effort("describing the study in MLflow", lambda: describe_study(study, parent))
            (study / "_SUCCESS").touch()


def train_and_fit(
    specs: Sequence[RunSpec],
    study: Path,
    flags: SweepFlags,
    ceiling: float | None,
    parent: str | None,
    page: WritePage | None,
    held_out: Collection[str] = (),
) -> None:
    """Train these runs, then write points, fit and curve of them."""
    train_all(specs, study, flags, parent, page=page)
    check_finished(specs, study)
    points = collect(specs, study, held_out)
    write_points(points, study)
    fit_and_draw(points, study, ceiling)


def keep_rule(file: str | None, study: Path) -> None:
    """Copy the lr.json whose rule the runs use into the study, unless that has one."""
    if file and not (study / "lr.json").exists():
        shutil.copyfile(file, study / "lr.json")


def rung(spec: RunSpec) -> dict[str, Any]:
    """What a forecast needs to know of a run."""
    from g3pt.config import CARConfig, from_dict

    train_config = spec.config["train"]
    return {
        "run": spec.name,
        "size": spec.preset,
        "params": count_car(from_dict(CARConfig, spec.config["model"]))["parameters_no_embed"],
        "samples": train_config["steps"] * train_config["batch_size"],
    }


def _is_begun(run_dir: Path) -> bool:
    """Whether the run is finished or has a checkpoint."""
    return follow.is_finished(run_dir) or checkpoints.checkpointed(run_dir) > 0


def _finished_runs(specs: Sequence[RunSpec], study: Path) -> str:
    """What is finished when the study stops, in words."""
    folders = [study / "runs" / spec.name for spec in specs]
    done = [folder for folder in folders if follow.is_finished(folder)]
    begun = [folder for folder in folders if folder not in done and _is_begun(folder)]
    return f"{len(done)} of {len(specs)} runs are finished, {len(begun)} more have a checkpoint ({study})"


def is_finished(specs: Sequence[RunSpec], study: Path) -> bool:
    """Whether exactly these runs are finished and the study's files exist."""
    if not all((study / name).exists() for name in (*STUDY_FILES, "_SUCCESS")):
        return False
    known = {run["name"] for run in json.loads((study / "study.json").read_text(encoding="utf-8"))["runs"]}
    return known == {spec.name for spec in specs} and all(follow.is_finished(study / "runs" / name) for name in known)
