"""Polygons become triangles that cover them once, whatever their shape, their plane and the corner they begin with."""

import numpy as np
import pytest

from g3pt.geometry.polygons import triangulate

SHAPES = {
    "arrow": ([[0, 0], [4, 0], [1, 1], [0, 4]], 4.0),
    "l": ([[0, 0], [2, 0], [2, 1], [1, 1], [1, 3], [0, 3]], 4.0),
    "keyhole": ([[0, 0], [4, 0], [4, 4], [0, 4], [0, 0], [1, 1], [1, 3], [3, 3], [3, 1], [1, 1]], 12.0),
    "two holes": (
        [[0, 0], [6, 0], [6, 4], [0, 4], [0, 0], [1, 1], [1, 2], [2, 2], [2, 1], [1, 1]]
        + [[0, 0], [4, 1], [4, 2], [5, 2], [5, 1], [4, 1]],
        22.0,
    ),
    "corners on a side": ([[0, 0], [1, 0], [2, 0], [2, 2], [1, 1], [0, 2]], 3.0),
}  # fmt: skip


def area(vertices: np.ndarray, faces: np.ndarray) -> float:
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)


def outline(flat: list) -> np.ndarray:
    """The outline in a slanted plane far from the origin."""
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    return np.column_stack([flat, np.zeros(len(flat))]) @ turn.T + 50.0


@pytest.mark.parametrize("name", SHAPES)
def test_the_triangles_cover_the_polygon_once(name: str) -> None:
    flat, expected = SHAPES[name]
    order = np.arange(len(flat))
    for start in order:
        for corners in (np.roll(order, start), np.roll(order, start)[::-1]):
            faces = triangulate(outline(flat), corners, np.array([len(flat)]))
            assert len(faces) == len(flat) - 2
            assert area(outline(flat), faces) == pytest.approx(expected, abs=1e-9)


def test_a_star_of_many_corners_keeps_its_area_and_winding() -> None:
    angles = np.arange(200) * (np.pi / 100)
    radii = np.where(np.arange(200) % 2, 0.2, 1.0)
    star = np.column_stack([radii * np.cos(angles), radii * np.sin(angles), 0.3 * np.ones(200)])
    faces = triangulate(star, np.arange(200), np.array([200]))
    assert area(star, faces) == pytest.approx(200 * 0.5 * 0.2 * np.sin(np.pi / 100), rel=1e-9)
    a, b, c = (star[faces[:, k]] for k in range(3))
    assert (np.cross(b - a, c - a)[:, 2] >= 0).all()


def test_convex_polygons_are_fans_in_the_order_of_the_file() -> None:
    ring = np.array([[np.cos(t), np.sin(t), 0] for t in np.arange(5) * 2 * np.pi / 5])
    corners = np.array([0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 1, 2, 3, 4])
    faces = triangulate(ring, corners, np.array([3, 5, 2, 4]))
    assert faces.tolist() == [[0, 1, 2], [0, 1, 2], [0, 2, 3], [0, 3, 4], [1, 2, 3], [1, 3, 4]]


def test_a_bent_concave_polygon_is_cut_in_its_mean_plane() -> None:
    bent = np.array([[0, 0, 0.1], [4, 0, 0], [1, 1, -0.1], [0, 4, 0]])
    assert sorted(map(sorted, triangulate(bent, np.array([1, 2, 3, 0]), np.array([4])).tolist())) == [
        [0, 1, 2],
        [0, 2, 3],
    ]


def test_a_polygon_that_crosses_itself_keeps_its_signed_area() -> None:
    crossed = np.array([[0, 0, 0], [4, 0, 0], [4, 2, 0], [1, 2, 0], [1, -1, 0], [0, -1, 0]], dtype=float)
    faces = triangulate(crossed, np.arange(6), np.array([6]))
    a, b, c = (crossed[faces[:, k]] for k in range(3))
    x, y = crossed[:, 0], crossed[:, 1]
    shoelace = (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2
    assert np.cross(b - a, c - a)[:, 2].sum() / 2 == pytest.approx(shoelace)


def test_a_polygon_without_an_area_is_a_fan() -> None:
    line = np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]], dtype=float)
    assert triangulate(line, np.arange(4), np.array([4])).tolist() == [[0, 1, 2], [0, 2, 3]]
