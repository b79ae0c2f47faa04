"""Open surfaces that enclose air become solid, with their known volume; vessels, sheets, angles
and bars stay as they are.
"""

from collections.abc import Callable

import numpy as np
import pytest
import trimesh

from g3pt.geometry.filling import MAX_CONFLICTS, PARITY, WINDING, Filling, conflicts, distinct
from g3pt.geometry.labels import inside
from g3pt.geometry.quality import signed_volume, solid_figures
from g3pt.geometry.watertight import BOX, Solid, watertight

R = 64
Mesh = trimesh.Trimesh


def without(mesh: Mesh, faces: np.ndarray) -> Mesh:
    return Mesh(mesh.vertices, mesh.faces[~faces], process=False)


def turned(mesh: Mesh, turn: int) -> Mesh:
    """The mesh, rotated at random if `turn` is not 0."""
    rng = np.random.default_rng(turn)
    rotation = trimesh.transformations.random_rotation_matrix(rng.random(3)) if turn else np.eye(4)
    return mesh.copy().apply_transform(rotation)


def volume(solid: Solid) -> float:
    """In the units of the input."""
    return signed_volume(solid.vertices, solid.faces) / solid.scale**3


def grown(mesh: Mesh, volume: float, area: float, curvature: float) -> float:
    """Volume of a convex body grown by the offset of one voxel (Steiner):
    `curvature` is its integrated mean curvature.
    """
    by = float(np.ptp(mesh.vertices, axis=0).max()) / (2 * BOX / (2 / R) - 2)
    return volume + area * by + curvature * by**2 + 4 / 3 * np.pi * by**3


TUBE = trimesh.creation.cylinder(1.0, 3.0, sections=64)
LIDS = TUBE.face_normals[:, 2]
TUBE_SIZES = (3 * np.pi, 8 * np.pi, 3 * np.pi + np.pi**2)
CUBE = trimesh.creation.box((1.0, 1.0, 1.0))
BALL = trimesh.creation.icosphere(4)
HALF = without(BALL, BALL.triangles_center[:, 2] < 0)
HALF_SIZES = (2 / 3 * np.pi, 3 * np.pi, 2 * np.pi + np.pi**2 / 2)
CONE = trimesh.creation.cone(1.0, 1.0, sections=64)
NO_LIDS = without(TUBE, np.abs(LIDS) > 0.5)
NO_FLOOR = without(CUBE, CUBE.face_normals[:, 1] < -0.5)


def partly_flipped(mesh: Mesh, share: float) -> Mesh:
    mesh = mesh.subdivide()
    faces = np.array(mesh.faces)
    flipped = np.random.default_rng(0).random(len(faces)) < share
    faces[flipped] = faces[flipped][:, ::-1]
    return Mesh(mesh.vertices, faces, process=False)


def doubled(mesh: Mesh) -> Mesh:
    return Mesh(mesh.vertices, np.concatenate([mesh.faces, mesh.faces[:, ::-1]]), process=False)


ENCLOSING = {
    "tube": (NO_LIDS, TUBE_SIZES, WINDING),
    "tube with one lid": (without(TUBE, LIDS > 0.5), TUBE_SIZES, WINDING),
    "cube without a floor": (NO_FLOOR, (1, 6, 3 * np.pi), WINDING),
    "walls of two layers": (
        trimesh.util.concatenate([NO_FLOOR, NO_FLOOR.copy().apply_scale((0.9, 1.0, 0.9))]),
        (1, 6, 3 * np.pi),
        WINDING,
    ),
    "flat box without a floor": (NO_FLOOR.copy().apply_scale((1, 0.15, 1)), (0.15, 2.6, 2.15 * np.pi), WINDING),
    "cone of 45 degrees": (
        without(CONE, CONE.face_normals[:, 2] < -0.5),
        (np.pi / 3, np.pi + 2**0.5 * np.pi, np.pi + 0.75 * np.pi**2),
        WINDING,
    ),
    "half a ball": (HALF, HALF_SIZES, WINDING),
    "a tenth of the faces flipped": (partly_flipped(NO_LIDS, 0.1), TUBE_SIZES, WINDING),
    "a third of the faces flipped": (partly_flipped(NO_LIDS, 0.35), TUBE_SIZES, PARITY),
    "every face doubled": (doubled(NO_LIDS), TUBE_SIZES, WINDING),
}


@pytest.mark.parametrize("turn", [0, 1])
@pytest.mark.parametrize("name", ENCLOSING)
def test_an_enclosing_surface_is_filled_to_the_volume_of_the_closed_one(name: str, turn: int) -> None:
    mesh, sizes, rule = ENCLOSING[name]
    mesh = turned(mesh, turn)
    solid = watertight(mesh.vertices, mesh.faces, R)
    wall = watertight(mesh.vertices, mesh.faces, R, open_surfaces="wall")
    assert volume(solid) == pytest.approx(
        grown(mesh, *sizes), rel=0.1 if turn else 0.03
    )  # oblique openings bulge inward
    assert solid.filling.rule == rule
    assert solid.filling.share == pytest.approx(1 - volume(wall) / volume(solid), abs=0.02)
    figures = solid_figures(solid)
    assert figures["solid_watertight"] and figures["num_components"] == 1 and figures["num_inner_shells"] == 0


def angle(degrees: float) -> Mesh:
    """Two sheets of 1 x 2 that share a side."""
    x, y = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    corners = [[0, 0, 0], [1, 0, 0], [1, 0, 2], [0, 0, 2], [x, y, 0], [x, y, 2]]
    return Mesh(corners, [[0, 1, 2], [0, 2, 3], [0, 5, 4], [0, 3, 5]], process=False)


def cup() -> Mesh:
    """Walls and bottom .2 thick: the profile's revolution, closed."""
    profile = [[0, -0.2], [1, -0.2], [1, 2], [0.8, 2], [0.8, 0], [0, 0]]
    return trimesh.creation.revolve(profile, sections=64)


def bars(ends: bool) -> Mesh:
    bar = trimesh.creation.cylinder(0.12, 2.0, sections=16)
    bar = bar if ends else without(bar, np.abs(bar.face_normals[:, 2]) > 0.5)
    return trimesh.util.concatenate([bar.copy().apply_translation((0.5 * k, 0, 0)) for k in range(5)])


def with_junk() -> Mesh:
    sheets = [Mesh([[-0.5, -0.5, z], [0.5, -0.5, z], [0, 0.5, z]], [[0, 1, 2]], process=False) for z in (-0.4, 0, 0.3)]
    return trimesh.util.concatenate([BALL, HALF.copy().apply_scale(0.6), *sheets])


UNCHANGED: dict[str, Callable[[], Mesh]] = {
    "ball": lambda: BALL,
    "cup of two walls": cup,
    "sheet": lambda: without(CUBE, CUBE.face_normals[:, 2] < 0.5),
    "angle": lambda: angle(90),
    "gutter": lambda: angle(90).copy().apply_scale((1, 1, 2)),
    "bars": lambda: bars(ends=True),
    "closed shell with open junk in it": with_junk,
    "low ring": lambda: NO_LIDS.copy().apply_scale((1, 1, 0.1)),
    "stacked sheets": lambda: trimesh.util.concatenate(
        [without(CUBE, CUBE.face_normals[:, 2] < 0.5).copy().apply_translation((0, 0, k / 2)) for k in range(4)]
    ),
    "room seen from inside": lambda: Mesh(
        CUBE.vertices, CUBE.faces[CUBE.face_normals[:, 1] > -0.5][:, ::-1], process=False
    ),
}


@pytest.mark.parametrize("turn", [0, 1, 2])
@pytest.mark.parametrize("name", UNCHANGED)
def test_what_encloses_nothing_keeps_its_bytes(name: str, turn: int) -> None:
    mesh = turned(UNCHANGED[name](), turn)
    solid = watertight(mesh.vertices, mesh.faces, R)
    wall = watertight(mesh.vertices, mesh.faces, R, open_surfaces="wall")
    assert solid.filling == Filling()
    assert solid.vertices.tobytes() == wall.vertices.tobytes() and solid.faces.tobytes() == wall.faces.tobytes()


def test_a_cup_keeps_its_content_free_and_its_volume() -> None:
    mesh = cup()
    solid = watertight(mesh.vertices, mesh.faces, 128)
    by = 2.2 / (2 * BOX / (2 / 128) - 2)
    outer, inner = np.pi * (1 + by) ** 2 * (2.2 + 2 * by), np.pi * (0.8 - by) ** 2 * 2.0
    assert volume(solid) == pytest.approx(outer - inner, rel=0.03)


def test_bars_without_ends_are_filled_and_the_gaps_between_them_stay() -> None:
    mesh = bars(ends=False)
    solid = watertight(mesh.vertices, mesh.faces, 128)
    places = np.array([[0.25 * k, 0.0, 0.0] for k in range(9)]) * solid.scale + solid.offset
    np.testing.assert_array_equal(inside(solid.vertices, solid.faces, places), [True, False] * 4 + [True])
    assert solid.filling.rule == WINDING and solid_figures(solid)["num_components"] == 5


def test_of_two_bodies_the_open_one_is_filled() -> None:
    ball = BALL.copy().apply_scale(0.5).apply_translation((2.0, 0, 0))
    both, closed = trimesh.util.concatenate([NO_FLOOR, ball]), trimesh.util.concatenate([CUBE, ball])
    found = volume(watertight(both.vertices, both.faces, R))
    assert found == pytest.approx(volume(watertight(closed.vertices, closed.faces, R)), rel=0.02)


def test_the_same_mesh_gives_the_same_bytes_in_any_order_of_its_faces() -> None:
    mesh = ENCLOSING["a third of the faces flipped"][0]
    first, again = (watertight(mesh.vertices, mesh.faces, R) for _ in range(2))
    shuffled = watertight(mesh.vertices, np.random.default_rng(0).permutation(mesh.faces), R)
    for other in (again, shuffled):
        assert first.vertices.tobytes() == other.vertices.tobytes() and first.filling == other.filling


def test_unknown_rules_are_refused() -> None:
    with pytest.raises(ValueError, match="'fil'"):
        watertight(CUBE.vertices, CUBE.faces, R, open_surfaces="fil")


def test_conflicts_are_the_share_of_edges_whose_faces_disagree() -> None:
    faces = np.array([[0, 1, 2], [2, 1, 3], [2, 3, 4]])  # edges 1-2 and 2-3 are shared
    assert conflicts(faces) == 0.0 and conflicts(faces[:1]) == 0.0
    assert conflicts(np.array([[0, 1, 2], [1, 2, 3], [2, 3, 4]])) == 1.0
    assert conflicts(np.array([[0, 1, 2], [1, 2, 3], [3, 2, 4]])) == 0.5 > MAX_CONFLICTS


def test_distinct_triangles_have_equal_numbers_at_equal_corners() -> None:
    a, b, c, d = np.eye(4, 3)
    triangles = np.array([[a, b, c], [b, c, a], [c, b, a], [b, c, d]])
    kept, faces = distinct(triangles)
    np.testing.assert_array_equal(kept, triangles[[0, 3]])
    np.testing.assert_array_equal(faces[1, :2], faces[0, 1:])
    assert len(set(faces.reshape(-1).tolist())) == 4


def test_rays_count_crossings_as_brute_force_does() -> None:
    from g3pt.geometry._fill_kernels import LINES, enclosure

    rng = np.random.default_rng(0)
    triangles, count = rng.uniform(2.0, 9.0, (12, 3, 3)), 12
    votes, winding, exits, odd, odd_lines = enclosure(triangles, (count,) * 3, LINES)
    points = np.stack(np.meshgrid(*[np.arange(count)] * 3, indexing="ij"), axis=-1)[1:-1, 1:-1, 1:-1].reshape(-1, 3)
    after, before = (np.array([crossed(triangles, points, sign * line) for line in LINES]) for sign in (1, -1))
    inner = (slice(1, -1),) * 3
    leaves = np.concatenate([after, before])[:, :, 0]
    crossings = np.concatenate([after, before])[:, :, 1]
    assert leaves.max() > 1 and crossings.max() > 2
    np.testing.assert_array_equal(votes[inner].reshape(-1), np.sign(leaves).sum(axis=0))
    np.testing.assert_array_equal(winding[inner].reshape(-1), leaves.clip(-2, 2).sum(axis=0))
    np.testing.assert_array_equal(odd[inner].reshape(-1), (crossings % 2).sum(axis=0))
    both = (after[:, :, 0] > 0) & (before[:, :, 0] > 0)
    np.testing.assert_array_equal(exits[inner].reshape(-1), both.sum(axis=0))
    odd_both = (after[:, :, 1] % 2 == 1) & (before[:, :, 1] % 2 == 1)
    np.testing.assert_array_equal(odd_lines[inner].reshape(-1), odd_both.sum(axis=0))


def crossed(triangles: np.ndarray, points: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """(faces left minus faces entered, crossings) of each point's ray, (N, 2), by the signs of tetrahedra."""
    found = np.zeros((len(points), 2), dtype=int)
    far = points + 100.0 * direction
    for a, b, c in triangles:
        turns = np.array(
            [np.einsum("nd,d->n", np.cross(p - points, q - points), direction) for p, q in ((a, b), (b, c), (c, a))]
        )
        through = (turns > 0).all(axis=0) | (turns < 0).all(axis=0)
        normal = np.cross(b - a, c - a)
        ahead = ((a - points) @ normal > 0) != ((a - far) @ normal > 0)
        found[through & ahead] += [int(np.sign(normal @ direction)), 1]
    return found


def test_26_rays_are_near_the_generalised_winding_number() -> None:
    from g3pt.geometry._fill_kernels import LINES, enclosure

    triangles = np.ascontiguousarray(HALF.triangles * 8.0 + 12.0)
    winding = enclosure(triangles, (25, 25, 25), LINES)[1] / 26
    places = np.array([[12, 12, z] for z in (9, 10, 11, 13, 14, 16, 18)])
    expected = 0.5 * (1 + (places[:, 2] - 12.5) / np.sqrt((places[:, 2] - 12.5) ** 2 + 64.0))  # of the opening's disc
    found = winding[tuple(places.T)]
    np.testing.assert_allclose(found, expected, atol=0.16)
    assert (np.diff(found) >= 0).all()
