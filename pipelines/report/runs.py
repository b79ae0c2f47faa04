"""Sections about a training run: its state, settings and curves, and the evaluations of its weights."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from markupsafe import Markup

from g3pt.metrics.thickness import WORDS
from g3pt.training.alarm import alarm_line, skipped_line
from pipelines.report.common import failure_line, note_command
from pipelines.report.folders import evaluations_of
from pipelines.report.html import Page, columns, command, facts, folded, join, paragraph, table, text, warning
from pipelines.report.plots import Series, plot
from pipelines.report.values import Source, Unreadable, clock, read_json, read_ledger
from pipelines.train.curves import quality_by_tokens

NAMES = {"cvq": "Tokenizer", "car": "Generator"}
SAMPLES = "samples seen"


def run(page: Page, folder: Path) -> None:
    """Add the sections about a training run: state, settings, curves; if it is the report's folder, also its
    evaluations.
    """
    spec = read_json(folder / "config.json", page.root)
    ledger = read_ledger(folder / "metrics.jsonl", page.root)
    stage = spec.get("stage")
    if stage not in NAMES:
        raise Unreadable(f"{spec.name}: names no stage")
    note_command(page, folder, f"the {NAMES[stage].lower()}'s training")
    body = [_state(folder, spec, ledger), columns(*_curves(stage, ledger))]
    if stage == "cvq":
        body.append(
            paragraph(
                "The loss jumps where a training phase begins, because phases add terms. Validation uses unseen "
                "objects: the occupancy term, and IoU.",
                "soft",
            )
        )
        body += _by_scale(ledger, spec.get("config", "model", "scales", default=[]))
    body.append(folded("All numbers of the last record", _last_record(ledger)))
    page.add(page.heading(f"Training the {NAMES[stage].lower()}", folder), *body)
    if folder == page.root:
        _evaluations(page, folder, spec)


def _state(folder: Path, spec: Source, ledger: Source) -> Markup:
    train, last = (
        spec.at("config", "train"),
        ledger.at(len(ledger.value) - 1) if ledger.value else Source(ledger.name, {}),
    )
    finished = (folder / "_SUCCESS").is_file()
    lines = [] if finished else [warning("Not finished: the same command resumes from the last checkpoint.")]
    lines += _alarm(ledger.value, finished)
    skipped = skipped_line(ledger.value)
    lines += [warning(f"{skipped}.")] if skipped else []
    failure = failure_line(folder)
    pairs = [
        ("Run", text(folder.name)),
        ("Samples seen", last.number("step", spec=",.0f")),
        (
            "Optimiser steps / batch",
            Markup("{} / {}").format(train.number("steps", spec=",d"), train.number("batch_size", spec=",d")),
        ),
        ("Learning rate", train.number("learning_rate", spec="g")),
        ("Samples per second, last record", last.number("samples_per_second", spec=".0f")),
        ("First record", text(clock(ledger.get(0, "time")))),
        ("Last record", text(clock(last.get("time")))),
    ]
    return join([*lines, *([failure] if failure else []), facts(pairs)])


def _alarm(records: list[dict[str, float]], finished: bool) -> list[Markup]:
    """The alarm; without one, how many records were temporarily below a limit."""
    words, judged = alarm_line(records, finished), [record["alarm"] for record in records if "alarm" in record]
    if words:
        return [warning(f"Alarm: {words}.")]
    past = sum(value > 0 for value in judged)
    return (
        [
            paragraph(
                f"In {past} of {len(judged)} records the codes of a scale were below a limit of the collapse alarm, "
                "but not for long.",
                "soft",
            )
        ]
        if past
        else []
    )


def _curves(stage: str, ledger: Source) -> list[Markup]:
    """Plots over samples seen: training and validation together, then those of the stage."""
    records = ledger.value
    if not records:
        return [paragraph("The ledger has no record yet.")]
    num_scales = sum(
        f"val_{'iou' if stage == 'cvq' else 'ce'}_scale_{k}" in found
        for k in range(1, 100)
        for found in [_keys(records)]
    )
    if stage == "cvq":
        return [
            plot(
                "Loss",
                [
                    curve(records, "loss", "all terms of the phase", 0),
                    curve(records, "loss_volume", "occupancy, volume points", 1),
                    curve(records, "loss_near", "occupancy, near the surface", 2),
                    curve(records, "val_loss_volume", "validation: occupancy, volume points", 3, "dashed"),
                ],
                x_label=SAMPLES,
                y_label="loss",
            ),
            plot(
                "Volume IoU of validation objects",
                [curve(records, f"val_iou_scale_{k}", _first(k), k - 1) for k in range(1, num_scales + 1)]
                + [curve(records, "val_iou_continuous", "without quantisation", 6, "dashed")],
                x_label=SAMPLES,
                y_label="volume IoU",
            ),
            *_thickness_plot(records),
        ]
    return [
        plot(
            "Cross-entropy",
            [
                curve(records, "ce", "train", 0),
                curve(records, "val_ce", "validation", 1),
                curve(records, "val_ce_image", "validation, a picture alone", 2, "dashed"),
                curve(records, "val_ce_unconditional", "validation, no prompt", 6, "dashed"),
            ],
            x_label=SAMPLES,
            y_label="nats per token",
        ),
        plot(
            "Validation cross-entropy by scale",
            [curve(records, f"val_ce_scale_{k}", f"scale {k}", k - 1) for k in range(1, num_scales + 1)],
            x_label=SAMPLES,
            y_label="nats per token",
        ),
    ]


def _thickness_plot(records: list[dict[str, float]]) -> list[Markup]:
    """IoU of validation objects by band of thickness, for the bands that have objects."""
    lines = [
        line
        for k, (band, words) in enumerate(WORDS.items())
        for line in (
            curve(records, f"val_iou_{band}", f"{band}: {words}", k),
            curve(records, f"val_iou_continuous_{band}", f"{band}, without quantisation", k, "dashed"),
        )
        if line.x
    ]
    title = "Volume IoU of validation objects by thickness"
    return [plot(title, lines, x_label=SAMPLES, y_label="volume IoU")] if lines else []


DIAGNOSTICS = {
    "val_iou": ("IoU, first k scales", ".3f"),
    "val_residual_ratio": ("residual left", ".3f"),
    "val_utilisation": ("reachable codes used", ".2f"),
    "val_entropy_position": ("bits at a fixed position", ".1f"),
    "val_agreement": ("same code from two samplings", ".2f"),
    "val_agreement_digits": ("same digit", ".2f"),
}


def _by_scale(ledger: Source, scales: list[int]) -> list[Markup]:
    """Quality and stability of each scale's codes in the newest validated record: a plot by tokens, and a table."""
    newest = next((k for k in reversed(range(len(ledger.value))) if "val_iou_scale_1" in ledger.value[k]), None)
    if newest is None or not scales:
        return []
    tokens, quality = quality_by_tokens(ledger.value, scales, "val")
    lines = [Series(label="validation, decoding the first scales", x=tokens, y=quality, style="both")]
    tokens, quality = quality_by_tokens(ledger.value, scales, "test")
    lines += [Series(label="test", x=tokens, y=quality, style="both", colour=1)] if tokens else []
    record = ledger.at(newest)
    rows = [
        (
            str(k),
            str(sum(scales[:k])),
            *(record.number(f"{name}_scale_{k}", spec=spec) for name, (_, spec) in DIAGNOSTICS.items()),
        )
        for k in range(1, len(scales) + 1)
    ]
    heads = ("k", "tokens of k scales", *(head for head, _ in DIAGNOSTICS.values()))
    words = (
        "For validation objects. Codes that differ between two samplings of one surface are noise to a generator. "
        "Reachable codes: as many as the same number of uniform draws would show."
    )
    shown = plot(
        "Quality by tokens", lines, x_label="tokens of the first 1 to k scales", y_label="volume IoU", log_x=True
    )
    return [columns(shown, join([table(heads, rows, "The scales"), paragraph(words, "soft")]))]


def _first(count: int) -> str:
    return "first scale" if count == 1 else f"first {count} scales"


def _keys(records: list[dict[str, float]]) -> set[str]:
    return set().union(*records)


def curve(records: list[dict[str, float]], key: str, label: str, colour: int, style: Any = "line") -> Series:
    """A key of the ledger over samples seen, where it was recorded."""
    rows = [record for record in records if key in record]
    return Series(
        label=label, x=[row["step"] for row in rows], y=[row[key] for row in rows], style=style, colour=colour
    )


def _last_record(ledger: Source) -> Markup:
    """All numbers of the ledger's last record, by name."""
    if not ledger.value:
        return paragraph("No record yet.")
    last = ledger.at(len(ledger.value) - 1)
    return table(
        ("name", "value"),
        [(key, last.number(key, spec=".6g")) for key in sorted(last.value) if key != "time"],
        "Last record of the ledger",
    )


def _evaluations(page: Page, folder: Path, spec: Source) -> None:
    """Add the evaluations of these weights near the run, or the command that makes one."""
    from pipelines.report.generator import generator
    from pipelines.report.tokenizer import tokenizer

    found = evaluations_of(folder, str(spec.get("stage")))
    for file in found:
        (tokenizer if spec.get("stage") == "cvq" else generator)(page, file)
    if not found:
        data = str(spec.get("paths", "data", default="DATASET"))
        line = shlex.join(
            [
                "python",
                "jobs/evaluate.py",
                "--model",
                str(folder),
                "--data",
                data,
                "--output",
                str(folder.parent / f"{folder.name}.json"),
            ]
        )
        finished = (folder / "_SUCCESS").is_file()
        page.add(
            "Evaluation",
            paragraph(
                "There is no evaluation of these weights near this run. "
                + ("This makes one:" if finished else "Once the run is finished, this makes one:")
            ),
            command(line),
        )
