"""The plot and tables of a tokenizer's evaluation: by number of scales, metrics, comparisons, thickness, categories.

Metrics that an older evaluation lacks have no row.
"""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from g3pt.metrics.thickness import WORDS
from pipelines.report.html import folded, table
from pipelines.report.plots import Series, plot
from pipelines.report.values import Source

LABELS = {
    "iou_volume": "Volume IoU",
    "iou_near": "IoU near the surface",
    "chamfer": "Chamfer-L1",
    "chamfer_squared": "Chamfer-L2",
    "f_score_0.005": "F-score at 0.005",
    "f_score_0.01": "F-score at 0.01",
    "f_score_0.02": "F-score at 0.02",
    "hausdorff_95": "Hausdorff 95 %",
    "normal_consistency": "Normal consistency",
}
SPECS = {"chamfer": ".4f", "chamfer_squared": ".6f", "hausdorff_95": ".4f"}
COMPARED = {
    "": "the codes",
    "continuous_": "continuous latents",
    "detailed_": "the codes",
    "grid_": "occupancy grid, equal bits",
    "distinct_": "the codes, no near-duplicates",
}
COMPARED_NAMES = ("iou_volume", "iou_near", "chamfer", "f_score_0.02")


def num_scales(metrics: Source) -> int:
    """Number of scales of the tokenizer."""
    return sum(name.startswith("iou_first_") for name in metrics.value or {})


def scales_plot(metrics: Source) -> Markup:
    """Plot of volume IoU by number of scales."""
    ks = list(range(1, num_scales(metrics) + 1))
    first = Series(
        label="decoding the first k scales", x=ks, y=[metrics.get(f"iou_first_{k}_scales") for k in ks], style="both"
    )
    lost = Series(
        label="lost when scale k has another object's codes",
        x=ks,
        y=[metrics.get(f"iou_drop_shuffled_scale_{k}") for k in ks],
        style="both",
        colour=1,
    )
    return plot(
        "IoU by number of scales", [first, lost], x_label="k", y_label="volume IoU", y_range=(min([0.0, *lost.y]), 1.0)
    )


def scales_table(metrics: Source) -> Markup:
    """Table of metrics by number of scales."""
    heads = ["k", "IoU, first k scales", "IoU lost, scale k shuffled"]
    with_chamfer = metrics.get("num_chamfer_by_scale")
    if with_chamfer:
        heads.append(Markup("Chamfer-L1 of {}").format(metrics.number("num_chamfer_by_scale", spec=",d")))
    rows = []
    for k in range(1, num_scales(metrics) + 1):
        row = [str(k), metrics.number(f"iou_first_{k}_scales"), metrics.number(f"iou_drop_shuffled_scale_{k}")]
        rows.append(row + [metrics.number(f"chamfer_first_{k}_scales", spec=".4f")] * bool(with_chamfer))
    return table(heads, rows, "By number of scales")


def figures_table(metrics: Source) -> Markup:
    """Table of metrics: mean with interval, median, bad tail; also counts and bits."""
    rows: list[tuple[object, ...]] = []
    for name, label in LABELS.items():
        if name in (metrics.value or {}):
            spec, tail = SPECS.get(name, ".3f"), "p95" if f"{name}_p95" in metrics.value else "p05"
            numbers = (metrics.number(key, spec=spec) for key in (f"{name}_median", f"{name}_{tail}"))
            rows.append(
                (label, metrics.number(name, spec=spec), metrics.interval(f"{name}_interval_95", spec=spec), *numbers)
            )
    counts = Markup("{} / {}").format(
        metrics.number("num_objects", spec=",d"), metrics.number("num_without_mesh", spec=",d")
    )
    rows.append(("Objects / without a mesh", counts, "", "", ""))
    if "bits" in (metrics.value or {}):
        bits = Markup("{} / {}").format(metrics.number("bits", spec=",.0f"), metrics.number("bits_coded", spec=",.0f"))
        rows.append(("Bits per object / entropy-coded", bits, "", "", ""))
    return table(("metric", "mean", "95 % interval", "median", "worst 5 %"), rows, "Reconstruction metrics")


def compared_table(metrics: Source) -> Markup:
    """Table that compares the codes with continuous latents, a grid of equal bits, and the codes without
    near-duplicates.
    """
    rows = []
    for prefix, label in COMPARED.items():
        if f"{prefix}chamfer" in (metrics.value or {}) and not (prefix == "detailed_" and surfaces_of_all(metrics)):
            numbers = [metrics.number(f"{prefix}{name}", spec=SPECS.get(name, ".3f")) for name in COMPARED_NAMES]
            rows.append((_compared_label(metrics, prefix, label), *numbers))
    return (
        table(("", *(LABELS[name] for name in COMPARED_NAMES)), rows, "Compared with") if len(rows) > 1 else Markup("")
    )


def surfaces_of_all(metrics: Source) -> bool:
    """Whether the continuous latents of all objects were meshed."""
    return metrics.get("num_detailed") == metrics.get("num_objects")


def _compared_label(metrics: Source, prefix: str, label: str) -> Markup | str:
    if prefix in ("continuous_", "detailed_") and not surfaces_of_all(metrics):
        return Markup("{} (surfaces of the same {})").format(label, metrics.number("num_detailed", spec=",d"))
    if prefix == "distinct_":
        return Markup("{} ({} left out)").format(label, metrics.number("num_near_duplicates", spec=",d"))
    return label


def thickness_table(metrics: Source) -> Markup:
    """Table of means per band of thickness."""
    bands = metrics.get("by_thickness", default={})
    if not bands:
        return Markup("")
    labels = {name: f"{name}: {WORDS[name]}" for name in bands}
    return _groups_table(metrics.at("by_thickness"), labels, "band", "By thickness, in voxels of 128 cells per side")


def categories(metrics: Source) -> Markup:
    """Table of means per category, folded."""
    found = metrics.get("by_category", default={})
    if not found:
        return Markup("")
    labels = {name: name for name in found}
    return folded("By category", _groups_table(metrics.at("by_category"), labels, "category", "By category"))


def _groups_table(groups: Source, labels: Mapping[str, str], head: str, title: str) -> Markup:
    rows = []
    for name, label in labels.items():
        part = groups.at(name)
        numbers = (part.number(metric, spec=SPECS.get(metric, ".3f")) for metric in COMPARED_NAMES)
        rows.append((label, part.number("num_objects", spec=",d"), *numbers))
    return table((head, "objects", *(LABELS[name] for name in COMPARED_NAMES)), rows, title)
