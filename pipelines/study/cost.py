"""The plan of a study as `--dry-run` prints it: what each run costs, the sum with shared steps counted once, and the
intervals that such a study would give (`g3pt.scaling.power`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.study.config import SweepFlags
from pipelines.study.plan import Row
from pipelines.train.counts import count_car, meta_car
from pipelines.train.memory import gpu_bytes, plan_step
from pipelines.train.plan import schedule_line, with_flop

HEADS = ("size", "parameters", "seeds", "samples", "steps taken", "epochs", "operations", "at once", "learning rate")


def print_plan(rows: Sequence[Row], flags: SweepFlags) -> None:
    """Print the table, the sums, and what the study would tell. Neither data nor tokenizer need exist."""
    if flags.set:
        print(f"every preset with {flags.set}")
    codec, objects = _codec(flags), _train_objects(flags)
    table, total = [HEADS], 0.0
    for group in by_seed(rows):
        row, operations = group[0], operations_of(group[0], codec)
        steps = [steps_taken(one, rows) for one in group]
        total += operations * sum(steps) * row.train.batch_size
        table.append(
            (
                row.size + (" (held out)" if row.held_out else ""),
                f"{count_car(row.model, codec)['parameters_no_embed']:,}",
                ",".join(str(one.train.seed) for one in group),
                f"{row.samples:,}",
                f"{steps[0]:,}",
                f"{row.samples / objects:.3g}" if objects else "",
                with_flop(operations * row.samples),
                str(plan_step(row.model, row.train, flags, codec, gpu_bytes(flags)).micro_batch),
                schedule_line(row.model, row.train).removeprefix("learning rate "),
            )
        )
    print("\n".join(aligned(table)))
    print(f"{len(rows)} runs, {with_flop(total)} in all; shared steps are counted once{hours(total, flags)}")
    for line in expected(rows, codec):
        print(line)


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

    return flops.car_training(meta_car(row.model, codec).flops_per_object, row.model)


def hours(operations: float, flags: SweepFlags) -> str:
    """Hours and price of so many operations, as far as --flops-per-s and --price say."""
    if not flags.flops_per_s:
        return ""
    found = operations / flags.flops_per_s / 3600
    price = f", {found * flags.price:,.2f} at {flags.price:g} per hour" if flags.price else ""
    return f"; {found:,.3g} hours of one device at {with_flop(flags.flops_per_s)}/s{price}"


def expected(rows: Sequence[Row], codec: Any) -> list[str]:
    """Half-widths of 95 % intervals that the plan would give by the law and errors that are assumed for it; nothing for
    a study that determines no law in N and D.
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
        found = simulate(assumed_law(), planned, ahead, trials=50)
    except ValueError as reason:
        return [f"no law in N and D: {reason}"]
    widths = ", ".join(
        f"{name} ± {width:.3f}" if "loss" not in name else f"{name} ± {100 * width:.2g} %"
        for name, width in found["half_width"].items()
    )
    said = {name: f"{value:.3g}" for name, value in found["assumed"].items()}
    return [f"expected 95 % intervals: {widths}", "  simulated with " + ", ".join(f"{k} {v}" for k, v in said.items())]


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table with columns as wide as their widest cell."""
    widths = [max(len(row[k]) for row in table) for k in range(len(table[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def _codec(flags: SweepFlags) -> Any:
    """The tokenizer's configuration; that of preset nano if there is no finished tokenizer."""
    from g3pt.config import CVQConfig, cvq_preset, from_dict
    from g3pt.training.exports import read_export_config

    try:
        return from_dict(CVQConfig, read_export_config(flags.tokenizer)["model"])
    except (OSError, ValueError, KeyError):
        return cvq_preset("nano")[0]


def _train_objects(flags: SweepFlags) -> int:
    """Objects of the train split; 0 if the dataset does not exist yet."""
    from g3pt.data.datasets import open_dataset

    try:
        return open_dataset(flags.data).splits["train"]
    except (OSError, ValueError, KeyError):
        return 0
