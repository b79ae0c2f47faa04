"""Samples of a surface: uniform over the area (chi-square tests), on sharp edges or uniform without any,
normals outward.
"""

import numpy as np
import point_cloud_utils as pcu
import pytest
import trimesh
from scipy.stats import chi2

from g3pt.geometry.labels import inside
from g3pt.geometry.surface import face_normals, sample_sharp, sample_surface
from g3pt.geometry.watertight import Solid, watertight

SAMPLES = 40_000


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.fixture(scope="module")
def knot() -> Solid:
    """A torus through a box, given inside out: concave edges, a hole, faces of very different areas."""
    mesh = trimesh.util.concatenate([trimesh.creation.torus(1.0, 0.3), trimesh.creation.box((0.5, 2.5, 0.4))])
    mesh.invert()
    return watertight(mesh.vertices, mesh.faces, 48)


def test_faces_are_hit_in_proportion_to_their_area(knot: Solid) -> None:
    _, areas = face_normals(knot.vertices, knot.faces)
    points = sample_surface(knot.vertices, knot.faces, SAMPLES, np.random.default_rng(0))
    _, face, _ = pcu.closest_points_on_mesh(np.ascontiguousarray(points[:, :3]), knot.vertices, knot.faces)
    group = np.argsort(np.argsort(areas)) * 16 // len(areas)  # sixteen groups, from the smallest faces to the largest
    expected = np.bincount(group, areas, 16) / areas.sum() * len(face)
    assert chi_square(np.bincount(group[face], minlength=16), expected) < chi2.ppf(0.999, 15)
    by_face = np.bincount(group, minlength=16) / len(areas) * len(face)  # what a draw that ignores areas would give
    assert chi_square(by_face, expected) > 10 * chi2.ppf(0.999, 15)


def test_points_are_uniform_within_a_triangle() -> None:
    """Sixteen equal parts of one triangle; the draws inside it are independent,
    so the statistic may not be too small either.
    """
    vertices = np.array([[0.0, 0.0, 0.0], [3.0, 0.5, 0.0], [-1.0, 2.0, 1.0]])
    points = sample_surface(vertices, np.array([[0, 1, 2]]), SAMPLES, np.random.default_rng(1))[:, :3]
    weights = np.linalg.lstsq(
        np.concatenate([vertices.T, np.ones((1, 3))]), np.c_[points, np.ones(SAMPLES)].T, rcond=None
    )[0]
    assert weights.min() > -1e-9
    _, counts = np.unique(np.clip(weights * 4, 0, 4 - 1e-9).astype(int), axis=1, return_counts=True)
    assert len(counts) == 16
    assert chi2.ppf(0.001, 15) < chi_square(counts, np.full(16, SAMPLES / 16)) < chi2.ppf(0.999, 15)


@pytest.mark.parametrize("sample", [sample_surface, sample_sharp])
def test_normals_point_out_of_the_solid(knot: Solid, sample: object) -> None:
    points = sample(knot.vertices, knot.faces, 4000, np.random.default_rng(2))
    where, normal = points[:, :3], points[:, 3:]
    np.testing.assert_allclose(np.linalg.norm(normal, axis=1), 1.0)
    assert not inside(knot.vertices, knot.faces, where + 1e-7 * normal).any()
    assert inside(knot.vertices, knot.faces, where - 1e-7 * normal).all()


def test_sharp_samples_of_a_solid_cube_lie_along_its_twelve_edges_evenly() -> None:
    cube = trimesh.creation.box((1, 1, 1))
    solid = watertight(cube.vertices, cube.faces, 64)
    points = sample_sharp(solid.vertices, solid.faces, 6000, np.random.default_rng(3))[:, :3]
    near = np.sort(0.95 - np.abs(points), axis=1)  # distance to the three nearest sides
    assert near[:, 1].max() < 2 * 2 / 64, "within the offset's round of an edge"
    edge = np.argmin(np.abs(points), axis=1) * 8 + (
        (points > 0) @ [1, 2, 4]
    )  # a rough name of the edge: direction and corner
    counts = np.unique(edge, return_counts=True)[1]
    assert len(counts) == 24 and counts.max() < 1.25 * counts.min()  # each edge in two halves


@pytest.mark.parametrize("resolution", [32, 64])
def test_a_smooth_solid_has_no_sharp_edge_and_gets_uniform_samples(resolution: int) -> None:
    ball = trimesh.creation.icosphere(4)
    solid = watertight(ball.vertices, ball.faces, resolution)
    points = sample_sharp(solid.vertices, solid.faces, SAMPLES, np.random.default_rng(4))[:, :3]
    bands = np.histogram(points[:, 2], np.linspace(-0.95, 0.95, 17))[
        0
    ]  # equal heights of a sphere have equal areas (Archimedes)
    assert (
        chi_square(bands, np.full(16, SAMPLES / 16)) < 60
    )  # a ball of a few thousand flat faces: looser than chi-square's 37.7
