"""Evaluation of a tokenizer: each object's surface -> codes -> occupancy and mesh, compared with labels and an
independent surface.

How: `pipelines.evaluate.reconstruct` scores one object, `pipelines.evaluate.reconstruction_figures` has the summary and
the protocol, and `pipelines.evaluate.near_duplicates` finds objects with a near-copy in the training split. The worst
objects are decoded once more for their pictures. Ours: the protocol, stated in every evaluation.
Shapes: N objects, S tokens of all scales, C digits of a code.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from g3pt.data import reading
from g3pt.data.datasets import DatasetInfo
from g3pt.metrics.bits import coded_bits, plain_bits
from g3pt.models.encoding import ENCODE_BATCH, encoded_columns
from pipelines.cli.errors import bad_input
from pipelines.derive.tokens import RowEncoder, check_points
from pipelines.evaluate.near_duplicates import mark_near_duplicates
from pipelines.evaluate.reconstruct import Reconstructor
from pipelines.evaluate.reconstruction_figures import protocol, summarise, table
from pipelines.evaluate.work import map_work
from pipelines.preprocess.credits import CREDITED

COLUMNS = (
    "id",
    "caption",
    "category",
    "thickness",
    *CREDITED,
    "surface",
    "eval_surface",
    "near_points",
    "near_occupancy",
    "volume_points",
    "volume_occupancy",
)


def evaluate_tokenizer(flags: Any, export: str, info: DatasetInfo) -> dict[str, Any]:
    """Metrics, protocol, table, rows and pictures of one split."""
    from g3pt.models.tokenizer import CVQ

    with bad_input():
        model = CVQ.from_pretrained(export)
        check_points(info, model.config)
        if not info.config.num_queries:
            raise ValueError(
                f"dataset {info.path} has no columns volume_points and near_points (--num-queries 0 of "
                "jobs/preprocess.py), by which a tokenizer is evaluated"
            )
    columns = tuple(dict.fromkeys((*COLUMNS, *encoded_columns(model.config))))
    arrays = reading.load_arrays(info, flags.split, columns, limit=flags.limit or None)
    codes_NS = encoded(arrays, export, encoded_columns(model.config), flags)
    items = work_items(arrays, codes_NS, flags)
    arguments = (export, flags.resolution, flags.coarse, flags.num_queries, flags.seed)
    results = map_work(Reconstructor, arguments, items, flags, "reconstruct", "objects")
    objects = [result["scores"] for result in results]
    add_bits(objects, codes_NS, model)
    duplicates = mark_near_duplicates(objects, arrays, info, flags.split)
    summary = summarise(objects)
    meshes = {k: result["mesh"] for k, result in enumerate(results) if result["mesh"] is not None}
    worst = worst_objects(objects, flags.num_pictures)
    unseen = [items[k] for k in worst if k not in meshes]
    if unseen:  # a dozen: not worth starting actors again
        here = Reconstructor(*arguments)
        meshes |= {item["number"]: here.mesh(item) for item in unseen}
    shown = {k: pictured_object(arrays, objects, k, mesh) for k, mesh in sorted(meshes.items())}
    for rank, k in enumerate(worst, start=1):
        shown[k]["worst"] = rank
    evenly = [k for k in shown if items[k]["picture"]]
    for k in evenly:
        shown[k]["spread"] = True
    return {
        "protocol": protocol(flags, info, model.config, duplicates),
        "metrics": summary,
        "objects": objects,
        "pictures": [picture for k in evenly for picture in sheet_pair(shown[k])],
        "worst_pictures": [picture for k in worst for picture in sheet_pair(shown[k])],
        "gallery": [shown[k] for k in evenly] + [shown[k] for k in worst if k not in evenly],
        "columns": 4,
        "table": table(summary),
    }


def encoded(arrays: dict[str, Any], export: str, columns: Sequence[str], flags: Any) -> np.ndarray:
    """Codes int64 (N, S) of all objects, by the evaluation's workers."""
    rows = [{name: arrays[name][k] for name in columns} for k in range(len(arrays["id"]))]
    batches = [rows[start : start + ENCODE_BATCH] for start in range(0, len(rows), ENCODE_BATCH)]
    return np.concatenate(
        map_work(RowEncoder, (export,), batches, flags, "encode", "objects", [len(part) for part in batches])
    )


def work_items(arrays: dict[str, Any], codes_NS: np.ndarray, flags: Any) -> list[dict[str, Any]]:
    """The items of `Reconstructor.run`, one per object.

    Pictured and detailed objects are spread evenly over the split.
    """
    count = len(codes_NS)
    partner = np.random.default_rng(flags.seed).permutation(count)
    partner = partner[
        np.argsort(np.roll(partner, 1))
    ]  # one cycle: no object is its own partner, unless it is the only one
    pictured, detailed = evenly_spaced(count, flags.num_pictures), evenly_spaced(count, flags.num_detailed)
    return [
        {
            "row": {name: values[k] for name, values in arrays.items()},
            "codes": codes_NS[k],
            "other": codes_NS[partner[k]],
            "number": k,
            "picture": k in pictured,
            "detailed": k in detailed,
        }
        for k in range(count)
    ]


def evenly_spaced(count: int, wanted: int) -> set[int]:
    """At most `wanted` evenly spaced numbers below `count`, including the first and the last."""
    return set(np.linspace(0, count - 1, min(wanted, count)).round().astype(int).tolist())


def add_bits(objects: list[dict[str, Any]], codes_NS: np.ndarray, model: Any) -> None:
    """Write each object's bits, plain and entropy-coded, into its scores."""
    import torch

    quantizer = model.cqt.quantizer
    digits_NSC = quantizer.codes_to_digits(torch.from_numpy(codes_NS).to(quantizer.radix_C.device)).cpu().numpy()
    plain = plain_bits(codes_NS.shape[1], model.config.num_codes)
    for scores, coded in zip(objects, coded_bits(digits_NSC, quantizer.levels), strict=True):
        scores |= {"bits": plain, "bits_coded": float(coded)}


def worst_objects(objects: Sequence[dict[str, Any]], count: int) -> list[int]:
    """Indices of the `count` objects with the lowest volume IoU, worst first."""
    return sorted(range(len(objects)), key=lambda k: objects[k]["iou_volume"])[:count]


def pictured_object(
    arrays: dict[str, Any], objects: Sequence[dict[str, Any]], number: int, mesh: tuple[np.ndarray, np.ndarray]
) -> dict[str, Any]:
    """An entry of the gallery: credits, scores, input cloud and mesh."""
    told = {name: arrays[name][number] for name in ("id", "caption", *CREDITED)}
    return (
        told
        | {name: objects[number][name] for name in ("iou_volume", "iou_near", "status")}
        | {"cloud": arrays["eval_surface"][number], "mesh": mesh}
    )


def sheet_pair(item: dict[str, Any]) -> list[tuple[np.ndarray, np.ndarray, str]]:
    """A pictured object's two tiles in the contact sheet: input and reconstruction."""
    return [
        (*cloud_mesh(item["cloud"]), f"input {item['caption'][:40]}"),
        (*item["mesh"], f"IoU {item['iou_volume']:.3f}"),
    ]


def cloud_mesh(surface_P6: np.ndarray, num_points: int = 4096, size: float = 0.04) -> tuple[np.ndarray, np.ndarray]:
    """Surface points as small triangles facing along their normals, because the dataset stores the input as points."""
    chosen = surface_P6[:num_points].astype(np.float64)
    points, normals = chosen[:, :3], chosen[:, 3:6]
    helper = np.eye(3)[np.abs(normals).argmin(axis=1)]
    side = np.cross(normals, helper)
    side /= np.linalg.norm(side, axis=1, keepdims=True).clip(1e-9)
    up = np.cross(normals, side)
    corners = np.stack(
        [points + size * (np.cos(t) * side + np.sin(t) * up) for t in (0.0, 2 * np.pi / 3, 4 * np.pi / 3)], axis=1
    )
    return corners.reshape(-1, 3), np.arange(3 * len(points)).reshape(-1, 3)
