"""Reconstructor, the worker of `pipelines.evaluate.cvq`: scores one object's reconstruction and its baselines.

How: the logits decoded from the codes give IoU at the stored query points; the extracted and sampled surface is
compared with `eval_surface`. The same two scores are computed for the continuous latents (no quantiser) and for a cube
of occupancy bits of equal size (`g3pt.metrics.baselines`). IoU is also computed with only the first k scales decoded,
and with one scale's codes taken from another object (a scale without information would not lower it). Meshes of the
continuous latents and of the first k scales cost as much as the main mesh each, so only objects marked `detailed` have
them. They are decoded in one batch with the main mesh.

Shapes: B batch, Q query points, S tokens of all scales, K scales.
"""

from typing import Any

import numpy as np

from g3pt.data import records
from g3pt.metrics import pairwise
from g3pt.metrics.bits import plain_bits
from g3pt.models.encoding import encoder_inputs
from pipelines.cli.failures import doing, remedied
from pipelines.generate.config import coarser

SURFACE_NAMES = (
    "chamfer",
    "chamfer_squared",
    *(f"f_score_{t:g}" for t in pairwise.F_THRESHOLDS),
    "hausdorff_95",
    "normal_consistency",
)

Mesh = tuple[np.ndarray, np.ndarray]


class Reconstructor:
    """A worker with a tokenizer; `run` scores one object."""

    def __init__(self, export: str, resolution: int, coarse: int, num_queries: int, seed: int) -> None:
        from g3pt.models.tokenizer import CVQ
        from pipelines.cluster.session import torch_device

        self.device = torch_device()
        self.model = CVQ.from_pretrained(export).to(self.device)
        self.resolution, self.coarse, self.num_queries, self.seed = resolution, coarse, num_queries, seed

    def run(self, item: dict[str, Any]) -> dict[str, Any]:
        """{"scores": the object's scores, "mesh": its mesh if the object is pictured, else None}."""
        import torch

        with doing(f"reconstructing {item['row']['id']}"), remedied(self._remedy), torch.inference_mode():
            return self._run(item)

    def mesh(self, item: dict[str, Any]) -> Mesh:
        """Only the object's mesh, which may be empty."""
        import torch

        with doing(f"decoding {item['row']['id']}"), remedied(self._remedy), torch.inference_mode():
            return self._meshes(self._latents(item["codes"]))[0][0]

    def _remedy(self) -> str:
        return coarser(self.resolution)

    def _run(self, item: dict[str, Any]) -> dict[str, Any]:
        row = item["row"]
        random = np.random.default_rng([self.seed, item["number"]])
        volume, near = self._queries(row, "volume", random), self._queries(row, "near", random)
        num_scales = self.model.config.num_scales
        first = [self._latents(item["codes"], k) for k in range(1, num_scales + 1)]
        latents = first[-1]
        continuous = self.model.decoder.latents(self.model.encoder(*encoder_inputs(self.model, [row])))
        scores: dict[str, Any] = {
            "id": row["id"],
            "category": row["category"],
            "thickness": float(row["thickness"]),
            "iou_volume": self._iou(latents, volume),
            "iou_near": self._iou(latents, near),
        }
        scores["iou_first_scales"] = [self._iou(part, volume) for part in first[:-1]] + [scores["iou_volume"]]
        scores["iou_shuffled_scale"] = [
            self._iou(self._latents(self._mixed(item, k)), volume) for k in range(num_scales)
        ]
        scores["continuous"] = {"iou_volume": self._iou(continuous, volume), "iou_near": self._iou(continuous, near)}
        (mesh, status), *details = self._meshes(latents, *([*first[:-1], continuous] if item["detailed"] else []))
        scores |= {"status": status} | surface_scores(mesh, row, random)
        if details:
            apart = np.random.default_rng(
                [self.seed, item["number"], 1]
            )  # the main scores must not depend on the details
            *parts, (continuous_mesh, continuous_status) = details
            scores["chamfer_first_scales"] = [surface_scores(part, row, apart)["chamfer"] for part, _ in parts] + [
                scores["chamfer"]
            ]
            scores["continuous"] |= {"status": continuous_status} | surface_scores(continuous_mesh, row, apart)
        scores["grid"] = self._grid_scores(row, volume, near)
        return {"scores": scores, "mesh": mesh if item["picture"] else None}

    def _queries(self, row: dict[str, Any], kind: str, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        points, inside = row[f"{kind}_points"], records.unpack_occupancy(row[f"{kind}_occupancy"])
        chosen = random.permutation(len(points))[: self.num_queries]
        return points[chosen].astype(np.float32), inside[chosen]

    def _latents(self, codes_S: np.ndarray, num_scales: int | None = None) -> Any:
        import torch

        return self.model.decode_latents(torch.from_numpy(codes_S)[None].to(self.device), num_scales)

    def _mixed(self, item: dict[str, Any], scale: int) -> np.ndarray:
        """This object's codes with those of one scale taken from another object."""
        start = sum(self.model.config.scales[:scale])
        end = start + self.model.config.scales[scale]
        mixed_S = item["codes"].copy()
        mixed_S[start:end] = item["other"][start:end]
        return mixed_S

    def _iou(self, latents: Any, queries: tuple[np.ndarray, np.ndarray]) -> float:
        from g3pt.models import decoding

        return pairwise.volume_iou(decoding.logits(self.model, latents, queries[0]) > 0, queries[1])

    def _meshes(self, *latents: Any) -> list[tuple[Mesh, str]]:
        """(cleaned surface, status) of each."""
        import torch

        from g3pt.models import decoding

        found = decoding.decode_meshes(self.model, torch.cat(latents), self.resolution, self.coarse)
        return [((one.vertices, one.faces), one.status) for one in found]

    def _grid_scores(
        self, row: dict[str, Any], volume: tuple[np.ndarray, np.ndarray], near: tuple[np.ndarray, np.ndarray]
    ) -> dict[str, Any]:
        """The scores of a cube with as many occupancy bits as the codes have."""
        from g3pt.geometry.cleanup import clean
        from g3pt.geometry.isosurface import NoSurface, extract
        from g3pt.metrics import baselines

        side = baselines.grid_side(plain_bits(self.model.config.num_tokens, self.model.config.num_codes))
        field = baselines.grid_field(baselines.occupancy_from_surface(row["surface"], baselines.grid_nodes(side)), side)
        found: dict[str, Any] = {
            name: pairwise.volume_iou(field(points) > 0, inside)
            for name, (points, inside) in (("iou_volume", volume), ("iou_near", near))
        }
        try:
            mesh, status = clean(*extract(field, self.resolution, self.coarse)), "ok"
        except NoSurface as reason:
            mesh, status = empty_mesh(), reason.status
        return found | {"status": status} | surface_scores(mesh, row, np.random.default_rng(self.seed))


def empty_mesh() -> Mesh:
    """A mesh without vertices and faces."""
    return np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int64)


def surface_scores(mesh: Mesh, row: dict[str, Any], random: np.random.Generator) -> dict[str, float | None]:
    """The metrics SURFACE_NAMES of a mesh against the object's second surface sample.

    Without a mesh F-scores are 0 and distances None.
    """
    from g3pt.geometry.surface import sample_surface

    true = row["eval_surface"].astype(np.float64)
    if not len(mesh[1]):
        return {name: 0.0 if name.startswith("f_score") else None for name in SURFACE_NAMES}
    return pairwise.surface_metrics(sample_surface(*mesh, len(true), random), true)
