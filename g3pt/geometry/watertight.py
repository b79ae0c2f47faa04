"""Turn any triangle soup into one solid: watertight, a single outer surface, no inner shell.

The mesh is scaled into a grid no larger than its own box and a margin. In a narrow band around each face the distance
to the nearest face is exact. Grid points that are further than the offset and that outside air can't reach count as
inside. Marching cubes takes the surface at the offset. A closed cube and a hollow double shell both become a solid
cube, an open sheet becomes a thin slab, and disjoint parts stay. Air that an open surface encloses is inside too,
unless its walls alone are asked for (filling.py). The result is centred by its box and scaled into [-BOX, BOX]^3.

Ours: mesh2sdf's fix option keeps one component and sweeps the whole grid; here its unsigned distance goes through the
same fill and marching cubes, so that the two methods differ in the distance alone.

Shapes: V vertices, F faces, (X, Y, Z) grid points along the axes.
"""

from dataclasses import dataclass, replace

import numpy as np

from g3pt.geometry.filling import Filling, fill_enclosed
from g3pt.geometry.reading import MeshError
from g3pt.geometry.surface import bounds, has_area

BOX = 0.95  # half side of the final solid's box
OFFSET_VOXELS = 1.0
_MARGIN_VOXELS = 2  # grid points beyond the mesh's box, so that the outermost layer is outside air
_SNAP_VOXELS = 1e-3  # a surface closer than this to a grid point is moved off it, so that no face collapses
METHODS = ("narrowband", "mesh2sdf")
OPEN_SURFACES = ("fill", "wall")


@dataclass(frozen=True, kw_only=True)
class Solid:
    """Final solid: vertices (V, 3) float64, faces (F, 3) int64; solid = input * scale + offset.

    `filling`: what was filled.
    """

    vertices: np.ndarray
    faces: np.ndarray
    scale: float
    offset: np.ndarray
    filling: Filling = Filling()


def watertight(
    vertices: np.ndarray,
    faces: np.ndarray,
    resolution: int = 256,
    method: str = "narrowband",
    open_surfaces: str = "fill",
) -> Solid:
    """Solid of a mesh (V, 3), (F, 3) whose surface lies OFFSET_VOXELS voxels (of 2 / resolution) outside it.

    `open_surfaces`: whether air that an open surface encloses is filled, or the surface becomes a wall two offsets
    thick. Raises MeshError for a mesh without usable faces, non-finite coordinates or no extent.
    """
    from skimage.measure import marching_cubes

    if method not in METHODS:
        raise ValueError(f"watertight method must be one of {METHODS}, not {method!r}")
    if open_surfaces not in OPEN_SURFACES:
        raise ValueError(f"open_surfaces must be one of {OPEN_SURFACES}, not {open_surfaces!r}")
    if resolution < 16:
        raise ValueError(f"resolution must be at least 16, not {resolution}")
    triangles, scale, offset = _into_grid(vertices, faces, resolution)
    shape = tuple(int(count) for count in np.ceil(bounds(triangles)[1]) + _MARGIN_VOXELS + 1)
    distance = _narrowband(triangles, shape) if method == "narrowband" else _mesh2sdf(triangles, shape, resolution)
    field = outside_field(distance)
    filling = fill_enclosed(field, triangles, _SNAP_VOXELS) if open_surfaces == "fill" else Filling()
    grid_vertices, solid_faces, _, _ = marching_cubes(field, 0.0, gradient_direction="descent")
    solid = _normalised(grid_vertices.astype(np.float64), solid_faces.astype(np.int64), scale, offset)
    return replace(solid, filling=filling)


def _into_grid(vertices: np.ndarray, faces: np.ndarray, resolution: int) -> tuple[np.ndarray, float, np.ndarray]:
    """Triangles (F, 3, 3) in grid units, their box inside the margin, and the transform grid = input * scale +
    offset.
    """
    vertices = np.asarray(vertices, dtype=np.float64)
    if len(faces) == 0:
        raise MeshError("no-faces", "the mesh has no faces")
    triangles = vertices[np.asarray(faces, dtype=np.int64)]
    if not np.isfinite(triangles).all():
        raise MeshError("non-finite", "vertex positions are not finite")
    triangles = triangles[has_area(triangles)]  # before the box: a face without an area takes no room
    if len(triangles) == 0:
        raise MeshError("zero-extent", "every face has zero area")
    low, high = bounds(triangles)
    with np.errstate(over="ignore"):  # refused just below
        extent = float((high - low).max())
    if not np.isfinite(extent) or extent <= 0.0:
        raise MeshError("zero-extent", f"the mesh's largest extent is {extent}")
    voxel = 2.0 / resolution
    scale = 2.0 * (BOX - OFFSET_VOXELS * voxel) / extent / voxel
    offset = resolution / 2 - scale * (low + high) / 2
    offset -= np.floor(scale * low + offset) - _MARGIN_VOXELS
    if not np.isfinite(scale):
        raise MeshError("zero-extent", f"the mesh's largest extent is {extent}")
    return np.ascontiguousarray(triangles * scale + offset), scale, offset


def _narrowband(triangles: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    from g3pt.geometry._kernels import narrow_band

    # Marching cubes reads only edges with one end below the offset: their other end is at most one voxel further.
    return narrow_band(triangles, shape, OFFSET_VOXELS + 1.01)


def _mesh2sdf(triangles: np.ndarray, shape: tuple[int, ...], resolution: int) -> np.ndarray:
    import mesh2sdf

    corners = triangles.reshape(-1, 3) * (2.0 / resolution) - 1.0
    signed = mesh2sdf.compute(corners, np.arange(len(corners)).reshape(-1, 3), resolution)
    common = tuple(
        slice(min(count, resolution)) for count in shape
    )  # its grid has `resolution` points per side, ours may have more
    distance = np.full(shape, 1e3, dtype=np.float32)
    distance[common] = np.abs(signed[common]) * (resolution / 2)
    return distance


def outside_field(distance: np.ndarray) -> np.ndarray:
    """Field (X, Y, Z) in voxels, positive in the outside air only, from an unsigned distance
    in voxels (overwritten).
    """
    from g3pt.geometry import _kernels

    _kernels.outside_field(distance, OFFSET_VOXELS, _SNAP_VOXELS)
    return distance


def _normalised(vertices: np.ndarray, faces: np.ndarray, scale: float, offset: np.ndarray) -> Solid:
    low, high = bounds(vertices)
    factor = 2.0 * BOX / float((high - low).max())
    centre = (low + high) / 2
    return Solid(
        vertices=np.clip((vertices - centre) * factor, -BOX, BOX),
        faces=faces,
        scale=scale * factor,
        offset=(offset - centre) * factor,
    )
