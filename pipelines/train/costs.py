"""What a training takes on stated GPUs, for the plan that `--dry-run` prints: hours, GPU-hours, money, and the share of
evaluations.

How: counted operations over a share of the GPUs' peak that is assumed (`pipelines.train.devices`), not measured. A step
takes at least as long as its kernels take to launch. Traffic between workers, reading, and the start are not counted.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from g3pt.training import flops
from pipelines.cli.errors import UsageError, bad_input
from pipelines.train.counts import car_operations
from pipelines.train.devices import LAUNCH_S, UTILISATION, Gpu, devices_named
from pipelines.train.memory import NODE_GPUS


@dataclass(frozen=True, kw_only=True)
class Hours:
    """Seconds of each worker, and what they cost."""

    gpus: int
    train_s: float
    evaluate_s: float

    @property
    def wall(self) -> float:
        """Hours from the first step to the end of the test."""
        return (self.train_s + self.evaluate_s) / 3600

    def words(self, price: float | None) -> str:
        """As "3.1 hours, 25 GPU-hours, 62.40 at 2.5 per hour; evaluation takes 2 % of them"."""
        money = f", {self.wall * self.gpus * price:,.2f} at {price:g} per hour" if price else ""
        share = self.evaluate_s / (self.train_s + self.evaluate_s)
        hours = f"{short(self.wall)} hours, {short(self.wall * self.gpus)} GPU-hours{money}"
        return f"{hours}; evaluation takes {share:.0%} of them"


def planned_for(flags: Any) -> tuple[Any, Gpu | None]:
    """The flags of a training with the workers and the memory of the GPUs that --on names, and their kind; without --on
    the flags themselves and None. UsageError for a text that names no GPUs, and for another number of workers.
    """
    if flags.on is None:
        return flags, None
    with bad_input():
        devices, gpu = devices_named(flags.on)
    if flags.num_workers not in (1, devices.count):
        raise UsageError(f"--on {flags.on} plans for {devices.count} workers: leave out --num-workers")
    if devices.per_node != min(devices.count, NODE_GPUS) and getattr(flags, "parallel", "ddp") == "fsdp":
        raise UsageError(f"--on {flags.on}: sharded runs are planned for nodes of {NODE_GPUS} GPUs")
    memory = flags.gpu_memory or gpu.memory_gib
    return dataclasses.replace(flags, num_workers=devices.count, gpu_memory=memory), gpu


def cost_line(flags: Any, gpu: Gpu | None, model: Any, train: Any, codec: Any, evaluation: Any) -> str:
    """The line of the plan. `evaluation`: that of `pipelines.train.plan.evaluation_of`."""
    if gpu is None:
        return "time: unknown here; --on 8xH100 plans for GPUs, with --price in money"
    found = hours_of(gpu, max(1, flags.num_workers), model, train, codec, evaluation)
    peak = f"{UTILISATION:.0%} of {gpu.peak / 1e12:g} TFLOP/s"
    return f"time: on {flags.on} at {peak}, assumed: {found.words(flags.price)}"


def hours_of(gpu: Gpu, workers: int, model: Any, train: Any, codec: Any, evaluation: Any) -> Hours:
    """The time of a generator of `codec`'s codes, else of a tokenizer. `model` says whether layers are recomputed."""
    operations, rate = run_operations(model, train, codec), UTILISATION * gpu.peak
    passes = train.steps // train.eval_every + 1
    evaluated = passes * -(-evaluation.objects // workers) * evaluation.object_operations
    evaluated += -(-evaluation.test_objects // workers) * evaluation.test_operations
    return Hours(
        gpus=workers,
        train_s=max(operations / workers / rate, train.steps * launch_s(model)),
        evaluate_s=evaluated / rate,
    )


def run_operations(model: Any, train: Any, codec: Any) -> float:
    """Operations of all training steps."""
    if codec is None:
        return float(flops.cvq_run(model, train))
    training = flops.car_training(car_operations(model, codec), model)
    return float(training * train.steps * train.batch_size)


def launch_s(model: Any) -> float:
    """Seconds in which a step's kernels are launched: of a generator's layers, or a tokenizer's."""
    layers = getattr(model, "depth", None) or model.encoder_layers + model.decoder_layers + 2 * len(model.scales)
    return float(LAUNCH_S * layers)


def short(value: float) -> str:
    """The value with three digits, without an exponent from 100 on."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"
