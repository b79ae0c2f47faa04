"""Pictures of a training run, drawn from its ledger: learning curves over samples seen, and a tokenizer's quality by
number of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.runs.ledger import Ledger, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW = 9  # points up to which markers are drawn


def draw_run(run_dir: Path, target: Path) -> Path:
    """Draw a tokenizer's validation IoU by number of scales, or a generator's cross-entropies; return the picture's
    file.
    """
    records = Ledger.of(run_dir).read()
    figure, axes = _figure()
    draw = draw_cvq if any("val_iou_continuous" in row for row in records) else draw_car
    draw(axes, records)
    axes.set(title=run_dir.name, xlabel="samples seen")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=8)
    figure.savefig(target, dpi=110)
    return target


def draw_tokens(run_dir: Path, scales: Sequence[int], target: Path) -> Path | None:
    """Draw a tokenizer's volume IoU of validation and test objects by the tokens of the first 1..k scales; None without
    data.
    """
    records = Ledger.of(run_dir).read()
    curves = [(split, *quality_by_tokens(records, scales, split)) for split in ("val", "test")]
    if not any(tokens for _, tokens, _ in curves):
        return None
    figure, axes = _figure()
    for (_, tokens, quality), label in zip(curves, ("validation", "test"), strict=True):
        if tokens:
            axes.plot(tokens, quality, marker="o", label=f"{label}, decoding the first scales")
    continuous = last_of(records, "val_iou_continuous")
    if continuous is not None:
        axes.axhline(continuous, color="gray", linestyle="--", label="validation, without quantisation")
    axes.set_xscale("log", base=2)
    axes.set_xticks(curves[0][1] or curves[1][1], [str(count) for count in curves[0][1] or curves[1][1]])
    axes.minorticks_off()
    axes.set(title=run_dir.name, xlabel="tokens of the first 1 to k scales", ylabel="volume IoU")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(target, dpi=110)
    return target


def quality_by_tokens(records: Sequence[Record], scales: Sequence[int], split: str) -> tuple[list[int], list[float]]:
    """(tokens of the first k scales, newest IoU when they are decoded), each a list over the known k."""
    found = [(sum(scales[: k + 1]), last_of(records, f"{split}_iou_scale_{k + 1}")) for k in range(len(scales))]
    known = [(tokens, value) for tokens, value in found if value is not None]
    return [tokens for tokens, _ in known], [value for _, value in known]


def last_of(records: Sequence[Record], key: str) -> float | None:
    """The newest value of a key; None if no record has it."""
    return next((record[key] for record in reversed(records) if key in record), None)


def _figure() -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def draw_cvq(axes: Axes, records: Sequence[Record]) -> None:
    """Draw the volume IoU of validation objects when the first scales are decoded, and without quantisation."""
    scales = sorted({key for row in records for key in row if key.startswith("val_iou_scale_")}, key=_scale_number)
    _lines(axes, records, {"val_iou_continuous": "continuous"}, "--")
    _lines(axes, records, {key: f"first {_scale_number(key)} scales" for key in scales})
    axes.set_ylabel("validation: volume IoU")


def draw_car(axes: Axes, records: Sequence[Record]) -> None:
    """Draw the cross-entropy of training batches, and of validation objects with and without their prompt."""
    _lines(
        axes,
        records,
        {
            "ce": "train",
            "val_ce": "validation",
            "val_ce_unconditional": "validation, no prompt",
            "val_ce_image": "validation, image alone",
        },
    )
    axes.set_ylabel("cross-entropy, nats per token")


def _lines(axes: Axes, records: Sequence[Record], labels: dict[str, str], style: str = "-") -> None:
    for key, label in labels.items():
        rows = [row for row in records if key in row]
        if rows:
            axes.plot(
                [row["step"] for row in rows],
                [row[key] for row in rows],
                style,
                marker="o" if len(rows) < FEW else "",
                markersize=4,
                label=label,
            )


def _scale_number(key: str) -> int:
    return int(key.rpartition("_")[2])
