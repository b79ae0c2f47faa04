"""A variant is the object turned, mirrored and smaller, by its number and the object's id alone."""

import numpy as np
import pytest

from g3pt.data.variants import HALF_SIDE, SMALLEST, varied


def row(name: str = "a", up_axis: str = "y") -> dict:
    """A box of 1.9 x 1.2 x 0.6 along x, y and z, with a marked corner and normals along the axes."""
    rng = np.random.default_rng(0)
    points_P3 = rng.uniform(-1, 1, (4096, 3))
    normals_P3 = np.eye(3)[rng.integers(3, size=4096)]
    face = np.argmax(normals_P3, axis=1)
    points_P3[np.arange(4096), face] = 1
    surface = np.concatenate([points_P3 * [0.95, 0.6, 0.3], normals_P3], axis=1).astype(np.float16)
    return {"id": name, "up_axis": up_axis, "surface": surface, "sharp": surface[:64]}


def test_it_follows_from_its_number_and_the_id() -> None:
    assert varied(row(), 0)["surface"] is not None and np.array_equal(varied(row(), 0)["surface"], row()["surface"])
    one, again, other, two = varied(row(), 1), varied(row(), 1), varied(row("b"), 1), varied(row(), 2)
    assert np.array_equal(one["surface"], again["surface"]) and one["surface"].dtype == np.float16
    assert not np.array_equal(one["surface"], other["surface"]) and not np.array_equal(one["surface"], two["surface"])
    assert np.array_equal(one["sharp"], one["surface"][:64]), "the same movement"
    assert np.array_equal(row()["surface"], varied(row(), 3) and row()["surface"]), "the object itself stays"


@pytest.mark.parametrize("up_axis", ["x", "y", "z"])
def test_it_is_the_object_moved_about_its_vertical_axis(up_axis: str) -> None:
    up, before, mirrored = "xyz".index(up_axis), row()["surface"].astype(np.float64), set()
    for number in range(1, 25):
        after = varied(row(up_axis=up_axis), number)["surface"].astype(np.float64)
        low, high = after[:, :3].min(0), after[:, :3].max(0)
        assert np.abs(low + high).max() < 2e-3, "centred by its box"
        assert SMALLEST - 2e-3 < (high - low).max() / (2 * HALF_SIDE) < 1 + 2e-3
        assert np.allclose(np.linalg.norm(after[:, 3:], axis=1), 1, atol=2e-3)
        moved_33 = np.linalg.lstsq(before[:, 3:], after[:, 3:], rcond=None)[0].T
        assert np.allclose(moved_33 @ moved_33.T, np.eye(3), atol=2e-3) and moved_33[up, up] > 0.99
        mirrored.add(round(np.linalg.det(moved_33)))
        steps, expected = (np.diff(values, axis=0) for values in (after[:, :3], before[:, :3] @ moved_33.T))
        scale = float((steps * expected).sum() / (expected * expected).sum())
        assert np.allclose(steps, scale * expected, atol=4e-3), "points move as normals do"
    assert mirrored == {-1, 1}
