"""Measures the visible attributes of a mesh: a caption is checked against geometry,
not against the generator's parameters.

How: the mesh becomes occupancy on a grid by counting signed crossings of vertical rays (right for overlapping closed
parts), and each family's measurement uses extents, slices, runs and counts. It also works on generated solids. NumPy;
SciPy and numba inside.
Ours: all of it. The thresholds are in the gaps between the families' ranges, on the shapes and on their solids at 64
cells and finer, which are a voxel thicker on every side (LOG.md, 2026-11-28).
Legend: n grid cells per side; the grid covers the mesh's own bounding box with cubic cells.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_CELLS = 96


@dataclass(frozen=True)
class Ruler:
    """Occupancy (x, y, z) cropped to the bounding box, the extents (x, y, z) and the cell size, all
    in the mesh's own units.
    """

    grid: np.ndarray
    extent: np.ndarray
    cell: float

    def cut(self, axis: int, share: float) -> np.ndarray:
        """The slice at a share of the extent along an axis."""
        size = self.grid.shape[axis]
        return np.take(self.grid, min(size - 1, int(share * size)), axis=axis)

    def column(self, x: float, z: float) -> np.ndarray:
        """Occupancy along y at shares x and z."""
        nx, _, nz = self.grid.shape
        return self.grid[min(nx - 1, int(x * nx)), :, min(nz - 1, int(z * nz))]

    def top(self, x: float, z: float) -> float:
        """Height of the highest occupied cell's upper face at shares x and z above the box's floor; 0
        for an empty column.
        """
        occupied = np.flatnonzero(self.column(x, z))
        return (occupied[-1] + 1) * self.cell if len(occupied) else 0.0

    def parts(self, share: float) -> int:
        """Number of separate pieces in the horizontal slice at a share of the height."""
        from scipy.ndimage import label

        return label(self.cut(1, share), np.ones((3, 3)))[1]

    def widths(self, axis: int) -> np.ndarray:
        """Extent along x (0) or z (2) of each horizontal slice."""
        return (
            np.array([_span(level.any(axis=1 if axis == 0 else 0)) for level in np.moveaxis(self.grid, 1, 0)])
            * self.cell
        )

    def areas(self) -> np.ndarray:
        """Area of each horizontal slice."""
        return self.grid.sum(axis=(0, 2)) * self.cell**2


def _span(row: np.ndarray) -> int:
    occupied = np.flatnonzero(row)
    return int(occupied[-1] - occupied[0] + 1) if len(occupied) else 0


def _runs(row: np.ndarray) -> int:
    return int(np.count_nonzero(np.diff(np.concatenate([[0], row.astype(np.int8)])) == 1))


def _filled(mask: np.ndarray) -> float:
    """Share of its bounding rectangle that a mask fills: 1 for a rectangle, pi/4 for a disc."""
    box = _span(mask.any(axis=0)) * _span(mask.any(axis=1))
    return mask.sum() / box if box else 0.0


def _pick(value: float, threshold: float, above: str, below: str) -> str:
    return above if value > threshold else below


def occupancy(vertices: np.ndarray, faces: np.ndarray, cells: int = _CELLS) -> Ruler:
    """Occupancy of closed parts on a grid over their bounding box, `cells` along its longest side;
    winding number > 0 is inside.
    """
    from g3pt.geometry._mesh_kernels import column_crossings

    low, extent = vertices.min(axis=0), np.ptp(vertices, axis=0)
    cell = extent.max() / cells
    shape = np.maximum(np.rint(extent / cell).astype(int), 1)
    steps = extent / shape
    # cell centres at whole numbers, never on an edge
    corner_F33 = (np.asarray(vertices, np.float64)[faces] - low) / steps - 0.5 + 1e-4 * np.array([1.0, 0.0, 0.7])
    crossings = column_crossings(corner_F33, (int(shape[0]), int(shape[1]), int(shape[2])))
    winding = np.cumsum(crossings[:, ::-1], axis=1)[:, ::-1][:, 1:]
    return Ruler(winding > 0, extent, float(steps.mean()))


def measure(family: str, vertices: np.ndarray, faces: np.ndarray) -> dict[str, str]:
    """The slot values of a family measured on a mesh; ValueError for an unknown family."""
    if family not in RULERS:
        raise ValueError(f"unknown family: {family!r}")
    return RULERS[family](occupancy(vertices, faces))


def measure_any(family: str, vertices: np.ndarray, faces: np.ndarray) -> dict[str, str]:
    """`measure` for a mesh that may not be of the family at all: empty if the measurement fails."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # means and shares of empty arrays
        try:
            return measure(family, vertices, faces)
        except (IndexError, ValueError):
            if family not in RULERS:
                raise
            return {}


def _slab(r: Ruler) -> float:
    """Thickness of the top slab: from the top down while the slice stays about as large as the largest near the top."""
    areas = r.areas()[::-1]
    small = np.flatnonzero(areas < 0.6 * areas[1:4].max())
    small = small[small > 2]
    return (small[0] if len(small) else len(areas)) * r.cell


_BASE = {1: "a pedestal", 2: "two panels", 3: "three legs", 4: "four legs"}


def _base(r: Ruler, share: float) -> str:
    return _BASE.get(r.parts(share), "?")


def _chair(r: Ruler) -> dict[str, str]:
    x, y, z = r.extent
    middle = r.grid[r.grid.shape[0] // 2].any(axis=1)[::-1]
    rail = np.flatnonzero(~middle[2:])
    back = (rail[0] + 2 if len(rail) else len(middle)) / len(middle)
    return {
        "size": _pick(y / z, 1.58, "tall", "low"),
        "breadth": _pick(x / z, 1.02, "wide", "narrow"),
        "back": _pick(back, 0.25, "a solid back", "an open back"),
        "base": _base(r, 0.12),
    }


def _stool(r: Ruler) -> dict[str, str]:
    x, y, _ = r.extent
    return {
        "size": _pick(y / x, 1.15, "tall", "low"),
        "shape": _pick(_filled(r.cut(1, 0.98)), 0.88, "square", "round"),
        "seat": _pick(_slab(r) / x, 0.25, "a thick seat", "a thin seat"),
        "base": _base(r, 0.2),
    }


def _table(r: Ruler) -> dict[str, str]:
    x, y, z = r.extent
    shape = "long" if x / z > 1.4 else _pick(_filled(r.cut(1, 0.98)), 0.88, "square", "round")
    return {
        "size": _pick(y / z, 0.88, "tall", "low"),
        "shape": shape,
        "top": _pick(_slab(r) / z, 0.23 if shape == "long" else 0.205, "a thick top", "a thin top"),
        "base": _base(r, 0.12),
    }


def _bench(r: Ruler) -> dict[str, str]:
    x, y, z = r.extent
    seat = max(r.top(share, 0.9) for share in (0.3, 0.5, 0.7))
    base = {1: "a solid base", 2: "two panels", 4: "four legs"}.get(r.parts(0.1 * seat / y), "?")
    return {
        "length": _pick(x / z, 2.7, "long", "short"),
        "size": _pick(seat / z, 1.08, "tall", "low"),
        "back": _pick((y - seat) / z, 0.3, "a back", "no back"),
        "base": base,
    }


def _sofa(r: Ruler) -> dict[str, str]:
    x, y, z = r.extent
    count = sum(r.top(share, 0.85) - r.top(0.5, 0.85) > 0.08 * z for share in (0.05, 0.95))
    return {
        "breadth": _pick(x / z, 1.76, "wide", "narrow"),
        "size": _pick(y / z, 1.13, "tall", "low"),
        "arms": ("no arms", "one arm", "two arms")[count],
        "base": _pick(r.parts(0.05), 1.5, "four legs", "a solid base"),
    }


def _shelf(r: Ruler) -> dict[str, str]:
    x, y, z = r.extent
    boards = _runs(r.column(0.5, 0.8))
    rear = r.column(0.5, 0.06)
    closed = rear[len(rear) // 5 :].mean()
    return {
        "size": _pick(y / z, 2.78, "tall", "low"),
        "breadth": _pick(x / z, 1.9, "wide", "narrow"),
        "rows": {2: "one row", 3: "two rows", 4: "three rows"}.get(boards, "?"),
        "back": _pick(closed, 0.9, "a closed back", "no back"),
    }


def _lamp(r: Ruler) -> dict[str, str]:
    widths = r.widths(0)
    foot = widths[2]
    start = int(0.3 * len(widths))
    shade = widths[start:].max()
    wide = start + np.flatnonzero(widths[start:] >= 0.9 * shade)
    kind = "drum" if wide[-1] >= 0.97 * len(widths) - 1 else _pick(widths[wide[0] - 3] / shade, 0.6, "ball", "cone")
    return {
        "size": _pick(r.extent[1] / foot, 2.07, "tall", "short"),
        "breadth": _pick(shade / foot, 1.15, "wide", "narrow"),
        "shade": kind,
        "base": _pick(_filled(r.cut(1, 0.03)), 0.88, "a square base", "a round base"),
    }


def _car(r: Ruler) -> dict[str, str]:
    x, y, z = r.extent
    bonnet = min(r.top(share, 0.5) for share in np.linspace(0.06, 0.94, 45))
    place = np.flatnonzero(r.cut(1, 0.93).any(axis=1)).mean() / r.grid.shape[0]
    belly = np.flatnonzero(r.column(0.5, 0.5))[0] * r.cell
    return {
        "length": _pick(x / z, 2.0, "long", "short"),
        "size": _pick((y - bonnet) / z, 0.43, "tall", "low"),
        "cabin": "rear" if place < 0.37 else _pick(place, 0.59, "front", "middle"),
        "wheels": _pick(belly / z, 0.262, "large wheels", "small wheels"),
    }


def _truck(r: Ruler) -> dict[str, str]:
    x, _, z = r.extent
    low = np.flatnonzero(r.column(0.5, 0.5))[0] * r.cell
    section = r.cut(0, 0.3)
    widths = section.sum(axis=1)
    top = np.flatnonzero(widths)[-1]
    cargo = "flat" if (top + 1) * r.cell - low < 0.55 * z else _pick(widths[top - 1] / widths.max(), 0.8, "box", "tank")
    return {
        "length": _pick(x / z, 2.38, "long", "short"),
        "size": _pick((r.top(0.95, 0.5) - low) / z, 0.9, "tall", "low"),
        "cargo": cargo,
        "wheels": {4: "four", 6: "six"}.get(r.parts(0.03), "?"),
    }


def _boat(r: Ruler) -> dict[str, str]:
    x, y, z = r.extent
    hull = r.top(0.96, 0.5)
    level = r.cut(1, (hull - 1.5 * r.cell) / y)
    bow = _span(level[int(0.96 * len(level))]) * r.cell / z
    rise = (y - hull) / z
    return {
        "length": _pick(x / z, 2.35, "long", "short"),
        "hull": _pick(hull / z, 0.55, "deep", "shallow"),
        "bow": _pick(bow, 0.5, "blunt", "pointed"),
        "deck": "a flat deck" if rise < 0.2 else _pick(rise, 0.9, "a sail", "a cabin"),
    }


def _plane(r: Ruler) -> dict[str, str]:
    x, _, z = r.extent
    plan = r.grid.any(axis=1)  # (x, z) seen from above
    half = plan.shape[1] / 2
    near, far = int(half + 0.215 * plan.shape[0]), int(half + 0.94 * half)
    fronts, rears = zip(
        *((np.flatnonzero(plan[:, column])[-1], np.flatnonzero(plan[:, column])[0]) for column in (near, far)),
        strict=True,
    )
    lead, trail = (fronts[0] - fronts[1]) / (far - near), (rears[0] - rears[1]) / (far - near)
    tail = _span(r.grid[: int(0.25 * plan.shape[0]), int(0.95 * r.grid.shape[1])].any(axis=0)) * r.cell
    return {
        "body": _pick(_span(r.cut(0, 0.8).any(axis=0)) * r.cell / x, 0.19, "thick", "slim"),
        "span": _pick(z / x, 0.81, "long", "short"),
        "wings": "straight" if lead < 0.17 else _pick(trail, 0.17, "swept", "delta"),
        "tail": _pick(tail / x, 0.17, "high", "low"),
    }


def _mug(r: Ruler) -> dict[str, str]:
    _, y, z = r.extent
    deep = r.widths(2)
    taper = deep[int(0.06 * len(deep))] / deep[int(0.94 * len(deep))]
    rim = np.flatnonzero(r.cut(1, 0.97).any(axis=1)).mean() / r.grid.shape[0]
    front = r.grid.any(axis=2)  # (x, y) seen from the front
    reach = np.array([np.flatnonzero(front[:, row])[-1] for row in range(front.shape[1])]) * r.cell
    wall = rim * r.grid.shape[0] * r.cell + z / 2 + 0.04 * z
    handle = reach > wall
    square = (reach[handle] > reach.max() - 0.045 * z).mean()
    return {
        "size": _pick(y / z, 1.03, "tall", "short"),
        "profile": "flared" if taper < 0.89 else _pick(taper, 1.12, "tapered", "straight"),
        "count": _pick(abs(rim - 0.5), 0.05, "a single", "a double"),
        "handle": _pick(square, 0.75, "square", "round"),
    }


def _vase(r: Ruler) -> dict[str, str]:
    x, y, _ = r.extent
    widths = r.widths(0) / x
    bottom, middle, top = (widths[int(share * len(widths))] for share in (0.04, 0.5, 0.97))
    body = "round" if bottom < 0.9 * widths.max() else _pick(middle / bottom, 0.93, "straight", "conical")
    return {
        "size": _pick(y / x, 1.4, "tall", "short"),
        "section": _pick(_filled(r.cut(1, 0.04)), 0.88, "square", "round"),
        "body": body,
        "mouth": _pick(top / widths.max(), 0.51, "wide", "narrow"),
    }


def _teapot(r: Ruler) -> dict[str, str]:
    z = r.extent[2]
    widths = r.widths(2) / z
    body = widths[: np.flatnonzero(widths >= 0.37)[-1] + 1]
    bottom, middle, top = (body[int(share * len(body))] for share in (0.05, 0.5, 0.93))
    centre = np.flatnonzero(r.cut(2, 0.95).any(axis=1)).mean() * r.cell
    kind = "conical" if top / bottom < 0.72 else _pick(bottom / middle, 0.85, "straight", "round")
    return {
        "size": _pick(len(body) * r.cell / z, 0.82, "tall", "low"),
        "body": kind,
        "spout": _pick((r.extent[0] - centre) / z, 0.86, "long", "short"),
        "handle": _pick(centre / z, 0.58, "side", "top"),
    }


def _hammer(r: Ruler) -> dict[str, str]:
    x, y, z = r.extent
    left, right = r.cut(0, 0.08), r.cut(0, 0.95)
    tapered = _span(right.any(axis=1)) < 0.6 * _span(left.any(axis=1))
    grip = r.widths(2)[int(0.55 * r.grid.shape[1])]
    return {
        "length": _pick(y / z, 3.9, "long", "short"),
        "size": _pick(x / z, 1.9, "big", "small"),
        "kind": "wedge" if tapered else _pick(_filled(left), 0.88, "block", "round"),
        "handle": _pick(grip / z, 0.565, "thick", "thin"),
    }


def _axe(r: Ruler) -> dict[str, str]:
    num_x, num_y, _ = r.grid.shape
    depth = r.widths(2)
    thickness = depth[int(0.5 * num_y) :].max()
    front = r.grid.any(axis=2)
    axis = np.flatnonzero(front[:, int(0.25 * num_y)]).mean()
    blade = front.sum(axis=1)[int(axis + 0.6 * (num_x - axis)) :]
    return {
        "length": _pick(r.extent[1] / thickness, 5.75, "long", "short"),
        "count": _pick(axis / (num_x - axis), 0.72, "a double", "a single"),
        "width": _pick(blade.max() * r.cell / thickness, 2.2, "wide", "narrow"),
        "edge": _pick(blade[-2] / blade.max(), 0.8, "straight", "curved"),
        "end": _pick(depth[: num_y // 5].max() / thickness, 1.12, "a knob", "a plain end"),
    }


RULERS: dict[str, Callable[[Ruler], dict[str, str]]] = {
    "chair": _chair,
    "stool": _stool,
    "table": _table,
    "bench": _bench,
    "sofa": _sofa,
    "shelf": _shelf,
    "lamp": _lamp,
    "car": _car,
    "truck": _truck,
    "boat": _boat,
    "plane": _plane,
    "mug": _mug,
    "vase": _vase,
    "teapot": _teapot,
    "hammer": _hammer,
    "axe": _axe,
}
