"""Triangles of polygons by their shape, for every format that has polygons.

The fan from the first corner is kept where none of its triangles turns against the polygon's normal, which includes
every convex polygon. Other polygons are cut by ears in the plane of that normal: concave ones, and those whose hole is
joined by a bridge that is passed twice. Corners of a polygon that isn't flat are projected onto the plane. A polygon
that crosses itself keeps its signed area, but is covered twice in places. A polygon without a normal (no area) becomes
a fan.

Source: Newell's normal; G. H. Meisters, "Polygons have ears" (1975).
Shapes: V vertices, P polygons, N corners of one polygon, C corners of all, F faces.
"""

import numpy as np

_AGAINST = -1e-9  # share of a polygon's area by which a triangle may turn against its normal (rounding)


def triangulate(vertices: np.ndarray, corners: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Faces (F, 3) of polygons with `sizes` (P,) corners whose vertex indices are `corners` (C,),
    in the polygons' order.

    A polygon of N corners gives N - 2 faces; one with fewer than three gives none.
    """
    corners, sizes = np.asarray(corners, dtype=np.int64), np.asarray(sizes, dtype=np.int64)
    if (sizes == 3).all():
        return corners.reshape(-1, 3)
    num_faces = np.maximum(sizes - 2, 0)
    first_corner, first_face = np.cumsum(sizes) - sizes, np.cumsum(num_faces) - num_faces
    faces = np.empty((num_faces.sum(), 3), dtype=np.int64)
    for size in np.unique(sizes[sizes >= 3]):
        chosen = np.flatnonzero(sizes == size)
        polygons = corners[first_corner[chosen, None] + np.arange(size)]
        faces[first_face[chosen, None] + np.arange(size - 2)] = _same_size(vertices, polygons)
    return faces


def _same_size(vertices: np.ndarray, polygons_PN: np.ndarray) -> np.ndarray:
    """Faces (P, N - 2, 3) of polygons with the same number of corners."""
    size = polygons_PN.shape[1]
    fan = np.stack(
        [np.broadcast_to(polygons_PN[:, :1], (len(polygons_PN), size - 2)), polygons_PN[:, 1:-1], polygons_PN[:, 2:]],
        axis=2,
    )
    if size == 3:
        return fan
    with np.errstate(all="ignore"):  # positions that are not finite are refused later
        places = vertices[polygons_PN] - vertices[polygons_PN[:, :1]]
        extent = np.abs(places).max(axis=(1, 2), initial=0.0)[:, None, None]
        places = places / np.where(extent > 0.0, extent, 1.0)
        turns = np.cross(places[:, 1:-1], places[:, 2:])
        normals = turns.sum(axis=1)
        lengths_squared = np.einsum("pd,pd->p", normals, normals)
        along = np.einsum("pnd,pd->pn", turns, normals)
        wrong = np.flatnonzero((along < _AGAINST * lengths_squared[:, None]).any(axis=1) & (lengths_squared > 1e-24))
    if len(wrong):
        fan = fan.copy()
    for k in wrong:
        fan[k] = polygons_PN[k][_ears(places[k], normals[k])]
    return fan


def _ears(places_N3: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Triangles (N - 2, 3) of corner numbers, by ears in the plane of the normal."""
    from g3pt.geometry._polygon_kernels import cut_ears

    along = np.zeros(3)
    along[np.abs(normal).argmin()] = 1.0
    right = np.cross(along, normal)
    right /= np.linalg.norm(right)
    up = np.cross(normal, right) / np.linalg.norm(normal)
    plane = np.ascontiguousarray(places_N3 @ np.stack([right, up], axis=1))
    triangles = np.empty((len(plane) - 2, 3), dtype=np.int64)
    cut_ears(plane, triangles)
    return triangles
