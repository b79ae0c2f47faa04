"""The section about a scaling study: its points, the fitted laws with their intervals, and its progress."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipelines.report.common import failure_line, note_command
from pipelines.report.html import Page, columns, folded, paragraph, table, text, warning
from pipelines.report.loss_law import surface
from pipelines.report.plots import Series, plot
from pipelines.report.runs import SAMPLES, curve
from pipelines.report.study_comparison import comparison
from pipelines.report.study_figures import cooldowns, costs, rates
from pipelines.report.values import Source, Unreadable, read_csv, read_json, read_ledger

MOST_POINTS = 20  # more are folded


def study(page: Page, folder: Path) -> None:
    """Add the section: sizes, their test losses, the fitted laws."""
    note_command(page, folder, "the study")
    body: list[Markup] = []
    failure = failure_line(folder)
    planned = (
        read_json(folder / "study.json", page.root) if (folder / "study.json").is_file() else Source("study.json", {})
    )
    points = read_csv(folder / "points.csv", page.root) if (folder / "points.csv").is_file() else None
    fit = read_json(folder / "fit.json", page.root) if (folder / "fit.json").is_file() else None
    if failure:
        body.append(failure)
    changed = planned.get("flags", "set", default=None)
    if changed:
        body.append(paragraph(f"Changes to every preset: {changed}.", "soft"))
    if points is None or fit is None:
        body.append(_unfinished_study(planned, folder))
    else:
        body += _finished_study(page, points, fit)
    body += [comparison(folder, page), rates(folder, page), costs(folder, page)]
    body.append(cooldowns(folder, page) or _validation_curves(page, folder))
    page.add(page.heading("Scaling study", folder), *body)


def _unfinished_study(planned: Source, folder: Path) -> Markup:
    done = sum(1 for _ in folder.glob("runs/*/_SUCCESS"))
    return warning(
        f"No fit yet: {done} of {len(planned.get('runs', default=[]))} runs are finished. The same command resumes."
    )


def _finished_study(page: Page, points: Source, fit: Source) -> list[Markup]:
    """The plot with its intervals, the laws and the points."""
    if not isinstance(points.value, list) or not all(
        {"params_no_embed", "test_ce"} <= set(row) for row in points.value
    ):
        raise Unreadable(f"{points.name}: has no columns params_no_embed and test_ce")
    law = fit.at("pure_power_law")
    if fit.get("surface"):
        _law_tiles(page, fit.at("surface", "law"))
    elif law.value:
        page.tile(
            law.number("exponent"),
            "exponent of the power law",
            Markup("95 %: {}; {}").format(law.interval("interval_95", "exponent"), fit.get("status", default="")),
        )
    laws = [("E + A·N⁻ᵅ", fit.at("power_law_with_floor"), 0), ("A·N⁻ᵅ", law, 1)]
    rows = [
        (
            Markup('<span class="together">{}</span>').format(title),
            found.number("exponent"),
            found.interval("interval_95", "exponent"),
            found.number("irreducible"),
            _held_out(found),
        )
        for title, found, _ in laws
        if found.value
    ]
    scales = sorted(
        (key for key in points.value[0] if key.startswith("test_ce_scale_")),
        key=lambda key: int(key.rpartition("_")[2]),
    )
    heads = (
        "size",
        "parameters",
        "seed",
        "samples",
        "learning rate",
        "test cross-entropy",
        *(f"scale {key.rpartition('_')[2]}" for key in scales),
    )
    listed = [
        (
            text(point.get("size")), point.number("params_no_embed", spec=",d"), point.number("seed", spec="d"),
            point.number("samples", spec=",d"),
            point.number("lr", spec="g"), point.number("test_ce"), *(point.number(key, spec=".2f") for key in scales),
        )
        for point in (points.at(k) for k in range(len(points.value)))
    ]  # fmt: skip
    shown = table(heads, listed, "Points: parameters without embeddings and head; nats per token")
    samples = fit.get("samples", default=None)
    section = [row for row in points.value if samples is None or row.get("samples") == samples]
    at = f" Runs of {samples:,.0f} samples." if samples else ""
    return [
        paragraph(f"{fit.get('num_sizes')} sizes, {fit.get('status')}.{at} {fit.get('method', default='')}.", "soft"),
        columns(
            _scaling_plot(section, laws),
            table(("law", "α", "95 % interval", "E", "largest size from the rest"), rows, "Fits"),
        ),
        *surface(points, fit),
        folded(f"{len(listed)} points", shown) if len(listed) > MOST_POINTS else shown,
    ]


def _law_tiles(page: Page, law: Source) -> None:
    """The exponents of the law in N and D at the top of the page."""
    for name, what in (("alpha", "size"), ("beta", "samples")):
        interval = Markup("95 %: {}").format(law.interval("interval_95", name))
        page.tile(
            law.number("parameters", name), f"exponent of {what}", interval if law.get("interval_95", name) else ""
        )


def _held_out(law: Source) -> Markup:
    return (
        Markup("{} (measured {})").format(law.number("hold_out", "predicted"), law.number("hold_out", "measured"))
        if law.get("hold_out")
        else Markup("too few sizes")
    )


def _scaling_plot(rows: list[dict[str, Any]], laws: list[tuple[str, Source, int]]) -> Markup:
    """Runs as points, each law as a line with its 95 % interval as a band."""
    from g3pt.scaling.law import PowerLaw

    series = []
    for title, law, colour in laws:
        if not law.value:
            continue
        band = law.get("band_95")
        if band:
            series.append(
                Series(
                    label=f"{title}: 95 % interval", x=band["params"], y=band["low"], high=band["high"], colour=colour
                )
            )
        fitted = PowerLaw(**{f.name: law.value[f.name] for f in dataclasses.fields(PowerLaw)})
        low, high = min(row["params_no_embed"] for row in rows) / 1.3, max(row["params_no_embed"] for row in rows) * 1.3
        line = [low * (high / low) ** (k / 60) for k in range(61)]
        series.append(
            Series(
                label=title,
                x=line,
                y=[float(fitted(n)) for n in line],
                colour=colour,
                style="dashed" if law.get("irreducible") == 0 else "line",
            )
        )
    runs = Series(
        label="runs",
        x=[row["params_no_embed"] for row in rows],
        y=[row["test_ce"] for row in rows],
        style="points",
        colour=6,
    )
    return plot(
        "Test cross-entropy against size",
        [*series, runs],
        x_label="parameters N, without embeddings and head",
        y_label="nats per token",
        log=True,
    )


def _validation_curves(page: Page, folder: Path) -> Markup:
    """The validation loss of every run of the study in one plot."""
    series = []
    for number, run_dir in enumerate(
        sorted((file.parent for file in folder.glob("runs/*/metrics.jsonl")), key=lambda path: path.name)
    ):
        records = read_ledger(run_dir / "metrics.jsonl", page.root).value
        spec = read_json(run_dir / "config.json", page.root)
        label = f"{spec.get('preset', default=run_dir.name)}, seed {spec.get('seed', default='unknown')}"
        if spec.get("config", "train", "schedule", default="") == "wsd":  # runs of several lengths
            label += f", {spec.get('config', 'train', 'steps') * spec.get('config', 'train', 'batch_size'):,d} samples"
        series.append(curve(records, "val_ce", label, number, "both" if len(records) < 5 else "line"))
    return (
        columns(plot("Validation while training", series, x_label=SAMPLES, y_label="nats per token"))
        if series
        else Markup("")
    )
