"""Views show the object that was given, from the camera that is returned."""

import io
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from g3pt.geometry import render
from g3pt.geometry.render import FIELD_OF_VIEW_DEGREES, contact_sheet, render_views, renderer_available


@pytest.fixture(autouse=True)
def renderer() -> None:
    if reason := renderer_available():
        pytest.skip(reason)


def alpha_of(png: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(png))
    assert image.mode == "RGBA"
    return np.asarray(image)[..., 3] > 127


def projected(points: np.ndarray, camera: np.ndarray, size: int) -> np.ndarray:
    """Pixel (column, row) of world points seen by a camera-to-world matrix."""
    local = (np.concatenate([points, np.ones((len(points), 1))], axis=1) @ np.linalg.inv(camera.astype(float)).T)[:, :3]
    focal = size / 2 / np.tan(np.radians(FIELD_OF_VIEW_DEGREES / 2))
    return np.stack([size / 2 + focal * local[:, 0] / -local[:, 2], size / 2 - focal * local[:, 1] / -local[:, 2]], axis=1)


def test_views_have_the_silhouette_of_their_cameras() -> None:
    shape = trimesh.creation.box((0.4, 1.8, 0.2))
    shape.apply_translation((0.5, 0.0, 0.1))
    views, cameras = render_views(shape.vertices, shape.faces, 4, 96, seed=3)
    assert len(views) == 4 and cameras.shape == (4, 4, 4) and cameras.dtype == np.float32
    for png, camera in zip(views, cameras, strict=True):
        rows, columns = np.nonzero(alpha_of(png))
        pixels = projected(np.asarray(shape.vertices), camera, 96)
        np.testing.assert_allclose([columns.min(), rows.min()], pixels.min(axis=0), atol=1.6)
        np.testing.assert_allclose([columns.max() + 1, rows.max() + 1], pixels.max(axis=0), atol=1.6)
        np.testing.assert_allclose(camera[:3, :3] @ camera[:3, :3].T, np.eye(3), atol=1e-6)


def test_objects_after_each_other_do_not_mix_and_seeds_fix_cameras() -> None:
    box, ball = trimesh.creation.box((1, 1, 1)), trimesh.creation.icosphere(2)
    first, cameras = render_views(box.vertices, box.faces, 2, 64, seed=0)
    other, _ = render_views(ball.vertices, ball.faces, 2, 64, seed=0)
    again, same = render_views(box.vertices, box.faces, 2, 64, seed=0)
    assert first == again and first != other and first[0] != first[1]
    np.testing.assert_array_equal(cameras, same)
    assert not np.array_equal(cameras, render_views(box.vertices, box.faces, 2, 64, seed=1)[1])


def test_contact_sheet_has_a_cell_for_each_mesh(tmp_path: Path) -> None:
    box, nothing = trimesh.creation.box((1, 1, 1)), np.zeros((0, 3))
    items = [(box.vertices, box.faces, "box"), (nothing, nothing.astype(int), "empty"), (box.vertices, box.faces, "again")]
    contact_sheet(items, tmp_path / "sheet.png", columns=2, size=64)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    caption = sheet.shape[0] // 2 - 64
    assert sheet.shape == (2 * (64 + caption), 128, 3)
    cells = sheet.reshape(2, 64 + caption, 2, 64, 3)[:, caption:].transpose(0, 2, 1, 3, 4)
    assert [(cell < 250).any() for cell in cells.reshape(4, 64, 64, 3)] == [True, False, True, False]


def test_a_missing_renderer_is_a_reason_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "_PROBE", "import sys; sys.exit('no driver')")
    reason = render.renderer_available.__wrapped__()
    assert reason is not None and "no driver" in reason
    monkeypatch.setattr(render, "_PROBE", "import time; time.sleep(60)")
    monkeypatch.setattr(render, "_PROBE_TIMEOUT_S", 0.2)
    assert "did not answer" in render.renderer_available.__wrapped__()


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="0"):
        render_views(np.eye(3), np.array([[0, 1, 2]]), 0, 64, 0)
