"""The workers of a generator's evaluation: Sampler makes samples (or reconstructions), Searcher finds the nearest
training objects.

A sample contains everything that is reported about it: status, surface points and the distance to a second sample of
them (the resolution limit of any search), checks of its mesh, measured attributes, and the seconds of each stage.
Shapes: B batch, S tokens of all scales, P points.
"""

import time
from functools import partial
from typing import Any

import numpy as np

from g3pt.metrics import pairwise
from pipelines.cli.failures import doing, remedied
from pipelines.evaluate.generator_prompts import BATCH
from pipelines.generate.config import coarser

NUM_QUERIES, FLOOR_QUERIES = 2048, 512
STAGES = ("codes", "mesh", "checks")


class Sampler:
    """A worker with a generator; `run` makes the samples of one batch."""

    def __init__(self, export: str, values: dict[str, Any], resolution: int, coarse: int, num_points: int) -> None:
        from g3pt.models.car import G3PT
        from pipelines.cluster.session import torch_device

        self.model = G3PT.from_pretrained(export).to(torch_device())
        self.values = values
        self.resolution, self.coarse, self.num_points = resolution, coarse, num_points

    def run(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """One dict per sample: prompt, seed, status, points (P, 3), checks, attributes, seconds, and the mesh if it is
        to be shown.

        If the batch has `rows` (objects of a dataset), their own codes are decoded: reconstructions instead of samples.
        """
        import torch

        seeds = f"{batch['seeds'][0]} to {batch['seeds'][-1]}"
        remedy = partial(coarser, self.resolution)
        with doing(f"drawing the samples of seeds {seeds}"), remedied(remedy), torch.inference_mode():
            started = time.perf_counter()
            codes_BS = self._encoded(batch["rows"]) if "rows" in batch else self._drawn(batch)
            seconds = (time.perf_counter() - started) / len(codes_BS)
            return [self._sample(batch, k, codes_S, seconds) for k, codes_S in enumerate(codes_BS)]

    def _drawn(self, batch: dict[str, Any]) -> Any:
        from g3pt.models.sampling import SampleConfig

        texts = [prompt["text"] for prompt in batch["prompts"]]
        images = [prompt.get("image") for prompt in batch["prompts"]]
        settings = SampleConfig(**self.values | batch["settings"])
        return self.model.sample_codes(texts, images, batch["seeds"], settings, batch=BATCH).cpu()

    def _encoded(self, rows: list[dict[str, Any]]) -> Any:
        import torch

        from g3pt.models.encoding import encode

        return torch.from_numpy(encode(self.model.tokenizer, rows).astype(np.int64))

    def _sample(self, batch: dict[str, Any], k: int, codes_S: Any, seconds: float) -> dict[str, Any]:
        from g3pt.models.decoding import decode_meshes

        tokenizer, prompt = self.model.tokenizer, batch["prompts"][k]
        started = time.perf_counter()
        latents = tokenizer.decode_latents(codes_S[None].to(next(tokenizer.parameters()).device))
        (decoded,) = decode_meshes(tokenizer, latents, self.resolution, self.coarse)
        decoding, started = time.perf_counter() - started, time.perf_counter()
        mesh = (decoded.vertices, decoded.faces)
        found = (
            mesh_figures(*mesh)
            | clouds(*mesh, self.num_points, batch["seeds"][k])
            | {"measured": read_attributes(prompt, *mesh)}
        )
        kept = mesh if k < batch["num_meshes"] else None
        told = {name: value for name, value in prompt.items() if name != "image" or kept is not None}
        spent = dict(zip(STAGES, (seconds, decoding, time.perf_counter() - started), strict=True))
        return {**told, "seed": batch["seeds"][k], "status": decoded.status, "mesh": kept, "seconds": spent, **found}


def mesh_figures(vertices: np.ndarray, faces: np.ndarray) -> dict[str, Any]:
    """What printing and simulation need: numbers of faces and separate bodies, and whether the mesh is watertight
    (closed, facing outward).
    """
    from g3pt.geometry._mesh_kernels import component_labels
    from g3pt.geometry.quality import is_watertight, signed_volume

    if not len(faces):
        return {"num_faces": 0, "num_bodies": 0, "watertight": False}
    bodies = len(np.unique(component_labels(faces, len(vertices))[faces[:, 0]]))
    return {
        "num_faces": len(faces),
        "num_bodies": bodies,
        "watertight": is_watertight(vertices, faces) and signed_volume(vertices, faces) > 0.0,
    }


def clouds(vertices: np.ndarray, faces: np.ndarray, num_points: int, seed: int) -> dict[str, Any]:
    """Points (P, 3) of the surface and their distance to a second sample of it; both None without a surface."""
    from g3pt.geometry.surface import sample_surface

    if not len(faces):
        return {"points": None, "sampling_floor": None}
    first, second = (
        points(sample_surface(vertices, faces, num_points, np.random.default_rng(s))) for s in (seed, [seed, 1])
    )
    return {"points": first, "sampling_floor": sampling_floor(first, second)}


def sampling_floor(first_P3: np.ndarray, second_P3: np.ndarray) -> float:
    """Chamfer distance between two samples of one surface, from fewer points than the distance to a training object:
    its spread is small.
    """
    return float(pairwise.nearest_objects([first_P3], [second_P3], num_queries=FLOOR_QUERIES)[1][0])


def read_attributes(prompt: dict[str, Any], vertices: np.ndarray, faces: np.ndarray) -> dict[str, str] | None:
    """The attributes measured on the mesh by the rules of the prompted family; None for a prompt that states none."""
    from g3pt.shapes.measure import measure_any

    if prompt["attributes"] is None:
        return None
    return measure_any(prompt["family"], vertices, faces) if len(faces) else {}


class Searcher:
    """A worker with the points of all training objects; `run` finds the nearest one for each cloud of a batch."""

    def __init__(self, library: list[np.ndarray]) -> None:
        self.library = library

    def run(self, part: list[tuple[np.ndarray, int]]) -> list[tuple[int, float]]:
        """(cloud, index of a training object to exclude or -1) -> (index, Chamfer distance)."""
        wanted, exclude = [cloud for cloud, _ in part], [own for _, own in part]
        indices, distances = pairwise.nearest_objects(wanted, self.library, num_queries=NUM_QUERIES, exclude=exclude)
        return list(zip(indices.tolist(), distances.tolist(), strict=True))


def points(cloud: np.ndarray) -> np.ndarray:
    """The positions of stored surface points."""
    return cloud[:, :3].astype(np.float32)
