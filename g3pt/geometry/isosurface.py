"""From a field to a mesh: coarse-to-fine evaluation, marching cubes, cleaning, writing.

A coarse grid over the whole box is evaluated; at each doubling only the cells that the surface crosses (the first
time their neighbours too) are evaluated again; the rest copies its sign. Wherever a sign change then touches a
copied value, that cell is evaluated too, until none is left. The result has the vertices of dense decoding, except
for parts that lie wholly between the points of the coarse grid. Grid point i of R cells sits at 2 i / R - 1.

Shapes: N points, V vertices, F faces, grids (R + 1, R + 1, R + 1) indexed [x, y, z].
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

FORMATS = ("glb", "obj", "ply", "stl")
MIN_COARSE = 32  # a part apart from the rest and thinner than 2 / 32 can hide between the first grid's points


class EmptyField(ValueError):
    """The field is nowhere inside; `status` names it in manifests."""

    status = "empty-field"


class FullField(ValueError):
    """The field is nowhere outside; `status` names it in manifests."""

    status = "full-field"


def extract(
    field: Callable[[np.ndarray], np.ndarray], resolution: int = 128, coarse: int | None = None, level: float = 0.0,
    chunk: int = 65536,
) -> tuple[np.ndarray, np.ndarray]:
    """Surface where `field` equals `level`: vertices (V, 3) float32 in [-1, 1]^3, faces (F, 3) int64, facing outward.

    field: points (N, 3) float32 -> values (N,), above `level` inside; called on at most `chunk` points at a time.
    coarse: cells a side of the first grid; resolution must be coarse * 2^k (coarse = resolution decodes densely). By
    default the smallest such of at least MIN_COARSE.
    A solid that touches the box is closed there. Raises EmptyField, FullField; ValueError for non-finite values.
    """
    from skimage.measure import marching_cubes

    coarse = default_coarse(resolution) if coarse is None else coarse
    grid = coarse_to_fine(field, resolution, coarse, level, chunk)
    inside = grid > 0
    if not inside.any():
        raise EmptyField(f"no point of the field is inside (first grid {coarse}^3)")
    if inside.all():
        raise FullField(f"every point of the field is inside (first grid {coarse}^3)")
    closed = np.pad(grid, 1, constant_values=-1e4 * max(1.0, float(np.abs(grid).max())))
    vertices, faces, _, _ = marching_cubes(closed, 0.0, gradient_direction="ascent")
    vertices = np.clip((vertices.astype(np.float64) - 1.0) * (2.0 / resolution) - 1.0, -1.0, 1.0)
    return vertices.astype(np.float32), faces.astype(np.int64)


def default_coarse(resolution: int) -> int:
    """Smallest resolution / 2^k that is whole and at least MIN_COARSE; the resolution itself when there is none."""
    coarse = resolution
    while coarse % 2 == 0 and coarse // 2 >= MIN_COARSE:
        coarse //= 2
    return coarse


def coarse_to_fine(
    field: Callable[[np.ndarray], np.ndarray], resolution: int, coarse: int, level: float, chunk: int
) -> np.ndarray:
    """Field minus level on the fine grid, float32: exact about the surface, of the right sign elsewhere."""
    doublings = (resolution // coarse).bit_length() - 1 if coarse > 0 else -1
    if coarse < 2 or doublings < 0 or coarse << doublings != resolution:
        raise ValueError(f"resolution must be coarse * 2^k, not {resolution} with coarse {coarse}")
    grid = np.empty((coarse + 1,) * 3, dtype=np.float32)
    _evaluate(field, grid, np.ones(grid.shape, dtype=bool), level, chunk)
    for _ in range(doublings):
        cells = _crossed_cells(grid > 0)
        cells = _dilated(cells) if grid.shape[0] == coarse + 1 else cells
        cells = cells.repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)
        grid = _doubled(grid)
        known = np.zeros(grid.shape, dtype=bool)
        wanted = _corners_of(cells)
        while wanted.any():
            _evaluate(field, grid, wanted, level, chunk)
            known |= wanted
            wanted = _corners_of(_crossed_cells(grid > 0)) & ~known
    return grid


def _evaluate(
    field: Callable[[np.ndarray], np.ndarray], grid: np.ndarray, wanted: np.ndarray, level: float, chunk: int
) -> None:
    """Write field - level into the grid at the wanted points."""
    index = np.argwhere(wanted)
    points = (index * (2.0 / (grid.shape[0] - 1)) - 1.0).astype(np.float32)
    values = np.empty(len(points), dtype=np.float32)
    for start in range(0, len(points), chunk):
        values[start : start + chunk] = np.asarray(field(points[start : start + chunk])).reshape(-1) - level
    if not np.isfinite(values).all():
        raise ValueError("the field returned non-finite values")
    grid[wanted] = values


def _doubled(grid: np.ndarray) -> np.ndarray:
    """Grid with twice the cells; each point copies the coarse point at or below it."""
    index = np.arange(2 * grid.shape[0] - 1) // 2
    return grid[np.ix_(index, index, index)]


def _eight_corners(n: int) -> list[tuple[slice, slice, slice]]:
    """Views of the eight corners of all cells, in a grid of n points a side."""
    ends = (slice(0, n - 1), slice(1, n))
    return [(x, y, z) for x in ends for y in ends for z in ends]


def _crossed_cells(inside: np.ndarray) -> np.ndarray:
    """Cells (R, R, R) whose corners are not all on one side."""
    corners = [inside[view] for view in _eight_corners(inside.shape[0])]
    return np.logical_or.reduce(corners) & ~np.logical_and.reduce(corners)


def _corners_of(cells: np.ndarray) -> np.ndarray:
    """Points (R + 1, R + 1, R + 1) that are a corner of a marked cell."""
    n = cells.shape[0] + 1
    points = np.zeros((n, n, n), dtype=bool)
    for view in _eight_corners(n):
        points[view] |= cells
    return points


def _dilated(cells: np.ndarray) -> np.ndarray:
    """Cells and all their neighbours, diagonal ones too."""
    for axis in range(3):
        moved = np.moveaxis(cells, axis, 0)
        grown = moved.copy()
        grown[1:] |= moved[:-1]
        grown[:-1] |= moved[1:]
        cells = np.moveaxis(grown, 0, axis)
    return cells


def clean(vertices: np.ndarray, faces: np.ndarray, min_share: float = 0.01) -> tuple[np.ndarray, np.ndarray]:
    """Mesh with equal vertices merged and without degenerate faces, inner shells and floaters, facing outward.

    A floater is a component with less than `min_share` of the total area; an inner shell encloses negative volume.
    The largest component always stays. An empty mesh comes back empty.
    """
    from g3pt.geometry._kernels import component_labels
    from g3pt.geometry.surface import face_normals

    vertices, faces = _merged(np.asarray(vertices), np.asarray(faces, dtype=np.int64))
    if len(faces) == 0:
        return vertices, faces
    positions = vertices.astype(np.float64)
    a, b, c = (positions[faces[:, k]] for k in range(3))
    volumes = np.einsum("fd,fd->f", a, np.cross(b, c)) / 6.0
    if volumes.sum() < 0.0:
        faces, volumes = faces[:, ::-1].copy(), -volumes
    areas = face_normals(positions, faces)[1]
    _, component = np.unique(component_labels(faces, len(vertices))[faces[:, 0]], return_inverse=True)
    area_of, volume_of = np.bincount(component, areas), np.bincount(component, volumes)
    keep = (area_of >= min_share * area_of.sum()) & (volume_of > 0.0)
    keep[np.argmax(area_of)] = True
    return _compact(vertices, faces[keep[component]])


def _merged(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Equal vertices made one, collapsed faces dropped."""
    unique, index = np.unique(vertices, axis=0, return_inverse=True)
    faces = index.reshape(-1)[faces]
    whole = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    return unique, faces[whole]


def _compact(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Without unused vertices."""
    used, index = np.unique(faces, return_inverse=True)
    return vertices[used], index.reshape(faces.shape)


def write_mesh(path: str | Path, vertices: np.ndarray, faces: np.ndarray) -> None:
    """Write .glb, .obj, .ply or .stl, by the suffix: complete or not at all (temporary file, then rename)."""
    import trimesh

    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise ValueError(f"mesh format must be one of {FORMATS}, not {path.suffix!r}")
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    options = {"include_normals": True} if kind in ("glb", "obj") else {}
    content = mesh.export(file_type=kind, **options)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
