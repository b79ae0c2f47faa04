"""Pictures of meshes: RGBA, transparent background, without a display or a graphics driver (`_raster_kernels`,
compiled by numba).

Each pixel is the mean of SAMPLES x SAMPLES samples in linear light, encoded as sRGB, with straight alpha. Three lights
move with the camera (key from the upper left, fill from the right, rim from behind), with a constant ambient term; a
surface that faces the camera keeps about its own brightness. Cameras are `cameras.py`'s. The same arguments give the
same bytes.

Shapes: V vertices, F faces, N views.
"""

import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from g3pt.geometry.appearance import Appearance, clay
from g3pt.geometry.cameras import FIELD_OF_VIEW_DEGREES, fitting_distance, look_at_origin, place_cameras

if TYPE_CHECKING:
    from PIL import Image

    from g3pt.geometry.scene import Scene

SAMPLES = 3  # per side of each pixel
AMBIENT = 0.36
LIGHTS = (
    (-0.5, 0.7, 0.75, 0.55),
    (0.9, 0.15, 0.6, 0.24),
    (0.1, 0.6, -0.9, 0.25),
)  # in camera space: direction, strength
_CAPTION_PIXELS = 30


def render_views(
    what: Appearance, num_views: int, size: int, seed: int, preset: str = "random", fit: np.ndarray | None = None
) -> tuple[list[bytes], np.ndarray]:
    """Encoded pictures (RGBA, size x size) of the views, and the cameras (N, 4, 4) float32.

    The cameras are placed for the vertices `fit`, by default those that are drawn.
    """
    if size < 16:
        raise ValueError(f"a view needs at least 16 pixels a side, not {size}")
    fit = np.concatenate([part.vertices[np.unique(part.faces)] for part in what.parts]) if fit is None else fit
    cameras = place_cameras(preset, num_views, fit, seed)
    return [encode(image) for image in draw(what, cameras, size)], cameras


def draw(what: Appearance, cameras: np.ndarray, size: int) -> list[np.ndarray]:
    """RGBA pictures (size, size, 4) uint8, one for each camera (N, 4, 4)."""
    from g3pt.geometry.scene import build_scene

    scene = build_scene(what.parts)
    return [_image(scene, camera.astype(np.float64), size) for camera in cameras]


def _image(scene: "Scene", camera: np.ndarray, size: int) -> np.ndarray:
    from g3pt.geometry._raster_kernels import mip_level, project, rasterise, resolve, shade
    from g3pt.geometry.scene import BLEND

    side = SAMPLES * size
    focal = side / 2 / np.tan(np.radians(FIELD_OF_VIEW_DEGREES / 2))
    screen = project(scene.vertices, np.linalg.inv(camera), focal, side / 2)
    nearest, owner = np.zeros((side, side)), np.full((side, side), -1, dtype=np.int32)
    picture = np.zeros((side, side, 4), dtype=np.float32)
    eye, lights = camera[:3, 3].copy(), _lights(camera)
    seen = (scene, screen, mip_level(scene, screen, SAMPLES), eye, lights, AMBIENT)
    rasterise(np.arange(len(scene.faces)), False, *seen, nearest, owner, picture)
    shade(*seen, owner, picture, SAMPLES)
    clear = np.nonzero(scene.mode[scene.material] == BLEND)[0]
    if len(clear):
        middle = scene.vertices[scene.faces[clear]].mean(axis=1)
        far_first = np.argsort(-np.linalg.norm(middle - eye, axis=1), kind="stable")
        rasterise(clear[far_first], True, *seen, nearest, owner, picture)
    return resolve(picture, SAMPLES)


def _lights(camera: np.ndarray) -> np.ndarray:
    """World directions towards the lights, scaled by their strength, (3, 3)."""
    local = np.array([light[:3] for light in LIGHTS])
    strength = np.array([light[3] for light in LIGHTS])
    return (local / np.linalg.norm(local, axis=1, keepdims=True) * strength[:, None]) @ camera[:3, :3].T


def encode(image: np.ndarray) -> bytes:
    """A picture as lossless WebP: two thirds of a PNG's size in about its time."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="WEBP", lossless=True, quality=20, method=2)
    return buffer.getvalue()


def picture(
    vertices: np.ndarray, faces: np.ndarray, size: int, azimuth_degrees: float = 35.0, elevation_degrees: float = 20.0
) -> "Image.Image":
    """One view of a mesh in clay, RGBA, size x size."""
    from PIL import Image

    camera = look_at_origin(azimuth_degrees, elevation_degrees, fitting_distance(np.asarray(vertices)))
    return Image.fromarray(draw(clay(vertices, faces), camera[None], size)[0])


def contact_sheet(
    items: list[tuple[np.ndarray, np.ndarray, str]],
    path: str | Path,
    columns: int = 4,
    size: int = 256,
    azimuth_degrees: float = 35.0,
    elevation_degrees: float = 20.0,
) -> None:
    """A PNG with a picture of each (vertices, faces, title), in rows of `columns`;
    a mesh without faces is left blank.
    """
    views = (
        picture(vertices, faces, size, azimuth_degrees, elevation_degrees) if len(faces) else None
        for vertices, faces, _ in items
    )
    picture_sheet(path, [title for *_, title in items], views, columns, size)


def picture_sheet(
    path: str | Path, titles: Sequence[str], pictures: Iterable["Image.Image | None"], columns: int, size: int
) -> None:
    """A PNG of pictures (RGBA, size x size; None is blank) below their titles, in rows of `columns`, fewer
    if there are fewer.

    A title has two lines; characters that can't be printed become question marks.
    """
    import textwrap

    from PIL import Image, ImageDraw

    high, rows = size + _CAPTION_PIXELS, -(-len(titles) // columns)
    sheet = Image.new("RGB", (max(1, min(columns, len(titles))) * size, max(rows, 1) * high), "white")
    draw_on = ImageDraw.Draw(sheet)
    for i, (title, view) in enumerate(zip(titles, pictures, strict=True)):
        left, top = i % columns * size, i // columns * high
        if view is not None:
            sheet.paste(view, (left, top + _CAPTION_PIXELS), view)
        lines = textwrap.wrap("".join(c if c.isprintable() else "?" for c in title), size // 6)[:2]
        draw_on.multiline_text((left + 4, top + 2), "\n".join(lines), fill="black", spacing=1)
    write_whole(Path(path), sheet)


def write_whole(path: Path, image: "Image.Image") -> None:
    """Write a PNG, complete or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    image.save(temporary, format="PNG")
    os.replace(temporary, path)
