"""Where views are taken from: presets of camera-to-world matrices around the origin.

OpenGL convention: the camera looks along its -z, its +y is up, +x right; vertical (and horizontal) field of view
FIELD_OF_VIEW_DEGREES, square pixels, principal point in the middle. A world point p is seen, with c = inverse(matrix) @
(p, 1) and f = size / 2 / tan(field of view / 2), at column size / 2 + f * c.x / -c.z and row size / 2 - f * c.y / -c.z.

Shapes: N views.
"""

import numpy as np

FIELD_OF_VIEW_DEGREES = 40.0
PRESETS = ("random", "ring", "axes")
RING_ELEVATION_DEGREES = 20.0
RANDOM_ELEVATIONS_DEGREES = (5.0, 40.0)
_AXES = (
    (0, 0),
    (90, 0),
    (180, 0),
    (270, 0),
    (0, 90),
    (0, -90),
)  # azimuth, elevation: front, right, back, left, top, bottom


def place_cameras(preset: str, num_views: int, vertices: np.ndarray, seed: int) -> np.ndarray:
    """Cameras (N, 4, 4) float32 at which all vertices just fit.

    `random`: evenly spaced around from a random start, random elevations; `ring`: evenly spaced from the front, one
    elevation;
    `axes`: front, right, back, left, top, bottom, repeated after six.
    """
    if preset not in PRESETS:
        raise ValueError(f"cameras must be one of {', '.join(PRESETS)}, not {preset!r}")
    if num_views < 1:
        raise ValueError(f"need at least one view, not {num_views}")
    turns = np.arange(num_views) / num_views
    if preset == "random":
        rng = np.random.default_rng(seed)
        azimuths, elevations = 360.0 * (turns + rng.random()), rng.uniform(*RANDOM_ELEVATIONS_DEGREES, num_views)
    elif preset == "ring":
        azimuths, elevations = 360.0 * turns, np.full(num_views, RING_ELEVATION_DEGREES)
    else:
        azimuths, elevations = np.array([_AXES[k % len(_AXES)] for k in range(num_views)], dtype=np.float64).T
    distance = fitting_distance(vertices)
    return np.stack([look_at_origin(a, e, distance) for a, e in zip(azimuths, elevations, strict=True)])


def fitting_distance(vertices: np.ndarray) -> float:
    """Distance from the origin at which the object's sphere just fits the view."""
    radius = float(np.linalg.norm(vertices, axis=1).max())
    return 1.03 * max(radius, 1e-6) / np.sin(np.radians(FIELD_OF_VIEW_DEGREES / 2))


def look_at_origin(azimuth_degrees: float, elevation_degrees: float, distance: float) -> np.ndarray:
    """Camera-to-world matrix (4, 4) float32; azimuth 0 looks from +z, 90 from +x. y is up; from the poles -z
    or +z is.
    """
    azimuth, elevation = np.radians([azimuth_degrees, elevation_degrees])
    back = np.array([np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)])
    right = np.array([np.cos(azimuth), 0.0, -np.sin(azimuth)])
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1], matrix[:3, 2] = right, np.cross(back, right), back
    matrix[:3, 3] = back * distance
    return matrix.astype(np.float32)
