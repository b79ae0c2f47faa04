"""Small trainings that one process and two must do alike: run by tests/g3pt/training/test_parallel.py, as a worker
of a gloo group too.

    python -m tests.g3pt.two_workers FOLDER RANK

is one of two workers; it leaves FOLDER/<case>-<kind>.pt, and FOLDER/<case>-<kind> with the half-way state of a sharded
training.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from g3pt.config import TrainConfig
from g3pt.data.batches import SurfaceBatches
from g3pt.models.tokenizer import CVQ
from g3pt.training import fit as fitting
from g3pt.training.best import Best
from g3pt.training.fit import AskedToStop, fit
from g3pt.training.parallel import SingleProcess, gathered, make_parallel, whole
from g3pt.training.stored_state import StoredState, write_sharded
from tests.g3pt.models.test_tokenizer import TINY, spheres
from tests.g3pt.tiny import random_batch, tiny_g3pt

BATCH, STEPS = 8, 8
TRAIN = TrainConfig(
    steps=STEPS,
    batch_size=BATCH,
    learning_rate=2e-3,
    base_width=8,
    weight_decay=0.3,
    warmup_share=0.0,
    log_every=1,
    eval_every=4,
    checkpoint_every=4,
)
PHASES = {"continuous_share": 0.38, "pyramid_share": 0.25}  # 3 steps continuous, 2 pyramid, 3 joint
CASES: dict[str, dict[str, Any]] = {  # name -> changes of TINY
    "fsq": {},
    "lfq": {"quantizer": "lfq", "code_weight": 0.5},
    "bf16": {"checkpoint_layers": True},
    "bad": {},
}
BAD_STEP = 4  # of the case "bad": object 1 is not finite, which is the second worker's
KINDS = ("ddp", "fsdp")


def train_config(case: str) -> TrainConfig:
    """The one case in bf16, clipped hard, under its own loop configuration."""
    return dataclasses.replace(TRAIN, precision="bf16", clip_norm=0.1) if case == "bf16" else TRAIN


def train_cvq(
    case: str, parallel: SingleProcess, micro_batch: int | None = None, resume: Any = None, folder: Path | None = None
) -> dict[str, Any]:
    """Records, weights and the checkpoint half-way of one training of a tokenizer; a sharded one's goes to `folder`."""
    config = dataclasses.replace(TINY, **PHASES, **CASES[case])
    batches: Any = SurfaceBatches(spheres(8), config, BATCH, 0, parallel.rank, parallel.world_size)
    if case == "bad":
        batches = functools.partial(_with_a_bad_object, batches, parallel)
    return _trained(CVQ(config), batches, train_config(case), parallel, micro_batch, resume, folder)


def train_car(
    parallel: SingleProcess,
    micro_batch: int | None = None,
    precision: Any = "fp32",
    resume: Any = None,
    folder: Path | None = None,
) -> dict[str, Any]:
    """The same of a generator whose conditions are dropped at random."""
    model = tiny_g3pt(image_encoder="none", drop_both=0.5)
    held = []
    first = model.car.blocks[0].attention
    first.register_forward_pre_hook(
        lambda *_: held.append(
            sum(p.nbytes for p in model.parameters() if p.requires_grad and not hasattr(p, "placements"))
        )
    )
    everything = random_batch(model, BATCH)

    def batches(_: int) -> Iterator[dict[str, Any]]:
        while True:
            yield {name: value[parallel.rank :: parallel.world_size] for name, value in everything.items()}

    plan = dataclasses.asdict(gathered(model))  # before it is cut
    config = dataclasses.replace(TRAIN, precision=precision)
    found = _trained(model, batches, config, parallel, micro_batch, resume, folder)
    return found | {"gathered": plan, "held_bytes": max(held)}


def stopped(parallel: SingleProcess, rank: int, asked_after: int) -> int:
    """The step after which a training stops whose worker `rank` alone is asked to, after `asked_after` steps."""
    config = dataclasses.replace(TINY, **PHASES)
    steps = itertools.count(1)
    try:
        fit(
            model=CVQ(config),
            batches=SurfaceBatches(spheres(8), config, BATCH, 0, parallel.rank, parallel.world_size),
            config=TRAIN,
            report=lambda _: None,
            parallel=parallel,
            stop=lambda: next(steps) == asked_after and parallel.rank == rank,
        )
    except AskedToStop as asked:
        return asked.step
    return STEPS


def _with_a_bad_object(batches: Any, parallel: SingleProcess, start_sample: int) -> Iterator[dict[str, Any]]:
    for step, batch in enumerate(batches(start_sample), start_sample // BATCH):
        if step == BAD_STEP:
            rows_B = torch.arange(parallel.rank, BATCH, parallel.world_size)
            batch["surface_BP6"][rows_B == 1] = float("nan")
        yield batch


def _trained(
    model: nn.Module,
    batches: Any,
    config: TrainConfig,
    parallel: SingleProcess,
    micro_batch: int | None,
    resume: Any,
    folder: Path | None = None,
) -> dict[str, Any]:
    records: list[dict[str, float]] = []
    states: dict[int, dict[str, Any]] = {}

    def save(state: dict[str, Any], step: int) -> None:
        if step < STEPS * BATCH and folder and parallel.is_sharded:
            write_sharded(folder, {"fit": state}, parallel.rank)
        elif step < STEPS * BATCH and not parallel.is_sharded:
            states[step] = _copy(state)

    best = Best(lambda record: -record["val_norm"] if "val_norm" in record else None)  # the first: norms fall

    def evaluate(held: nn.Module) -> dict[str, float]:
        return {"val_norm": sum(float(whole(p.detach()).double().square().sum()) for p in held.parameters())}

    with counted_reduces() as reduces:
        model = fit(
            model=model, batches=batches, config=config, report=records.append, save=save, resume=resume,
            evaluate=evaluate, best=best, parallel=parallel, micro_batch=micro_batch,
        )  # fmt: skip
    return {
        "records": records,
        "reduces": reduces,
        "state": states.get(STEPS * BATCH // 2),
        "best": {"samples": best.samples, "weights": best.weights},
        "weights": {k: v.clone() for k, v in model.state_dict().items()},
        "gradients": [p.grad.untyped_storage()._cdata for p in model.parameters() if p.grad is not None],
    }


@contextlib.contextmanager
def counted_reduces() -> Iterator[list[int]]:
    """The all-reduces of each step's forward and backward passes and statistics, without those of DDP
    and FSDP2 themselves.
    """
    reduce, backward, calls, found = dist.all_reduce, fitting.backward, [0], list[int]()

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return reduce(*args, **kwargs)

    def a_step(*args: Any) -> Any:
        before, result = calls[0], backward(*args)
        found.append(calls[0] - before)
        return result

    dist.all_reduce, fitting.backward = counting, a_step
    try:
        yield found
    finally:
        dist.all_reduce, fitting.backward = reduce, backward


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list) else value


def stored(folder: Path) -> Callable[[Any], dict[str, Any]]:
    """The sharded half-way state, as `fit` takes it."""
    return functools.partial(StoredState(folder / "fsq-fsdp").read, "fit")


def main(folder: Path, rank: int) -> None:
    """One of two workers: every case under both kinds, then FSDP resumed from DDP's checkpoint."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=300)
    )

    def keep(name: str, found: dict[str, Any]) -> dict[str, Any]:
        if rank == 0:
            torch.save(found, folder / f"{name}.pt")
        return found

    def both(kind: str) -> SingleProcess:
        return make_parallel(kind, rank, 2)

    if rank == 0:
        (folder / "fsq-fsdp").mkdir()
    dist.barrier()
    for kind, other in (KINDS, KINDS[::-1]):
        box = [keep(f"fsq-{kind}", train_cvq("fsq", both(kind), folder=folder / "fsq-fsdp"))["state"]]
        dist.broadcast_object_list(box, src=0)
        dist.barrier()  # rank 0 writes state.json last
        keep(f"resumed-{other}", train_cvq("fsq", both(other), resume=box[0] or stored(folder)))
        keep(f"bf16-{kind}", train_cvq("bf16", both(kind)))
        keep(f"bad-{kind}", train_cvq("bad", both(kind)))
    keep("lfq-ddp", train_cvq("lfq", both("ddp")))
    keep("car-fsdp", train_car(both("fsdp")))
    keep("car-bf16-fsdp", train_car(both("fsdp"), precision="bf16"))
    keep("car-micro-ddp", train_car(both("ddp"), micro_batch=2))
    stops = [stopped(both("ddp"), 1, after) for after in (2, STEPS)]
    torch.save(stops, folder / f"stops-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()  # gloo's threads abort an interpreter that ends with them running


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
