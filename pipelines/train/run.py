"""Training runs under Ray Train: start, stop and resume with the same resulting weights.

How: `train_run` makes RUNS/<name>/, opens its MLflow run (`pipelines.train.follow`), and hands the work to Ray Train,
whose workers call `pipelines.train.worker.work`. A killed run continues from its newest readable checkpoint
(`pipelines.train.checkpoints`) when the same command starts again. A run stopped by a signal, to the driver or to a
worker, has saved its last step (`pipelines.cluster.stopping`). `_SUCCESS` is written last, and a run that has it is
left alone.
"""

import json
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.cli.errors import UsageError, one_line
from pipelines.cli.failures import Failure, is_deterministic, on_disk, root_cause
from pipelines.cli.flags import MAX_FAILURES
from pipelines.cli.interrupt import Stopped, in_thread
from pipelines.cli.progress import say
from pipelines.cluster import session
from pipelines.cluster.stopping import asking
from pipelines.cluster.storage import check_arrived, join
from pipelines.cluster.waiting import Need, asked, refuse_impossible
from pipelines.runs.identity import RunSpec
from pipelines.runs.locks import LOCK_FILE, alone_in
from pipelines.runs.notes import working_in
from pipelines.tracking.tracked import WritePage, is_told
from pipelines.train.checkpoints import checkpointed, remove_finished
from pipelines.train.follow import is_finished, tracked
from pipelines.train.worker import BUILD_STAGE, Speed, ray_work, work, work_config


def train_run(
    spec: RunSpec,
    output: str | Path,
    *,
    num_workers: int = 1,
    min_workers: int | None = None,
    ray_address: str | None = None,
    device: str = "auto",
    parent: str | None = None,
    build: str = BUILD_STAGE,
    speed: Speed | None = None,
    max_failures: int = MAX_FAILURES,
    page: WritePage | None = None,
    ready: Callable[[RunSpec], RunSpec] = lambda spec: spec,
    replace: bool = False,
) -> Path:
    """Start or resume the training of `spec` below `output`, unless it is finished; return the run's folder.

    num_workers 0 trains in this process without Ray (unit tests). `build` names the function that makes the stage.

    `ready` makes what the run reads and returns the run with the paths of it. It is called once no other process works
    on the run.
    """
    run_dir = run_folder(spec, output)
    check_run(spec, run_dir, replace=replace)
    if is_done(spec, run_dir):
        say_finished(spec, run_dir, output, parent, page)
        return run_dir
    train = spec.config["train"]
    with alone_in(run_dir):
        if num_workers:
            join(ray_address, writes=[run_dir], reads=inputs_of(spec))
            refuse_impossible(workers_need(min_workers or num_workers, device))
        spec = ready(spec)
        prepare_run(spec, output, replace=replace)
        note = working_in(run_dir, total=train["steps"] * train["batch_size"], unit="samples")
        with (
            note,
            on_disk(lambda: safe_state(spec, run_dir)),
            tracked(spec, run_dir, output, parent, page),
            asking([run_dir]),
            asked_worker_ends_all(spec),
        ):
            if num_workers == 0:
                in_thread(partial(work, work_config(spec, run_dir, build, speed)))
            else:
                ray_train(spec, run_dir, num_workers, device, build, speed, max_failures, min_workers=min_workers)
        remove_finished(run_dir, speed.keep_samples if speed else ())
    return run_dir


def inputs_of(spec: RunSpec) -> list[str]:
    """One file of each input that every worker of the run reads."""
    names = {"data": "dataset.json", "tokenizer": "config.json", "init_from": "config.json"}
    return [f"{spec.paths[role]}/{name}" for role, name in names.items() if role in spec.paths]


@contextmanager
def asked_worker_ends_all(spec: RunSpec) -> Iterator[None]:
    """Turns a worker's AskedToStop (it got SIGTERM) into Stopped, so that the command exits with 143."""
    try:
        yield
    except Exception as error:
        from g3pt.training.fit import AskedToStop

        if not isinstance(error, AskedToStop):
            raise
        say(f"  {spec.name}: a worker got SIGTERM; saved after step {error.step}")
        raise Stopped(signal.SIGTERM) from error


def check_output(output: str | Path) -> None:
    """UsageError for an output that runs cannot be written to."""
    if "://" in str(output):
        raise UsageError(f"{output}: runs on an object store are not supported yet; use a local or shared folder")


def run_folder(spec: RunSpec, output: str | Path) -> Path:
    """The run's folder below `output`. UsageError for an output that runs cannot be written to."""
    check_output(output)
    return Path(output).absolute() / spec.name


def check_run(spec: RunSpec, run_dir: Path, *, replace: bool = False) -> None:
    """UsageError if the folder contains a run that cannot go on as this one, unless --replace is given."""
    found = _other_run(spec, run_dir)
    if found and not replace:
        raise UsageError(f"{found}, or give --replace to make it anew")


def is_done(spec: RunSpec, run_dir: Path) -> bool:
    """Whether the folder contains this run, finished."""
    return is_finished(run_dir) and not _other_run(spec, run_dir)


def prepare_run(spec: RunSpec, output: str | Path, *, replace: bool = False) -> Path:
    """Make the run's folder with its config.json, if missing, and return it.

    UsageError if the run that is there has another format, or was made when a field had another default; with `replace`
    that run is deleted.
    """
    from g3pt.training.exports import write_json

    run_dir = run_folder(spec, output)
    check_run(spec, run_dir, replace=replace)
    if _other_run(spec, run_dir):
        _delete_content(run_dir)
    (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    if _computed(run_dir) != spec.config.get("computed", {}):  # a run may go on with another micro-batch
        write_json(run_dir / "config.json", spec.to_dict())
    return run_dir


def _computed(run_dir: Path) -> dict[str, Any] | None:
    """How the run in the folder is computed by its config.json; None without one."""
    try:
        stored = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return dict(stored["config"].get("computed", {}))


def _other_run(spec: RunSpec, run_dir: Path) -> str:
    """Why the run in the folder cannot go on as `spec`; "" if it can, or if there is none."""
    from g3pt.config import check_format

    try:
        stored = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
        check_format(stored, run_dir / "config.json")
    except FileNotFoundError:
        return ""
    except ValueError as error:
        return one_line(error)
    differences = ", ".join(sorted(spec.differences(stored)))
    if not differences:
        return ""
    return f"{run_dir} was made with {differences}, as defaults were then: choose another --output"


def _delete_content(run_dir: Path) -> None:
    """Delete a run, but not the lock that is held on its folder."""
    for path in run_dir.iterdir():
        if path.name == LOCK_FILE:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def say_finished(
    spec: RunSpec, run_dir: Path, output: str | Path, parent: str | None = None, page: WritePage | None = None
) -> None:
    """Print that the run is finished, and close its MLflow run if a killed driver could not."""
    print(f"{spec.name}: finished already", flush=True)
    if not is_told(run_dir):
        with alone_in(run_dir), tracked(spec, run_dir, output, parent, page):
            pass


def safe_state(spec: RunSpec, run_dir: Path) -> str:
    """From where the next start of the run continues, in words."""
    train, done = spec.config["train"], checkpointed(run_dir)
    at = (
        f"its checkpoint at {done} of {train['steps'] * train['batch_size']} samples"
        if done
        else "no checkpoint yet, so it starts from the beginning"
    )
    return f"{at} ({run_dir})"


def ray_train(
    spec: RunSpec,
    run_dir: Path,
    num_workers: int,
    device: str = "auto",
    build: str = BUILD_STAGE,
    speed: Speed | None = None,
    max_failures: int = MAX_FAILURES,
    key: str | None = None,
    min_workers: int | None = None,
) -> None:
    """Run `work` on Ray Train workers.

    A lost worker restarts the group from the newest checkpoint, until `max_failures` were counted (`Patience`). With
    `min_workers` each start takes as many workers as the cluster has then (`workers_now`).

    num_workers 0 is Train's local mode: in this process, on the CPU. Deterministic errors are raised at once, while
    Train's own `max_failures` would retry every error. AskedToStop is raised unchanged. With a `key` somebody else
    watches whether the workers begin (`pipelines.cluster.waiting`).
    """
    from ray.train import TrainingFailedError

    from g3pt.training.fit import AskedToStop

    patience = Patience(max_failures, checkpointed(run_dir))
    failure = TrainingFailedError if num_workers else Exception  # local mode raises the error itself
    count, batch = num_workers, spec.config["train"]["batch_size"]
    while True:
        if min_workers is not None:
            count = workers_now(batch, num_workers, min_workers, units_there(device))
            if count < num_workers:
                say(f"  {spec.name}: {count} of {num_workers} workers, as the cluster has no more now")
        try:
            told = watched(spec, count, device) if count and not key else nullcontext(key)
            with told as begins:
                _fit_once(work_config(spec, run_dir, build, speed) | {"key": begins}, count, device)
            return
        except failure as error:
            if isinstance(asked := root_cause(error), AskedToStop):
                raise asked from None
            reached = checkpointed(run_dir)
            if is_deterministic(error) or not patience.holds_after(reached):
                raise
            say(
                f"  {spec.name}: {Failure.of(error).error[:160]}; restarting from {reached} samples "
                f"({patience.failures} of {max_failures} failures without a checkpoint between them)"
            )


def watched(spec: RunSpec, num_workers: int, device: str) -> AbstractContextManager[str]:
    """Lines about waiting until the workers of a run begin. UsageError if the cluster can never have them."""
    return asked("train", workers_need(num_workers, device), spec.name)


def workers_now(batch: int, most: int, least: int, there: float) -> int:
    """The largest divisor of the batch from `least` to `most` of which the cluster has `there`; the smallest, for which
    the run waits, if it has too few now. `most` is a divisor.
    """
    divisors = [n for n in range(least, most + 1) if batch % n == 0]
    return max((n for n in divisors if n <= there), default=divisors[0])


def units_there(device: str) -> float:
    """GPUs, or CPUs if workers get none, of the connected cluster's living nodes."""
    import ray

    return float(ray.cluster_resources().get("GPU" if session.wants_gpu(device) else "CPU", 0))


def workers_need(num_workers: int, device: str) -> Need:
    """What Ray Train's workers need: one GPU or one CPU each."""
    unit = "GPU" if session.wants_gpu(device) else "CPU"
    remedy = "lower --num-workers" + (", use --device cpu" if unit == "GPU" else "") + ", or join a larger cluster"
    return Need(count=num_workers, each={unit: 1.0}, remedy=remedy)


@dataclass
class Patience:
    """Counts the failures of a run since its newest checkpoint, so that a long run on nodes that come and go ends only
    when it gets nowhere.
    """

    max_failures: int
    reached: int  # samples of the newest checkpoint at the last failure, at first those at the start
    failures: int = 0

    def holds_after(self, reached: int) -> bool:
        """Count a failure of a run whose newest checkpoint is at `reached` samples; whether to try again."""
        self.failures = 0 if reached > self.reached else self.failures + 1
        self.reached = reached
        return self.failures <= self.max_failures


def _fit_once(config: dict[str, Any], num_workers: int, device: str) -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from pipelines.cluster.train_backend import Config

    use_gpu = num_workers > 0 and session.wants_gpu(device)
    scratch = Path(config["run_dir"]) / "ray"  # Train's own bookkeeping, which we do not use
    trainer = TorchTrainer(
        ray_work if num_workers else work,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=use_gpu),
        torch_config=Config(backend="nccl" if use_gpu else "gloo"),
        # A new name each time: Train would silently resume an old one.
        run_config=RunConfig(name=uuid.uuid4().hex, storage_path=str(scratch)),
    )
    done = in_thread(trainer.fit)  # in the main thread Train would replace the handler of Ctrl-C
    check_arrived(**done.return_value)
    shutil.rmtree(scratch, ignore_errors=True)
