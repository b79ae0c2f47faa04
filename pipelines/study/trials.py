"""The runs of a study as trials of Ray Tune, which only schedules them.

A trial reserves no CPU or GPU, because Train reserves them for its workers and both would wait for each other for ever;
it reserves one `sweep_slot` per worker if the cluster has them. The number of workers is that of the run's placement
(`pipelines.study.placement`), so trials of one study differ in it. The driver copies every run to MLflow as a child of
the study's run.
"""

import contextlib
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from g3pt.config import CARConfig, CVQConfig, TrainConfig, from_dict
from pipelines.cli.flags import MAX_FAILURES, feed_of
from pipelines.cli.interrupt import in_thread
from pipelines.cli.progress import say
from pipelines.cli.quiet import prints_aside
from pipelines.cluster import session
from pipelines.cluster.stopping import asking
from pipelines.cluster.storage import check_arrived
from pipelines.cluster.waiting import Need, asked, autoscaler_max, begun, fitting
from pipelines.runs.environment import environment
from pipelines.runs.identity import RunSpec
from pipelines.runs.locks import alone_in
from pipelines.runs.notes import FAILURE_FILE, note_failure, read_note
from pipelines.study.config import SweepFlags
from pipelines.study.placement import placements, with_placement
from pipelines.study.points import ENVIRONMENT_FILE
from pipelines.tracking.tracked import WritePage
from pipelines.train import follow
from pipelines.train import run as train
from pipelines.train.checkpoints import remove_finished
from pipelines.train.devices import Devices
from pipelines.train.jobs import gpu_bytes_of_workers
from pipelines.train.memory import AUTO, gpu_bytes
from pipelines.train.trajectory import branch_samples, start_from_another, trajectory

NO_CPU_TRIAL_BYTES = 2**20  # memory that a trial reserves on a cluster without sweep_slots


def train_all(
    specs: Sequence[RunSpec],
    study: Path,
    flags: SweepFlags,
    parent: str | None = None,
    build: str = train.BUILD_STAGE,
    page: WritePage | None = None,
) -> None:
    """Train all unfinished runs by Tune, and copy them to MLflow meanwhile. Runs of one trajectory are one trial."""
    todo, kept = [], kept_samples(specs)
    with contextlib.ExitStack() as stack:
        for spec in specs:
            run_dir = train.run_folder(spec, study / "runs")
            if train.is_done(spec, run_dir):
                train.say_finished(spec, run_dir, study, parent, page)
            else:
                stack.enter_context(alone_in(run_dir))
                train.prepare_run(spec, study / "runs", replace=flags.replace)
                (run_dir / FAILURE_FILE).unlink(missing_ok=True)
                item = {"spec": spec.to_dict(), "run_dir": str(run_dir), "build": build, "kept": kept[spec.name]}
                todo.append(item)
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


def kept_samples(specs: Sequence[RunSpec]) -> dict[str, tuple[int, ...]]:
    """Name of each run -> the samples at which it keeps a checkpoint: where a run of its trajectory begins to cool
    down, until it does so itself.
    """
    starts: dict[str, dict[str, int]] = {}  # of each trajectory: run -> where it begins to cool down
    for spec in specs:
        if key := trajectory(spec):
            starts.setdefault(key, {})[spec.name] = branch_samples(from_dict(TrainConfig, spec.config["train"]))
    kept = {spec.name: tuple[int, ...]() for spec in specs}
    for runs in starts.values():
        kept |= {name: tuple(sorted({at for at in runs.values() if at <= mine})) for name, mine in runs.items()}
    return kept


def together(todo: Sequence[dict[str, Any]]) -> list[list[int]]:
    """Indices of the runs of each trial, longest first: those of one trajectory, in the order of their longest."""
    groups: dict[str, list[int]] = {}
    for index, item in enumerate(todo):
        spec = RunSpec.from_dict(item["spec"])
        groups.setdefault(trajectory(spec) or spec.name, []).append(index)

    def steps(index: int) -> int:
        return int(todo[index]["spec"]["config"].get("train", {}).get("steps", 0))

    return [sorted(group, key=lambda index: -steps(index)) for group in groups.values()]


def tune(todo: list[dict[str, Any]], study: Path, flags: SweepFlags) -> dict[str, str]:
    """Run one Tune trial per trajectory; return the error of each failed run by its name.

    Ray's own files are deleted unless a trial failed.
    """
    for name in (
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS",
        "TUNE_DISABLE_SIGINT_HANDLER",
    ):  # the latter: pipelines.cli.interrupt handles signals
        os.environ.setdefault(name, "1")
    from ray import tune as ray_tune

    scratch, folders = study / "ray", [Path(item["run_dir"]) for item in todo]
    settings = {name: getattr(flags, name) for name in ("num_workers", "device", "max_failures")}
    settings["feed"] = feed_of(flags)
    groups = together(todo)
    workers = [workers_of(todo[group[0]], flags) for group in groups]
    requests, concurrent = trial_resources(workers, flags.device)
    with asked("train", study_need(flags, max(workers)), study.name) as key:
        tuner = ray_tune.Tuner(
            ray_tune.with_resources(
                ray_tune.with_parameters(trial, todo=todo, groups=groups, key=key, **settings),
                lambda config: ray_tune.PlacementGroupFactory([requests[config["index"]]]),
            ),
            param_space={"index": ray_tune.grid_search(list(range(len(groups))))},
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
            results = in_thread(tuner.fit)  # in the main thread Tune would end the trials before they can save
    for result in results:
        told = result.metrics or {}
        for index in groups[result.config["index"]]:
            run_dir = Path(todo[index]["run_dir"])
            if not result.error and told.get("finished"):
                check_arrived({str(run_dir / "_SUCCESS"): 0}, told.get("node_ip", "unknown"))
            if result.error and not follow.is_finished(run_dir) and read_note(run_dir, FAILURE_FILE) is None:
                note_failure(run_dir, result.error)  # the trial's process died before it could write one
    notes = {item["spec"]["name"]: read_note(item["run_dir"], FAILURE_FILE) for item in todo}
    failed = {name: note["error"] for name, note in notes.items() if note}
    if failed:
        say(f"Ray's files of {len(failed)} failed run(s) are kept in {scratch}")
    else:
        shutil.rmtree(scratch, ignore_errors=True)
    return failed


def study_need(flags: SweepFlags, workers: int | None = None) -> Need:
    """What the run with the most `workers` needs (before they are known: those of the flags, at least one); without
    workers a CPU for the trial itself.
    """
    if flags.num_workers == 0:
        return Need(count=1, each={"CPU": 1.0}, remedy="start a node that offers CPUs")
    return train.workers_need(workers or (1 if flags.num_workers == AUTO else flags.num_workers), flags.device)


def workers_of(item: dict[str, Any], flags: SweepFlags) -> int:
    """Workers of a run: those of its placement, else those of the flags."""
    placed = item["spec"]["config"].get("computed", {}).get("workers")
    return int(placed if placed is not None else 1 if flags.num_workers == AUTO else flags.num_workers)


def placed(specs: Sequence[RunSpec], flags: SweepFlags) -> list[RunSpec]:
    """The runs with the placement of their size on the connected cluster, which is printed. UsageError for a size that
    cannot be placed.
    """
    from g3pt.training.exports import read_export_config

    devices = cluster_devices(flags)
    codec = from_dict(CVQConfig, read_export_config(specs[0].paths["tokenizer"])["model"])
    sizes = [
        (
            spec.preset,
            from_dict(CARConfig, spec.config["model"]),
            from_dict(TrainConfig, spec.config["train"]),
        )
        for spec in specs
    ]
    found = placements(sizes, codec, devices, flags)
    for size, placement in found.items():
        say(f"  {size}: {placement.words(devices)}")
    return [with_placement(spec, found[spec.preset]) for spec in specs]


def cluster_devices(flags: SweepFlags) -> Devices:
    """The devices that the connected cluster has, or that its autoscaler may start if those are more: GPUs if workers
    get one each, else CPUs. Those of this machine if there are no workers.
    """
    import ray

    if flags.num_workers == 0:
        return Devices(count=session.available_cpus(), per_node=session.available_cpus())
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    unit = "GPU" if flags.num_workers and session.wants_gpu(flags.device) else "CPU"
    there = [int(node.get(unit, 0)) for node in nodes if node.get(unit, 0) >= 1]
    started = [(int(kind.resources.get(unit, 0)), kind.most or 0) for kind in autoscaler_max() or ()]
    count = max(sum(there), sum(each * most for each, most in started), 1)
    per_node = min(there or [each for each, most in started if each and most] or [1])
    memory = None if unit == "CPU" else gpu_bytes(flags) or gpu_bytes_of_workers(flags)
    return Devices(count=count, per_node=per_node, memory=memory)


def trial_resources(workers: Sequence[int], device: str) -> tuple[list[dict[str, float]], int]:
    """(resources that each trial of so many workers reserves, how many may run at once on the cluster as it is now).

    A trial is one actor on one node: slots are only asked for if one node has them all. At most as many trials run at
    once as the smallest fit beside each other; those whose workers find no room wait for it.
    """
    import ray

    have = ray.cluster_resources()
    unit = "GPU" if max(workers) and session.wants_gpu(device) else "CPU"
    room, concurrent = max(1, int(have.get(unit, 1))), 0
    for needed in sorted(max(1, count) for count in workers):
        room -= needed
        concurrent += room >= 0
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [_request(count, nodes) for count in workers], max(1, concurrent)


def _request(workers: int, nodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What the actor of a trial reserves."""
    if workers == 0:
        return {"CPU": 1.0}
    slots = {"sweep_slot": float(workers)}
    if any(fitting(slots, node) for node in nodes):
        return {"CPU": 0.0, **slots}
    return {"CPU": 0.0, "memory": float(NO_CPU_TRIAL_BYTES)}  # Ray refuses an empty request


def trial(
    config: dict[str, int],
    *,
    todo: list[dict[str, Any]],
    num_workers: int | str,
    device: str,
    groups: list[list[int]] | None = None,
    max_failures: int = MAX_FAILURES,
    feed: dict[str, Any] | None = None,
    key: str = "",
) -> dict[str, float]:
    """Train the runs of one trajectory inside a Tune trial: on their own Ray Train workers, or without workers in
    Train's local mode in this process. Tune restarts a trial whose own process died; a run that failed after its own
    retries is not tried again, and the others go on. The first worker calls `begun(key)`.
    """
    import torch

    torch.set_num_threads(1)
    if key and not num_workers:  # a run without workers has nobody else to say so
        begun(key)
    finished = [
        train_one(todo[index], num_workers, device, max_failures, feed or {}, key)
        for index in (groups[config["index"]] if groups else [config["index"]])
    ]
    return {"finished": float(all(finished))}


def train_one(
    item: dict[str, Any], num_workers: int | str, device: str, max_failures: int, feed: dict[str, Any], key: str
) -> bool:
    """Train one run with the workers of its placement (default `num_workers`), from the checkpoint of a longer one if
    that has passed where it cools down; False if it failed.
    """
    from g3pt.training.exports import write_json
    from g3pt.training.fit import AskedToStop

    spec, run_dir = RunSpec.from_dict(item["spec"]), Path(item["run_dir"])
    if follow.is_finished(run_dir):  # before the trial was restarted
        return True
    write_json(run_dir / ENVIRONMENT_FILE, environment())
    computed = spec.config.get("computed", {})
    workers = int(computed.get("workers", num_workers))
    speed = train.Speed(keep_samples=tuple(item.get("kept", ())), parallel=computed.get("parallel", "ddp"), **feed)
    try:
        start_from_another(spec, run_dir)
        train.ray_train(spec, run_dir, workers, device, item["build"], speed, max_failures, key)
        remove_finished(run_dir, speed.keep_samples)
    except AskedToStop:
        raise  # not a failure: Tune restarts the trial, or the study itself was asked to stop
    except Exception as error:
        note_failure(run_dir, error)
        return False
    (run_dir / FAILURE_FILE).unlink(missing_ok=True)  # from an earlier try
    return True


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
