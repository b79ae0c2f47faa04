"""Metrics against brute force and known geometry."""

import numpy as np
import pytest

from g3pt.metrics import pairwise


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
    assert pairwise.chamfer(a, b) == pytest.approx((there.mean() + back.mean()) / 2, rel=1e-12)
    assert pairwise.chamfer_squared(a, b) == pytest.approx(((there**2).mean() + (back**2).mean()) / 2, rel=1e-12)
    precision, recall = (there < 0.1).mean(), (back < 0.1).mean()
    assert pairwise.f_score(a, b, 0.1) == pytest.approx(2 * precision * recall / (precision + recall), rel=1e-12)
    assert there.mean() != pytest.approx(back.mean(), rel=1e-3), "the clouds must not make both directions equal"


def test_identical_surfaces_are_perfect() -> None:
    plane = _grid_plane(0.0)
    assert pairwise.surface_metrics(plane, plane) == {
        "chamfer": 0.0,
        "chamfer_squared": 0.0,
        "f_score_0.005": 1.0,
        "f_score_0.01": 1.0,
        "f_score_0.02": 1.0,
        "hausdorff_95": 0.0,
        "normal_consistency": 1.0,
    }


def test_a_plane_moved_by_a_known_amount() -> None:
    found = pairwise.surface_metrics(_grid_plane(0.0), _grid_plane(0.015))
    assert found["chamfer"] == pytest.approx(0.015)
    assert found["chamfer_squared"] == pytest.approx(0.015**2)
    assert (found["f_score_0.01"], found["f_score_0.02"], found["hausdorff_95"]) == (0.0, 1.0, pytest.approx(0.015))


def test_hausdorff_leaves_out_the_worst_twentieth_and_takes_the_worse_direction() -> None:
    plane = _grid_plane(0.0)[:, :3]
    few, many = plane.copy(), plane.copy()
    few[: len(few) // 50, 1] = 0.5  # 2 % of the points far off
    many[: len(many) // 10, 1] = 0.5  # 10 %: more than a twentieth
    assert pairwise.hausdorff_95(plane, few) < 0.1 < pairwise.hausdorff_95(plane, many)
    assert pairwise.hausdorff_95(many, plane) == pairwise.hausdorff_95(plane, many) == pytest.approx(0.5)
    random = np.random.default_rng(7)
    a, b = random.normal(size=(200, 3)), random.normal(size=(300, 3))
    table = _brute(a, b)
    assert pairwise.hausdorff_95(a, b) == pytest.approx(
        max(np.percentile(table.min(axis=1), 95), np.percentile(table.min(axis=0), 95))
    )


def test_distances_equal_those_of_point_cloud_utils_and_scipy() -> None:
    import point_cloud_utils
    from scipy.spatial.distance import cdist, directed_hausdorff

    random = np.random.default_rng(8)
    a, b = random.uniform(-1, 1, (500, 3)), random.uniform(-1, 1, (400, 3)) * 0.9 + 0.05
    # theirs is the sum of both directed means, ours their mean
    assert pairwise.chamfer(a, b) == pytest.approx(point_cloud_utils.chamfer_distance(a, b) / 2, rel=1e-6)
    table = cdist(a, b)
    assert pairwise.chamfer_squared(a, b) == pytest.approx(
        ((table.min(axis=1) ** 2).mean() + (table.min(axis=0) ** 2).mean()) / 2
    )
    there, back = pairwise.nearest(a, b)[0].max(), pairwise.nearest(b, a)[0].max()
    assert max(there, back) == pytest.approx(point_cloud_utils.hausdorff_distance(a, b), rel=1e-6)
    assert (there, back) == pytest.approx((directed_hausdorff(a, b)[0], directed_hausdorff(b, a)[0]))


def test_a_box_mesh_shifted_by_a_known_amount_against_trimesh() -> None:
    import trimesh

    from g3pt.geometry.surface import sample_surface

    box = trimesh.creation.box((1, 1, 1))
    moved = box.copy()
    moved.apply_translation((0.0, 0.0, 0.01))
    surfaces = [
        sample_surface(np.asarray(m.vertices), np.asarray(m.faces), 20_000, np.random.default_rng(k))
        for k, m in enumerate((box, moved))
    ]
    found = pairwise.surface_metrics(*surfaces)
    _, exact, _ = trimesh.proximity.closest_point_naive(moved, surfaces[0][:500, :3])
    assert exact.mean() == pytest.approx(0.01 / 3, rel=0.2), (
        "a third of the surface moves off itself, the rest slides along"
    )
    sampling = pairwise.chamfer(
        surfaces[0][:, :3],
        sample_surface(np.asarray(box.vertices), np.asarray(box.faces), 20_000, np.random.default_rng(9))[:, :3],
    )
    assert sampling < found["chamfer"] < sampling + 0.01 / 3 + 0.002
    assert found["f_score_0.02"] > 0.95 and found["normal_consistency"] > 0.97  # 20,000 points lie 0.017 apart
    assert 0.01 <= found["hausdorff_95"] < 0.02


def test_spheres_of_two_radii_against_trimesh_distance() -> None:
    import trimesh

    small, large = (trimesh.creation.icosphere(subdivisions=4, radius=r) for r in (0.5, 0.6))
    points, faces = trimesh.sample.sample_surface(small, 2000, seed=1)
    dense, _ = trimesh.sample.sample_surface(large, 60_000, seed=2)
    _, exact, _ = trimesh.proximity.closest_point_naive(large, points[:200])
    assert pairwise.nearest(points[:200], dense)[0].mean() == pytest.approx(exact.mean(), abs=1e-3)
    assert pairwise.nearest(points, dense)[0].mean() == pytest.approx(0.1, abs=3e-3)


def test_normal_consistency_of_turned_normals() -> None:
    plane, turned, flipped = _grid_plane(0.0), _grid_plane(0.0), _grid_plane(0.0)
    angle = np.deg2rad(60)
    turned[:, 3:6] = (np.sin(angle), np.cos(angle), 0.0)
    flipped[:, 3:6] *= -1
    assert pairwise.normal_consistency(plane, turned) == pytest.approx(0.5)
    assert pairwise.normal_consistency(plane, flipped) == 1.0


def test_iou_of_known_sets() -> None:
    a, b = np.arange(10) < 6, np.arange(10) >= 3
    assert pairwise.volume_iou(a, b) == pytest.approx(3 / 10)
    assert pairwise.volume_iou(a, a) == 1.0
    assert pairwise.volume_iou(~np.ones(4, bool), ~np.ones(4, bool)) == 1.0
    with pytest.raises(ValueError, match="differ in shape"):
        pairwise.volume_iou(a, b[:5])


@pytest.mark.parametrize("points", [np.zeros((0, 3)), np.zeros((4, 2)), np.array([[0.0, np.nan, 0.0]])])
def test_unusable_points_are_refused(points: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected finite points"):
        pairwise.chamfer(points, np.zeros((3, 3)))


def test_nearest_objects_equals_brute_force_and_excludes_itself() -> None:
    random = np.random.default_rng(3)
    library = [random.normal(size=(256, 3)) * random.uniform(0.2, 1.0, 3) for _ in range(30)]
    indices, distances = pairwise.nearest_objects(library, library, coarse=128, keep=12, exclude=range(30))
    table = np.array([[pairwise.chamfer(a, b) for b in library] for a in library])
    np.fill_diagonal(table, np.inf)
    assert (indices == table.argmin(axis=1)).mean() >= 0.95
    np.testing.assert_allclose(distances, [table[k, indices[k]] for k in range(30)])
    alone, zero = pairwise.nearest_objects(library[:3], library)
    assert list(alone) == [0, 1, 2] and (zero == 0).all()


def test_wilson_interval_against_a_published_value() -> None:
    low, high = pairwise.wilson_interval(81, 263)  # Newcombe 1998, table I, method 3: 0.2553 to 0.3662
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert pairwise.wilson_interval(0, 10)[0] == 0.0 and pairwise.wilson_interval(10, 10)[1] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="3 of 2"):
        pairwise.wilson_interval(3, 2)


def test_bootstrap_interval_covers_and_repeats() -> None:
    values = np.random.default_rng(5).normal(2.0, 1.0, 400)
    low, high = pairwise.bootstrap_interval(values, np.median)
    assert low < np.median(values) < high
    assert high - low == pytest.approx(2 * 1.96 * 1.2533 / 20, rel=0.35)  # the median's standard error
    assert (low, high) == pairwise.bootstrap_interval(values, np.median)


@pytest.mark.parametrize("turn", [1, -1])
def test_all_at_once_are_the_single_metrics_in_both_orders(turn: int) -> None:
    random = np.random.default_rng(11)
    few, spread = random.normal(size=(300, 6)) * 0.3, random.normal(size=(500, 6))  # far from symmetric
    a, b = (few, spread)[::turn]
    found = pairwise.surface_metrics(a, b)
    for name in ("chamfer", "chamfer_squared", "hausdorff_95"):
        assert found[name] == pytest.approx(getattr(pairwise, name)(a[:, :3], b[:, :3]), rel=1e-12), name
    assert found["f_score_0.02"] == pairwise.f_score(a[:, :3], b[:, :3], 0.02)
