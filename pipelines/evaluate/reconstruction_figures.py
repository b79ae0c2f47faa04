"""The metrics of a tokenizer's evaluation (means, medians, tails, categories, baselines), its protocol and its table.

How: `summarise` turns the objects' scores into one flat record (and `by_thickness` and `by_category`). A name is the
metric with a prefix for what it is of (`continuous_`: the same latents without the quantiser; `grid_`: a cube of
occupancy bits of equal size; `distinct_`: without near-duplicates of training objects) and a suffix for the statistic
(none: mean; `_median`; `_p05` or `_p95`: the bad tail; `_interval_95`: interval of the mean).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from g3pt.data.datasets import DatasetInfo
from g3pt.metrics import baselines, pairwise
from g3pt.metrics.bits import plain_bits
from g3pt.metrics.thickness import BANDS, WORDS, band
from g3pt.metrics.thickness import PROTOCOL as BY_THICKNESS
from pipelines.evaluate.near_duplicates import THRESHOLD
from pipelines.evaluate.reconstruct import SURFACE_NAMES

NAMES = ("iou_volume", "iou_near", *SURFACE_NAMES)
LESS_IS_BETTER = ("chamfer", "chamfer_squared", "hausdorff_95")
GROUP_NAMES = ("iou_volume", "iou_near", "chamfer", "f_score_0.02")

Objects = Sequence[dict[str, Any]]


def summarise(objects: Objects) -> dict[str, Any]:
    """The metrics of a whole evaluation as one record."""
    found: dict[str, Any] = {"num_objects": len(objects), "num_without_mesh": without_mesh(objects)}
    for name in NAMES:
        found |= statistics(name, [o[name] for o in objects])
    found |= by_scale(objects)
    found |= {f"continuous_{name}": mean([o["continuous"].get(name) for o in objects]) for name in NAMES}
    detailed = [o for o in objects if "chamfer_first_scales" in o]
    found |= {"num_detailed": len(detailed)}
    found |= {f"detailed_{name}": mean([o[name] for o in detailed]) for name in SURFACE_NAMES}
    grids = [o["grid"] for o in objects]
    found |= {f"grid_{name}": mean([grid[name] for grid in grids]) for name in NAMES} | {
        "grid_num_without_mesh": without_mesh(grids)
    }
    found |= {"bits": objects[0]["bits"], "bits_coded": mean([o["bits_coded"] for o in objects])}
    return found | distinct(objects) | {"by_thickness": by_thickness(objects), "by_category": by_category(objects)}


def without_mesh(objects: Objects) -> int:
    """Number of objects without a surface."""
    return sum(o["status"] != "ok" for o in objects)


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are not None; None without any."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def statistics(name: str, values: Sequence[float | None]) -> dict[str, Any]:
    """Mean and interval over the existing values; median and bad tail over all, where a missing distance counts as
    infinite.
    """
    there = np.array([value for value in values if value is not None])
    worse = name in LESS_IS_BETTER
    everything = np.array([(np.inf if worse else 0.0) if value is None else value for value in values])
    tail = "_p95" if worse else "_p05"
    # the order statistic, not an interpolation between it and infinity
    quantiles = np.quantile(everything, [0.5, 0.95 if worse else 0.05], method="higher" if worse else "lower")
    return {
        name: mean(values),
        f"{name}_interval_95": list(pairwise.bootstrap_interval(there)) if len(there) else None,
        **{
            f"{name}{suffix}": float(value) if np.isfinite(value) else None
            for suffix, value in zip(("_median", tail), quantiles, strict=True)
        },
    }


def by_scale(objects: Objects) -> dict[str, float | None]:
    """IoU of the first k scales and IoU lost by shuffling scale k, over all objects; Chamfer of the first k over
    detailed objects with a mesh at every k.
    """
    first = np.mean([o["iou_first_scales"] for o in objects], axis=0)
    shuffled = np.mean([o["iou_shuffled_scale"] for o in objects], axis=0)
    whole = [o["chamfer_first_scales"] for o in objects if None not in o.get("chamfer_first_scales", [None])]
    found: dict[str, float | None] = {"num_chamfer_by_scale": len(whole)}
    for k, (alone, mixed) in enumerate(zip(first, shuffled, strict=True), start=1):
        found[f"iou_first_{k}_scales"] = float(alone)
        found[f"iou_drop_shuffled_scale_{k}"] = float(first[-1] - mixed)
        found[f"chamfer_first_{k}_scales"] = mean([chamfers[k - 1] for chamfers in whole])
    return found


def distinct(objects: Objects) -> dict[str, Any]:
    """The metrics without near-duplicates, if they were searched for."""
    if "near_duplicate" not in objects[0]:
        return {"num_near_duplicates": None}
    left = [o for o in objects if not o["near_duplicate"]]
    found = {"num_near_duplicates": len(objects) - len(left)}
    return found | {f"distinct_{name}": mean([o[name] for o in left]) for name in NAMES}


def by_thickness(objects: Objects) -> dict[str, dict[str, Any]]:
    """Means per band of thickness that has objects, thin first; IoUs with the interval of the mean."""
    groups = {name: [o for o in objects if band(o["thickness"]) == name] for name in BANDS}
    return {
        name: group_means(part)
        | {
            f"{metric}_interval_95": list(pairwise.bootstrap_interval(np.array([o[metric] for o in part])))
            for metric in ("iou_volume", "iou_near")
        }
        for name, part in groups.items()
        if part
    }


def by_category(objects: Objects) -> dict[str, dict[str, Any]]:
    """Means per category, sorted by name; empty if the dataset has no categories."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for scores in objects:
        if scores["category"]:
            groups.setdefault(scores["category"], []).append(scores)
    return {name: group_means(part) for name, part in sorted(groups.items())}


def group_means(objects: Objects) -> dict[str, Any]:
    """Counts and means of some of the objects."""
    return {
        "num_objects": len(objects),
        "num_without_mesh": without_mesh(objects),
        **{metric: mean([o[metric] for o in objects]) for metric in GROUP_NAMES},
    }


def protocol(flags: Any, info: DatasetInfo, config: Any, duplicates: str) -> dict[str, Any]:
    """The protocol: how each number was made."""
    queries = min(flags.num_queries, info.config.num_queries)
    bits = plain_bits(config.num_tokens, config.num_codes)
    side = baselines.grid_side(bits)
    return {
        **pairwise.PROTOCOL,
        "task": "reconstruction: the model reads `surface`; its output is compared with `eval_surface`, an independent "
        "sample of the same solid",
        "query_points": f"{queries} volume points uniform in [-1, 1]^3 and {queries} near-surface points per object, "
        f"with exact labels",
        "surface_points": f"{info.config.num_surface} per surface, uniform over the area",
        "iso_surface": f"logit 0 on a grid of {flags.resolution} cells per side, refined near the surface from "
        f"{flags.coarse}; floaters below 1 % of the area removed",
        "aggregation": "mean over objects; objects without a mesh count 0 in F-scores and are left out of mean "
        "distances (num_without_mesh)",
        "tails": "median, and the bad tail: 5th percentile where more is better, 95th where less is; a missing mesh "
        "counts as infinitely far",
        "intervals": "95 % percentile bootstrap over objects, 1000 resamples, seed 0",
        "by_thickness": BY_THICKNESS,
        "by_category": "means over the objects of a category",
        "shuffled": "the codes of one scale are replaced by those of another object of the split (one cycle through "
        "all objects)",
        "first_scales": "IoU of the first k scales over all objects; Chamfer over at most "
        f"{flags.num_detailed} objects spread evenly over the split, those with a mesh at every k",
        "continuous": "the same latents without the quantiser; IoU over all objects, surface metrics over the same "
        f"{flags.num_detailed} objects at most (detailed_*: the codes' metrics on these)",
        "bits": f"{config.num_tokens} tokens of {config.num_codes} codes: {bits:.0f} bits per object; bits_coded: mean "
        "after an adaptive coder with one table per position and digit, fitted to the other objects",
        "grid": f"grid_*: {side}^3 = {side**3} occupancy bits at the centres of equal cells of [-1, 1]^3, trilinear, "
        "threshold 1/2; a bit is the side of the nearest stored surface point",
        "distinct": f"distinct_*: without near-duplicates of training objects; {duplicates}",
        "scales": list(config.scales),
        "seed": flags.seed,
        "dataset_settings": info.settings,
    }


def table(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The rows of the printed table."""
    scales = range(1, 1 + sum(name.startswith("iou_first_") for name in found))
    rows = [
        ("objects", f"{found['num_objects']} ({found['num_without_mesh']} without a mesh)"),
        ("IoU volume / near", numbers(found, "iou_volume", "iou_near")),
        ("  median / 5th percentile of volume IoU", numbers(found, "iou_volume_median", "iou_volume_p05")),
        ("IoU, first k scales", " ".join(f"{found[f'iou_first_{k}_scales']:.3f}" for k in scales)),
        ("IoU lost, scale k shuffled", " ".join(f"{found[f'iou_drop_shuffled_scale_{k}']:.3f}" for k in scales)),
        ("Chamfer-L1 / L2", numbers(found, "chamfer", "chamfer_squared", spec=".5f")),
        (
            f"Chamfer-L1, first k scales, {found['num_chamfer_by_scale']} objects",
            numbers(found, *(f"chamfer_first_{k}_scales" for k in scales), separator=" "),
        ),
        (
            "F-score " + " / ".join(f"{t:g}" for t in pairwise.F_THRESHOLDS),
            numbers(found, *(f"f_score_{t:g}" for t in pairwise.F_THRESHOLDS)),
        ),
        ("normal consistency / Hausdorff 95 %", numbers(found, "normal_consistency", "hausdorff_95")),
        ("bits per object, plain / coded", numbers(found, "bits", "bits_coded", spec=".0f")),
        (
            f"continuous latents: IoU / near; {found['num_detailed']} objects: Chamfer / F 0.02",
            numbers(found, *(f"continuous_{name}" for name in GROUP_NAMES)),
        ),
        ("  the codes on these: Chamfer / F 0.02", numbers(found, "detailed_chamfer", "detailed_f_score_0.02")),
        (
            "occupancy grid of equal bits: IoU / near / Chamfer / F 0.02",
            numbers(found, *(f"grid_{name}" for name in GROUP_NAMES)),
        ),
    ]
    for name, part in found["by_thickness"].items():
        label = f"{name} ({WORDS[name]}), {part['num_objects']} objects: IoU / near / Chamfer / F 0.02"
        rows.append((label, numbers(part, *GROUP_NAMES)))
    if found["num_near_duplicates"] is not None:
        label = f"without {found['num_near_duplicates']} near-duplicates (excess Chamfer < {THRESHOLD:g})"
        rows.append((f"{label}: IoU / Chamfer", numbers(found, "distinct_iou_volume", "distinct_chamfer")))
    return rows


def numbers(found: dict[str, Any], *names: str, spec: str = ".4f", separator: str = " / ") -> str:
    """The values of these names in one string."""
    values = [found.get(name) for name in names]
    return separator.join("none" if value is None else format(value, spec) for value in values)
