"""The plan of a study as `--dry-run` prints it: what each size gets of the devices, what each run costs, the sums with
shared steps counted once, and the intervals that such a study would give (`g3pt.scaling.power`).

How: operations are counted (`g3pt.training.flops`). Seconds are those of a probe on this device
(`pipelines.study.probe`), else operations over an assumed speed; traffic between workers is not counted. Evaluations
are forward passes that a run's workers share, as in `pipelines.train.car`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.cli.errors import UsageError, bad_input
from pipelines.cli.plain_text import with_bytes, with_flop
from pipelines.cluster.session import available_cpus
from pipelines.study.config import SweepFlags
from pipelines.study.placement import Placement, makespan, placements
from pipelines.study.plan import Row, unlike
from pipelines.study.probe import measured
from pipelines.train.costs import short
from pipelines.train.counts import car_operations, count_car
from pipelines.train.devices import LAUNCH_S, Devices, devices_named
from pipelines.train.memory import AUTO, GIB, gpu_bytes, tokenizer_parameters, trained_parameters
from pipelines.train.plan import STATE_BYTES
from pipelines.train.worker import Speed as RunSpeed

SIZE_HEADS = (
    "size", "parameters", "without AdaLN", "all", "per object", "learning rate", "workers x micro-batch",
    "GiB per GPU", "at once", "a checkpoint",
)  # fmt: skip
RUN_HEADS = (
    "size", "seeds", "samples", "steps taken", "warm-up + constant + falling", "epochs", "unique", "operations",
    "seconds", "device-hours", "cost", "evaluation",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast one device is."""

    rate: float | None = None  # operations per second; None: not known
    launch_s: float = 0.0  # of the kernels of one layer in a step, which takes no less
    measured: Mapping[str, float] = field(default_factory=dict)  # seconds of a training sample, by size
    said: str = ""  # where the numbers come from

    def step(self, row: Row, placement: Placement, operations: float) -> float | None:
        """Seconds of a step of workers that share its batch; None if unknown."""
        share = row.train.batch_size / max(1, placement.workers)
        if row.size in self.measured:
            return share * self.measured[row.size]
        if self.rate is None:
            return None
        factor = 4 / 3 if placement.recompute else 1.0
        return max(share * operations * factor / self.rate, self.launch_s * row.model.depth)

    def forward(self, row: Row, operations: float) -> float | None:
        """Seconds of a forward pass over one object, which is a third of a step over it."""
        if row.size in self.measured:
            return self.measured[row.size] / 3
        return None if self.rate is None else operations / 3 / self.rate


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a run takes beside the steps that a longer run of its trajectory takes."""

    row: Row
    placement: Placement
    steps: int
    operations: float
    train_s: float | None = None
    evaluate_s: float | None = None

    @property
    def seconds(self) -> float | None:
        """From its start to its end, start-up aside."""
        return None if self.train_s is None or self.evaluate_s is None else self.train_s + self.evaluate_s

    @property
    def device_hours(self) -> float | None:
        """Hours of all its workers' devices."""
        return None if self.seconds is None else self.seconds * max(1, self.placement.workers) / 3600


def print_plan(rows: Sequence[Row], flags: SweepFlags) -> None:
    """Print the tables, the sums, and what the study would tell. Neither data nor tokenizer need exist.

    UsageError for a size that cannot be placed, and for intervals that are wider than --max-interval.
    """
    codec, named = codec_of(flags)
    devices, speed = planned_devices(flags)
    objects = _objects(flags)
    placed = placements([(row.size, row.model, row.train) for row in rows], codec, devices, flags)
    if not flags.on:
        speed = probed(speed, rows, flags)
    costs = cost_of(rows, codec, placed, speed, objects)
    if flags.set:
        print(f"every preset with {flags.set}")
    print(f"codes of {named}, {codec.num_tokens} tokens; on {devices}{speed.said}")
    print("\n".join(aligned(size_table(rows, codec, placed))), end="\n\n")
    print("\n".join(aligned(run_table(costs, objects, flags.price))), end="\n\n")
    found = expected(rows, codec)
    for line in (*sums(costs, codec, devices, flags.price), *expected_lines(found)):
        print(line)
    if line := unlike(rows):
        print(line)
    refuse_wide(found, flags.max_interval)


def probed(speed: Speed, rows: Sequence[Row], flags: SweepFlags) -> Speed:
    """The speed with what a probe below --output measured of these sizes (`pipelines.study.probe`)."""
    found, device = measured(flags.output, rows)
    if not found:
        return speed
    sizes = len({row.size for row in rows})
    said = f"{speed.said}; {len(found)} of {sizes} sizes as measured on {device} (probe.json)"
    return dataclasses.replace(speed, measured=found, said=said)


def planned_devices(flags: SweepFlags) -> tuple[Devices, Speed]:
    """The devices of the plan and how fast one is: those of --on, else of this machine."""
    if flags.on:
        with bad_input():
            devices, gpu = devices_named(flags.on)
            if flags.num_workers != AUTO and flags.num_workers > devices.count:
                raise ValueError(f"--on {flags.on} has no room for --num-workers {flags.num_workers}")
        said = f": {flags.on} at {flags.utilisation:.0%} of {with_flop(gpu.peak)}/s in bf16, assumed"
        return devices, Speed(rate=flags.utilisation * gpu.peak, launch_s=LAUNCH_S, said=said)
    memory, workers = gpu_bytes(flags), 1 if flags.num_workers == AUTO else max(1, flags.num_workers)
    count = max(workers, available_cpus() if memory is None else _gpus_here())
    said = f" at {with_flop(flags.flops_per_s)}/s each" if flags.flops_per_s else ""
    return Devices(count=count, per_node=count, memory=memory), Speed(rate=flags.flops_per_s, said=said)


def cost_of(
    rows: Sequence[Row], codec: Any, placed: Mapping[str, Placement], speed: Speed, objects: Mapping[str, int]
) -> list[Cost]:
    """The cost of each run, in the order of `rows`. `objects`: of the splits, as far as they are known."""
    costs = []
    for row in rows:
        operations, steps = operations_of(row, codec), steps_taken(row, rows)
        step_s, forward_s = speed.step(row, placed[row.size], operations), speed.forward(row, operations)
        known = step_s is not None and forward_s is not None
        costs.append(
            Cost(
                row=row,
                placement=placed[row.size],
                steps=steps,
                operations=float(operations * steps * row.train.batch_size),
                train_s=steps * step_s if step_s is not None else None,
                evaluate_s=evaluated(row, steps, objects) * forward_s / max(1, placed[row.size].workers)
                if known and forward_s is not None
                else None,
            )
        )
    return costs


def evaluated(row: Row, steps: int, objects: Mapping[str, int]) -> int:
    """Forward passes over an object in the evaluations of a run's last `steps` steps and in its test: with the text,
    without conditions and, if there is an image encoder, with the image; during training also without the average.
    """
    from pipelines.train.car import EVAL_OBJECTS

    conditions = 2 + (row.model.image_encoder != "none")
    times = steps // row.train.eval_every + 1
    during = min(EVAL_OBJECTS, objects.get("val", EVAL_OBJECTS)) * (conditions + 1)
    return times * during + min(row.train.test_objects, objects.get("test", row.train.test_objects)) * conditions


def size_table(rows: Sequence[Row], codec: Any, placed: Mapping[str, Placement]) -> list[tuple[str, ...]]:
    """A line for each size."""
    table: list[tuple[str, ...]] = [SIZE_HEADS]
    for row in {row.size: row for row in rows}.values():
        got, rate = placed[row.size], row.train.learning_rate
        hidden = f", {rate * row.train.base_width / row.model.width:.3g} hidden" if row.train.base_width else ""
        table.append(
            (
                row.size,
                *(f"{count:,}" for count in count_car(row.model, codec).values()),
                with_flop(operations_of(row, codec)),
                f"{rate:.3g}{hidden}",
                str(got),
                f"{got.memory / GIB:.1f}" if got.memory else "",
                str(got.at_once),
                with_bytes(checkpoint_bytes(row, codec)),
            )
        )
    return table


def run_table(costs: Sequence[Cost], objects: Mapping[str, int], price: float | None) -> list[tuple[str, ...]]:
    """A line for each size and number of samples; seconds and what follows are of one seed."""
    table: list[tuple[str, ...]] = [RUN_HEADS]
    of = {(cost.row.size, cost.row.samples, cost.row.train.seed): cost for cost in costs}
    for group in by_seed([cost.row for cost in costs]):
        row, train = group[0], group[0].train
        cost = of[row.size, row.samples, train.seed]
        falling = train.cooldown_steps if train.schedule == "wsd" else train.steps - train.warmup_steps
        constant = train.steps - train.warmup_steps - falling
        unique = objects.get("train", 0) * row.model.code_variants
        seen = row.samples / unique if unique else None
        table.append(
            (
                row.size + (" (held out)" if row.held_out else ""),
                ",".join(str(one.train.seed) for one in group),
                f"{row.samples:,}",
                f"{cost.steps:,}",
                " + ".join(f"{n:,}" for n in (train.warmup_steps, constant, falling)) + f" {train.schedule}",
                f"{seen:.3g}" if seen else "",
                f"{min(1.0, 1 / seen):.0%}" if seen else "",
                with_flop(cost.operations),
                short(cost.seconds) if cost.seconds is not None else "",
                short(cost.device_hours) if cost.device_hours is not None else "",
                short(cost.device_hours * price) if cost.device_hours is not None and price else "",
                f"{(cost.evaluate_s or 0) / cost.seconds:.0%}" if cost.seconds else "",
            )
        )
    return table


def sums(costs: Sequence[Cost], codec: Any, devices: Devices, price: float | None) -> list[str]:
    """Operations, time, money and disk of all runs."""
    total, stored = sum(cost.operations for cost in costs), disk_bytes(costs, codec)
    counted = f"{len(costs)} runs, {with_flop(total)} in all; shared steps are counted once"
    lines = [f"{counted}; up to {with_bytes(stored)} of disk"]
    hours = [cost.device_hours for cost in costs if cost.device_hours is not None]
    if len(hours) == len(costs):
        unit = "CPU" if devices.memory is None else "GPU"
        money = f", {sum(hours) * price:,.2f} at {price:g} per hour" if price else ""
        share = sum(cost.evaluate_s or 0 for cost in costs) / sum(cost.seconds or 0 for cost in costs)
        wall = makespan(trials(costs), devices.count) / 3600
        lines.append(
            f"{short(sum(hours))} {unit}-hours{money}; {short(wall)} hours on {devices.count} {unit}s; "
            f"evaluation takes {share:.0%} of the seconds"
        )
    return lines


def trials(costs: Sequence[Cost]) -> list[tuple[int, float]]:
    """(workers, seconds) of each trajectory, in the order in which they start."""
    found: dict[tuple[str, int, bool], tuple[int, float]] = {}
    for cost in costs:
        key = (cost.row.size, cost.row.train.seed, cost.row.held_out)
        workers, seconds = found.get(key, (max(1, cost.placement.workers), 0.0))
        found[key] = (workers, seconds + (cost.seconds or 0.0))
    return list(found.values())


def checkpoint_bytes(row: Row, codec: Any) -> int:
    """Bytes of a checkpoint: the model without its tokenizer, AdamW's two moments, the average and the best weights, in
    float32.
    """
    return STATE_BYTES * trained_parameters(row.model, codec)


def disk_bytes(costs: Sequence[Cost], codec: Any) -> int:
    """Bytes of what all runs leave, the last and the best weights and the checkpoints where a cooldown begins (one for
    each run but the longest of a trajectory), and of the newest checkpoints of those that train at once.
    """
    rows, total, newest = [cost.row for cost in costs], 0, [0]
    for cost in costs:
        row, size = cost.row, checkpoint_bytes(cost.row, codec)
        weights = 4 * (trained_parameters(row.model, codec) + tokenizer_parameters(codec))
        total += (steps_taken(row, rows) < row.train.steps) * size + 2 * weights
        newest.append(min(cost.placement.at_once, len(costs)) * (RunSpeed().num_to_keep + 1) * size)
    return total + max(newest)


def by_seed(rows: Sequence[Row]) -> list[list[Row]]:
    """Runs that differ by their seed alone, in the order of the first of each."""
    groups: dict[tuple[str, int, bool], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.size, row.samples, row.held_out), []).append(row)
    return list(groups.values())


def steps_taken(row: Row, rows: Sequence[Row]) -> int:
    """Steps of the run that no longer run of its trajectory takes: its cooldown alone if there is one."""
    longer = any(
        (other.size, other.train.seed) == (row.size, row.train.seed) and other.train.steps > row.train.steps
        for other in rows
    )
    shares = row.train.schedule == "wsd" and row.train.warmup_samples is not None
    return int(row.train.cooldown_steps if longer and shares else row.train.steps)


def operations_of(row: Row, codec: Any) -> int:
    """Operations of training on one object."""
    from g3pt.training import flops

    return flops.car_training(car_operations(row.model, codec), row.model)


def expected(rows: Sequence[Row], codec: Any) -> dict[str, Any] | str:
    """Half-widths of 95 % intervals that the plan would give by the law and errors that are assumed for it
    (`g3pt.scaling.power.simulate`); for a study that determines no law in N and D, the reason.
    """
    import numpy as np

    from g3pt.scaling.points import Points
    from g3pt.scaling.power import assumed_law, simulate

    sizes = {row.size: count_car(row.model, codec)["parameters_no_embed"] for row in rows}
    fitted = [row for row in rows if not row.held_out]
    planned = Points(
        params=np.array([sizes[row.size] for row in fitted], float),
        samples=np.array([row.samples for row in fitted], float),
        loss=np.ones(len(fitted)),
        size=tuple(row.size for row in fitted),
        seed=tuple(str(row.train.seed) for row in fitted),
        flops=np.full(len(fitted), np.nan),
    )
    ahead = [(float(sizes[row.size]), float(row.samples)) for row in rows if row.held_out]
    try:
        return simulate(assumed_law(), planned, ahead, trials=50)
    except ValueError as reason:
        return f"no law in N and D: {reason}"


def expected_lines(found: dict[str, Any] | str) -> list[str]:
    """What is expected, in words."""
    if isinstance(found, str):
        return [found]
    widths = ", ".join(
        f"{name} ± {width:.3f}" if "loss" not in name else f"{name} ± {100 * width:.2g} %"
        for name, width in found["half_width"].items()
    )
    said = {name: f"{value:.3g}" for name, value in found["assumed"].items()}
    return [f"expected 95 % intervals: {widths}", "  simulated with " + ", ".join(f"{k} {v}" for k, v in said.items())]


def refuse_wide(found: dict[str, Any] | str, limit: float | None) -> None:
    """UsageError if the expected half-width of a forecast is a larger share of its loss than `limit`."""
    if limit is None:
        return
    if isinstance(found, str):
        raise UsageError(f"--max-interval {limit:g}: {found}")
    widest, width = max(((k, w) for k, w in found["half_width"].items() if k.startswith("loss ")), key=lambda kw: kw[1])
    if width > limit:
        raise UsageError(
            f"--max-interval {limit:g}: the plan would know the {widest} to {width:.2g} of it (95 %, simulated): add "
            "sizes, seeds or samples"
        )


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table with columns as wide as their widest cell; a column that is empty below its head is left out."""
    kept = [k for k in range(len(table[0])) if any(row[k] for row in table[1:])]
    widths = [max(len(row[k]) for row in table) for k in kept]
    return ["  ".join(row[k].ljust(width) for k, width in zip(kept, widths, strict=True)).rstrip() for row in table]


def codec_of(flags: SweepFlags) -> tuple[Any, str]:
    """(the tokenizer's configuration, its name in words): of the given run, else of the preset that --tokenizer names,
    else of nano.
    """
    from g3pt.config import CVQ_PRESETS, CVQConfig, from_dict
    from g3pt.training.exports import read_export_config

    try:
        return from_dict(CVQConfig, read_export_config(flags.tokenizer)["model"]), flags.tokenizer
    except (OSError, ValueError, KeyError):
        name = flags.tokenizer if flags.tokenizer in CVQ_PRESETS else "nano"
        return CVQ_PRESETS[name][0], f"preset {name}" + (
            "" if name == flags.tokenizer else f", as {flags.tokenizer} does not exist yet"
        )


def _objects(flags: SweepFlags) -> dict[str, int]:
    """Objects of each split; empty if the dataset does not exist yet."""
    from g3pt.data.datasets import open_dataset

    try:
        return dict(open_dataset(flags.data).splits)
    except (OSError, ValueError, KeyError):
        return {}


def _gpus_here() -> int:
    import torch

    return max(1, torch.cuda.device_count())
