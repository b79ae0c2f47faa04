"""A scaling study: one CAR run per size and seed, Ray Tune over Ray Train, then a law fitted to their test losses.

How: every run is an ordinary run of `pipelines.train.run` below STUDY/runs, so a killed study resumes and keeps
finished runs. Tune only schedules. A trial reserves no CPU or GPU, because Train reserves them for its workers and both
would wait for each other for ever; it reserves one `sweep_slot` per worker if the cluster has them. No trial is stopped
early: every point of the fit is a finished run. The driver copies every run to MLflow as a child of the study's run.
"""

import contextlib
import csv
import dataclasses
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines.cli.errors import UsageError, bad_input
from pipelines.cli.failures import on_disk
from pipelines.cli.flags import (
    MAX_FAILURES,
    DryRun,
    OnData,
    OnDevice,
    OnRay,
    Replace,
    WithFeatures,
    WithRetries,
    WithTokenizer,
)
from pipelines.cli.main import absolute
from pipelines.cli.overrides import overridden
from pipelines.cli.progress import say
from pipelines.cli.quiet import prints_aside
from pipelines.cluster import session
from pipelines.cluster.stopping import asking
from pipelines.cluster.storage import check_arrived, join
from pipelines.cluster.waiting import Need, asked, begun, fitting, refuse_impossible
from pipelines.runs.identity import RunSpec
from pipelines.runs.ledger import Ledger
from pipelines.runs.locks import alone_in
from pipelines.runs.notes import FAILURE_FILE, note_failure, read_note, working_in
from pipelines.runs.settings import changes, check_unchanged, flag
from pipelines.tracking import cards
from pipelines.tracking.cards import Card, code
from pipelines.tracking.client import best_effort
from pipelines.tracking.tracked import Outcome, WritePage, followed, is_told
from pipelines.train import checkpoints, follow
from pipelines.train import run as train
from pipelines.train.counts import count_car
from pipelines.train.jobs import car_spec, check_workers, encode, gpu_bytes_of_workers, open_data, with_features
from pipelines.train.memory import gpu_bytes, with_plan
from pipelines.train.plan import schedule_line

DEFAULT_SIZES = "20k,80k,150k,nano"
STUDY_FILES = ("study.json", "points.csv", "fit.json", "curve.png")
NO_CPU_TRIAL_BYTES = 2**20  # memory that a trial reserves on a cluster without sweep_slots


@dataclass(frozen=True, kw_only=True)
class SweepFlags(DryRun, OnRay, OnDevice, WithRetries, WithFeatures, WithTokenizer, OnData, Replace):
    """Train CAR at several sizes on the same data and fit the scaling law of its test cross-entropy."""

    output: str
    """folder of the study: study.json, points.csv, fit.json, curve.png, runs/"""
    sizes: str = DEFAULT_SIZES
    """CAR presets, comma-separated; the fit wants three at least, below six it is a demonstration"""
    seeds: str = "0"
    """seeds of each size, comma-separated"""
    steps: int | None = None
    """optimiser steps of every run; default each preset's"""
    batch_size: int | None = None
    """objects per step, over all workers; default each preset's"""
    num_workers: int = 1
    """Ray Train workers of each run, one process and one CPU or GPU each; 0 trains inside the trial's own process
    (least start-up, CPU only)"""
    micro_batch: int | Literal["auto"] = "auto"
    """objects per forward pass of a worker; auto: what fits its GPU"""
    gpu_memory: float | None = None
    """GiB of a worker's GPU, for --micro-batch auto; default as found"""
    set: str | None = None
    """change fields of every size's preset, name=value,... (drop_phrases=0.5,head=bits); train_car.py --dry-run prints
    all fields; default none"""
    max_concurrent: int | None = None
    """runs at once; default as many as the cluster has CPUs (or GPUs) for"""


def scaling_sweep(flags: SweepFlags, page: WritePage | None = None) -> str | None:
    """Run the study; return its folder, or None for a dry run."""
    rows = plan(flags)
    if flags.dry_run:
        if flags.set:
            print(f"every preset with {flags.set}")
        for size, model, config in rows:
            print(
                f"{size} seed {config.seed}: {count_car(model)['parameters_no_embed']:,} parameters, "
                f"{config.steps * config.batch_size:,} samples; {schedule_line(model, config)}"
            )
        return None
    if "://" in flags.output:
        raise UsageError(
            f"{flags.output}: studies on an object store are not supported yet; use a local or shared folder"
        )
    specs = [car_spec(flags.data, flags.tokenizer, size, model, config) for size, model, config in rows]
    return str(run_study(specs, Path(absolute(flags.output)), flags, page))


def plan(flags: SweepFlags) -> list[tuple[str, Any, Any]]:
    """(size, CARConfig, TrainConfig) of each run, largest first, so that the longest run starts first."""
    from g3pt.config import car_preset

    with bad_input():
        names, seeds = (
            _different("--sizes", flags.sizes.split(",")),
            _different("--seeds", [int(seed) for seed in flags.seeds.split(",")]),
        )
        sizes = {size: car_preset(size) for size in names}
        changes = {name: getattr(flags, name) for name in ("steps", "batch_size") if getattr(flags, name) is not None}
        sizes = {size: (model, dataclasses.replace(config, **changes)) for size, (model, config) in sizes.items()}
    sizes = {size: overridden(flags.set, *preset, seed_flag="--seeds") for size, preset in sizes.items()}
    for one, other in itertools.combinations(sizes, 2):
        if sizes[one][0] == sizes[other][0]:
            raise UsageError(
                f"--set {flags.set}: it makes {one} and {other} the same model; set other fields, or remove one of "
                "them from --sizes"
            )
    rows = [
        (size, model, dataclasses.replace(config, seed=seed))
        for size, (model, config) in sizes.items()
        for seed in seeds
    ]
    for _, _, config in rows:
        check_workers(config, flags.num_workers, flags.micro_batch)
    return sorted(rows, key=lambda row: -count_car(row[1])["parameters_no_embed"])


def _different(flag: str, values: list[Any]) -> list[Any]:
    """The values. ValueError for a repeated one: a run counted twice would make the fit's intervals too narrow."""
    repeated = [value for value in dict.fromkeys(values) if values.count(value) > 1]
    if repeated:
        raise ValueError(f"{flag} names {repeated[0]} twice")
    return values


def run_study(specs: Sequence[RunSpec], study: Path, flags: SweepFlags, page: WritePage | None = None) -> Path:
    """Train unfinished runs, then write points, fit and curve. A complete study is left alone."""
    check_settings(specs, study, flags)
    if is_finished(specs, study) and all(map(is_told, [study, *(study / "runs" / spec.name for spec in specs)])):
        print(f"{study}: finished already", flush=True)
        return study
    with alone_in(study):
        join(flags.ray_address, writes=[study], reads=train.inputs_of(specs[0]))
        refuse_impossible(study_need(flags))
        _run_study(specs, study, flags, page)
    return study


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
    names = ("sizes", "seeds", "steps", "batch_size", "set")
    stored = {flag(name): known["flags"].get(name) for name in names} | _paths(known["runs"][0]["paths"])
    wanted = {flag(name): getattr(flags, name) for name in names} | _paths(specs[0].paths)
    check_unchanged(f"--output {study}", changes(stored, wanted), replace=flags.replace)


def _paths(paths: Mapping[str, str]) -> dict[str, str]:
    return {flag(role): paths[role] for role in ("data", "tokenizer") if role in paths}


def _run_study(specs: Sequence[RunSpec], study: Path, flags: SweepFlags, page: WritePage | None) -> None:
    """The body of `run_study`, once no other process works on the study."""
    from g3pt.training.exports import write_json

    (study / "_SUCCESS").unlink(missing_ok=True)  # of the same study with other runs
    write_json(study / "study.json", {"runs": [spec.to_dict() for spec in specs], "flags": dataclasses.asdict(flags)})
    note = working_in(study, total=len(specs), unit="runs", flags=dataclasses.asdict(flags))
    with note, on_disk(lambda: _finished_runs(specs, study)):
        size = gpu_bytes(flags) or gpu_bytes_of_workers(flags)
        specs = [with_plan(spec, flags, size) for spec in with_features(specs, flags)]
        encode(specs[0], max(1, flags.num_workers), flags.ray_address, flags.device)
        with followed(
            card(flags, specs, study), study, finished=lambda: (study / "_SUCCESS").exists(), page=page
        ) as parent:
            train_all(specs, study, flags, parent.run_id, page=page)
            check_finished(specs, study)
            points = collect(specs, study)
            write_points(points, study / "points.csv")
            fit_and_draw(points, study)
            best_effort("describing the study in MLflow", lambda: describe_study(study, parent))
            (study / "_SUCCESS").touch()


def check_finished(specs: Sequence[RunSpec], study: Path) -> None:
    """RuntimeError, with the reason for each run, if runs did not finish."""
    unfinished = [spec.name for spec in specs if not follow.is_finished(study / "runs" / spec.name)]
    if not unfinished:
        return
    error = RuntimeError(
        f"{len(unfinished)} of {len(specs)} runs did not finish; failure.json in each run's folder has the details"
    )
    for name in unfinished:
        found = read_note(study / "runs" / name, FAILURE_FILE) or {"error": "reason unknown"}
        place = f", in {found['where'][-1]}" if found.get("where") else ""
        error.add_note(f"while training {name}: {found['error']}{place}")
    raise error


def _finished_runs(specs: Sequence[RunSpec], study: Path) -> str:
    """What is finished when the study stops, in words."""
    folders = [study / "runs" / spec.name for spec in specs]
    done = [folder for folder in folders if follow.is_finished(folder)]
    begun = [folder for folder in folders if folder not in done and checkpoints.checkpointed(folder)]
    return f"{len(done)} of {len(specs)} runs are finished, {len(begun)} more have a checkpoint ({study})"


def is_finished(specs: Sequence[RunSpec], study: Path) -> bool:
    """Whether exactly these runs are finished and the study's files exist."""
    if not all((study / name).exists() for name in (*STUDY_FILES, "_SUCCESS")):
        return False
    known = {run["name"] for run in json.loads((study / "study.json").read_text(encoding="utf-8"))["runs"]}
    return known == {spec.name for spec in specs} and all(follow.is_finished(study / "runs" / name) for name in known)


def train_all(
    specs: Sequence[RunSpec],
    study: Path,
    flags: SweepFlags,
    parent: str | None = None,
    build: str = train.BUILD_STAGE,
    page: WritePage | None = None,
) -> None:
    """Train all unfinished runs by Tune, and copy them to MLflow meanwhile."""
    todo = []
    with contextlib.ExitStack() as stack:
        for spec in specs:
            run_dir = train.run_folder(spec, study / "runs")
            if train.is_done(spec, run_dir):
                train.say_finished(spec, run_dir, study, parent, page)
            else:
                stack.enter_context(alone_in(run_dir))
                train.prepare_run(spec, study / "runs", replace=flags.replace)
                (run_dir / FAILURE_FILE).unlink(missing_ok=True)
                todo.append({"spec": spec.to_dict(), "run_dir": str(run_dir), "build": build})
        if not todo:
            return
        session.connect(flags.ray_address)
        outcomes = {}
        for item in todo:
            spec, run_dir = RunSpec.from_dict(item["spec"]), Path(item["run_dir"])
            # The store is the study's: beside STUDY, not beside STUDY/runs.
            outcomes[spec.name] = stack.enter_context(train.tracked(spec, run_dir, study, parent, page))
        for name, error in tune(todo, study, flags).items():
            outcomes[name].failure = error


def tune(todo: list[dict[str, Any]], study: Path, flags: SweepFlags) -> dict[str, str]:
    """Run one Tune trial per item; return the error of each failed run by its name.

    Ray's own files are deleted unless a trial failed.
    """
    for name in (
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS",
        "TUNE_DISABLE_SIGINT_HANDLER",
    ):  # the latter: pipelines.cli.interrupt handles signals
        os.environ.setdefault(name, "1")
    from ray import tune as ray_tune

    resources, concurrent = trial_resources(flags)
    scratch, folders = study / "ray", [Path(item["run_dir"]) for item in todo]
    settings = {name: getattr(flags, name) for name in ("num_workers", "device", "max_failures")}
    with asked("train", study_need(flags), study.name) as key:
        tuner = ray_tune.Tuner(
            ray_tune.with_resources(ray_tune.with_parameters(trial, todo=todo, key=key, **settings), resources),
            param_space={"index": ray_tune.grid_search(list(range(len(todo))))},
            tune_config=ray_tune.TuneConfig(
                max_concurrent_trials=flags.max_concurrent or concurrent,
                reuse_actors=True,  # a process of its own per run costs 8 CPU seconds of imports
            ),
            run_config=ray_tune.RunConfig(
                name=uuid.uuid4().hex,
                storage_path=str(scratch),
                failure_config=ray_tune.FailureConfig(max_failures=flags.max_failures),
                verbose=0,
            ),
        )
        with prints_aside(), asking(folders):  # Tune prints a box at any verbosity
            results = tuner.fit()
    for result in results:
        run_dir = Path(todo[result.config["index"]]["run_dir"])
        told = result.metrics or {}
        if not result.error and told.get("finished"):
            check_arrived({str(run_dir / "_SUCCESS"): 0}, told.get("node_ip", "unknown"))
        if (
            result.error and read_note(run_dir, FAILURE_FILE) is None
        ):  # the trial's process died before it could write one
            note_failure(run_dir, result.error)
    notes = {item["spec"]["name"]: read_note(item["run_dir"], FAILURE_FILE) for item in todo}
    failed = {name: note["error"] for name, note in notes.items() if note}
    if failed:
        say(f"Ray's files of {len(failed)} failed run(s) are kept in {scratch}")
    else:
        shutil.rmtree(scratch, ignore_errors=True)
    return failed


def study_need(flags: SweepFlags) -> Need:
    """What the first run of a study needs: its workers, or without workers a CPU for the trial itself."""
    if flags.num_workers == 0:
        return Need(count=1, each={"CPU": 1.0}, remedy="start a node that offers CPUs")
    return train.workers_need(flags.num_workers, flags.device)


def trial_resources(flags: SweepFlags) -> tuple[dict[str, float], int]:
    """(resources that a trial reserves, how many trials may run at once on the cluster as it is now).

    A trial is one actor on one node: slots are only asked for if one node has them all.
    """
    import ray

    have = ray.cluster_resources()
    unit = "GPU" if flags.num_workers and session.wants_gpu(flags.device) else "CPU"
    concurrent = max(1, int(have.get(unit, 1)) // max(1, flags.num_workers))
    if flags.num_workers == 0:
        return {"CPU": 1}, concurrent
    slots = {"sweep_slot": float(flags.num_workers)}
    if any(fitting(slots, node["Resources"]) for node in ray.nodes() if node["Alive"]):
        return {"CPU": 0, **slots}, concurrent
    return {"CPU": 0, "memory": NO_CPU_TRIAL_BYTES}, concurrent  # Ray refuses an empty request


def trial(
    config: dict[str, int],
    *,
    todo: list[dict[str, Any]],
    num_workers: int,
    device: str,
    max_failures: int = MAX_FAILURES,
    key: str = "",
) -> dict[str, float]:
    """Train one run inside a Tune trial: on its own Ray Train workers, or without workers in Train's local mode in this
    process. Tune restarts a trial whose own process died; a run that failed after its own retries is not tried again.
    The first worker calls `begun(key)`.
    """
    import torch

    from g3pt.training.fit import AskedToStop

    torch.set_num_threads(1)
    item = todo[config["index"]]
    spec, run_dir = RunSpec.from_dict(item["spec"]), Path(item["run_dir"])
    try:
        if key and not num_workers:
            begun(key)
        train.ray_train(spec, run_dir, num_workers, device, item["build"], None, max_failures, key)
    except AskedToStop:
        raise  # not a failure: Tune restarts the trial, or the study itself was asked to stop
    except Exception as error:
        note_failure(run_dir, error)
        return {"finished": 0.0}
    (run_dir / FAILURE_FILE).unlink(missing_ok=True)  # from an earlier try
    return {"finished": 1.0}


# --- points, fit, curve -----------------------------------------------------------------------------------------------


def collect(specs: Sequence[RunSpec], study: Path) -> list[dict[str, Any]]:
    """One point per run, from the last record of its ledger, smallest size first."""
    points = [point(spec, study / "runs" / spec.name) for spec in specs]
    return sorted(points, key=lambda row: (row["params_no_embed"], row["seed"]))


def point(spec: RunSpec, run_dir: Path) -> dict[str, Any]:
    """The run's row of points.csv. flops counts the transformer as trained (with image tokens), forward and backward
    (twice the forward).
    """
    from g3pt.config import CARConfig, CVQConfig, from_dict
    from g3pt.training.exports import read_export_config

    last = Ledger.of(run_dir).last()
    assert last is not None, f"{run_dir} is finished without a record"
    exported = read_export_config(run_dir)
    params = count_car(from_dict(CARConfig, exported["model"]), from_dict(CVQConfig, exported["tokenizer"]))
    samples = int(last["step"])
    tests = {key: value for key, value in last.items() if key == "test_ce" or key.startswith("test_ce_scale_")}
    return {
        "size": spec.preset,
        **{name.replace("parameters", "params"): count for name, count in params.items()},
        "flops": 3 * exported["flops_per_object"] * samples,
        "seed": spec.seed,
        "samples": samples,
        "epochs": round(samples / open_data(spec.paths["data"]).splits["train"], 4),
        "lr": spec.config["train"]["learning_rate"],
        "schedule": spec.config["train"]["schedule"],
        "test_ce": tests.pop("test_ce"),
        **dict(sorted(tests.items(), key=lambda pair: int(pair[0].rpartition("_")[2]))),
    }


def write_points(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Write points.csv, complete or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(points[0]))
        writer.writeheader()
        writer.writerows(points)
    os.replace(temporary, path)


def fit_and_draw(points: Sequence[dict[str, Any]], study: Path) -> None:
    """Write fit.json and curve.png."""
    from g3pt.scaling.law import report
    from g3pt.training.exports import write_json

    found = report(*([p[name] for p in points] for name in ("params_no_embed", "test_ce", "seed")))
    write_json(study / "fit.json", found)
    draw(points, found, study / "curve.png")


def draw(points: Sequence[dict[str, Any]], found: dict[str, Any], path: Path) -> None:
    """Draw test loss over parameters, both laws, and their confidence bands."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from g3pt.scaling.law import PowerLaw

    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    size = np.array([p["params_no_embed"] for p in points], float)
    axes.loglog(size, [p["test_ce"] for p in points], "o", color="black", label="runs")
    line = np.geomspace(size.min() / 1.3, size.max() * 1.3, 200)
    for name, style, label in (("power_law_with_floor", "-", "E + A N^-α"), ("pure_power_law", "--", "A N^-α")):
        if found[name]:
            law = PowerLaw(**{f.name: found[name][f.name] for f in dataclasses.fields(PowerLaw)})
            interval, band = found[name]["interval_95"]["exponent"], found[name]["band_95"]
            words = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
            if band:
                axes.fill_between(band["params"], band["low"], band["high"], alpha=0.12)
            axes.loglog(
                line,
                law(line),
                style,
                label=f"{label}: α {law.exponent:.3f}{words}, E {law.irreducible:.3g}",
            )
    axes.set_xlabel("parameters N, without embeddings and head")
    axes.set_ylabel("test cross-entropy, nats per token")
    axes.set_title(f"{found['num_sizes']} sizes: {found['status']}")
    axes.grid(which="both", alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


# --- the study in MLflow ----------------------------------------------------------------------------------------------


def card(flags: SweepFlags, specs: Sequence[RunSpec], folder: Path) -> Card:
    """What MLflow shows of a study.

    What grows with it (sizes, seeds) are tags: MLflow's parameters cannot be changed later.
    """
    sizes = list(dict.fromkeys(spec.preset for spec in specs))[::-1]
    dataset = cards.dataset_input(specs[0].paths.get("data"), specs[0].config.get("dataset"))
    params = {"tokenizer": cards.model_name(flags.tokenizer)} | ({"dataset": cards.label(dataset)} if dataset else {})
    changed = f", every preset with {code(flags.set)}" if flags.set else ""
    return Card(
        stage="scaling",
        name=f"{folder.name}-{len(sizes)}-sizes-{sizes[0]}-to-{sizes[-1]}",
        folder=folder,
        dataset=dataset,
        params=params,
        models={"tokenizer": Path(flags.tokenizer)},
        tags={
            "g3pt.sizes": ",".join(sizes),
            "g3pt.seeds": flags.seeds,
            "g3pt.num_runs": str(len(specs)),
            "g3pt.set": flags.set or "",
        },
        title=f"**Scaling study** over {len(sizes)} sizes ({', '.join(map(code, sizes))}), "
        f"seeds {code(flags.seeds)}{changed}; its runs are the children.",
    )


def describe_study(study: Path, outcome: Outcome) -> None:
    """Add what MLflow shows of a finished study: the laws with their intervals, and the study's files."""
    found = json.loads((study / "fit.json").read_text(encoding="utf-8"))
    for name in ("power_law_with_floor", "pure_power_law"):
        if found[name]:
            outcome.metrics |= {f"{name}/{key}": found[name][key] for key in ("exponent", "coefficient", "irreducible")}
            interval = found[name]["interval_95"]["exponent"] or ()
            outcome.metrics |= dict(zip((f"{name}/exponent_low", f"{name}/exponent_high"), interval, strict=False))
    outcome.metrics |= {"num_sizes": float(found["num_sizes"]), "num_points": float(found["num_points"])}
    outcome.tags["g3pt.fit"] = found["status"]
    outcome.artifacts += [study / name for name in STUDY_FILES]
