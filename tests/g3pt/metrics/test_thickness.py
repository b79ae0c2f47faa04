"""g3pt.metrics.thickness: the bounds of the bands, and means over a band's objects."""

import numpy as np
import pytest

from g3pt.metrics.thickness import band, band_means


def test_bounds_are_in_voxels_of_128_cells() -> None:
    """A slab of 4 voxels of 1/64 is 0.0625 thick; a band contains its lower bound."""
    assert [band(t) for t in (1e-6, 0.0624, 0.0625, 0.1874, 0.1875, 2.0)] == [
        "thin", "thin", "middle", "middle", "thick", "thick",
    ]  # fmt: skip


@pytest.mark.parametrize("thickness", [0.0, -0.1, float("nan"), float("inf")])
def test_a_thickness_that_no_solid_has_is_in_no_other_band(thickness: float) -> None:
    """An evaluation of hours must not end by one such row, nor hide it."""
    assert band(thickness) == "unknown"
    assert band_means(np.array([0.1, 0.3]), np.array([thickness, 0.01])) == {"thin": 0.3, "unknown": 0.1}


def test_means_are_of_the_band_s_objects_alone() -> None:
    values_N, thickness_N = np.array([0.1, 0.3, 0.9, 0.5]), np.array([0.01, 0.05, 0.3, 0.02])
    assert band_means(values_N, thickness_N) == pytest.approx({"thin": 0.3, "thick": 0.9})
    assert band_means(values_N[:0], thickness_N[:0]) == {}
