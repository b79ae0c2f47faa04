"""Views show the object that was given, from the camera that is returned, with its own colours
and nothing around them.
"""

import io
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from g3pt.geometry.appearance import Appearance, Material, Part, clay
from g3pt.geometry.cameras import FIELD_OF_VIEW_DEGREES, fitting_distance, look_at_origin, place_cameras
from g3pt.geometry.render import contact_sheet, draw, picture_sheet, render_views

RED, GREEN, BLUE, YELLOW = (1, 0, 0, 1), (0, 1, 0, 1), (0, 0, 1, 1), (1, 1, 0, 1)
FRONT = look_at_origin(0, 0, 4.0)[None]
SQUARE = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], dtype=float)
TWO_FACES = np.array([[0, 1, 2], [0, 2, 3]])
UVS = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], dtype=float)  # the picture upright on the square


def pixels_of(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    assert image.mode == "RGBA"
    return np.asarray(image)


def projected(points: np.ndarray, camera: np.ndarray, size: int) -> np.ndarray:
    """Pixel (column, row) of world points seen by a camera-to-world matrix, as cameras.py documents it."""
    local = (np.concatenate([points, np.ones((len(points), 1))], axis=1) @ np.linalg.inv(camera.astype(float)).T)[:, :3]
    focal = size / 2 / np.tan(np.radians(FIELD_OF_VIEW_DEGREES / 2))
    return np.stack(
        [size / 2 + focal * local[:, 0] / -local[:, 2], size / 2 - focal * local[:, 1] / -local[:, 2]], axis=1
    )


def square(z: float = 0.0, uvs: np.ndarray | None = UVS, **material: object) -> Part:
    """A square that faces the front camera, of plain colour unless told otherwise."""
    return Part(vertices=SQUARE + [0, 0, z], faces=TWO_FACES, uvs=uvs, material=Material(**{"unlit": True} | material))


def seen(*parts: Part, size: int = 32) -> np.ndarray:
    """The front camera's picture."""
    return draw(Appearance(parts=list(parts), kind="material"), FRONT, size)[0]


def test_views_have_the_silhouette_of_their_cameras() -> None:
    shape = trimesh.creation.box((0.4, 1.8, 0.2))
    shape.apply_translation((0.5, 0.0, 0.1))
    views, cameras = render_views(clay(shape.vertices, shape.faces), 4, 96, seed=3)
    assert len(views) == 4 and cameras.shape == (4, 4, 4) and cameras.dtype == np.float32
    for data, camera in zip(views, cameras, strict=True):
        rows, columns = np.nonzero(pixels_of(data)[..., 3] > 127)
        pixels = projected(np.asarray(shape.vertices), camera, 96)
        np.testing.assert_allclose([columns.min(), rows.min()], pixels.min(axis=0), atol=0.8)
        np.testing.assert_allclose([columns.max() + 1, rows.max() + 1], pixels.max(axis=0), atol=0.8)


@pytest.mark.parametrize("preset", ["random", "ring", "axes"])
def test_known_points_are_where_the_stored_matrix_says(preset: str) -> None:
    """Small coloured balls on transparent ground: each is found, by its colour, at its projected place
    in every view that shows it.
    """
    places = {RED: (0.8, 0.5, 0.0), GREEN: (-0.7, 0.1, 0.4), BLUE: (0.1, -0.8, -0.6), YELLOW: (0.0, 0.4, 0.8)}
    ball = trimesh.creation.icosphere(1, 0.06)
    parts = [
        Part(vertices=ball.vertices + place, faces=ball.faces, material=Material(colour=c, unlit=True))
        for c, place in places.items()
    ]
    views, cameras = render_views(Appearance(parts=parts, kind="material"), 6, 96, 0, preset)
    found = 0
    for data, camera in zip(views, cameras, strict=True):
        picture = pixels_of(data).astype(int)
        for colour, place in places.items():
            rows, columns = np.nonzero(
                (picture[..., 3] > 200) & (np.abs(picture[..., :3] - np.multiply(colour[:3], 255)).sum(axis=-1) < 60)
            )
            if len(rows):  # else another ball hides it
                found += 1
                np.testing.assert_allclose(
                    [columns.mean() + 0.5, rows.mean() + 0.5], projected(np.array([place]), camera, 96)[0], atol=1.5
                )
    assert found >= 20


def test_presets() -> None:
    box = np.array([[0.5, 0.5, 0.5], [-0.5, -0.5, -0.5]])
    ring, axes = place_cameras("ring", 4, box, 0), place_cameras("axes", 6, box, 0)
    distance = fitting_distance(box)
    heights = ring[:, 1, 3] / distance
    np.testing.assert_allclose(heights, np.sin(np.radians(20.0)), atol=1e-6)
    np.testing.assert_allclose(
        axes[:, :3, 3] / distance, [[0, 0, 1], [1, 0, 0], [0, 0, -1], [-1, 0, 0], [0, 1, 0], [0, -1, 0]], atol=1e-6
    )
    for cameras in (ring, axes, place_cameras("random", 5, box, 7)):
        np.testing.assert_allclose(
            cameras[:, :3, :3] @ cameras[:, :3, :3].transpose(0, 2, 1),
            np.tile(np.eye(3), (len(cameras), 1, 1)),
            atol=1e-6,
        )
        np.testing.assert_allclose(np.linalg.det(cameras[:, :3, :3]), 1.0, atol=1e-5)
        np.testing.assert_allclose(cameras[:, :3, 2] * distance, cameras[:, :3, 3], atol=1e-5)  # looks at the origin
    assert not np.array_equal(place_cameras("random", 5, box, 7), place_cameras("random", 5, box, 8))
    with pytest.raises(ValueError, match="'cube'"):
        place_cameras("cube", 1, box, 0)
    with pytest.raises(ValueError, match="not 0"):
        place_cameras("ring", 0, box, 0)


def test_the_same_arguments_give_the_same_bytes() -> None:
    box, ball = trimesh.creation.box((1, 1, 1)), trimesh.creation.icosphere(2)
    first, _ = render_views(clay(box.vertices, box.faces), 2, 64, seed=0)
    other, _ = render_views(clay(ball.vertices, ball.faces), 2, 64, seed=0)
    again, _ = render_views(clay(box.vertices, box.faces), 2, 64, seed=0)
    assert first == again and first != other and first[0] != first[1]


def test_a_texture_is_upright_unmirrored_and_keeps_its_colours() -> None:
    picture = np.zeros((8, 8, 4), dtype=np.uint8)
    picture[..., 3] = 255
    picture[:4, :4], picture[:4, 4:], picture[4:, :4], picture[4:, 4:] = (
        (200, 30, 40, 255),
        (20, 150, 60, 255),
        (30, 60, 170, 255),
        (128, 128, 128, 255),
    )
    image = seen(square(image=picture, colour=(1, 1, 1, 1)))
    for row, column in ((10, 10), (10, 21), (21, 10), (21, 21)):  # around the middle
        expected = picture[0 if row < 16 else 7, 0 if column < 16 else 7]
        np.testing.assert_allclose(image[row, column].astype(int), expected, atol=1)


def test_lit_surfaces_keep_about_their_brightness() -> None:
    """A grey picture that faces the camera: a wrong gamma would make 128 a 55 or a 188."""
    picture = np.full((4, 4, 4), (128, 128, 128, 255), dtype=np.uint8)
    lit = seen(square(image=picture, colour=(1, 1, 1, 1), unlit=False))[16, 16]
    assert 110 <= lit[0] <= 140 and lit[3] == 255
    assert 225 <= seen(square(uvs=None, colour=(1, 1, 1, 1), unlit=False))[16, 16, 0] <= 250


def test_edges_have_no_fringe() -> None:
    turned = SQUARE @ np.array([[0.8, 0.6, 0], [-0.6, 0.8, 0], [0, 0, 1]])
    image = seen(Part(vertices=turned, faces=TWO_FACES, material=Material(colour=RED, unlit=True)))
    partly = image[(image[..., 3] > 0) & (image[..., 3] < 255)]
    assert len(partly) > 20, "an edge within a pixel is partly transparent"
    assert (image[image[..., 3] > 0][:, :3] == (255, 0, 0)).all() and not image[image[..., 3] == 0].any()


def test_masks_cut_and_glass_lets_through() -> None:
    cut = np.full((8, 8, 4), 255, dtype=np.uint8)
    cut[:4, :, 3] = 40
    image = seen(square(image=cut, colour=RED, alpha_mode="mask"))
    assert image[22, 16].tolist() == [255, 0, 0, 255] and image[9, 16, 3] == 0
    assert seen(square(image=cut, colour=RED, alpha_mode="opaque"))[9, 16].tolist() == [255, 0, 0, 255]
    over = seen(square(uvs=None, colour=(1, 0, 0, 0.5), alpha_mode="blend", z=0.1), square(uvs=None, colour=BLUE))
    np.testing.assert_allclose(over[16, 16].astype(int), (188, 0, 188, 255), atol=1)  # half the light of each
    alone = seen(square(uvs=None, colour=(1, 0, 0, 0.5), alpha_mode="blend"))
    assert alone[16, 16].tolist() == [255, 0, 0, 128]
    assert set(alone[8:24, 8:24, 3].ravel()) == {128}, (
        "the square's two triangles must not overlap on their shared edge"
    )
    behind = seen(square(uvs=None, colour=(1, 0, 0, 0.5), alpha_mode="blend", z=-0.1), square(uvs=None, colour=BLUE))
    assert behind[16, 16].tolist() == [0, 0, 255, 255]


def test_arrays_in_any_order_are_read_alike() -> None:
    """A Fortran-ordered array would compile the rasteriser once more, within some object's time limit."""
    from g3pt.geometry.scene import build_scene

    part = Part(
        vertices=np.asfortranarray(SQUARE),
        faces=np.asfortranarray(TWO_FACES.astype(np.int32)),
        uvs=np.asfortranarray(UVS),
    )
    scene = build_scene([part])
    assert all(value.flags.c_contiguous for value in scene)
    assert [value.dtype for value in scene] == [value.dtype for value in build_scene([square()])]


def test_only_double_sided_faces_are_seen_from_behind() -> None:
    away = Part(vertices=SQUARE, faces=TWO_FACES[:, ::-1], material=Material(double_sided=False))
    assert not seen(away).any()
    assert seen(Part(vertices=SQUARE, faces=TWO_FACES[:, ::-1], material=Material(double_sided=True)))[16, 16, 3] == 255


def test_contact_sheet_has_a_cell_for_each_mesh(tmp_path: Path) -> None:
    box, nothing = trimesh.creation.box((1, 1, 1)), np.zeros((0, 3))
    items = [
        (box.vertices, box.faces, "box"),
        (nothing, nothing.astype(int), "empty"),
        (box.vertices, box.faces, "again"),
    ]
    contact_sheet(items, tmp_path / "sheet.png", columns=2, size=64)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    caption = sheet.shape[0] // 2 - 64
    assert sheet.shape == (2 * (64 + caption), 128, 3)
    cells = sheet.reshape(2, 64 + caption, 2, 64, 3)[:, caption:].transpose(0, 2, 1, 3, 4)
    assert [(cell < 250).any() for cell in cells.reshape(4, 64, 64, 3)] == [True, False, True, False]


def test_a_sheet_of_fewer_pictures_than_columns_is_narrower_and_prints_any_title(tmp_path: Path) -> None:
    red = Image.new("RGBA", (32, 32), (255, 0, 0, 255))
    picture_sheet(
        tmp_path / "sheet.png",
        ["a\x00\ud800 title that is far too long for two lines of thirty-two pixels", ""],
        [red, red],
        columns=5,
        size=32,
    )
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[1] == 64 and (sheet[-32:] == [255, 0, 0]).all()
