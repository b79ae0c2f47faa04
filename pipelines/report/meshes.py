"""Meshes and point clouds small enough to be embedded in a page: few faces, 16-bit positions, base64.

How: VTK decimates a mesh (by quadric errors; a very large one first by clusters) and doubles the vertices along
creases, so that the page's averaged normals are smooth on curved parts and sharp at edges. Positions are int16 steps of
1/32767 of the object's half extent around its centre, indices are uint16. A cloud has int8 normals and is drawn as
discs whose radius follows from the points' spacing.
Shapes: V vertices, F faces, P points.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any, Literal

import numpy as np

Role = Literal["data", "model"]
MAX_FACES, MAX_POINTS = 4000, 6000
CREASE_DEGREES = 38.0
CLUSTERED_FACES, CLUSTERS_A_SIDE = 50_000, 80
REMEMBERED = 256  # simplified meshes that a process keeps, some 100 kB each
_SIMPLIFIED: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}


def mesh_object(
    vertices_V3: np.ndarray, faces_F3: np.ndarray, role: Role, max_faces: int = MAX_FACES
) -> dict[str, Any]:
    """A mesh in the format of the page's viewer. ValueError if it is empty or not finite."""
    if not len(faces_F3) or not np.isfinite(vertices_V3).all():
        raise ValueError(f"a mesh of {len(faces_F3)} faces that is empty or not finite")
    vertices_V3, faces_F3 = _remembered(vertices_V3, faces_F3, max_faces)
    return _packed(vertices_V3, role) | {"indices": _base64(faces_F3.astype("<u2"))}


def cloud_object(points_P6: np.ndarray, role: Role, max_points: int = MAX_POINTS) -> dict[str, Any]:
    """Surface points with normals in the format of the page's viewer.

    Points are unordered, so the first ones are a fair sample.
    """
    if not len(points_P6) or not np.isfinite(points_P6).all():
        raise ValueError(f"a cloud of {len(points_P6)} points that is empty or not finite")
    chosen_P6 = points_P6[:max_points].astype(np.float64)
    normals_P3 = chosen_P6[:, 3:] / np.linalg.norm(chosen_P6[:, 3:], axis=1, keepdims=True).clip(1e-9)
    return _packed(chosen_P6[:, :3], role) | {
        "directions": _base64(np.round(normals_P3 * 127).astype("i1")),
        "radius": round(disc_radius(chosen_P6[:, :3]), 5),
    }


def disc_radius(points_P3: np.ndarray) -> float:
    """The radius at which discs just cover the surface: 1.25 times the median distance to the fourth neighbour."""
    from scipy.spatial import cKDTree

    if len(points_P3) < 5:
        return 0.05
    distances, _ = cKDTree(points_P3).query(points_P3, k=5)
    return float(1.25 * np.median(distances[:, 4]))


def _remembered(vertices_V3: np.ndarray, faces_F3: np.ndarray, max_faces: int) -> tuple[np.ndarray, np.ndarray]:
    """`_simplified`, which takes 0.3 s per mesh; the demo writes its growing page five times in one process."""
    content = hashlib.sha256(f"{vertices_V3.dtype}{faces_F3.dtype}{faces_F3.shape}{max_faces}".encode())
    for array in (vertices_V3, faces_F3):
        content.update(np.ascontiguousarray(array))
    key = content.digest()
    if key not in _SIMPLIFIED:
        _SIMPLIFIED[key] = _simplified(vertices_V3, faces_F3, max_faces)
        if len(_SIMPLIFIED) > REMEMBERED:
            del _SIMPLIFIED[next(iter(_SIMPLIFIED))]  # the oldest
    return _SIMPLIFIED[key]


def _simplified(vertices_V3: np.ndarray, faces_F3: np.ndarray, max_faces: int) -> tuple[np.ndarray, np.ndarray]:
    """At most about `max_faces` faces, vertices doubled along creases."""
    import pyvista

    mesh = pyvista.PolyData.from_regular_faces(np.asarray(vertices_V3, np.float32), np.asarray(faces_F3)).clean()
    if mesh.n_cells > CLUSTERED_FACES:
        mesh = _clustered(mesh)
    if mesh.n_cells > max_faces:
        mesh = mesh.decimate(1 - max_faces / mesh.n_cells, volume_preservation=True)
    mesh = mesh.compute_normals(
        cell_normals=False,
        split_vertices=True,
        feature_angle=CREASE_DEGREES,
        consistent_normals=False,
        auto_orient_normals=False,
    )
    vertices_V3, faces_F3 = np.asarray(mesh.points, np.float64), mesh.regular_faces
    if len(vertices_V3) > 65535 or not len(faces_F3):
        raise ValueError(f"a mesh that does not simplify ({mesh.n_cells} faces)")
    return vertices_V3, faces_F3


def _clustered(mesh: Any) -> Any:
    """A very large mesh with its vertices merged in the cells of a fine grid, ten times as fast as decimation."""
    import pyvista
    from vtkmodules.vtkFiltersCore import vtkQuadricClustering

    cluster = vtkQuadricClustering()
    cluster.SetInputData(mesh)
    cluster.AutoAdjustNumberOfDivisionsOff()
    cluster.SetNumberOfDivisions(*(CLUSTERS_A_SIDE,) * 3)
    cluster.Update()
    return pyvista.wrap(cluster.GetOutput()).clean().triangulate()


def _packed(points_P3: np.ndarray, role: Role) -> dict[str, Any]:
    low, high = points_P3.min(axis=0).astype(float), points_P3.max(axis=0).astype(float)
    centre, scale = (low + high) / 2, float(max((high - low).max() / 2, 1e-9))
    steps = np.round((points_P3 - centre) / scale * 32767).clip(-32767, 32767).astype("<i2")
    radius = float(np.linalg.norm(points_P3 - centre, axis=1).max())
    rounded = [round(value, 5) for value in centre.tolist()]
    return {
        "role": role,
        "scale": round(scale, 5),
        "centre": rounded,
        "frame": {"centre": rounded, "radius": round(max(radius, 1e-6), 4)},
        "positions": _base64(steps),
    }


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
