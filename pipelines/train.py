"""Training runs under Ray Train: start, stop, start again, and the same weights come out.

How: `train_run` makes RUNS/<name>/, opens its MLflow run, and gives the work to Ray Train; each worker calls `work`, a plain
function around `g3pt.training.fit`. Rank 0 writes checkpoints (whole or not at all), the ledger, the export. A run that was
killed anywhere continues from its newest readable checkpoint when the same command starts again; ledger records past the
checkpoint are dropped first. `_SUCCESS` is written last, and a run that has it is left alone.
Ours: own checkpoint files instead of Ray's, so that a run has one format with and without Ray, and a resumed run needs
nothing but its folder. The last record of the ledger waits for the test metrics, so that each step stays once.
"""

import contextlib
import fcntl
import importlib
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from g3pt.alarm import Bell, in_words, sounding
from pipelines import cards, cluster
from pipelines.errors import UsageError
from pipelines.failures import Failure, doing, is_deterministic, on_disk
from pipelines.interrupt import in_thread
from pipelines.notes import working_in
from pipelines.progress import Progress, say
from pipelines.runs import Ledger, Periodic, Record, RunSpec
from pipelines.tracked import Outcome, followed, is_told
from pipelines.tracking import best_effort

BUILD_STAGE = "pipelines.stages:build_stage"
LOCK_WAIT_S = 60.0  # for a worker of a killed run to disappear
MAX_FAILURES = 3
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How a run is computed: no part of its identity, but for a tokenizer's micro-batches (`training_jobs.named_by_micro_batch`)."""

    parallel: str = "ddp"  # or fsdp: what several workers do
    micro_batch: int | None = None  # objects a worker computes at once; None: its share of the global batch
    num_to_keep: int = 2  # checkpoints


# --- the driver -------------------------------------------------------------------------------------------------------


def train_run(
    spec: RunSpec,
    output: str | Path,
    *,
    num_workers: int = 1,
    ray_address: str | None = None,
    device: str = "auto",
    parent: str | None = None,
    build: str = BUILD_STAGE,
    speed: Speed | None = None,
) -> Path:
    """Train `spec` below `output`, or go on with it, or see that it is finished; the run's folder.

    num_workers 0 trains in this process without Ray (unit tests). `build` names the function that makes the stage.
    """
    run_dir = prepare_run(spec, output)
    if is_finished(run_dir):
        say_finished(spec, run_dir, output, parent)
        return run_dir
    train = spec.config["train"]
    note = working_in(run_dir, total=train["steps"] * train["batch_size"], unit="samples")
    with note, on_disk(lambda: safe_state(spec, run_dir)), tracked(spec, run_dir, output, parent):
        if num_workers == 0:
            work(work_config(spec, run_dir, build, speed))
        else:
            cluster.connect(ray_address)
            ray_train(spec, run_dir, num_workers, device, build, speed)
    return run_dir


def check_output(output: str | Path) -> None:
    """Refuse what runs cannot be written to."""
    if "://" in str(output):
        raise UsageError(f"{output}: runs on an object store are not built yet; use a local or shared folder")


def prepare_run(spec: RunSpec, output: str | Path) -> Path:
    """The run's folder with its config.json; made if missing, and then left as it is: it tells what the run was made from."""
    check_output(output)
    from g3pt.checkpoint import write_json

    run_dir = Path(output).absolute() / spec.name
    (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    if not (run_dir / "config.json").exists():
        write_json(run_dir / "config.json", spec.to_dict())
    return run_dir


def say_finished(spec: RunSpec, run_dir: Path, output: str | Path, parent: str | None = None) -> None:
    """To the person; and to MLflow, where a killed driver could not."""
    print(f"{spec.name}: finished already", flush=True)
    if not is_told(run_dir):
        with tracked(spec, run_dir, output, parent):
            pass


def is_finished(run_dir: Path) -> bool:
    """Whether the run has its `_SUCCESS`."""
    return (run_dir / "_SUCCESS").exists()


class Follower(Periodic):
    """Shows the newest record of a run's ledger and each alarm when it starts to sound, on the driver: what workers print stays in Ray's own logs."""

    def __init__(self, spec: RunSpec, run_dir: Path) -> None:
        super().__init__(self.show)
        self.name, self.run_dir = spec.name, run_dir
        train, self.ledger = spec.config["train"], Ledger(run_dir / "metrics.jsonl")
        state = {"run": spec.name, "done": checkpointed(run_dir), "tokens_per_unit": tokens_per_sample(spec)}
        self.progress = Progress("train", train["steps"] * train["batch_size"], "samples", **state)
        self.shown, self.heard, self.bell = self.ledger.last_step(), 0.0, Bell()
        self.alarms(self.ledger.read())  # told by an earlier start

    def __enter__(self) -> "Follower":
        self.progress.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self.progress.__exit__(*raised)
        told = {fault.key for fault in self.bell.sounding()}
        last = [fault for fault in self.bell.sounding(is_finished(self.run_dir)) if fault.key not in told]
        if last:
            say(f"  {self.name}: alarm at its end: {in_words(last)}")

    def show(self) -> None:
        """Tell the newest record, once, and what alarms set in since."""
        records = self.ledger.read()
        for record in [r for r in records[-1:] if r["step"] != self.shown]:
            self.shown = record["step"]
            numbers = {name: record[name] for name in ("loss", "val_iou", "val_ce") if name in record}
            self.progress.show(int(record["step"]), rate=record.get("samples_per_second"), **numbers)
        for line in self.alarms(records):
            say(f"  {self.name}: {line}")

    def alarms(self, records: list[Record]) -> list[str]:
        """What sets in with the records that were not heard yet."""
        new = [record for record in records if record["step"] > self.heard]
        self.heard = new[-1]["step"] if new else self.heard
        found = [(record["step"], self.bell.hear(record)) for record in new]
        return [f"alarm at {step:.0f} samples: {in_words(faults)}" for step, faults in found if faults]


def tokens_per_sample(spec: RunSpec) -> int:
    """Tokens of an object that a generator is trained on; 0 for a tokenizer."""
    from g3pt.checkpoint import read_export_config

    return sum(read_export_config(spec.paths["tokenizer"])["model"]["scales"]) if "tokenizer" in spec.paths else 0


def safe_state(spec: RunSpec, run_dir: Path) -> str:
    """What of a run the next start goes on from."""
    train, done = spec.config["train"], checkpointed(run_dir)
    at = f"its checkpoint at {done} of {train['steps'] * train['batch_size']} samples" if done else "no checkpoint yet, so it starts anew"
    return f"{at} ({run_dir})"


def checkpointed(run_dir: Path) -> int:
    """Samples seen at the newest checkpoint, 0 without one."""
    known = checkpoints(run_dir / "checkpoints")
    return int(known[0].stem.rpartition("-")[2]) if known else 0


@contextlib.contextmanager
def tracked(spec: RunSpec, run_dir: Path, output: str | Path, parent: str | None = None) -> Iterator[Outcome]:
    """Inside the block the ledger is followed: as lines for people, and as the run's MLflow run, what it shows being the outcome's."""
    if checkpointed(run_dir):
        say(f"  {spec.name}: resumes from its checkpoint at {checkpointed(run_dir)} samples")
    ledger, card = Ledger(run_dir / "metrics.jsonl"), cards.training(spec, run_dir, "scaling" if parent else "")
    with Follower(spec, run_dir), followed(card, output, finished=lambda: is_finished(run_dir), ledger=ledger, parent=parent) as outcome:
        try:
            yield outcome
        finally:
            if is_finished(run_dir):
                best_effort("describing the run in MLflow", lambda: describe_finished(spec, run_dir, outcome))


def describe_finished(spec: RunSpec, run_dir: Path, outcome: Outcome) -> None:
    """What MLflow shows of a finished run beside its ledger."""
    from g3pt.checkpoint import export_hash
    from pipelines.curves import draw_run, draw_tokens
    from pipelines.training_jobs import count_parameters

    outcome.artifacts += [run_dir / "config.json", run_dir / "export" / "config.json", draw_run(run_dir, run_dir / "curves.png")]
    tokens = draw_tokens(run_dir, spec.config["model"]["scales"], run_dir / "tokens.png") if spec.stage == "cvq" and "model" in spec.config else None
    outcome.artifacts += [tokens] if tokens else []
    outcome.tags["g3pt.export_hash"] = export_hash(run_dir)
    outcome.tags["g3pt.alarm"] = sounding(Ledger(run_dir / "metrics.jsonl").read(), finished=True)  # no tag if it is silent
    outcome.params["parameters"] = count_parameters(spec)


def work_config(spec: RunSpec, run_dir: Path, build: str = BUILD_STAGE, speed: Speed | None = None) -> dict[str, Any]:
    """What `work` is told, as plain values."""
    return {"spec": spec.to_dict(), "run_dir": str(run_dir), "build": build, "speed": asdict(speed or Speed())}


def ray_train(
    spec: RunSpec, run_dir: Path, num_workers: int, device: str = "auto", build: str = BUILD_STAGE, speed: Speed | None = None
) -> None:
    """`work` on `num_workers` Ray Train workers; a lost worker restarts the group from the newest checkpoint, MAX_FAILURES times.

    num_workers 0 is Train's local mode: in this process, on the CPU. An error that would come again is raised at once: that
    choice is ours, Train's own `max_failures` tries every error again.
    """
    from ray.train import TrainingFailedError

    failures = 0
    while True:
        try:
            _fit_once(work_config(spec, run_dir, build, speed), num_workers, device)
            return
        except TrainingFailedError as error:
            failures += 1
            if is_deterministic(error) or failures > MAX_FAILURES:
                raise
            say(f"  {spec.name}: {Failure.of(error).error[:160]}; starts again from {checkpointed(run_dir)} samples ({failures} of {MAX_FAILURES})")


def _fit_once(config: dict[str, Any], num_workers: int, device: str) -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    use_gpu = num_workers > 0 and cluster.wants_gpu(device)
    scratch = Path(config["run_dir"]) / "ray"  # Train's own bookkeeping; ours needs none of it
    trainer = TorchTrainer(
        ray_work if num_workers else work,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=use_gpu),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        # A name of its own each time: Train would silently resume an older one.
        run_config=RunConfig(name=uuid.uuid4().hex, storage_path=str(scratch)),
    )
    in_thread(trainer.fit)  # in the main thread Train would take Ctrl-C for itself
    shutil.rmtree(scratch, ignore_errors=True)


# --- a worker ---------------------------------------------------------------------------------------------------------


def ray_work(config: dict[str, Any]) -> None:
    """Train's entry on each worker: `work` with this worker's rank, device and data-parallel wrapper."""
    import ray.train
    import torch
    from ray.train.torch import get_device

    torch.set_num_threads(1)
    context, device = ray.train.get_context(), get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    work(config, rank=context.get_world_rank(), world_size=context.get_world_size(), device=device)


def work(config: dict[str, Any], *, rank: int = 0, world_size: int = 1, device: Any = "cpu") -> None:
    """One worker of one run, from wherever the run stands to its end. Only rank 0 writes."""
    from g3pt.parallel import make_parallel
    from g3pt.training import fit

    keep_freed_memory()
    spec, run_dir, speed = RunSpec.from_dict(config["spec"]), Path(config["run_dir"]), Speed(**config.get("speed", {}))
    with doing(f"training {spec.name}"), run_lock(run_dir) if rank == 0 else contextlib.nullcontext():
        state = agreed_checkpoint(run_dir / "checkpoints", rank, world_size, device)
        stage = resolve(config["build"])(spec, rank, world_size)
        ledger = Ledger(run_dir / "metrics.jsonl")
        journal = Journal(spec.name, ledger, stage.train_config, state, speed.num_to_keep) if rank == 0 else None
        model = fit(
            model=stage.model,
            batches=stage.batches,
            config=stage.train_config,
            report=journal.report if journal else _ignore,
            save=journal.save if journal else None,
            resume=state and state["fit"],
            evaluate=stage.evaluate,
            device=device,
            parallel=make_parallel(speed.parallel, rank, world_size),
            micro_batch=speed.micro_batch,
        )
        if journal:
            journal.finish(stage.final(model))
            export(stage, model, run_dir)


def keep_freed_memory() -> None:
    """Tell glibc to reuse freed memory: activations of some MB are otherwise mapped and page-faulted anew in every step."""
    import ctypes

    with contextlib.suppress(AttributeError, OSError):  # another C library has no mallopt
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, 2**30)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _ignore(_: Record) -> None:
    """The report of a worker that is not rank 0."""


class Journal:
    """Rank 0's ledger and checkpoints. The last record is held back, in the checkpoint too, until the test metrics join it."""

    def __init__(self, name: str, ledger: Ledger, config: Any, state: dict[str, Any] | None, num_to_keep: int) -> None:
        self.name, self.ledger, self.num_to_keep = name, ledger, num_to_keep
        self.checkpoints = ledger.path.parent / "checkpoints"
        self.last_step = config.steps * config.batch_size
        self.held: Record | None = state["held"] if state else None
        start = state["step"] if state else 0
        # At the end, the final record is in the ledger already if only the export was interrupted: it is made again.
        dropped = ledger.truncate_after(start - 1 if start == self.last_step else start)
        if state or dropped:
            print(f"{name}: resumes at {start} samples ({dropped} later ledger records dropped)", flush=True)

    def report(self, record: Record) -> None:
        """Keep one record of `fit`."""
        record = {**record, "time": time.time()}
        if record["step"] >= self.last_step:
            self.held = record
        else:
            self.ledger.append([record])

    def save(self, state: dict[str, Any], step: int) -> None:
        """Write a checkpoint and drop old ones."""
        save_checkpoint(self.checkpoints, {"step": step, "held": self.held, "fit": state}, self.num_to_keep)

    def finish(self, final: Record) -> None:
        """The last record, test metrics in it."""
        assert self.held is not None, f"{self.name}: no record of the last step"
        self.ledger.append([{**self.held, **final}])


def export(stage: Any, model: Any, run_dir: Path) -> None:
    """The finished model as RUN/export, whole or not at all, then `_SUCCESS`."""
    temporary, target = run_dir / ".export", run_dir / "export"
    shutil.rmtree(temporary, ignore_errors=True)
    stage.export(model, temporary)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    with open(run_dir / "_SUCCESS", "w") as file:
        file.flush()
        os.fsync(file.fileno())


def resolve(name: str) -> Callable[..., Any]:
    """The object that `module:attribute` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


@contextlib.contextmanager
def run_lock(run_dir: Path) -> Iterator[IO[str]]:
    """Alone with the run: two processes on one run would write each step twice. Waits for a dying predecessor."""
    with open(run_dir / ".lock", "w") as file:
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UsageError(f"{run_dir}: another process is working on this run") from None
                time.sleep(0.2)
        yield file


# --- checkpoints ------------------------------------------------------------------------------------------------------


def save_checkpoint(folder: Path, state: dict[str, Any], num_to_keep: int) -> Path:
    """`step-<samples>.pt`: temporary name, fsync, rename; the newest `num_to_keep` stay."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{state['step']:012d}.pt"
    temporary = folder / f".{target.name}.{os.getpid()}"
    with open(temporary, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, target)
    _sync_folder(folder)
    for old in checkpoints(folder)[num_to_keep:]:
        old.unlink()
    return target


def agreed_checkpoint(folder: Path, rank: int, world_size: int, device: Any = "cpu") -> dict[str, Any] | None:
    """The state that all workers go on from: rank 0, alone with the run, chooses; the others wait for its choice.

    Each choosing for itself could take different files, while a worker of a killed start still writes one.
    """
    if world_size == 1:
        return newest_checkpoint(folder)[1]
    import torch
    from torch.distributed import broadcast_object_list

    name, state = newest_checkpoint(folder) if rank == 0 else (None, None)
    box = [name]
    broadcast_object_list(box, src=0, device=torch.device(device))
    if rank > 0 and box[0] is not None:
        state = read_checkpoint(folder / box[0])
    return state


def newest_checkpoint(folder: Path) -> tuple[str | None, dict[str, Any] | None]:
    """Name and state of the newest readable file. An unreadable one (a disk that filled up, say) is named and passed over."""
    for path in checkpoints(folder):
        try:
            return path.name, read_checkpoint(path)
        except Exception as error:  # torch raises whatever its unpickler met: RuntimeError, EOFError, UnpicklingError, ...
            print(f"warning: skipped the unreadable checkpoint {path.name}: {type(error).__name__}", file=sys.stderr)
    return None, None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """One checkpoint's state, on the CPU."""
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint files, newest first."""
    return sorted(folder.glob("step-*.pt"), reverse=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
