"""How the runs of a size use the GPUs of a cluster: workers, objects at once, and how the workers share the model.

How: `place` is a pure function of the model, its batch and the GPUs. A run gets the most workers that are a divisor of
its batch, fill whole nodes if they need more than one, and have WORTH operations each; so small sizes have one GPU each
and many of their runs train at once. Of these it takes the first that fits FITS of a GPU's memory: the whole model on
each worker (ddp) rather than sharded (fsdp), without recomputed activations rather than with
(`pipelines.train.memory`).
On CPUs a run has one worker. The choice is stored as `computed` in config.json and changes no run's name.
Ours: all of it; WORTH is from counted kernels and was not measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.cli.errors import UsageError
from pipelines.runs.identity import RunSpec
from pipelines.study.config import SweepFlags
from pipelines.train.counts import car_operations
from pipelines.train.devices import Devices
from pipelines.train.memory import AUTO, GIB, Choice, Workers, choose, needs

FITS = 0.85  # share of a GPU's memory that a worker may need
# Operations per worker, layer and step, below which launching a layer's kernels (about 260 of 7 us) takes longer than
# computing them at 200 TFLOP/s.
WORTH = 4e11


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What a run of one size gets."""

    workers: int
    micro_batch: int
    parallel: str = "ddp"
    recompute: bool = False
    memory: int | None = None  # bytes that a worker needs; None on CPUs
    at_once: int = 1  # runs of this size that the devices hold

    def __str__(self) -> str:
        how = f"{self.workers} x {self.micro_batch} {self.parallel}"
        return how + (", recomputing" if self.recompute else "")

    def words(self, devices: Devices) -> str:
        """The placement for a line of its own."""
        unit = "CPU" if devices.memory is None else "GPU"
        needed = f", {self.memory / GIB:.1f} GiB of each" if self.memory else ""
        how = f"{max(1, self.workers)} {unit}{'s' * (self.workers > 1)} per run"
        objects = f"{self.micro_batch} objects at once per worker"
        way = f"{self.parallel}{', recomputing' * self.recompute}{needed}"
        return f"{how}, {objects} ({way}); {self.at_once} at once on {devices}"

    @property
    def computed(self) -> dict[str, Any]:
        """What config.json says of it."""
        return {"micro_batch": self.micro_batch, "workers": self.workers, "parallel": self.parallel}


def place(
    model: Any,
    train: Any,
    codec: Any,
    devices: Devices,
    *,
    workers: int | str = AUTO,
    micro_batch: int | str = AUTO,
    encoders: bool = True,
) -> Placement:
    """The placement of the runs of `model` on `devices`. Numbers of workers or objects at once that are given are kept.

    `encoders`: pretrained ones are in memory. UsageError if no placement fits.
    """
    if devices.memory is None:
        count = 1 if workers == AUTO else int(workers)
        share = train.batch_size // max(1, count)
        objects = share if micro_batch == AUTO else min(int(micro_batch), share)
        at_once = max(1, devices.count // max(1, count))
        return Placement(workers=count, micro_batch=objects, recompute=model.checkpoint_layers, at_once=at_once)
    least = 0.0
    for how in candidates(model, train, codec, devices, workers):
        found = fitted(model, train.precision, codec, how, devices.memory, micro_batch, encoders)
        if isinstance(found, Choice):
            recomputing = dataclasses.replace(model, checkpoint_layers=found.recompute)
            memory = _needs(recomputing, train.precision, codec, how, encoders).memory(found.micro_batch, how).total
            return Placement(
                workers=how.count, micro_batch=found.micro_batch, parallel=how.parallel, recompute=found.recompute,
                memory=memory, at_once=max(1, devices.count // how.count),
            )  # fmt: skip
        least = min(least or found, found)
    if not least:
        raise UsageError(f"its batch of {train.batch_size} is not a multiple of {workers} workers")
    raise UsageError(
        f"a worker needs at least {least / GIB:.1f} GiB, and {FITS:.0%} of a GPU of {devices.memory / GIB:.1f} GiB are "
        f"{FITS * devices.memory / GIB:.1f} (of {devices}): take more or larger GPUs, or leave out the size"
    )


def candidates(model: Any, train: Any, codec: Any, devices: Devices, workers: int | str = AUTO) -> Iterator[Workers]:
    """Ways to divide a batch among the devices, best first."""
    batch = train.batch_size
    counts = list(worker_counts(batch, devices)) if workers == AUTO else [int(workers)] * (batch % int(workers) == 0)
    operations = 3 * car_operations(model, codec)
    worth = [n for n in counts if workers != AUTO or n == 1 or batch / n * operations >= WORTH * model.depth]
    yield from (Workers(share=batch // n, count=n) for n in worth)
    node = devices.per_node
    yield from (Workers(share=batch // n, count=n, parallel="fsdp", per_node=node) for n in counts if n > 1)


def worker_counts(batch: int, devices: Devices) -> Iterator[int]:
    """Divisors of the batch that lie on one node or fill whole nodes, largest first."""
    for n in range(min(batch, devices.count), 0, -1):
        if batch % n == 0 and (n <= devices.per_node or n % devices.per_node == 0):
            yield n


def fitted(
    model: Any, precision: str, codec: Any, how: Workers, size: int, micro_batch: int | str, encoders: bool
) -> Choice | float:
    """How a worker computes its share within FITS of `size` bytes; if it does not fit, the bytes of the least way."""
    of = {"codec": codec, "encoders": encoders, "narrow": how.parallel == "fsdp" and precision == "bf16"}
    if micro_batch == AUTO:
        try:
            return choose(model, precision, how, size, margin=1 - FITS, **of)
        except UsageError:
            return (
                _needs(dataclasses.replace(model, checkpoint_layers=True), precision, codec, how, encoders)
                .memory(1, how)
                .total
            )
    objects, total = min(int(micro_batch), how.share), 0.0
    if how.share % objects:
        return float("inf")
    for recompute in (False, True):
        ways = dataclasses.replace(model, checkpoint_layers=recompute)
        total = _needs(ways, precision, codec, how, encoders).memory(objects, how).total
        if total <= FITS * size and recompute >= model.checkpoint_layers:
            return Choice(micro_batch=objects, recompute=recompute)
    return total


def _needs(model: Any, precision: str, codec: Any, how: Workers, encoders: bool) -> Any:
    return needs(model, precision, codec, encoders, how.parallel == "fsdp" and precision == "bf16")


def with_placement(spec: RunSpec, placement: Placement) -> RunSpec:
    """The run with its placement in its config; under the same name."""
    model = {**spec.config["model"], "checkpoint_layers": placement.recompute}
    return dataclasses.replace(spec, config={**spec.config, "model": model, "computed": placement.computed})


def placements(
    sizes: Iterable[tuple[str, Any, Any]], codec: Any, devices: Devices, flags: SweepFlags
) -> dict[str, Placement]:
    """Placement of each (size, model, train). UsageError, with the size, for one that no placement fits."""
    found: dict[str, Placement] = {}
    for size, model, train in sizes:
        if size in found:
            continue
        try:
            found[size] = place(
                model, train, codec, devices,
                workers=flags.num_workers, micro_batch=flags.micro_batch, encoders=flags.features != "stored",
            )  # fmt: skip
        except UsageError as error:
            raise UsageError(f"{size} cannot be placed: {error}") from None
    return found


def makespan(trials: Sequence[tuple[int, float]], count: int) -> float:
    """Seconds until all trials of (workers, seconds) are done on `count` devices, each started as soon as it fits, in
    their order.
    """
    free_at = [0.0] * count
    for workers, seconds in trials:
        free_at.sort()
        start = free_at[workers - 1]
        free_at[:workers] = [start + seconds] * workers
    return max(free_at, default=0.0)
