"""Rows of known shapes: labels against an independent oracle, sampling, determinism, figures."""

import dataclasses

import numpy as np
import pytest
import trimesh

from g3pt.geometry.convert import ConvertConfig, convert_mesh, near_points
from g3pt.geometry.labels import inside
from g3pt.geometry.quality import is_watertight, quality_faults
from g3pt.geometry.surface import face_normals, sample_sharp, sample_surface
from g3pt.geometry.watertight import BOX, Solid, watertight

CONFIG = ConvertConfig(resolution=48, num_surface=512, num_sharp=256, num_queries=1024)


def knot() -> trimesh.Trimesh:
    """A shape with concave regions and a hole: a torus through a box."""
    return trimesh.util.concatenate([trimesh.creation.torus(1.0, 0.3), trimesh.creation.box((0.5, 2.5, 0.4))])


def winding_number(triangles: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Generalised winding number by solid angles (Van Oosterom and Strackee), an oracle unlike the ray parity."""
    total = np.zeros(len(points))
    for a, b, c in triangles:
        a, b, c = a - points, b - points, c - points
        la, lb, lc = (np.linalg.norm(v, axis=1) for v in (a, b, c))
        top = np.einsum("nd,nd->n", a, np.cross(b, c))
        dot = lambda p, q: np.einsum("nd,nd->n", p, q)  # noqa: E731
        total += 2 * np.arctan2(top, la * lb * lc + dot(a, b) * lc + dot(b, c) * la + dot(c, a) * lb)
    return total / (4 * np.pi)


def test_labels_agree_with_the_winding_number() -> None:
    shape = knot()
    solid = watertight(shape.vertices, shape.faces, 24)
    rng = np.random.default_rng(0)
    near = sample_surface(solid.vertices, solid.faces, 400, rng)[:, :3] + 0.01 * rng.standard_normal((400, 3))
    points = np.concatenate([near, rng.uniform(-1, 1, (400, 3))]).astype(np.float16)
    expected = winding_number(solid.vertices[solid.faces], points.astype(np.float64)) > 0.5
    assert 100 < expected.sum() < 700
    np.testing.assert_array_equal(inside(solid.vertices, solid.faces, points), expected)


def test_labels_where_rays_meet_edges_and_corners() -> None:
    cube = trimesh.creation.box((1, 1, 1))
    ticks = np.array([-0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75])
    points = np.stack(np.meshgrid(ticks, ticks, ticks, indexing="ij"), axis=-1).reshape(-1, 3)
    found = inside(cube.vertices, cube.faces, points)
    clear = np.abs(np.abs(points) - 0.5).min(axis=1) > 0  # not exactly on a face's plane
    np.testing.assert_array_equal(found[clear], (np.abs(points) < 0.5).all(axis=1)[clear])
    ball = trimesh.creation.icosphere(3)
    radii = np.array([0.0, 0.5, 0.9, 1.1, 1.5])
    vertices = np.asarray(ball.vertices)[:, None] * radii[:, None]  # straight above and below vertices
    expected = np.broadcast_to(radii < 1, vertices.shape[:2])
    np.testing.assert_array_equal(inside(ball.vertices, ball.faces, vertices.reshape(-1, 3)), expected.reshape(-1))


def test_same_arguments_same_bytes_and_seeds_differ() -> None:
    shape = knot()
    rows = [convert_mesh(shape.vertices, shape.faces, CONFIG, seed) for seed in (7, 7, 8)]
    for key, value in rows[0].items():
        if key != "solid":
            np.testing.assert_array_equal(value, rows[1][key], err_msg=key)
    for key in ("surface", "sharp", "eval_surface", "near_points", "volume_points"):
        assert not np.array_equal(rows[0][key], rows[2][key])
    assert not np.array_equal(rows[0]["surface"], rows[0]["eval_surface"])


def test_shapes_types_and_labels_of_a_row() -> None:
    cube = trimesh.creation.box((1, 1, 1))
    row = convert_mesh(cube.vertices, cube.faces, CONFIG, 0)
    shapes = {
        "surface": (512, 6),
        "eval_surface": (512, 6),
        "sharp": (256, 6),
        "near_points": (1024, 3),
        "volume_points": (1024, 3),
    }
    for key, shape in shapes.items():
        assert row[key].shape == shape and row[key].dtype == np.float16, key
    assert row["near_occupancy"].shape == row["volume_occupancy"].shape == (128,)
    occupancy = np.unpackbits(row["volume_occupancy"], bitorder="little").astype(bool)
    distance = np.abs(row["volume_points"].astype(float)).max(axis=1)
    assert occupancy[distance < 0.85].all() and not occupancy[distance > 0.951].any()
    share = np.unpackbits(row["near_occupancy"]).mean()
    assert 0.4 < share < 0.6
    assert row["was_watertight"] is True and row["num_components"] == 1 and row["num_faces"] == 12
    assert abs(row["surface_area"] - 6 * (2 * BOX) ** 2) < 0.03 * row["surface_area"]
    assert 0.5 * 2 / 48 < row["chamfer_to_input"] < 3 * 2 / 48


def test_points_that_nobody_reads_are_skipped_and_the_others_stay() -> None:
    shape = knot()
    whole = convert_mesh(shape.vertices, shape.faces, CONFIG, 7)
    few = convert_mesh(shape.vertices, shape.faces, dataclasses.replace(CONFIG, num_sharp=0, num_queries=0), 7)
    missing = {"sharp", "near_points", "volume_points", "near_occupancy", "volume_occupancy"}
    assert whole.keys() - few.keys() == missing and np.isnan(few["volume_share"])
    for key in few.keys() - {"solid", "volume_share"}:
        np.testing.assert_array_equal(few[key], whole[key], err_msg=key)
    assert quality_faults(few, 0) == []
    assert [reason for reason, _ in quality_faults(few | {"volume": 0.0}, 0)] == ["too-thin"], "the other bounds hold"


def test_every_window_of_the_stored_query_points_is_a_sample_of_all() -> None:
    """Training reads query points as windows of their stored order (g3pt.data.batches)."""
    cube = trimesh.creation.box((1, 1, 1))
    row = convert_mesh(cube.vertices, cube.faces, ConvertConfig(resolution=48, num_surface=8, num_sharp=8), 0)
    for pool, share in (("near", 0.5), ("volume", BOX**3)):
        points = row[f"{pool}_points"].astype(np.float64)
        inside = np.unpackbits(row[f"{pool}_occupancy"], bitorder="little")
        for window, labels in zip(points.reshape(32, -1, 3), inside.reshape(32, -1), strict=True):
            octants = np.bincount((window > 0) @ [1, 2, 4], minlength=8) / len(window)
            assert np.abs(octants - 1 / 8).max() < 0.05 and abs(labels.mean() - share) < 0.07, pool
    distance = np.abs(np.abs(row["near_points"].astype(np.float64)).max(axis=1) - BOX)
    medians = np.median(distance[:30_720].reshape(5, -1, 3), axis=1)  # of each sigma in five parts of the order
    assert np.allclose(medians, medians[0], rtol=0.15) and medians[0, 2] > 5 * medians[0, 0]


@pytest.mark.parametrize("sigma", [0.005, 0.02])
def test_near_points_lie_off_the_surface_by_one_draw_of_the_noise(sigma: float) -> None:
    """Of a cube's faces, away from the edges: signed distances are normal with standard deviation sigma."""
    cube = trimesh.creation.box((1.2, 1.2, 1.2))
    solid = Solid(vertices=np.asarray(cube.vertices), faces=np.asarray(cube.faces), scale=1.0, offset=np.zeros(3))
    config = ConvertConfig(num_queries=40_000, near_sigmas=(sigma,))
    points = np.sort(np.abs(near_points(solid, config, np.random.default_rng(0))), axis=1)
    distance = points[:, 2][points[:, 1] < 0.6 - 5 * sigma] - 0.6  # to the nearest face's plane
    assert len(distance) > 20_000
    assert distance.std() == pytest.approx(sigma, rel=0.03) and abs(distance.mean()) < 0.03 * sigma


def test_surface_samples_are_uniform_and_lie_on_the_mesh() -> None:
    # Two squares, one four times the other's area, at different heights.
    vertices = np.array(
        [[0, 0, 0], [2, 0, 0], [2, 2, 0], [0, 2, 0], [0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1]], dtype=float
    )
    faces = np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
    points = sample_surface(vertices, faces, 5000, np.random.default_rng(0))
    assert abs((points[:, 2] == 0).mean() - 0.8) < 0.01
    np.testing.assert_allclose(points[points[:, 2] == 0, :2].mean(axis=0), 1.0, atol=0.03)
    np.testing.assert_allclose(points[:, 3:], [[0, 0, 1]] * 5000)


def test_sharp_samples_lie_on_edges_and_fall_back_when_there_are_none() -> None:
    cube = trimesh.creation.box((2, 2, 2))
    vertices, faces = np.asarray(cube.vertices), np.asarray(cube.faces)
    sharp = sample_sharp(vertices, faces, 600, np.random.default_rng(0))
    assert (np.isclose(np.abs(sharp[:, :3]), 1.0).sum(axis=1) >= 2).all()
    np.testing.assert_allclose(np.linalg.norm(sharp[:, 3:], axis=1), 1.0)
    assert (np.einsum("nd,nd->n", sharp[:, :3], sharp[:, 3:]) > 0).all()
    ball = trimesh.creation.icosphere(4)
    smooth = sample_sharp(np.asarray(ball.vertices), np.asarray(ball.faces), 600, np.random.default_rng(0))
    np.testing.assert_allclose(np.linalg.norm(smooth[:, :3], axis=1), 1.0, atol=0.01)


def test_watertight_flag_merges_equal_vertices_and_sees_holes_and_flips() -> None:
    cube = trimesh.creation.box((1, 1, 1))
    soup = np.asarray(cube.triangles).reshape(-1, 3)
    faces = np.arange(36).reshape(-1, 3)
    assert is_watertight(soup, faces)
    assert not is_watertight(soup, faces[1:])
    corner_at_zero = soup - soup.min(axis=0)
    corner_at_zero[::2] = np.where(corner_at_zero[::2] == 0.0, -0.0, corner_at_zero[::2])
    assert is_watertight(corner_at_zero, faces), "-0.0 and 0.0 are one place"
    flipped = faces.copy()
    flipped[0] = flipped[0, ::-1]
    assert not is_watertight(soup, flipped)


def test_normals_of_degenerate_faces_are_zero_not_nan() -> None:
    normals, areas = face_normals(np.zeros((3, 3)), np.array([[0, 1, 2]]))
    np.testing.assert_array_equal(normals, 0.0)
    assert areas[0] == 0.0


@pytest.mark.parametrize(
    "change", [{"resolution": 4}, {"watertight": "magic"}, {"num_queries": 12}, {"num_surface": 0}, {"near_sigmas": ()}]
)
def test_config_refuses_bad_values(change: dict) -> None:
    with pytest.raises(ValueError):
        ConvertConfig(**change)


def test_any_run_of_a_cloud_is_spread_more_evenly_than_chance() -> None:
    """Points of a strip of 64 equal squares: a quarter of a cloud, from anywhere, counts far closer
    to equal than independent draws.
    """
    x = np.arange(65.0)
    vertices = np.concatenate([np.stack([x, 0 * x, 0 * x], axis=1), np.stack([x, 0 * x + 1, 0 * x], axis=1)])
    k = np.arange(64)
    faces = np.concatenate([np.stack([k, k + 1, k + 66], axis=1), np.stack([k, k + 66, k + 65], axis=1)])
    points = sample_surface(vertices, faces, 4096, np.random.default_rng(0))
    for start in (0, 1000, 3072):
        counts = np.bincount(points[start : start + 1024, 0].astype(int), minlength=64)
        assert counts.std() < 1.5, "independent draws have 4"
    assert not np.array_equal(points, sample_surface(vertices, faces, 4096, np.random.default_rng(1)))


def test_a_corner_with_very_many_edges_costs_no_more_than_its_edges() -> None:
    """The base of a cone of 100,000 sides meets in one corner: comparing each of its edges
    with each would take minutes.
    """
    cone = trimesh.creation.cone(1.0, 1.0, sections=100_000)
    vertices, faces = np.asarray(cone.vertices), np.asarray(cone.faces)
    assert is_watertight(vertices, faces)
    assert not is_watertight(vertices, np.concatenate([faces, faces[:1]]))
    assert len(sample_sharp(vertices, faces, 10, np.random.default_rng(0))) == 10
