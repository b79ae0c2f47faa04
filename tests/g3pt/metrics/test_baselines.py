"""The cube of occupancy bits: its size, its places, its field, and bits read off surface points."""

import numpy as np
import pytest

from g3pt.geometry.isosurface import extract
from g3pt.metrics import baselines


@pytest.mark.parametrize(
    ("bits", "side"), [(1000, 10), (999.9, 9), (1331, 11), (1330, 10), (1102, 10), (31304, 31), (1, 1)]
)
def test_the_largest_cube_of_at_most_that_many_bits(bits: float, side: int) -> None:
    assert baselines.grid_side(bits) == side


def test_the_field_holds_the_bits_and_is_trilinear_between_them() -> None:
    random = np.random.default_rng(0)
    nodes, bits = baselines.grid_nodes(6), random.random(216) < 0.4
    field = baselines.grid_field(bits, 6)
    np.testing.assert_array_equal(field(nodes) > 0, bits)
    np.testing.assert_allclose(field(nodes), bits - 0.5)
    middle = (nodes[0] + nodes[1]) / 2
    assert field(middle[None])[0] == pytest.approx((bits[0] + bits[1]) / 2 - 0.5)
    assert (field(np.array([[1.0, 1, 1], [-1, -1, -1]])) < 0).all(), "outside at the box's corners"


def test_bits_read_off_surface_points_are_those_of_the_solid_and_come_out_in_place() -> None:
    random = np.random.default_rng(1)
    normals = random.normal(size=(8000, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    centre = np.array([0.1, -0.2, 0.0])
    surface = np.concatenate([centre + 0.6 * normals, normals], axis=1).astype(np.float16)
    nodes = baselines.grid_nodes(16)
    exact = np.linalg.norm(nodes - centre, axis=1) < 0.6
    found = baselines.occupancy_from_surface(surface, nodes)
    assert (found != exact).mean() < 0.002 and exact.sum() > 100
    vertices, _ = extract(baselines.grid_field(exact, 16), 64, 16)
    np.testing.assert_allclose((vertices.max(axis=0) + vertices.min(axis=0)) / 2, centre, atol=1 / 16)
    assert np.abs(np.linalg.norm(vertices - centre, axis=1) - 0.6).max() < 2 / 16
