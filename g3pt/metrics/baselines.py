"""The simplest discrete shape, as a baseline: a cube of occupancy bits, as many as a tokenizer spends,
interpolated trilinearly.

How: n = floor(bits^(1/3)) samples per side at the centres of n^3 equal cells of [-1, 1]^3. Between them the field is
trilinear, beyond the outermost it falls to 0 within one cell, and the solid is where it exceeds 1/2. Datasets store no
solid, so a sample's occupancy is the side of the nearest stored surface point, by that point's normal. Compared with
the exact solid of 14 procedural shapes this agrees at 99.97 % of 10^3 and 99.98 % of 31^3 samples (IoU .645 instead of
.644, .886 instead of .886); the nearest stored *label* agrees at 98 % only and favours the grid. Samples from face to
face of the solid's box were worse at 31 (.883).

Ours: all of it. Shapes: P surface points, N points.
"""

from collections.abc import Callable

import numpy as np


def grid_side(bits: float) -> int:
    """Samples per side of the largest cube of at most `bits` bits."""
    side = round(bits ** (1 / 3))
    return side - 1 if side**3 > bits else side


def grid_nodes(side: int) -> np.ndarray:
    """Positions of the samples, (side^3, 3), z fastest."""
    ticks = (np.arange(side) + 0.5) * (2.0 / side) - 1.0
    return np.stack(np.meshgrid(ticks, ticks, ticks, indexing="ij"), axis=-1).reshape(-1, 3)


def occupancy_from_surface(surface_P6: np.ndarray, points_N3: np.ndarray) -> np.ndarray:
    """Whether points are inside the solid given by surface points with outward normals, bool (N,)."""
    from scipy.spatial import cKDTree

    surface_P6 = np.asarray(surface_P6, dtype=np.float64)
    _, nearest = cKDTree(surface_P6[:, :3]).query(points_N3)
    return ((points_N3 - surface_P6[nearest, :3]) * surface_P6[nearest, 3:6]).sum(axis=1) < 0.0


def grid_field(occupancy: np.ndarray, side: int) -> Callable[[np.ndarray], np.ndarray]:
    """The field of side^3 occupancy bits: points (N, 3) -> values (N,), above 0 inside."""
    from scipy.ndimage import map_coordinates

    grid = np.pad(np.asarray(occupancy, dtype=np.float32).reshape((side,) * 3), 1)  # an empty layer around it

    def field(points_N3: np.ndarray) -> np.ndarray:
        places = (np.asarray(points_N3, dtype=np.float64) + 1.0) * (side / 2) + 0.5
        return map_coordinates(grid, places.T, order=1, mode="nearest") - 0.5

    return field
