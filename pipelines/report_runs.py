"""Sections about training: a run's state, settings and curves, and a scaling study with its points and fits."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipelines.report_data import failure_line
from pipelines.report_folders import evaluations_of
from pipelines.report_html import Page, columns, command, facts, folded, join, paragraph, table, text, warning
from pipelines.report_machine import note_command
from pipelines.report_plots import Series, plot
from pipelines.report_values import Source, Unreadable, clock, read_csv, read_json, read_ledger

NAMES = {"cvq": "Tokenizer", "car": "Generator"}
SAMPLES = "samples seen"


# ---------------------------------------------------------------------------------------------------------------- run


def run(page: Page, folder: Path) -> None:
    """One training run: how far, with what, its curves; alone, also its evaluations."""
    spec = read_json(folder / "config.json", page.root)
    ledger = read_ledger(folder / "metrics.jsonl", page.root)
    stage = spec.get("stage")
    if stage not in NAMES:
        raise Unreadable(f"{spec.name}: names no stage")
    note_command(page, folder, f"the {NAMES[stage].lower()}'s training")
    body = [_state(folder, spec, ledger), columns(*_curves(stage, ledger))]
    if stage == "cvq":
        body.append(paragraph("The loss jumps where a training phase begins and adds its terms. Validation measures what the tokenizer is for: IoU of unseen objects.", "soft"))
    body.append(folded("All numbers of the last record", _last_record(ledger)))
    page.add(page.heading(f"Training the {NAMES[stage].lower()}", folder), *body)
    if folder == page.root:
        _evaluations(page, folder, spec)


def _state(folder: Path, spec: Source, ledger: Source) -> Markup:
    train, last = spec.at("config", "train"), ledger.at(len(ledger.value) - 1) if ledger.value else Source(ledger.name, {})
    finished = (folder / "_SUCCESS").is_file()
    lines = [] if finished else [warning("Not finished: the same command goes on from the last checkpoint.")]
    failure = failure_line(folder)
    pairs = [
        ("Run", text(folder.name)),
        ("Samples seen", last.number("step", spec=",.0f")),
        ("Optimiser steps / batch", Markup("{} / {}").format(train.number("steps", spec=",d"), train.number("batch_size", spec=",d"))),
        ("Learning rate", train.number("learning_rate", spec="g")),
        ("Samples a second, last record", last.number("samples_per_second", spec=".0f")),
        ("First record", text(clock(ledger.get(0, "time")))),
        ("Last record", text(clock(last.get("time")))),
    ]
    return join([*lines, *([failure] if failure else []), facts(pairs)])


def _curves(stage: str, ledger: Source) -> list[Markup]:
    """Training and validation on one plot, against samples seen; then what the stage adds."""
    records = ledger.value
    if not records:
        return [paragraph("The ledger holds no record yet.")]
    num_scales = sum(f"val_{'iou' if stage == 'cvq' else 'ce'}_scale_{k}" in found for k in range(1, 100) for found in [_keys(records)])
    if stage == "cvq":
        return [
            plot(
                "Training loss",
                [_series(records, "loss", "all terms of the phase", 0), _series(records, "loss_volume", "occupancy, volume points", 1), _series(records, "loss_near", "occupancy, near the surface", 2)],
                x_label=SAMPLES,
                y_label="loss",
            ),
            plot(
                "Volume IoU of validation objects",
                [_series(records, f"val_iou_scale_{k}", _first(k), k - 1) for k in range(1, num_scales + 1)]
                + [_series(records, "val_iou_continuous", "without quantisation", 6, "dashed")],
                x_label=SAMPLES,
                y_label="volume IoU",
            ),
        ]
    return [
        plot(
            "Cross-entropy",
            [
                _series(records, "ce", "train", 0),
                _series(records, "val_ce", "validation", 1),
                _series(records, "val_ce_image", "validation, a picture alone", 2, "dashed"),
                _series(records, "val_ce_unconditional", "validation, no prompt", 6, "dashed"),
            ],
            x_label=SAMPLES,
            y_label="nats a token",
        ),
        plot(
            "Validation cross-entropy by scale",
            [_series(records, f"val_ce_scale_{k}", f"scale {k}", k - 1) for k in range(1, num_scales + 1)],
            x_label=SAMPLES,
            y_label="nats a token",
        ),
    ]


def _first(count: int) -> str:
    return "first scale" if count == 1 else f"first {count} scales"


def _keys(records: list[dict[str, float]]) -> set[str]:
    return set().union(*records)


def _series(records: list[dict[str, float]], key: str, label: str, colour: int, style: Any = "line") -> Series:
    rows = [record for record in records if key in record]
    return Series(label=label, x=[row["step"] for row in rows], y=[row[key] for row in rows], style=style, colour=colour)


def _last_record(ledger: Source) -> Markup:
    """Every number of the ledger's last record, by name."""
    if not ledger.value:
        return paragraph("No record yet.")
    last = ledger.at(len(ledger.value) - 1)
    return table(("name", "value"), [(key, last.number(key, spec=".6g")) for key in sorted(last.value) if key != "time"], "Last record of the ledger")


def _evaluations(page: Page, folder: Path, spec: Source) -> None:
    """The evaluations of these weights that lie near the run, or the command that makes one."""
    from pipelines import report_evaluations

    found = evaluations_of(folder, str(spec.get("stage")))
    for file in found:
        (report_evaluations.tokenizer if spec.get("stage") == "cvq" else report_evaluations.generator)(page, file)
    if not found:
        data = str(spec.get("paths", "data", default="DATASET"))
        line = shlex.join(["python", "jobs/evaluate.py", "--model", str(folder), "--data", data, "--output", str(folder.parent / f"{folder.name}.json")])
        finished = (folder / "_SUCCESS").is_file()
        page.add("Evaluation", paragraph("No evaluation of these weights lies near this run. " + ("This makes one:" if finished else "Once the run is finished, this makes one:")), command(line))


# -------------------------------------------------------------------------------------------------------------- study


def study(page: Page, folder: Path) -> None:
    """Sizes, their test losses, and the laws through them."""
    note_command(page, folder, "the study")
    body: list[Markup] = []
    failure = failure_line(folder)
    points = read_csv(folder / "points.csv", page.root) if (folder / "points.csv").is_file() else None
    fit = read_json(folder / "fit.json", page.root) if (folder / "fit.json").is_file() else None
    if failure:
        body.append(failure)
    if points is None or fit is None:
        body += _unfinished_study(page, folder)
    else:
        body += _finished_study(page, points, fit)
    body.append(_validation_curves(page, folder))
    page.add(page.heading("Scaling study", folder), *body)


def _unfinished_study(page: Page, folder: Path) -> list[Markup]:
    planned = read_json(folder / "study.json", page.root) if (folder / "study.json").is_file() else Source("study.json", {})
    done = sum(1 for _ in folder.glob("runs/*/_SUCCESS"))
    return [warning(f"No fit yet: {done} of {len(planned.get('runs', default=[]))} runs are finished. The same command goes on.")]


def _finished_study(page: Page, points: Source, fit: Source) -> list[Markup]:
    """The plot with its intervals, the laws, the points."""
    if not isinstance(points.value, list) or not all({"params_no_embed", "test_ce"} <= set(row) for row in points.value):
        raise Unreadable(f"{points.name}: has no columns params_no_embed and test_ce")
    law = fit.at("pure_power_law")
    if law.value:
        page.tile(law.number("exponent"), "exponent of the power law", Markup("95 %: {}; {}").format(law.interval("interval_95", "exponent"), fit.get("status", default="")))
    laws = [("E + A·N⁻ᵅ", fit.at("power_law_with_floor"), 0), ("A·N⁻ᵅ", law, 1)]
    rows = [(Markup('<span class="interval">{}</span>').format(title), found.number("exponent"), found.interval("interval_95", "exponent"), found.number("irreducible"), _held_out(found)) for title, found, _ in laws if found.value]
    scales = sorted((key for key in points.value[0] if key.startswith("test_ce_scale_")), key=lambda key: int(key.rpartition("_")[2]))
    heads = ("size", "parameters", "seed", "samples", "learning rate", "test cross-entropy", *(f"scale {key.rpartition('_')[2]}" for key in scales))
    listed = [
        (
            text(point.get("size")), point.number("params_no_embed", spec=",d"), point.number("seed", spec="d"), point.number("samples", spec=",d"),
            point.number("lr", spec="g"), point.number("test_ce"), *(point.number(key, spec=".2f") for key in scales),
        )
        for point in (points.at(k) for k in range(len(points.value)))
    ]  # fmt: skip
    return [
        paragraph(f"{fit.get('num_sizes')} sizes, {fit.get('status')}. {fit.get('method', default='')}.", "soft"),
        columns(_scaling_plot(points.value, laws), table(("law", "α", "95 % interval", "E", "largest size from the rest"), rows, "Fits")),
        table(heads, listed, "Points: parameters without embeddings and head; nats a token"),
    ]


def _held_out(law: Source) -> Markup:
    return Markup("{} (measured {})").format(law.number("hold_out", "predicted"), law.number("hold_out", "measured")) if law.get("hold_out") else Markup("too few sizes")


def _scaling_plot(rows: list[dict[str, Any]], laws: list[tuple[str, Source, int]]) -> Markup:
    """Runs as points, each law as a line, its bootstrap interval as a band."""
    from g3pt.scaling import PowerLaw

    series = []
    for title, law, colour in laws:
        if not law.value:
            continue
        band = law.get("band_95")
        if band:
            series.append(Series(label=f"{title}: 95 % bootstrap", x=band["params"], y=band["low"], high=band["high"], colour=colour))
        curve = PowerLaw(**{f.name: law.value[f.name] for f in dataclasses.fields(PowerLaw)})
        low, high = min(row["params_no_embed"] for row in rows) / 1.3, max(row["params_no_embed"] for row in rows) * 1.3
        line = [low * (high / low) ** (k / 60) for k in range(61)]
        series.append(Series(label=title, x=line, y=[float(curve(n)) for n in line], colour=colour, style="dashed" if law.get("irreducible") == 0 else "line"))
    runs = Series(label="runs", x=[row["params_no_embed"] for row in rows], y=[row["test_ce"] for row in rows], style="points", colour=6)
    return plot("Test cross-entropy against size", [*series, runs], x_label="parameters N, without embeddings and head", y_label="nats a token", log=True)


def _validation_curves(page: Page, folder: Path) -> Markup:
    """Validation loss of every run of the study on one plot."""
    series = []
    for number, run_dir in enumerate(sorted((file.parent for file in folder.glob("runs/*/metrics.jsonl")), key=lambda path: path.name)):
        records = read_ledger(run_dir / "metrics.jsonl", page.root).value
        spec = read_json(run_dir / "config.json", page.root)
        label = f"{spec.get('preset', default=run_dir.name)}, seed {spec.get('seed', default='unknown')}"
        series.append(_series(records, "val_ce", label, number, "both" if len(records) < 5 else "line"))
    return columns(plot("Validation while training", series, x_label=SAMPLES, y_label="nats a token")) if series else Markup("")
