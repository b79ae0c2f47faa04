"""One worker of a training run: `work`, a plain function around `g3pt.training.fit.fit` that runs with and without Ray.

How: rank 0 writes the ledger, checkpoints (for a sharded run all workers do), the export, and finally `_SUCCESS`. The
last record of the ledger is held back until the test metrics can be added, so that each step occurs once. When a run
resumes, records after its checkpoint are dropped first.
"""

import contextlib
import importlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.cli.errors import UsageError
from pipelines.cli.failures import doing, placed, remedied
from pipelines.cli.freed_memory import keep_freed_memory
from pipelines.cluster.nodes import node_name
from pipelines.cluster.place import place
from pipelines.cluster.stopping import stoppable
from pipelines.cluster.storage import sizes_of
from pipelines.cluster.waiting import begun
from pipelines.runs.identity import RunSpec
from pipelines.runs.ledger import Ledger, Record
from pipelines.runs.locks import STALE_S, Held, locked
from pipelines.tracking.nodes import node_ledger
from pipelines.train.checkpoints import agreed_checkpoint
from pipelines.train.object_losses import write_object_losses
from pipelines.train.saving import GPU_MINUTES, Saver

BUILD_STAGE = "pipelines.train.stages:build_stage"
WORKER_LOCK = ".worker.lock"  # rank 0's, beside the driver's: a killed driver's worker may live for some seconds
EXPORT, BEST_EXPORT = "export", "export-best"  # folders of a finished run: its last weights, those of its best record
LOCK_WAIT_S = STALE_S + 30.0  # time for a worker of a killed driver to disappear


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How a run is computed; not part of its identity.

    The micro-batch is in the run's config (`pipelines.train.memory`).
    """

    parallel: str = "ddp"  # or fsdp: how several workers share the model
    num_to_keep: int = 2  # checkpoints to keep
    checkpoint_minutes: float | None = None  # at least between two; None: `saving.GPU_MINUTES` on a GPU, else 0
    keep_samples: tuple[int, ...] = ()  # samples at which a checkpoint is saved and kept (`pipelines.train.trajectory`)
    compile: str = "auto"  # on, off: `g3pt.training.compiled`
    cache: str = "off"  # auto, off or a folder (`pipelines.train.node_cache`)
    loader_workers: int | str = 0  # processes that make a worker's batches; auto: some beside a GPU


def work_config(spec: RunSpec, run_dir: Path, build: str = BUILD_STAGE, speed: Speed | None = None) -> dict[str, Any]:
    """The configuration of `work` as plain values."""
    return {"spec": spec.to_dict(), "run_dir": str(run_dir), "build": build, "speed": asdict(speed or Speed())}


def ray_work(config: dict[str, Any]) -> dict[str, Any]:
    """Ray Train's entry point on each worker: calls `work` with this worker's rank and device."""
    import ray.train
    import torch
    from ray.train.torch import get_device

    torch.set_num_threads(1)
    context, device = ray.train.get_context(), get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    rank, world_size = context.get_world_rank(), context.get_world_size()
    if config.get("key"):
        begun(config["key"])
    with placed(lambda: place(rank)), node_sampled(Path(config["run_dir"]), context.get_local_rank()):
        local = context.get_local_world_size()
        return work(config, rank=rank, world_size=world_size, local_world_size=local, device=device)


def node_sampled(run_dir: Path, local_rank: int) -> contextlib.AbstractContextManager[Any]:
    """The first worker of a node samples it inside the block."""
    if local_rank > 0:
        return contextlib.nullcontext()
    from pipelines.train.node_sampler import NodeSampler

    return NodeSampler(node_ledger(run_dir, node_name()))


def work(
    config: dict[str, Any], *, rank: int = 0, world_size: int = 1, local_world_size: int = 1, device: Any = "cpu"
) -> dict[str, Any]:
    """Train as one worker of a run, from its newest checkpoint to the end. Only rank 0 writes.

    Returns this node and the files (path -> bytes) of the finished run, for `pipelines.cluster.storage.check_arrived`.
    """
    import torch

    from g3pt.training.best import Best
    from g3pt.training.compiled import prepare
    from g3pt.training.fit import fit
    from g3pt.training.parallel import make_parallel
    from pipelines.train.feed import Feed, loaders
    from pipelines.train.init_from import initialise

    keep_freed_memory(2**30, 2**31 - 1)  # activations of some MB are freed in every step
    spec, run_dir, speed = RunSpec.from_dict(config["spec"]), Path(config["run_dir"]), Speed(**config.get("speed", {}))
    share = spec.config["train"]["batch_size"] // world_size
    micro_batch = at_once(share, spec.config.get("computed", {}).get("micro_batch", share))
    with (
        doing(f"training {spec.name}"),
        remedied(lambda: remedy(share, micro_batch)),
        worker_lock(run_dir) if rank == 0 else contextlib.nullcontext(),
    ):
        state = agreed_checkpoint(run_dir / "checkpoints", rank, world_size, device)
        made_by = loaders(speed.loader_workers, str(device).startswith("cuda"), local_world_size)
        stage = resolve(config["build"])(spec, rank, world_size, Feed(cache=speed.cache, loader_workers=made_by))
        if state is None:
            initialise(stage.model, spec)
        ledger, best = Ledger.of(run_dir), Best(stage.best_by)
        journal = Journal(spec, ledger, stage.train_config, state, micro_batch) if rank == 0 else None
        parallel = make_parallel(speed.parallel, rank, world_size, local_world_size)
        if (compiled := prepare(speed.compile, stage.model, torch.device(device))) and journal:
            print(f"{spec.name}: {compiled} transformer blocks are compiled in the first step", flush=True)
        test: Record = {}
        with contextlib.ExitStack() as ending, contextlib.ExitStack() as asking:
            stop = asking.enter_context(stoppable(run_dir, rank))
            saver = make_saver(run_dir / "checkpoints", journal, parallel, speed, device)
            ending.callback(saver.close)

            def final(model: Any) -> None:
                asking.close()  # every step is saved: a signal ends the test as it ends what follows
                test.update(stage.final(model))

            model = fit(
                model=stage.model,
                batches=stage.batches,
                config=stage.train_config,
                report=journal.report if journal else _ignore,
                save=saver if saver.saves else None,
                save_at=speed.keep_samples,
                is_due=saver.is_due if saver.minutes else None,
                saved=saver.wait,
                resume=state and (lambda like: taken(state, like)),
                evaluate=stage.evaluate,
                evaluate_raw=stage.evaluate_raw,
                final=final,
                best=best,
                device=device,
                parallel=parallel,
                micro_batch=micro_batch,
                stop=stop,
            )
        if journal:
            journal.finish(test)
            if losses := stage.object_losses():
                write_object_losses(losses, run_dir)
            export(stage, model, run_dir / EXPORT)
            if best.weights:
                model.load_state_dict(best.weights, strict=False)
                export(stage, model, run_dir / BEST_EXPORT, {"samples": best.samples, "validation_loss": best.value})
            succeeded(run_dir)
    return {
        "node": node_name(),
        "files": sizes_of([*run_dir.glob("export*/*"), run_dir / "_SUCCESS"]) if journal else {},
    }


def at_once(share: int, planned: int) -> int:
    """Objects that a worker with this share of the batch computes at once: at most as many as were planned, maybe for
    another number of workers.
    """
    return max(n for n in range(1, min(share, planned) + 1) if share % n == 0)


def remedy(share: int, used: int) -> str:
    """The flag against a lack of GPU memory for a worker that computes its `share` of a batch in parts
    of `used` objects.
    """
    fewer = max((number for number in range(1, used) if share % number == 0), default=None)
    if fewer is None:
        return "--parallel fsdp with more workers, or a smaller preset: one object at a time is too much"
    return (
        f"--micro-batch {fewer}: a worker computed {used} objects at once, and another try would fail in the same way"
    )


def _ignore(_: Record) -> None:
    """The `report` of workers other than rank 0."""


def make_saver(folder: Path, journal: "Journal | None", parallel: Any, speed: Speed, device: Any) -> Saver:
    """What saves the states of `fit` on this worker."""
    minutes = speed.checkpoint_minutes
    if minutes is None:
        minutes = GPU_MINUTES if getattr(device, "type", device) == "cuda" else 0.0
    return Saver(
        folder,
        parallel,
        held=lambda: journal.held if journal else None,
        num_to_keep=speed.num_to_keep,
        kept=speed.keep_samples,
        minutes=minutes,
    )


def taken(state: dict[str, Any], like: Any) -> dict[str, Any]:
    """The state of `fit` of a checkpoint, which then holds it no longer: it would stay in memory for the whole run."""
    found = state.pop("fit")
    return dict(found(like) if callable(found) else found)


class Journal:
    """Rank 0's ledger. The last record is held back (in the checkpoint too) until the test metrics are added."""

    def __init__(
        self, spec: RunSpec, ledger: Ledger, config: Any, state: dict[str, Any] | None, micro_batch: int
    ) -> None:
        self.name, self.ledger = spec.name, ledger
        recompute = bool(spec.config.get("model", {}).get("checkpoint_layers"))
        self.computed = {"micro_batch": micro_batch, "recompute": float(recompute)}
        self.all_samples = config.steps * config.batch_size
        self.held: Record | None = state["held"] if state else None
        start = state["samples"] if state else 0
        # If only the export was interrupted, the ledger already contains the final record: drop it, it is made again.
        dropped = ledger.truncate_after(start - 1 if start == self.all_samples else start)
        if state or dropped:
            print(f"{self.name}: resumes at {start} samples ({dropped} later ledger records dropped)", flush=True)

    def report(self, record: Record) -> None:
        """Write one record of `fit`."""
        record = {**record, **self.computed, "time": time.time()}
        if record["step"] >= self.all_samples:
            self.held = record
        else:
            self.ledger.append([record])

    def finish(self, final: Record) -> None:
        """Write the last record with the test metrics."""
        assert self.held is not None, f"{self.name}: no record of the last step"
        self.ledger.append([{**self.held, **final}])


def export(stage: Any, model: Any, target: Path, best: dict[str, Any] | None = None) -> None:
    """Write the model to the folder `target`, complete or not at all; config.json says of
    which record the best weights are.
    """
    from g3pt.training.exports import write_json

    temporary = target.with_name(f".{target.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    stage.export(model, temporary)
    if best:
        config = json.loads((temporary / "config.json").read_text(encoding="utf-8"))
        write_json(temporary / "config.json", {**config, "best": best})
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)


def succeeded(run_dir: Path) -> None:
    """Write the run's `_SUCCESS`."""
    with open(run_dir / "_SUCCESS", "w", encoding="utf-8") as file:
        file.flush()
        os.fsync(file.fileno())


def resolve(name: str) -> Callable[..., Any]:
    """The object that `module:attribute` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


@contextlib.contextmanager
def worker_lock(run_dir: Path) -> Iterator[None]:
    """Hold rank 0's lock: two processes on one run would write each step twice.

    Waits for a predecessor that is ending.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(run_dir / WORKER_LOCK, wait_s=LOCK_WAIT_S))
        except Held as held:
            raise UsageError(f"{run_dir}: another worker ({held.holder or 'unknown'}) is training this run") from None
        yield
