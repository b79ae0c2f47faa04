"""Metrics against brute force and known geometry."""

import numpy as np
import pytest

from g3pt import metrics


def _brute(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.linalg.norm(a[:, None] - b[None], axis=-1)


def _grid_plane(height: float, side: int = 60) -> np.ndarray:
    x, z = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))
    up = np.zeros((side * side, 6))
    up[:, 0], up[:, 1], up[:, 2], up[:, 4] = x.ravel(), height, z.ravel(), 1.0
    return up


def test_chamfer_and_f_score_equal_brute_force() -> None:
    random = np.random.default_rng(0)
    a, b = random.uniform(-1, 1, (300, 3)), random.uniform(-1, 1, (170, 3)) + 0.1
    table = _brute(a, b)
    there, back = table.min(axis=1), table.min(axis=0)
    assert metrics.chamfer(a, b) == pytest.approx((there.mean() + back.mean()) / 2, rel=1e-12)
    assert metrics.chamfer_squared(a, b) == pytest.approx(((there**2).mean() + (back**2).mean()) / 2, rel=1e-12)
    precision, recall = (there < 0.1).mean(), (back < 0.1).mean()
    assert metrics.f_score(a, b, 0.1) == pytest.approx(2 * precision * recall / (precision + recall), rel=1e-12)
    assert there.mean() != pytest.approx(back.mean(), rel=1e-3), "the clouds must not make both directions equal"


def test_identical_surfaces_are_perfect() -> None:
    plane = _grid_plane(0.0)
    assert metrics.surface_metrics(plane, plane) == {
        "chamfer": 0.0,
        "chamfer_squared": 0.0,
        "f_score_0.01": 1.0,
        "f_score_0.02": 1.0,
        "normal_consistency": 1.0,
    }


def test_a_plane_moved_by_a_known_amount() -> None:
    found = metrics.surface_metrics(_grid_plane(0.0), _grid_plane(0.015))
    assert found["chamfer"] == pytest.approx(0.015)
    assert found["chamfer_squared"] == pytest.approx(0.015**2)
    assert (found["f_score_0.01"], found["f_score_0.02"]) == (0.0, 1.0)


def test_spheres_of_two_radii_against_trimesh_distance() -> None:
    import trimesh

    small, large = (trimesh.creation.icosphere(subdivisions=4, radius=r) for r in (0.5, 0.6))
    points, faces = trimesh.sample.sample_surface(small, 2000, seed=1)
    dense, _ = trimesh.sample.sample_surface(large, 60_000, seed=2)
    _, exact, _ = trimesh.proximity.closest_point_naive(large, points[:200])
    assert metrics.nearest(points[:200], dense)[0].mean() == pytest.approx(exact.mean(), abs=1e-3)
    assert metrics.nearest(points, dense)[0].mean() == pytest.approx(0.1, abs=3e-3)


def test_normal_consistency_of_turned_normals() -> None:
    plane, turned, flipped = _grid_plane(0.0), _grid_plane(0.0), _grid_plane(0.0)
    angle = np.deg2rad(60)
    turned[:, 3:6] = (np.sin(angle), np.cos(angle), 0.0)
    flipped[:, 3:6] *= -1
    assert metrics.normal_consistency(plane, turned) == pytest.approx(0.5)
    assert metrics.normal_consistency(plane, flipped) == 1.0


def test_iou_of_known_sets() -> None:
    a, b = np.arange(10) < 6, np.arange(10) >= 3
    assert metrics.volume_iou(a, b) == pytest.approx(3 / 10)
    assert metrics.volume_iou(a, a) == 1.0
    assert metrics.volume_iou(~np.ones(4, bool), ~np.ones(4, bool)) == 1.0
    with pytest.raises(ValueError, match="differ in shape"):
        metrics.volume_iou(a, b[:5])


@pytest.mark.parametrize("points", [np.zeros((0, 3)), np.zeros((4, 2)), np.array([[0.0, np.nan, 0.0]])])
def test_unusable_points_are_refused(points: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected finite points"):
        metrics.chamfer(points, np.zeros((3, 3)))


def test_nearest_objects_equals_brute_force_and_excludes_itself() -> None:
    random = np.random.default_rng(3)
    library = [random.normal(size=(256, 3)) * random.uniform(0.2, 1.0, 3) for _ in range(30)]
    indices, distances = metrics.nearest_objects(library, library, coarse=128, keep=12, exclude=range(30))
    table = np.array([[metrics.chamfer(a, b) for b in library] for a in library])
    np.fill_diagonal(table, np.inf)
    assert (indices == table.argmin(axis=1)).mean() >= 0.95
    np.testing.assert_allclose(distances, [table[k, indices[k]] for k in range(30)])
    alone, zero = metrics.nearest_objects(library[:3], library)
    assert list(alone) == [0, 1, 2] and (zero == 0).all()


def test_wilson_interval_against_a_published_value() -> None:
    low, high = metrics.wilson_interval(81, 263)  # Newcombe 1998, table I, method 3: 0.2553 to 0.3662
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert metrics.wilson_interval(0, 10)[0] == 0.0 and metrics.wilson_interval(10, 10)[1] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="3 of 2"):
        metrics.wilson_interval(3, 2)


def test_bootstrap_interval_covers_and_repeats() -> None:
    values = np.random.default_rng(5).normal(2.0, 1.0, 400)
    low, high = metrics.bootstrap_interval(values, np.median)
    assert low < np.median(values) < high
    assert high - low == pytest.approx(2 * 1.96 * 1.2533 / 20, rel=0.35)  # the median's standard error
    assert (low, high) == metrics.bootstrap_interval(values, np.median)
