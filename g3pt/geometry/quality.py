"""How good a solid is: the figures of a dataset row, and the bounds that a good row must keep.

By construction a solid is watertight, faces outward and has one surface per component, because its field is negative
everywhere but in one connected region, the outside air. The figures check that instead of assuming it.
Chamfer: mean of both directed mean nearest distances between 4096 samples of the input and of the solid, in the solid's
box. Two samplings of one surface are .01 to .03 apart, and what the input has inside the solid counts as far away.

Shapes: V vertices, F faces, C components, N points.
"""

from dataclasses import dataclass

import numpy as np

from g3pt.geometry.watertight import Solid

_CHAMFER_POINTS = 4096
_STEP_UP = 1e-9  # distance above a component's topmost corner: far below a voxel, far above rounding


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Bounds of an `ok` row, far outside what real objects have (LOG.md, 2026-11-25), so
    that only failures violate them.
    """

    min_volume: float = 8e-4  # of the box [-1, 1]^3, that is 3 of 32,768 volume points: a wire a voxel thin
    max_chamfer: float = 0.25
    max_share_sigmas: float = (
        6.0  # largest distance of the share of volume points inside from volume / 8, in standard deviations
    )


def quality_faults(figures: dict, num_queries: int, bounds: Bounds = Bounds()) -> list[tuple[str, str]]:
    """(reason class, what was found) of every bound that a row's figures violate; empty for a good row.

    Labels are compared with the volume only if there are query points.
    """
    volume, shells, share, chamfer = (
        figures[k] for k in ("volume", "num_inner_shells", "volume_share", "chamfer_to_input")
    )
    expected = min(max(volume / 8.0, 0.0), 1.0)
    spread = (expected * (1.0 - expected) / num_queries) ** 0.5 + 1.0 / num_queries if num_queries else 0.0
    checks = [
        (not figures["solid_watertight"], "not-watertight",
         "an edge of the solid does not belong to exactly two faces"),
        (shells > 0, "inner-shell", f"{shells} of the solid's components lie inside another or face inward"),
        (not volume >= bounds.min_volume, "too-thin", f"volume {volume:.3g} is below {bounds.min_volume:.3g}"),
        (not chamfer <= bounds.max_chamfer, "far-from-input",
         f"chamfer_to_input {chamfer:.3g} is above {bounds.max_chamfer:.3g}"),
        (
            num_queries > 0 and not abs(share - expected) <= bounds.max_share_sigmas * spread,
            "labels-disagree",
            f"{share:.4f} of the volume points lie inside, the solid fills {expected:.4f} of the box",
        ),
    ]  # fmt: skip
    return [(reason, text) for broken, reason, text in checks if broken]


def solid_figures(solid: Solid) -> dict:
    """Figures of a solid: components, inner shells, watertightness, volume, area, thickness (of a slab of
    that volume and area).
    """
    from g3pt.geometry.surface import face_normals

    components, count = _components(solid)
    component_F = components[solid.faces[:, 0]]
    volumes = _component_volumes(solid, component_F, count)
    volume = float(volumes.sum())
    areas = face_normals(solid.vertices, solid.faces)[1]
    surface_area = float(areas.sum())
    largest = int(np.bincount(component_F, areas, count).argmax())
    return {
        "num_components": count,
        "largest_component_share": longest_side(solid.vertices[components == largest]) / longest_side(solid.vertices),
        "num_inner_shells": int(((volumes <= 0.0) | _enclosed(solid, components, count)).sum()),
        "solid_faces": len(solid.faces),
        "solid_watertight": is_watertight(solid.vertices, solid.faces),
        "volume": volume,
        "surface_area": surface_area,
        "thickness": 2.0 * volume / surface_area,
    }


def longest_side(points: np.ndarray) -> float:
    """The longest side of the bounding box of points (N, 3)."""
    from g3pt.geometry.surface import bounds

    low, high = bounds(points)
    return float((high - low).max())


def _components(solid: Solid) -> tuple[np.ndarray, int]:
    """Component 0 to C - 1 of each vertex (V,), and C. A solid has no vertex without a face."""
    from g3pt.geometry._mesh_kernels import component_labels

    labels = component_labels(solid.faces, len(solid.vertices))
    present = np.bincount(labels, minlength=len(labels)) > 0
    return (np.cumsum(present) - 1)[labels], int(present.sum())


def _component_volumes(solid: Solid, component_F: np.ndarray, count: int) -> np.ndarray:
    """Signed volume (C,) that each component encloses."""
    a, b, c = (solid.vertices[solid.faces[:, k]] for k in range(3))
    return np.bincount(component_F, np.einsum("fd,fd->f", a, np.cross(b, c)) / 6.0, count)


def _enclosed(solid: Solid, components: np.ndarray, count: int) -> np.ndarray:
    """Whether it is solid just above each component's topmost corner (C,): then the component is inside another,
    or a cavity's wall.
    """
    from g3pt.geometry.labels import inside

    height = solid.vertices[:, 2]
    top = np.full(count, -np.inf)
    np.maximum.at(top, components, height)
    highest = np.flatnonzero(height == top[components])
    corner = np.zeros(count, dtype=np.int64)
    corner[components[highest]] = highest
    return inside(solid.vertices, solid.faces, solid.vertices[corner] + [0.0, 0.0, _STEP_UP])


def is_watertight(vertices: np.ndarray, faces: np.ndarray) -> bool:
    """Whether, after equal vertices are merged, every edge belongs to exactly two faces that run it
    in opposite ways.
    """
    from g3pt.geometry._mesh_kernels import closed, first_equal

    exact = np.ascontiguousarray(vertices, dtype=np.float64) + 0.0  # -0.0 becomes 0.0: equal vertices have equal bits
    faces = first_equal(exact.view(np.int64))[np.asarray(faces)]
    faces = faces[(faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])]
    return len(faces) > 0 and closed(faces, len(vertices))


def signed_volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    """Volume enclosed by a closed surface, positive when its faces point outward."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    return float(np.einsum("fd,fd->", a, np.cross(b, c)) / 6.0)


def chamfer_to_input(solid: Solid, vertices: np.ndarray, faces: np.ndarray, rng: np.random.Generator) -> float:
    """Chamfer distance, in the solid's box, between a solid and the mesh (V, 3), (F, 3) that it was made from."""
    from g3pt.geometry.surface import sample_surface

    ours = sample_surface(solid.vertices, solid.faces, _CHAMFER_POINTS, rng)[:, :3]
    placed = np.asarray(vertices, dtype=np.float64) * solid.scale + solid.offset
    theirs = sample_surface(placed, np.asarray(faces), _CHAMFER_POINTS, rng)[:, :3]
    forth, back = _nearest(theirs, ours), _nearest(ours, theirs)
    return float((forth.mean() + back.mean()) / 2)


def _nearest(points: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Distance from each query (N, 3) to the nearest point."""
    from scipy.spatial import cKDTree

    return cKDTree(points, balanced_tree=False, compact_nodes=False).query(queries)[0]  # built in half the time
