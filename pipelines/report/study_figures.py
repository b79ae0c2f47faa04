"""Figures of a study beside its law: cooldowns from one trajectory, sections of equal operations, residuals, learning
rates, laws by scale, planned and actual cost. Each is empty for a study that has nothing to show there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from g3pt.scaling.fit import Fit
from pipelines.report.html import Page, columns, folded, paragraph, table, text, warning
from pipelines.report.plots import COLOURS, Series, plot
from pipelines.report.runs import SAMPLES, curve
from pipelines.report.values import Source, read_csv, read_json, read_ledger
from pipelines.train.trajectory import branched_at

PARAMS, NATS = "parameters N, without embeddings and head", "nats per token"
MOST_ROWS = 12  # longer tables are folded


def cooldowns(folder: Path, page: Page) -> Markup:
    """Validation losses of the first seed: each size's longest run, and where shorter ones leave it to cool down."""
    runs = sorted(_ladder_runs(folder, page), key=lambda run: (run["size"], -run["steps"]))
    series, sizes = list[Series](), list(dict.fromkeys(run["size"] for run in runs))
    for run in runs:
        trunk = next(one for one in runs if one["size"] == run["size"])
        records = read_ledger(run["folder"] / "metrics.jsonl", page.root).value
        start = branched_at(run["folder"]) if run is not trunk else 0
        before = [one for one in records if one["step"] <= start and "val_ce" in one][-1:]
        mine = [*before, *(one for one in records if one["step"] > start)]
        colour, is_trunk = sizes.index(run["size"]) % len(COLOURS), run is trunk
        series.append(curve(mine, "val_ce", run["size"] * is_trunk, colour, "line" if is_trunk else "dashed"))
    if not series:
        return Markup("")
    drawn = plot(
        "Validation while training: cooldowns dashed, first seed", series, x_label=SAMPLES, y_label=NATS, log_x=True
    )
    return columns(drawn) if drawn else Markup("")


def _ladder_runs(folder: Path, page: Page) -> list[dict[str, Any]]:
    """Runs of the study's ladder of samples with the first seed: size, steps, folder. Others in the folder, such as
    sweeps of the learning rate, are left out.
    """
    about = (
        read_json(folder / "study.json", page.root) if (folder / "study.json").is_file() else Source("study.json", {})
    )
    names, found = {run["name"] for run in about.get("runs", default=[])}, []
    for file in sorted(folder.glob("runs/*/metrics.jsonl")):
        if file.parent.name not in names:
            continue
        spec = read_json(file.parent / "config.json", page.root)
        fit = spec.get("config", "train", default={})
        if fit.get("schedule") == "wsd" and fit.get("warmup_samples") is not None:
            run = {"size": spec.get("preset"), "steps": fit["steps"], "folder": file.parent, "seed": spec.get("seed")}
            found.append(run)
    return [run for run in found if run["seed"] == min(one["seed"] for one in found)]


def iso_flops(points: Source, found: Source, law: Fit) -> Markup:
    """Losses of the sizes at equal operations with the law as lines; the parabolas' best N beside the law's."""
    rows = found.get("sections", "iso_flops", default=[])
    if not rows:
        return Markup("")
    per_sample = {}
    for row in points.value:
        per_sample[row["params_no_embed"]] = row["flops"] / row["samples"]
    series, listed = list[Series](), []
    for k, row in enumerate(rows):
        sizes = np.array(row["params"])
        each = np.array([per_sample[int(n)] for n in sizes])
        colour, name = k % len(COLOURS), f"{row['flops']:.2g} operations"
        series.append(Series(label=name, x=sizes, y=row["losses"], style="points", colour=colour))
        series.append(
            Series(label="", x=sizes, y=law(sizes, row["flops"] / each).tolist(), colour=colour, style="dashed")
        )
        at = found.at("sections", "iso_flops", k)
        best = at.number("vertex", spec=",.0f") if "vertex" in row else "at the end"
        listed.append((at.number("flops", spec=".3g"), best, at.number("optimum", spec=",.0f")))
    return columns(
        plot("Sections of equal operations; law dashed", series, x_label=PARAMS, y_label=NATS, log_x=True),
        table(
            ("operations", "best N of a parabola", "best N of the law"), listed, "A cross-check: parabolas are biased"
        ),
    )


def residuals(points: Source, law: Fit) -> Markup:
    """Measured over predicted losses, a point per run: seeds of one size and D are above each other."""
    rows = [row for row in points.value if not row.get("held_out")]
    if not rows:
        return Markup("")
    series = [Series(label="", x=_ends(rows), y=[0.0, 0.0], style="dashed", colour=6)]
    for k, samples in enumerate(sorted({row["samples"] for row in rows})):
        mine = [row for row in rows if row["samples"] == samples]
        off = [100 * float(np.log(row["test_ce"] / law(row["params_no_embed"], samples))) for row in mine]
        x = [row["params_no_embed"] for row in mine]
        series.append(Series(label=f"{samples:,} samples", x=x, y=off, style="points", colour=k % len(COLOURS)))
    return plot("Residuals, a point per seed", series, x_label=PARAMS, y_label="measured less law, %", log_x=True)


def _ends(rows: Sequence[dict[str, Any]]) -> list[float]:
    sizes = [row["params_no_embed"] for row in rows]
    return [min(sizes), max(sizes)]


def scales(fit: Source) -> Markup:
    """The law of each scale's losses."""
    found = fit.get("scales", default=None)
    if not found:
        return Markup("")
    known = next((one["parameters"] for one in found.values() if "parameters" in one), {})
    names = [name for name in ("E", "A", "alpha", "B", "beta", "H", "d") if name in known]
    rows = []
    for scale, one in found.items():
        at = fit.at("scales", scale)
        if "error" in one:
            rows.append((scale, text(one["error"]), *[""] * len(names)))
            continue
        cells = [_with_interval(at, name) if name not in one["at_bound"] else "at its bound" for name in names]
        rows.append((scale, *cells, at.number("rms", spec=".2%")))
    return table(("scale", *names, "rms"), rows, "The law by scale, with 95 % intervals")


def _with_interval(law: Source, name: str) -> Markup:
    value, interval = law.number("parameters", name, spec=".3g"), law.interval("interval_95", name, spec=".3g")
    return Markup("{} ({})").format(value, interval) if interval else value


def rates(folder: Path, page: Page) -> Markup:
    """Sweeps of the learning rate with their minima, the rule and its check."""
    if not (folder / "lr.json").is_file():
        return Markup("")
    found = read_json(folder / "lr.json", page.root)
    parts = [found.at(kind, k) for kind in ("sweeps", "gate") for k in range(len(found.get(kind)))]
    drawn = [one for number, part in enumerate(parts) for one in _sweep(part, number % len(COLOURS))]
    heads = ("N", "D", "best rate", "", "rate of the rule", "its cost")
    title = "Learning rates; minima are dark points"
    said = (
        paragraph("The rule for learning rates held at the size that checked it.", "soft")
        if found.get("holds")
        else warning("The rule for learning rates did not hold at the size that checked it.")
    )
    return said + columns(
        plot(title, drawn, x_label="peak learning rate", y_label="loss above the sweep's lowest, %", log_x=True),
        table(heads, [_best_rate(part) for part in parts], "Best learning rates; the last row checks the rule"),
    )


def _sweep(part: Source, colour: int) -> list[Series]:
    """The losses of a sweep or check above its lowest, so that sizes can be compared, and the minimum of a sweep."""
    lowest = min(part.get("losses"))
    above = [100 * (loss / lowest - 1) for loss in part.get("losses")]
    is_check, least = part.get("holds") is not None, part.get("minimum", default={})
    label = f"N {part.get('params'):,.0f}, D {part.get('samples'):,.0f}" + " (check)" * is_check
    drawn = Series(label=label, x=part.get("rates"), y=above, style="both", colour=colour)
    if not least.get("inside"):
        return [drawn]
    depth = 100 * (least["loss"] / lowest - 1)
    return [drawn, Series(label="", x=[least["rate"]], y=[depth], style="points", colour=6)]


def _best_rate(part: Source) -> tuple[Markup | str, ...]:
    is_check = part.get("holds") is not None
    best, inside = (("best",), ("inside",)) if is_check else (("minimum", "rate"), ("minimum", "inside"))
    return (
        part.number("params", spec=",.0f"),
        part.number("samples", spec=",.0f"),
        part.number(*best, spec=".3g"),
        "" if part.get(*inside) else "at the end",
        part.number("rule", spec=".3g") if is_check else "",
        part.number("cost", spec=".2%") if part.get("cost") is not None else "",
    )


def costs(folder: Path, page: Page) -> Markup:
    """Planned beside actual cost: the sums, and a row per run."""
    if not (folder / "plan.csv").is_file():
        return Markup("")
    found = read_csv(folder / "plan.csv", page.root)
    heads = ("run", "samples", "planned steps", "steps", "planned s", "s", "ratio")
    rows = [_cost(found.at(k)) for k in range(len(found.value))]
    if not rows:
        return Markup("")
    whole = table(heads, [rows[-1]], "Cost, planned and actual, of all runs; seconds of steps")
    return whole + folded(f"Cost of {len(rows) - 1} runs", table(heads, rows[:-1], "By run"))


def _cost(row: Source) -> tuple[Markup | str, ...]:
    name = "all" if row.get("run") == "sum" else f"{row.get('size')}, seed {row.get('seed')}"
    numbers = [
        ("samples", ",d"),
        ("planned_steps", ",.0f"),
        ("steps", ",.0f"),
        ("planned_seconds", ",.1f"),
        ("seconds", ",.1f"),
    ]
    cells = [row.number(key, spec=spec) if row.get(key) not in ("", None) else "" for key, spec in numbers]
    return text(name), *cells, row.number("ratio", spec=".2f") if row.get("ratio") not in ("", None) else ""
