"""`--tune-lr`: learning rates of some sizes, a rule through the best ones, and its check at the largest size: lr.json.

How: the smallest, the middle and the second largest size are trained with five rates, each half of the next, about that
of their preset, at the fewest and the middle number of samples (one trajectory per rate). A parabola gives the best
rate of each; the rule follows (`g3pt.scaling.learning_rate`). Then the largest size is trained with half, once and
twice the rule's rate. The runs are ordinary runs below STUDY/runs; those that a study needs later are there already.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipelines.cli.errors import UsageError, bad_input
from pipelines.runs.identity import RunSpec
from pipelines.runs.ledger import Ledger
from pipelines.study.config import SweepFlags
from pipelines.study.plan import Row, plan
from pipelines.train.counts import count_car

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the preset's rate
CHECKED = (0.5, 1.0, 2.0)  # of the rule's

Make = Callable[[Row], RunSpec]
Train = Callable[[Sequence[RunSpec]], None]  # returns once all are finished


def sweep_rows(flags: SweepFlags) -> tuple[list[Row], list[Row]]:
    """(runs of the sweeps at their preset's rate, the run of the check at its own): of the first seed, two numbers of
    samples each. UsageError for fewer than four sizes or two numbers of samples.
    """
    rows = plan(dataclasses.replace(flags, held_out=None, lr_rule=None))
    first = [row for row in rows if row.train.seed == rows[0].train.seed]
    sizes, counts = list(dict.fromkeys(row.size for row in first)), sorted({row.samples for row in first})
    if len(sizes) < 4 or len(counts) < 2 or not flags.samples:
        raise UsageError(
            f"--tune-lr needs four sizes and --samples with two numbers, got {len(sizes)} and {len(counts)}"
        )
    largest, *smaller = sizes  # largest first
    chosen = {smaller[0], smaller[len(smaller) // 2], smaller[-1]}
    two = {counts[0], counts[len(counts) // 2]}
    swept = [row for row in first if row.size in chosen and row.samples in two]
    return swept, [row for row in first if row.size == largest and row.samples == max(two)]


def at_rate(row: Row, rate: float) -> Row:
    """The run with another learning rate, to three digits."""
    return dataclasses.replace(row, train=dataclasses.replace(row.train, learning_rate=float(f"{rate:.3g}")))


def tune_rates(flags: SweepFlags, study: Path, make: Make, train: Train) -> dict[str, Any]:
    """Train the sweeps and the check; write lr.json and lr.png, and return the former's content."""
    from g3pt.scaling import learning_rate as rates
    from g3pt.training.exports import write_json

    swept, checked = sweep_rows(flags)
    tried = [[at_rate(row, factor * row.train.learning_rate) for factor in FACTORS] for row in swept]
    train([make(row) for group in tried for row in group])
    sweeps = [sweep_of(group, study, make) for group in tried]
    with bad_input():
        rule = rates.fit_rule(sweeps)
    (row,) = checked
    about = rule(params_of(row), row.samples)
    group = [at_rate(row, factor * about) for factor in CHECKED]
    train([make(one) for one in group])
    found = rates.report(sweeps, [sweep_of(group, study, make)])
    write_json(study / "lr.json", found)
    draw(found, study / "lr.png")
    return found


def sweep_of(rows: Sequence[Row], study: Path, make: Make) -> Any:
    """The losses of runs that differ by their learning rate."""
    from g3pt.scaling.learning_rate import Sweep

    losses = []
    for row in rows:
        last = Ledger.of(study / "runs" / make(row).name).last()
        assert last is not None and "test_ce" in last, "a finished run has a last record with its test"
        losses.append(last["test_ce"])
    rate = tuple(row.train.learning_rate for row in rows)
    return Sweep(params=params_of(rows[0]), samples=float(rows[0].samples), rates=rate, losses=tuple(losses))


def params_of(row: Row) -> float:
    """N of the rule: parameters without embeddings and head."""
    return float(count_car(row.model)["parameters_no_embed"])


def lines(found: dict[str, Any]) -> list[str]:
    """What lr.json says, as text."""
    rule = found["rule"]
    shown = [f"rule: log LR = {rule['c']:.3f} {rule['a']:+.3f} log N {rule['b']:+.3f} log D"]
    for sweep in found["sweeps"]:
        best = sweep["minimum"]
        words = (
            f"best rate {best['rate']:.3g}" if best["inside"] else f"best at the end of its rates, {best['rate']:.3g}"
        )
        shown.append(f"  N {sweep['params']:,.0f}, D {sweep['samples']:,.0f}: {words}, loss {best['loss']:.4f}")
    for check in found["gate"]:
        cost = (
            "outside its rates" if check["cost"] is None else f"the rule costs {100 * check['cost']:.2f} % of the loss"
        )
        verdict = "holds" if check["holds"] else "DOES NOT HOLD"
        shown.append(
            f"gate at N {check['params']:,.0f}, D {check['samples']:,.0f}: best {check['best']:.3g}, rule "
            f"{check['rule']:.3g}: {cost}; {verdict}"
        )
    return shown


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw each sweep's losses over learning rates with its minimum, and the check."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for sweep in [*found["sweeps"], *found["gate"]]:
        is_check = "holds" in sweep
        label = f"N {sweep['params']:,.0f}, D {sweep['samples']:,.0f}" + (" (check)" if is_check else "")
        (line,) = axes.semilogx(sweep["rates"], sweep["losses"], "--o" if is_check else "-o", label=label)
        if not is_check:
            axes.plot(sweep["minimum"]["rate"], sweep["minimum"]["loss"], "*", markersize=12, color=line.get_color())
    axes.set_xlabel("peak learning rate")
    axes.set_ylabel("test cross-entropy, nats per token")
    axes.set_title("the rule holds" if found["holds"] else "the rule does not hold")
    axes.grid(which="both", alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=120)
