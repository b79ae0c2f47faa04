"""Solids of known shapes: one outer surface, the right volume, nothing lost."""

import numpy as np
import pytest
import trimesh

from g3pt.geometry.quality import signed_volume
from g3pt.geometry.reading import MeshError
from g3pt.geometry.watertight import BOX, OFFSET_VOXELS, Solid, outside_field, watertight

R = 64
VOXEL = 2 / R


def as_trimesh(solid: Solid) -> trimesh.Trimesh:
    return trimesh.Trimesh(solid.vertices, solid.faces, process=False)


def assert_sound(solid: Solid, parts: int) -> None:
    """Watertight, outward, in the box, and with as many surfaces as parts (so no inner shell)."""
    mesh = as_trimesh(solid)
    assert mesh.is_watertight and mesh.is_winding_consistent
    assert mesh.body_count == parts
    assert all(part.volume > 0 for part in mesh.split(only_watertight=False))
    low, high = solid.vertices.min(axis=0), solid.vertices.max(axis=0)
    np.testing.assert_allclose(low, -high, atol=1e-9)
    np.testing.assert_allclose(high.max(), BOX, atol=1e-9)


def test_offset_is_one_voxel_and_the_transform_maps_the_input() -> None:
    ball = trimesh.creation.icosphere(4, radius=3.0)
    ball.apply_translation((10.0, -4.0, 2.0))
    solid = watertight(ball.vertices, ball.faces, R)
    radii = np.linalg.norm(np.asarray(ball.vertices) * solid.scale + solid.offset, axis=1)
    np.testing.assert_allclose(np.linalg.norm(solid.vertices, axis=1), BOX, atol=0.1 * VOXEL)
    np.testing.assert_allclose(radii, BOX - VOXEL, atol=0.1 * VOXEL)


def test_hollow_double_shell_becomes_one_surface() -> None:
    shell = trimesh.util.concatenate([trimesh.creation.box((1, 1, 1)), trimesh.creation.box((0.7, 0.7, 0.7))])
    cube = trimesh.creation.box((1, 1, 1))
    solid, full = watertight(shell.vertices, shell.faces, R), watertight(cube.vertices, cube.faces, R)
    assert_sound(solid, parts=1)
    np.testing.assert_array_equal(solid.vertices, full.vertices)


def test_part_inside_an_open_box_stays_and_inside_a_closed_one_goes() -> None:
    box, ball = trimesh.creation.box((1, 1, 1)), trimesh.creation.icosphere(3, radius=0.2)
    closed = trimesh.util.concatenate([box, ball])
    opened = trimesh.util.concatenate([trimesh.Trimesh(box.vertices, box.faces[box.face_normals[:, 2] < 0.5]), ball])
    assert_sound(watertight(closed.vertices, closed.faces, R), parts=1)
    assert_sound(watertight(opened.vertices, opened.faces, R, open_surfaces="wall"), parts=2)
    assert_sound(watertight(opened.vertices, opened.faces, R, open_surfaces="fill"), parts=1)


def test_duplicate_degenerate_and_flipped_faces_and_stray_vertices_change_nothing() -> None:
    cube = trimesh.creation.box((1, 1, 1))
    faces = np.asarray(cube.faces)
    messy = np.concatenate([faces, faces[:3], faces[:, ::-1][4:7], [[0, 0, 1], [2, 2, 2]]])
    vertices = np.concatenate([cube.vertices, [[50.0, 0.0, 0.0]]])
    np.testing.assert_array_equal(watertight(vertices, messy, R).vertices, watertight(cube.vertices, faces, R).vertices)


@pytest.mark.parametrize(
    "far", [[[20, 0, 0]] * 3, [[20, 0, 0], [21, 1, 2], [22, 2, 4]], [[9, 9, 9], [9, 9, 9], [30, 0, 1]]]
)
def test_faces_without_area_take_no_room_in_the_box(far: list) -> None:
    box = trimesh.creation.box((1, 2, 3))
    vertices, faces = np.concatenate([box.vertices, far]), np.concatenate([box.faces, [[8, 9, 10]]])
    alone, beside = watertight(box.vertices, box.faces, 32), watertight(vertices, faces, 32)
    np.testing.assert_array_equal(alone.vertices, beside.vertices)
    assert alone.scale == beside.scale and (alone.offset == beside.offset).all()


def test_soup_of_long_slanted_triangles_matches_brute_force_distance() -> None:
    from g3pt.geometry._kernels import narrow_band

    rng = np.random.default_rng(0)
    triangles = rng.uniform(3, 21, (12, 3, 3))
    triangles[0, 2] = triangles[0, 1] + 1e-9  # a sliver
    triangles[1, :, 2] = 9.0  # in a grid plane
    n, band = 24, 2.0
    grid = np.stack(np.meshgrid(*[np.arange(n, dtype=float)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    expected = np.full(len(grid), np.inf)
    for triangle in triangles:
        nearest = trimesh.triangles.closest_point(np.broadcast_to(triangle, (len(grid), 3, 3)), grid)
        expected = np.minimum(expected, np.linalg.norm(nearest - grid, axis=1))
    found = narrow_band(triangles, (n, n, n), band).reshape(-1)
    near = expected < band - 1e-6
    assert near.sum() > 1000
    np.testing.assert_allclose(found[near], expected[near], atol=1e-5)
    assert (found[~near] >= band - 1e-5).all()


def test_flood_fill_matches_connected_components() -> None:
    from scipy import ndimage

    distance = np.random.default_rng(1).standard_normal((20, 16, 24)).astype(np.float32) + 1.3
    distance[0, 0, 0] = 2.0
    labels, count = ndimage.label(distance > 1.001)
    assert count > 5
    np.testing.assert_array_equal(outside_field(distance) > 0, labels == labels[0, 0, 0])


def test_outside_field_has_no_value_at_the_surface() -> None:
    distance = np.full((18, 18, 18), 5.0, dtype=np.float32)
    distance[9, 9, 9], distance[9, 9, 8] = 0.0, 1.0  # exactly at the offset
    assert (np.abs(outside_field(distance)) >= 1e-4).all()


def test_mesh2sdf_gives_the_same_solid() -> None:
    torus = trimesh.creation.torus(1.0, 0.3)
    ours = watertight(torus.vertices, torus.faces, 48)
    theirs = watertight(torus.vertices, torus.faces, 48, method="mesh2sdf")
    assert_sound(theirs, parts=1)
    ratio = signed_volume(theirs.vertices, theirs.faces) / signed_volume(ours.vertices, ours.faces)
    np.testing.assert_allclose(ratio, 1.0, atol=1e-3)


@pytest.mark.parametrize(
    ("vertices", "faces", "reason"),
    [
        (np.zeros((3, 3)), np.zeros((0, 3), dtype=int), "no-faces"),
        (np.ones((3, 3)), np.array([[0, 1, 2]]), "zero-extent"),
        (np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0]], dtype=float), np.array([[0, 1, 2]]), "zero-extent"),
        (np.array([[0, 0, 0], [1, np.inf, 0], [0, 1, 0]]), np.array([[0, 1, 2]]), "non-finite"),
        (np.array([[0, 0, 0], [1e308, 0, 0], [-1e308, 1e308, 0]]), np.array([[0, 1, 2]]), "zero-extent"),
    ],
)
def test_unusable_meshes_are_refused_with_a_reason(vertices: np.ndarray, faces: np.ndarray, reason: str) -> None:
    with pytest.raises(MeshError) as caught:
        watertight(vertices, faces, R)
    assert caught.value.reason == reason


def test_bad_arguments() -> None:
    cube = trimesh.creation.box((1, 1, 1))
    with pytest.raises(ValueError, match="'sdf'"):
        watertight(cube.vertices, cube.faces, R, method="sdf")
    with pytest.raises(ValueError, match="8"):
        watertight(cube.vertices, cube.faces, 8)


def test_the_grid_is_no_larger_than_the_mesh_and_its_surface_never_touches_the_wall(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from g3pt.geometry import watertight as module

    shapes = []

    def recorded(distance: np.ndarray) -> np.ndarray:
        field = outside_field(distance)
        shapes.append(field.shape)
        for axis in range(3):
            assert (np.take(field, [0, -1], axis=axis) > 0).all(), "the outermost layer is air"
        return field

    monkeypatch.setattr(module, "outside_field", recorded)
    for extents in ((1, 1, 1), (1, 0.1, 0.3), (0.02, 1, 0.02)):
        box = trimesh.creation.box(extents)
        watertight(box.vertices, box.faces, 40)  # its largest extent begins exactly on a grid point
    assert max(shapes[1]) <= 43 and min(shapes[1]) < 0.3 * 40 and np.prod(shapes[2]) < 0.04 * 40**3


def test_the_longest_side_fills_the_box_and_proportions_stay() -> None:
    """Each side of a 1 x 2 x 4 box grows by two offsets; then all are scaled by one factor."""
    mesh = trimesh.creation.box((1.0, 2.0, 4.0))
    solid = watertight(np.asarray(mesh.vertices), np.asarray(mesh.faces), 64)
    sides = np.ptp(solid.vertices, axis=0)
    assert sides[2] == pytest.approx(2 * BOX, abs=1e-9)
    grown = np.array([1.0, 2.0, 4.0]) + 2 * OFFSET_VOXELS * (2 / 64) / (2 * (BOX - 2 / 64) / 4.0)
    np.testing.assert_allclose(sides / sides[2], grown / grown[2], rtol=0.01)
    np.testing.assert_allclose(solid.vertices.min(axis=0), -solid.vertices.max(axis=0), atol=1e-9)
    inner = np.asarray(mesh.vertices) * solid.scale + solid.offset
    assert (np.abs(inner) < sides / 2).all(), "the input lies inside its solid"
