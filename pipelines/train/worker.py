"""One worker of a training run: `work`, a plain function around `g3pt.training.fit.fit`, with and without Ray.

How: rank 0 writes the ledger, the export and checkpoints (a sharded run's are written by all workers), and `_SUCCESS` last. The last record of the ledger waits for the test
metrics, so that each step stays once; records past the checkpoint that a run goes on from are dropped first.
"""

import contextlib
import importlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.cli.errors import UsageError
from pipelines.cli.failures import doing
from pipelines.cli.freed_memory import keep_freed_memory
from pipelines.cluster.stopping import stoppable
from pipelines.runs.identity import Ledger, Record, RunSpec
from pipelines.runs.locks import LOCK_FILE, Held, locked
from pipelines.train.checkpoints import agreed_checkpoint, remove_unfinished, save_checkpoint, save_sharded

BUILD_STAGE = "pipelines.train.stages:build_stage"
LOCK_WAIT_S = 60.0  # for a worker of a killed run to disappear


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How a run is computed: no part of its identity, but for a tokenizer's micro-batches (`training_jobs.named_by_micro_batch`)."""

    parallel: str = "ddp"  # or fsdp: what several workers do
    micro_batch: int | None = None  # objects a worker computes at once; None: its share of the global batch
    num_to_keep: int = 2  # checkpoints


def work_config(spec: RunSpec, run_dir: Path, build: str = BUILD_STAGE, speed: Speed | None = None) -> dict[str, Any]:
    """What `work` is told, as plain values."""
    return {"spec": spec.to_dict(), "run_dir": str(run_dir), "build": build, "speed": asdict(speed or Speed())}


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
    from g3pt.training.fit import fit
    from g3pt.training.parallel import make_parallel

    keep_freed_memory(2**30, 2**31 - 1)  # activations of some MB, in every step
    spec, run_dir, speed = RunSpec.from_dict(config["spec"]), Path(config["run_dir"]), Speed(**config.get("speed", {}))
    with doing(f"training {spec.name}"), run_lock(run_dir) if rank == 0 else contextlib.nullcontext():
        state = agreed_checkpoint(run_dir / "checkpoints", rank, world_size, device)
        stage = resolve(config["build"])(spec, rank, world_size)
        ledger = Ledger.of(run_dir)
        journal = Journal(spec.name, ledger, stage.train_config, state) if rank == 0 else None
        parallel = make_parallel(speed.parallel, rank, world_size)
        with stoppable(run_dir, rank) as stop:
            model = fit(
                model=stage.model,
                batches=stage.batches,
                config=stage.train_config,
                report=journal.report if journal else _ignore,
                save=make_save(run_dir / "checkpoints", journal, parallel, speed.num_to_keep),
                resume=state and state["fit"],
                evaluate=stage.evaluate,
                device=device,
                parallel=parallel,
                micro_batch=speed.micro_batch,
                stop=stop,
            )
        if journal:
            journal.finish(stage.final(model))
            export(stage, model, run_dir)


def _ignore(_: Record) -> None:
    """The report of a worker that is not rank 0."""


def make_save(
    folder: Path, journal: "Journal | None", parallel: Any, num_to_keep: int
) -> Callable[[dict[str, Any], int], None] | None:
    """What saves a state of `fit` on this worker: all workers if the state is sharded, else rank 0 alone, which has the journal."""

    def save(state: dict[str, Any], samples: int) -> None:
        whole = {"samples": samples, "held": journal.held if journal else None, "fit": state}
        if parallel.is_sharded:
            save_sharded(folder, whole, num_to_keep, parallel.rank)
        else:
            save_checkpoint(folder, whole, num_to_keep)

    if journal:
        remove_unfinished(folder)
    return save if journal or parallel.is_sharded else None


class Journal:
    """Rank 0's ledger. The last record is held back, in the checkpoint too, until the test metrics join it."""

    def __init__(self, name: str, ledger: Ledger, config: Any, state: dict[str, Any] | None) -> None:
        self.name, self.ledger = name, ledger
        self.all_samples = config.steps * config.batch_size
        self.held: Record | None = state["held"] if state else None
        start = state["samples"] if state else 0
        # At the end, the final record is in the ledger already if only the export was interrupted: it is made again.
        dropped = ledger.truncate_after(start - 1 if start == self.all_samples else start)
        if state or dropped:
            print(f"{name}: resumes at {start} samples ({dropped} later ledger records dropped)", flush=True)

    def report(self, record: Record) -> None:
        """Keep one record of `fit`."""
        record = {**record, "time": time.time()}
        if record["step"] >= self.all_samples:
            self.held = record
        else:
            self.ledger.append([record])

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
def run_lock(run_dir: Path) -> Iterator[None]:
    """Alone with the run: two processes on one run would write each step twice. Waits for a dying predecessor."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(run_dir / LOCK_FILE, wait_s=LOCK_WAIT_S))
        except Held:
            raise UsageError(f"{run_dir}: another process is working on this run") from None
        yield
