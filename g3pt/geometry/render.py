"""Pictures of meshes without a display: PyVista (VTK) offscreen, one window per size, reused.

Views look at the origin from around the object, y up, light grey clay on transparent background. Cameras are
camera-to-world matrices, OpenGL convention (the camera looks along its -z, its +y is up), vertical field of view
FIELD_OF_VIEW_DEGREES, square pixels. Rendered pixels may differ between GPU drivers.

Shapes: V vertices, F faces, N views.
"""

import functools
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyvista
    from PIL import Image

FIELD_OF_VIEW_DEGREES = 40.0
_PROBE = "import pyvista as p; w = p.Plotter(off_screen=True, window_size=(16, 16)); w.add_mesh(p.Cube()); w.show()"
_PROBE_TIMEOUT_S = 120
_CAPTION_PIXELS = 30
_COLOUR = (0.78, 0.78, 0.80)


@functools.cache
def renderer_available() -> str | None:
    """None when an offscreen view can be rendered here, else the reason, found in a child process (drivers crash)."""
    try:
        done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"the offscreen renderer did not answer within {_PROBE_TIMEOUT_S} s"
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return f"the offscreen renderer failed (exit {done.returncode}): {lines[-1][:200] if lines else 'no message'}"


def render_views(
    vertices: np.ndarray, faces: np.ndarray, num_views: int, size: int, seed: int
) -> tuple[list[bytes], np.ndarray]:
    """PNG bytes (RGBA, size x size) of each view, and the cameras (N, 4, 4) float32.

    Azimuths are evenly spaced from a drawn start, elevations drawn from 5 to 40 degrees; the object always fits.
    """
    if num_views < 1 or size < 16:
        raise ValueError(f"need at least one view of at least 16 pixels, not {num_views} of {size}")
    rng = np.random.default_rng(seed)
    azimuths = 2 * np.pi * (np.arange(num_views) / num_views + rng.random())
    elevations = np.radians(rng.uniform(5.0, 40.0, num_views))
    distance = _fitting_distance(vertices)
    cameras = np.stack([_camera(a, e, distance) for a, e in zip(azimuths, elevations, strict=True)])
    return [_png(image) for image in _images(vertices, faces, cameras, size)], cameras


def contact_sheet(
    items: list[tuple[np.ndarray, np.ndarray, str]], path: str | Path, columns: int = 4, size: int = 256,
    azimuth_degrees: float = 35.0, elevation_degrees: float = 20.0,
) -> None:
    """One PNG with a picture of each (vertices, faces, title), in rows of `columns`; a mesh without faces stays blank."""
    import textwrap

    from PIL import Image, ImageDraw

    caption = _CAPTION_PIXELS
    rows = -(-len(items) // columns)
    sheet = Image.new("RGB", (columns * size, max(rows, 1) * (size + caption)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (vertices, faces, title) in enumerate(items):
        left, top = i % columns * size, i // columns * (size + caption)
        if len(faces):
            view = picture(vertices, faces, size, azimuth_degrees, elevation_degrees)
            sheet.paste(view, (left, top + caption), view)
        lines = textwrap.wrap(title, size // 6)[:2]
        draw.multiline_text((left + 4, top + 2), "\n".join(lines), fill="black", spacing=1)
    write_whole(Path(path), sheet)


def picture(vertices: np.ndarray, faces: np.ndarray, size: int, azimuth_degrees: float = 35.0, elevation_degrees: float = 20.0) -> "Image.Image":
    """One view (RGBA, size x size) that the object just fits."""
    from PIL import Image

    camera = _camera(np.radians(azimuth_degrees), np.radians(elevation_degrees), _fitting_distance(vertices))
    return Image.fromarray(_images(vertices, faces, camera[None], size)[0])


def write_whole(path: Path, image: "Image.Image") -> None:
    """Write a PNG, complete or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    image.save(temporary, format="PNG")
    os.replace(temporary, path)


def _fitting_distance(vertices: np.ndarray) -> float:
    """Distance from the origin at which the object's sphere just fits the view."""
    radius = float(np.linalg.norm(vertices, axis=1).max())
    return 1.03 * max(radius, 1e-6) / np.sin(np.radians(FIELD_OF_VIEW_DEGREES / 2))


def _camera(azimuth: float, elevation: float, distance: float) -> np.ndarray:
    """Camera-to-world matrix (4, 4) float32 that looks at the origin; azimuth 0 looks from +z, y is up."""
    back = np.array([np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)])
    right = np.cross([0.0, 1.0, 0.0], back)
    right /= np.linalg.norm(right)
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1], matrix[:3, 2] = right, np.cross(back, right), back
    matrix[:3, 3] = back * distance
    return matrix.astype(np.float32)


@functools.cache
def _plotter(size: int) -> "pyvista.Plotter":
    """The one offscreen window of this size in this process."""
    import pyvista
    import vtk

    vtk.vtkLogger.SetStderrVerbosity(vtk.vtkLogger.VERBOSITY_OFF)  # it warns of a missing display before it falls back
    plotter = pyvista.Plotter(off_screen=True, window_size=(size, size), lighting="none")
    key = pyvista.Light(position=(0.4, 0.7, 1.0), light_type="camera light", intensity=0.9)
    fill = pyvista.Light(position=(-0.9, 0.1, 0.5), light_type="camera light", intensity=0.4)
    plotter.add_light(key)
    plotter.add_light(fill)
    return plotter


def _images(vertices: np.ndarray, faces: np.ndarray, cameras: np.ndarray, size: int) -> list[np.ndarray]:
    """RGBA pictures (size, size, 4) uint8, one for each camera."""
    import pyvista

    plotter = _plotter(size)
    mesh = pyvista.PolyData.from_regular_faces(np.asarray(vertices, dtype=np.float32), np.asarray(faces))
    actor = plotter.add_mesh(mesh, color=_COLOUR, ambient=0.15, smooth_shading=False, reset_camera=False, render=False)
    images = []
    for camera in cameras.astype(np.float64):
        plotter.camera.position, plotter.camera.focal_point = camera[:3, 3], (0.0, 0.0, 0.0)
        plotter.camera.up, plotter.camera.view_angle = camera[:3, 1], FIELD_OF_VIEW_DEGREES
        distance = float(np.linalg.norm(camera[:3, 3]))
        plotter.camera.clipping_range = (0.3 * distance, 2.0 * distance)
        plotter.render()  # screenshot alone would return the last picture again
        images.append(np.array(plotter.screenshot(None, transparent_background=True, return_img=True)))
    plotter.remove_actor(actor, reset_camera=False, render=False)
    return images


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()
