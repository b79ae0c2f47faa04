"""Points with normals on a mesh: uniform over its area, or on its sharp edges.

Shapes: V vertices, F faces, P points; a point is (x, y, z, nx, ny, nz).
Source: sharp-edge sampling after Dora (dihedral angle above a threshold), written from the description.
"""

import numpy as np

SHARP_ANGLE_DEGREES = 15.0
GOLDEN = (5**0.5 - 1) / 2
_ROUNDING = 1e-15  # of coordinates and of their products, as a share of the largest coordinate


def face_normals(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit normals (F, 3), zero for degenerate faces, and areas (F,)."""
    from g3pt.geometry._mesh_kernels import normals_and_areas

    return normals_and_areas(np.ascontiguousarray(vertices), np.ascontiguousarray(faces))


def bounds(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest coordinates (3,) of points (..., 3)."""
    columns = np.moveaxis(points, -1, 0)  # one by one: a reduction to rows of three is ten times slower
    return np.array([column.min() for column in columns]), np.array([column.max() for column in columns])


def has_area(triangles: np.ndarray) -> np.ndarray:
    """Whether each of the triangles (F, 3, 3) has an area beyond the rounding of its coordinates (F,)."""
    reach = np.abs(triangles).max(axis=(1, 2), initial=0.0)[:, None]
    reach = np.where(reach > 0.0, reach, 1.0)
    a, b, c = (triangles[:, k] / reach for k in range(3))  # neither overflows nor underflows when multiplied
    side, other = b - a, c - a
    longest = np.maximum(np.abs(side).max(axis=1, initial=0.0), np.abs(other).max(axis=1, initial=0.0))
    return np.abs(np.cross(side, other)).max(axis=1, initial=0.0) > _ROUNDING * longest


def sample_surface(vertices: np.ndarray, faces: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Points (count, 6) drawn uniformly over the area, with face normals."""
    normals, areas = face_normals(vertices, faces)
    chosen = _draw(areas, count, rng)
    u, v = rng.random((2, count))
    fold = u + v > 1.0
    u[fold], v[fold] = 1.0 - u[fold], 1.0 - v[fold]
    a, b, c = (vertices[faces[chosen, k]] for k in range(3))
    points = a + u[:, None] * (b - a) + v[:, None] * (c - a)
    return np.concatenate([points, normals[chosen]], axis=1)


def sample_sharp(
    vertices: np.ndarray,
    faces: np.ndarray,
    count: int,
    rng: np.random.Generator,
    angle_degrees: float = SHARP_ANGLE_DEGREES,
) -> np.ndarray:
    """Points (count, 6) drawn uniformly along edges bent by more than the angle, normals averaged over both faces.

    A surface without such edges gives uniform surface samples instead.
    """
    from g3pt.geometry._mesh_kernels import edge_neighbours

    normals, _ = face_normals(vertices, faces)
    neighbours = edge_neighbours(faces, len(vertices))
    face, side = np.nonzero(neighbours > np.arange(len(faces))[:, None])  # each shared edge once
    other = neighbours[face, side]
    cosine = np.einsum("ed,ed->e", normals[face], normals[other])
    sharp = cosine < np.cos(np.radians(angle_degrees))
    face, side, other = face[sharp], side[sharp], other[sharp]
    start, end = vertices[faces[face, side]], vertices[faces[face, (side + 1) % 3]]
    lengths = np.linalg.norm(end - start, axis=1)
    if lengths.sum() <= 0.0:
        return sample_surface(vertices, faces, count, rng)
    chosen = _draw(lengths, count, rng)
    points = start[chosen] + rng.random((count, 1)) * (end - start)[chosen]
    mean = normals[face[chosen]] + normals[other[chosen]]
    size = np.linalg.norm(mean, axis=1, keepdims=True)
    return np.concatenate([points, mean / np.where(size > 0.0, size, 1.0)], axis=1)


def _draw(weights: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Indices (count,) drawn in proportion to the weights, stratified: one draw in each of `count` equal shares.

    The shares are visited in steps of the golden ratio, so that every run of consecutive points is nearly stratified
    too: a tokenizer that reads a part of a cloud sees less of the noise of sampling (LOG.md, 2026-11-25).
    """
    total = np.cumsum(weights)
    places = (np.arange(count) + rng.random(count)) / count * total[-1]
    chosen = np.searchsorted(total, places, side="right").clip(0, len(weights) - 1)
    return chosen[np.argsort(np.argsort((np.arange(count) * GOLDEN + rng.random()) % 1.0))]
