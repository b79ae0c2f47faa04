"""Reconstruction by a tokenizer: each object's surface -> codes -> occupancy and mesh, against labels and an independent surface.

How: IoU at the stored query points from the model's own logits; the mesh from the iso-surface of the logits, sampled uniformly and
compared with `eval_surface`. Also IoU when only the first k scales are decoded, and when one scale's codes are those of another object
(a scale that carries nothing would not lower it).
Ours: the protocol, stated in every report. Shapes: B batch, Q query points, S tokens of all scales.
"""

from pathlib import Path
from typing import Any

import numpy as np

from g3pt import metrics, records
from g3pt.records import DatasetInfo
from pipelines.failures import doing
from pipelines.tokens import check_points, encode, encoded_columns

CREDITS = ("license", "author", "attribution_url", "source_url")
COLUMNS = (
    "id",
    "caption",
    *CREDITS,
    "surface",
    "eval_surface",
    "near_points",
    "near_occupancy",
    "volume_points",
    "volume_occupancy",
)


def evaluate_tokenizer(flags: Any, export: Path, info: DatasetInfo) -> dict[str, Any]:
    """Metrics, protocol, table, rows and pictures of one split."""
    from g3pt.tokenizer import CVQ
    from pipelines.errors import bad_input
    from pipelines.evaluate import map_work

    with bad_input():
        model = CVQ.from_pretrained(export)
        check_points(info, model.config)
    arrays = load(info, flags.split, tuple(dict.fromkeys((*COLUMNS, *encoded_columns(model.config)))), flags.limit)
    codes_BS = encode(model, [{name: arrays[name][k] for name in encoded_columns(model.config)} for k in range(len(arrays["id"]))])
    partner = np.random.default_rng(flags.seed).permutation(len(codes_BS))
    partner = partner[np.argsort(np.roll(partner, 1))]  # one cycle: nobody is its own partner unless alone
    pictured = set(np.linspace(0, len(codes_BS) - 1, min(flags.num_pictures, len(codes_BS))).round().astype(int).tolist())
    items = [
        {
            "row": {name: arrays[name][k] for name in COLUMNS},
            "codes": codes_BS[k],
            "other": codes_BS[partner[k]],
            "number": k,
            "picture": k in pictured,
        }
        for k in range(len(codes_BS))
    ]
    arguments = (str(export), flags.resolution, flags.coarse, flags.num_queries, flags.seed)
    results = map_work(Reconstructor, arguments, items, flags, "reconstruct", "objects")
    objects = [result["scores"] for result in results]
    summary = summarise(objects)
    pictured_objects = [result["pictured"] for result in results if result["pictured"]]
    return {
        "protocol": protocol(flags, info, model.config.scales),
        "metrics": summary,
        "objects": objects,
        "pictures": [picture for item in pictured_objects for picture in sheet_pair(item)],
        "gallery": pictured_objects,
        "columns": 4,
        "table": table(summary, len(objects)),
    }


def load(info: DatasetInfo, split: str, columns: tuple[str, ...], limit: int) -> dict[str, Any]:
    """Columns of the split's objects, the first `limit` by id (0: all)."""
    arrays = records.load_arrays(info, split, columns)
    return {name: values[: limit or None] for name, values in arrays.items()}


class Reconstructor:
    """A tokenizer held by one worker; `run` scores one object."""

    def __init__(self, export: str, resolution: int, coarse: int, num_queries: int, seed: int) -> None:
        from g3pt.tokenizer import CVQ
        from pipelines.cluster import torch_device

        self.device = torch_device()
        self.model = CVQ.from_pretrained(export).to(self.device)
        self.resolution, self.coarse, self.num_queries, self.seed = resolution, coarse, num_queries, seed

    def run(self, item: dict[str, Any]) -> dict[str, Any]:
        """Scores of one object and, where it is pictured, its input and reconstruction."""
        import torch

        with doing(f"reconstructing {item['row']['id']}"), torch.inference_mode():
            return self._run(item)

    def _run(self, item: dict[str, Any]) -> dict[str, Any]:
        row = item["row"]
        random = np.random.default_rng([self.seed, item["number"]])
        volume = self._queries(row, "volume", random)
        near = self._queries(row, "near", random)
        latents = self._latents(item["codes"])
        scores: dict[str, Any] = {
            "id": row["id"],
            "iou_volume": self._iou(latents, *volume),
            "iou_near": self._iou(latents, *near),
        }
        num_scales = len(self.model.config.scales)
        scores["iou_first_scales"] = [
            self._iou(self._latents(item["codes"], k), *volume) for k in range(1, num_scales)
        ] + [scores["iou_volume"]]
        scores["iou_shuffled_scale"] = [
            self._iou(self._latents(self._mixed(item, k)), *volume) for k in range(num_scales)
        ]
        vertices, faces, status = mesh_or_status(self.model, latents, self.resolution, self.coarse)
        scores |= {"status": status} | self._surface_scores(vertices, faces, row, random)
        pictured = None
        if item["picture"]:
            told = {name: row[name] for name in ("id", "caption", *CREDITS)} | {name: scores[name] for name in ("iou_volume", "iou_near", "status")}
            pictured = told | {"cloud": row["eval_surface"], "mesh": (vertices, faces)}
        return {"scores": scores, "pictured": pictured}

    def _queries(self, row: dict[str, Any], kind: str, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        points, inside = row[f"{kind}_points"], records.unpack_occupancy(row[f"{kind}_occupancy"])
        chosen = random.permutation(len(points))[: self.num_queries]
        return points[chosen].astype(np.float32), inside[chosen]

    def _latents(self, codes_S: np.ndarray, num_scales: int | None = None) -> Any:
        import torch

        return self.model.decode_latents(torch.from_numpy(codes_S)[None].to(self.device), num_scales)

    def _mixed(self, item: dict[str, Any], scale: int) -> np.ndarray:
        """This object's codes, those of one scale taken from another object."""
        start = sum(self.model.config.scales[:scale])
        end = start + self.model.config.scales[scale]
        mixed_S = item["codes"].copy()
        mixed_S[start:end] = item["other"][start:end]
        return mixed_S

    def _iou(self, latents: Any, points: np.ndarray, inside: np.ndarray) -> float:
        from g3pt import decoding

        return metrics.volume_iou(decoding.logits(self.model, latents, points) > 0, inside)

    def _surface_scores(
        self, vertices: np.ndarray, faces: np.ndarray, row: dict[str, Any], random: np.random.Generator
    ) -> dict[str, float | None]:
        from g3pt.geometry.surface import sample_surface

        true = row["eval_surface"].astype(np.float64)
        if not len(faces):
            zeros = {f"f_score_{threshold:g}": 0.0 for threshold in metrics.F_THRESHOLDS}
            return {"chamfer": None, "chamfer_squared": None, **zeros, "normal_consistency": None}
        return metrics.surface_metrics(sample_surface(vertices, faces, len(true), random), true)


def mesh_or_status(tokenizer: Any, latents: Any, resolution: int, coarse: int) -> tuple[np.ndarray, np.ndarray, str]:
    """The cleaned iso-surface and "ok", or an empty mesh and why."""
    from g3pt import decoding
    from g3pt.geometry.isosurface import EmptyField, FullField

    try:
        return (*decoding.decode_mesh(tokenizer, latents, resolution, coarse), "ok")
    except (EmptyField, FullField) as error:
        return np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int64), error.status


def sheet_pair(item: dict[str, Any]) -> list[tuple[np.ndarray, np.ndarray, str]]:
    """A pictured object's two places in the contact sheet: its input and its reconstruction."""
    return [(*cloud_mesh(item["cloud"]), f"input {item['caption'][:40]}"), (*item["mesh"], f"IoU {item['iou_volume']:.3f}")]


def cloud_mesh(surface_P6: np.ndarray, num_points: int = 4096, size: float = 0.04) -> tuple[np.ndarray, np.ndarray]:
    """Surface points as small triangles that face along their normals: a picture of the input, which the dataset holds as points."""
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


def summarise(objects: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over objects; surface distances over the objects that gave a mesh, F-scores over all."""
    names = (
        "iou_volume",
        "iou_near",
        "chamfer",
        "chamfer_squared",
        *(f"f_score_{t:g}" for t in metrics.F_THRESHOLDS),
        "normal_consistency",
    )
    found: dict[str, Any] = {"num_objects": len(objects), "num_without_mesh": sum(o["status"] != "ok" for o in objects)}
    for name in names:
        values = [o[name] for o in objects if o[name] is not None]
        found[name] = float(np.mean(values)) if values else None
        found[f"{name}_interval_95"] = list(metrics.bootstrap_interval(np.array(values))) if values else None
    first = np.mean([o["iou_first_scales"] for o in objects], axis=0)
    shuffled = np.mean([o["iou_shuffled_scale"] for o in objects], axis=0)
    for k, (alone, mixed) in enumerate(zip(first, shuffled, strict=True), start=1):
        found[f"iou_first_{k}_scales"] = float(alone)
        found[f"iou_drop_shuffled_scale_{k}"] = float(found["iou_volume"] - mixed)
    return found


def protocol(flags: Any, info: DatasetInfo, scales: tuple[int, ...]) -> dict[str, Any]:
    """How each number was made."""
    queries = min(flags.num_queries, info.config.num_queries)
    return {
        **metrics.PROTOCOL,
        "task": "reconstruction: the model reads `surface`, is compared with `eval_surface`, an independent sample of the same solid",
        "query_points": f"{queries} volume points uniform in [-1, 1]^3 and {queries} near-surface points per object, labels exact",
        "surface_points": f"{info.config.num_surface} on each side, uniform over the area",
        "iso_surface": f"logit 0 on a grid of {flags.resolution} cells a side, from {flags.coarse} refined near the surface, floaters below 1 % of the area removed",
        "aggregation": "mean over objects; objects without a mesh count 0 in F-scores and are left out of distances (num_without_mesh)",
        "intervals": "95 % percentile bootstrap over objects, 1000 resamples, seed 0",
        "shuffled": "codes of one scale replaced by those of another object of the split (one cycle through all objects)",
        "scales": list(scales),
        "seed": flags.seed,
        "dataset_settings": info.settings,
    }


def table(found: dict[str, Any], num_objects: int) -> list[tuple[str, str]]:
    """The rows that people read."""

    def number(name: str) -> str:
        return "none" if found[name] is None else f"{found[name]:.4f}"

    num_scales = sum(name.startswith("iou_first_") for name in found)
    return [
        ("objects", f"{num_objects} ({found['num_without_mesh']} without a mesh)"),
        ("IoU volume / near", f"{number('iou_volume')} / {number('iou_near')}"),
        ("IoU, first k scales", " ".join(f"{found[f'iou_first_{k}_scales']:.3f}" for k in range(1, num_scales + 1))),
        (
            "IoU lost, scale k shuffled",
            " ".join(f"{found[f'iou_drop_shuffled_scale_{k}']:.3f}" for k in range(1, num_scales + 1)),
        ),
        ("Chamfer (mean of both, unsquared)", number("chamfer")),
        ("F-score 0.01 / 0.02", f"{number('f_score_0.01')} / {number('f_score_0.02')}"),
        ("normal consistency", number("normal_consistency")),
    ]
