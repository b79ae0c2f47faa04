"""Bands of an object's thickness, by which a tokenizer's metrics are reported:
an average over objects hides thin parts.

A solid's thickness is 2 volume / area, the thickness of a slab of that volume and area (column `thickness`). The bounds
are fixed in voxels of a grid of 128 cells, whatever resolution an object was converted or decoded at, so that figures
of several datasets can be compared.

Ours: all of it.
Shapes: N objects.
"""

from __future__ import annotations

import numpy as np

VOXEL = 2 / 128  # of the box [-1, 1]^3
BOUNDS = (4 * VOXEL, 12 * VOXEL)  # a band contains its lower bound
WORDS = {
    "thin": "below 4 voxels",
    "middle": "4 to 12 voxels",
    "thick": "12 voxels and above",
    "unknown": "thickness not positive and finite",  # no row that conversion wrote
}
BANDS = tuple(WORDS)
PROTOCOL = (
    "means over the objects of a band of thickness 2 volume / area: thin below 4, middle 4 to 12, thick from 12 voxels "
    "of 1/64 (128 cells per side)"
)


def band(thickness: float) -> str:
    """The band of a thickness in units of the box."""
    if not (np.isfinite(thickness) and thickness > 0):
        return "unknown"
    return BANDS[int(np.searchsorted(BOUNDS, thickness, side="right"))]


def band_means(values_N: np.ndarray, thickness_N: np.ndarray) -> dict[str, float]:
    """Band -> mean of the values of its objects, for the bands that have any."""
    bands_N = np.array([band(thickness) for thickness in thickness_N])
    return {name: float(values_N[bands_N == name].mean()) for name in BANDS if (bands_N == name).any()}
