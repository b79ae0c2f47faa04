"""Whether points are inside a solid: exact, by ray parity against its triangles, not by a grid.

Shapes: V vertices, F faces, N points.
"""

import numpy as np


def inside(solid_vertices: np.ndarray, solid_faces: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Whether each point (N, 3) is inside the closed surface (V, 3), (F, 3): bool (N,).

    The surface must be watertight; each point counts the crossings of its ray along +z.
    """
    from g3pt.geometry._kernels import column_index, ray_parity
    from g3pt.geometry.surface import bounds

    triangles = np.ascontiguousarray(np.asarray(solid_vertices, dtype=np.float64)[np.asarray(solid_faces)])
    points = np.ascontiguousarray(points, dtype=np.float64)
    low, high = bounds(triangles)
    count = int(np.clip(np.sqrt(len(triangles)), 1, 512))
    per_unit = count / np.maximum(high - low, 1e-12)
    starts, members = column_index(triangles, low, per_unit, count)
    return ray_parity(triangles, points, low, high, per_unit, count, starts, members)
