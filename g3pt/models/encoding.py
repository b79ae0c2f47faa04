"""From surface points, or a mesh, to a tokenizer's codes.

A mesh is converted as for a dataset (`g3pt.geometry.convert`), so its codes are those of a dataset's row.

Ours: objects are encoded in batches of one fixed size (the last one padded), from their first stored points, so that
codes do not depend on other objects.
Shapes: B batch, P surface points, V vertices, F faces, S tokens of all scales.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from g3pt.config import CVQConfig

if TYPE_CHECKING:
    import torch

    from g3pt.geometry.convert import ConvertConfig

ENCODE_BATCH = 16


def encoded_columns(config: CVQConfig) -> list[str]:
    """The columns from which codes are computed."""
    return ["surface"] + ["sharp"] * bool(config.num_sharp_points)


def encode(model: Any, rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """Codes int64 (N, S) of rows with `encoded_columns`, in batches of ENCODE_BATCH, the last one padded."""
    parts = [np.zeros((0, model.config.num_tokens), np.int64)]
    for start in range(0, len(rows), ENCODE_BATCH):
        part = list(rows[start : start + ENCODE_BATCH])
        parts.append(_encode_batch(model, part + part[-1:] * (ENCODE_BATCH - len(part)))[: len(part)])
    return np.concatenate(parts)


def _encode_batch(model: Any, rows: list[dict[str, Any]]) -> np.ndarray:
    return model.encode(*encoder_inputs(model, rows)).cpu().numpy()


def encoder_inputs(model: Any, rows: Sequence[dict[str, Any]]) -> tuple[Any, Any]:
    """(surface_BP6, sharp_BP6 or None): the encoder's inputs for rows with `encoded_columns`."""
    import torch

    config, device = model.config, next(model.parameters()).device

    def points(name: str, count: int) -> torch.Tensor:
        stacked = np.stack([row[name][:count] for row in rows]).astype(np.float32)
        return torch.from_numpy(stacked).to(device)

    return points("surface", config.num_encode_points), points(
        "sharp", config.num_sharp_points
    ) if config.num_sharp_points else None


def encode_mesh(tokenizer: Any, mesh: Any) -> torch.Tensor:
    """Codes int64 (S,) of a mesh, which `mesh_arrays` describes. MeshError if it cannot become a solid."""
    import torch

    from g3pt.geometry.convert import convert_mesh

    row = convert_mesh(*mesh_arrays(mesh), source_conversion(tokenizer.config))
    return torch.from_numpy(encode(tokenizer, [row])[0])


def source_conversion(config: CVQConfig) -> ConvertConfig:
    """The conversion of a mesh that is only encoded: the default one, with the points that the tokenizer reads."""
    from g3pt.geometry.convert import ConvertConfig

    standard = ConvertConfig()
    num_surface = max(standard.num_surface, config.num_encode_points)
    num_sharp = max(standard.num_sharp, config.num_sharp_points) if config.num_sharp_points else 0
    return dataclasses.replace(standard, num_surface=num_surface, num_sharp=num_sharp, num_queries=0)


def mesh_arrays(mesh: Any) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) and faces (F, 3) of a mesh file's path, an object with both attributes (trimesh's, or of
    `load_mesh`), or a pair of arrays.
    """
    if isinstance(mesh, (str, Path)):
        from g3pt.geometry.load import load_mesh

        mesh = load_mesh(mesh)
    vertices, faces = mesh if isinstance(mesh, tuple) else (mesh.vertices, mesh.faces)
    return np.asarray(vertices, dtype=np.float64), np.asarray(faces, dtype=np.int64)
