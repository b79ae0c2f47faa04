"""Closed triangle primitives that procedural objects are built from.

How: every function returns `(vertices, faces)` of one closed, outward-facing part; an object is a list of parts that
may overlap, and preprocessing turns their union into one solid. y is up.
Ours: all of it (the paper used Objaverse; nothing here is the paper's).
"""

from collections.abc import Sequence

import numpy as np

Part = tuple[np.ndarray, np.ndarray]
Point = tuple[float, float, float]


def join(parts: Sequence[Part]) -> Part:
    """One mesh of all parts, faces renumbered."""
    counts = np.cumsum([0] + [len(vertices) for vertices, _ in parts])
    vertices = np.concatenate([vertices for vertices, _ in parts])
    faces = np.concatenate([faces + start for (_, faces), start in zip(parts, counts[:-1], strict=True)])
    return vertices, faces


def loft(rings: Sequence[np.ndarray]) -> Part:
    """A closed part through rings of equally many points, its two ends capped by fans; convex ends only."""
    rings_array = np.asarray(rings, dtype=np.float64)
    num_rings, num_points = rings_array.shape[:2]
    i, j = np.meshgrid(np.arange(num_rings - 1), np.arange(num_points), indexing="ij")
    a, b = i * num_points + j, i * num_points + (j + 1) % num_points
    quads = np.stack([a, b, b + num_points, a + num_points], axis=-1).reshape(-1, 4)
    start, end = num_rings * num_points, num_rings * num_points + 1
    ring = np.arange(num_points)
    following = (ring + 1) % num_points
    last = (num_rings - 1) * num_points
    faces = np.concatenate(
        [
            quads[:, [0, 1, 2]],
            quads[:, [0, 2, 3]],
            np.stack([np.full(num_points, start), following, ring], axis=-1),
            np.stack([np.full(num_points, end), last + ring, last + following], axis=-1),
        ]
    )
    vertices = np.concatenate([rings_array.reshape(-1, 3), rings_array[:1].mean(axis=1), rings_array[-1:].mean(axis=1)])
    return _outward(vertices, faces)


def _outward(vertices: np.ndarray, faces: np.ndarray) -> Part:
    corner = vertices[faces]
    volume = np.einsum("fi,fi->f", corner[:, 0], np.cross(corner[:, 1], corner[:, 2])).sum()
    return vertices, faces if volume > 0 else faces[:, ::-1]


def box(centre: Point, size: Point) -> Part:
    """An axis-aligned box."""
    x, y, z = np.asarray(size) / 2
    ring = np.array([[-x, 0, -z], [x, 0, -z], [x, 0, z], [-x, 0, z]])
    return loft([ring + (0, -y, 0) + np.asarray(centre), ring + (0, y, 0) + np.asarray(centre)])


def block(low: Point, high: Point) -> Part:
    """An axis-aligned box given by its two corners."""
    low_array, high_array = np.asarray(low), np.asarray(high)
    return box(tuple((low_array + high_array) / 2), tuple(high_array - low_array))


def frustum(
    centre_low: Point, size_low: tuple[float, float], centre_high: Point, size_high: tuple[float, float]
) -> Part:
    """A four-sided part between two horizontal rectangles (size = x, z)."""
    ring = np.array([[-1, 0, -1], [1, 0, -1], [1, 0, 1], [-1, 0, 1]]) / 2
    low = ring * (size_low[0], 0, size_low[1]) + np.asarray(centre_low)
    high = ring * (size_high[0], 0, size_high[1]) + np.asarray(centre_high)
    return loft([low, high])


def prism(outline: Sequence[tuple[float, float]], axis: str, low: float, high: float) -> Part:
    """A convex outline pushed along an axis; the outline's pairs are (x, y) for "z", (x, z) for "y", (y, z) for "x"."""
    flat = np.asarray(outline, dtype=np.float64)
    column = {"x": 0, "y": 1, "z": 2}[axis]
    rings = []
    for value in (low, high):
        rings.append(np.insert(flat, column, value, axis=1))
    return loft(rings)


def tube(path: Sequence[Point], radii: Sequence[float] | float, segments: int = 16) -> Part:
    """A round tube along a path with flat ends and a frame without twist; one radius per point, or one for all."""
    points = np.asarray(path, dtype=np.float64)
    radius = np.broadcast_to(np.asarray(radii, dtype=np.float64), len(points))
    tangents = np.gradient(points, axis=0) if len(points) > 2 else np.repeat(points[1:] - points[:1], 2, axis=0)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    normal = np.eye(3)[np.abs(tangents[0]).argmin()]
    angle = np.arange(segments) * (2 * np.pi / segments)
    rings = []
    for point, tangent, size in zip(points, tangents, radius, strict=True):
        normal = normal - tangent * (normal @ tangent)
        normal /= np.linalg.norm(normal)
        side = np.cross(tangent, normal)
        rings.append(point + size * (np.cos(angle)[:, None] * normal + np.sin(angle)[:, None] * side))
    return loft(rings)


def lathe(profile: Sequence[tuple[float, float]], segments: int = 24, centre: tuple[float, float] = (0.0, 0.0)) -> Part:
    """A profile of (radius, y) pairs turned around the y axis; four segments give a square section
    with sides along x and z.

    The first and last radius may be 0; between them the profile may fold back, so that a vessel gets an inside.
    A square section's half side is the radius.
    """
    angle = np.pi / segments + np.arange(segments) * (2 * np.pi / segments)
    stretch = np.sqrt(2.0) if segments == 4 else 1.0
    rings = [
        np.stack(
            [
                centre[0] + stretch * radius * np.cos(angle),
                np.full(segments, y),
                centre[1] + stretch * radius * np.sin(angle),
            ],
            axis=-1,
        )
        for radius, y in profile
    ]
    return loft(rings)


def disc(centre: Point, radius: float, height: float, segments: int = 24) -> Part:
    """An upright cylinder (or square block for four segments) standing on `centre`."""
    x, y, z = centre
    return lathe([(radius, y), (radius, y + height)], segments, (x, z))


def ball(centre: Point, radii: Point, rings: int = 9, segments: int = 18) -> Part:
    """An ellipsoid."""
    angles = np.linspace(0.0, np.pi, rings + 2)
    vertices, faces = lathe([(np.sin(angle) + 1e-9, -np.cos(angle)) for angle in angles], segments)
    return vertices * np.asarray(radii) + np.asarray(centre), faces


def wheel(centre: Point, radius: float, width: float) -> Part:
    """A wheel that rolls along x: a cylinder along z."""
    x, y, z = centre
    return tube([(x, y, z - width / 2), (x, y, z + width / 2)], radius, 20)
