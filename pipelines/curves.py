"""A training run's curves as one picture: what should improve, against samples seen, drawn from its ledger."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.runs import Ledger, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW = 9  # points that are marked


def draw_run(run_dir: Path, target: Path) -> Path:
    """Of a tokenizer the validation IoU by number of scales, of a generator the cross-entropies; the picture's file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = Ledger(run_dir / "metrics.jsonl").read()
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    draw = draw_cvq if any("val_iou_continuous" in row for row in records) else draw_car
    draw(axes, records)
    axes.set(title=run_dir.name, xlabel="samples seen")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=8)
    figure.savefig(target, dpi=110)
    return target


def draw_cvq(axes: Axes, records: Sequence[Record]) -> None:
    """Volume IoU of validation objects when the first scales are decoded, and without quantisation."""
    scales = sorted({key for row in records for key in row if key.startswith("val_iou_scale_")}, key=_scale_number)
    _lines(axes, records, {"val_iou_continuous": "continuous"}, "--")
    _lines(axes, records, {key: f"first {_scale_number(key)} scales" for key in scales})
    axes.set_ylabel("validation: volume IoU")


def draw_car(axes: Axes, records: Sequence[Record]) -> None:
    """Trained on, and of validation objects with and without their prompt."""
    _lines(axes, records, {"ce": "train", "val_ce": "validation", "val_ce_unconditional": "validation, no prompt", "val_ce_image": "validation, image alone"})
    axes.set_ylabel("cross-entropy, nats a token")


def _lines(axes: Axes, records: Sequence[Record], labels: dict[str, str], style: str = "-") -> None:
    for key, label in labels.items():
        rows = [row for row in records if key in row]
        if rows:
            axes.plot([row["step"] for row in rows], [row[key] for row in rows], style, marker="o" if len(rows) < FEW else "", markersize=4, label=label)


def _scale_number(key: str) -> int:
    return int(key.rpartition("_")[2])
