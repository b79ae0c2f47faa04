"""Which cells of a fine grid a field's surface crosses, found from a coarse one:
only cells near the surface are evaluated.

A coarse grid over the whole box is evaluated. At each doubling, the cells that the surface crosses (the first time with
their neighbours) are split into eight, and their unknown corners are evaluated. Where the surface leaves them through a
face, the cell behind that face is evaluated too, until it leaves none. The crossed cells are those of dense evaluation,
except for parts of the surface that are entirely between the points of the coarse grid. Grid point i of R cells is at 2
i / R - 1; beyond the box the field counts as outside, so that a solid that touches the box is closed there.

Cells and points are sorted arrays of integer keys: nothing of size R^3 is ever allocated. Memory for N cells crossed on
the last grid but one (about 4 N on the last), in bytes: keys and corner values of 8 N children (320 N), keys and values
of about 11 N corners (130 N), and as much again while sorted sets are merged and sides compared: at most BYTES_PER_CELL
N, besides the first grid and _SLAB_POINTS points evaluated at a time (measured: 1250 N). N is about 1.5 area / (4 /
R)^2: 110,000 for a sphere of radius 0.6 at R = 512, which takes 144 MB, where one dense float32 grid takes 540 MB. More
than MAX_CELLS is refused (`TooComplexField`), so that even noise stays below MAX_CELLS * BYTES_PER_CELL = 2 GB.

Shapes: N points or cells, 8 corners of a cell in the order of CORNERS.
"""

from collections.abc import Generator, Iterable
from dataclasses import dataclass

import numpy as np

MAX_CELLS = 1_500_000
BYTES_PER_CELL = 1300
CORNERS = tuple((x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1))
_FACES = tuple(
    (axis, end, [k for k, corner in enumerate(CORNERS) if corner[axis] == end]) for axis in range(3) for end in (0, 1)
)
_SLAB_POINTS = 2**18  # points evaluated at a time

Search = Generator[np.ndarray, np.ndarray, "Crossed"]


class NoSurface(ValueError):
    """The field has no usable surface; `status` is the reason in manifests and evaluations."""

    status = "no-surface"


class EmptyField(NoSurface):
    """No point of the field is inside."""

    status = "empty-field"


class FullField(NoSurface):
    """No point of the field is outside."""

    status = "full-field"


class TooComplexField(NoSurface):
    """The surface crosses more cells than the memory limit allows: noise, not a shape."""

    status = "too-complex-field"


@dataclass(frozen=True)
class Crossed:
    """Cells that the surface crosses: lower corners (N, 3), from -1 (beyond the box),
    and the field less its level at their corners (N, 8).
    """

    resolution: int
    cells_N3: np.ndarray
    values_N8: np.ndarray


def search(resolution: int, coarse: int, level: float) -> Search:
    """Generator: yields points (N, 3), receives the field's values there, returns the crossed cells
    of the finest grid.
    """
    doublings = (resolution // coarse).bit_length() - 1 if coarse > 0 else -1
    if coarse < 2 or doublings < 0 or coarse << doublings != resolution:
        raise ValueError(f"resolution must be coarse * 2^k, not {resolution} with coarse {coarse}")
    grid = yield from _first_grid(coarse, level)
    inner = grid[1:-1, 1:-1, 1:-1] > 0
    if not inner.any():
        raise EmptyField(f"no point of the field is inside (first grid {coarse}^3)")
    if inner.all():
        raise FullField(f"every point of the field is inside (first grid {coarse}^3)")
    cells = _crossed_cells(grid > 0)
    corners = np.argwhere(cells if doublings == 0 else _dilated(cells))
    values_N8 = np.stack([grid[tuple((corners + corner).T)] for corner in CORNERS], axis=1)
    if doublings == 0:
        return Crossed(resolution, corners - 1, values_N8)
    state = _Near(coarse, level, beyond=float(grid[0, 0, 0]))
    state.set_cells(state.pack(corners - 1), values_N8)
    for _ in range(doublings):
        if len(state.cells) > MAX_CELLS:
            raise TooComplexField(
                f"{len(state.cells)} of {state.size}^3 cells touch the surface, more than {MAX_CELLS}"
            )
        yield from state.refine()
    return Crossed(resolution, state.unpack(state.cells), state.values_N8)


def _first_grid(coarse: int, level: float) -> Generator[np.ndarray, np.ndarray, np.ndarray]:
    """Field less level at all points of the first grid, with a layer beyond the box that is far outside."""
    side = coarse + 1
    planes = max(1, _SLAB_POINTS // side**2)
    grid = np.empty((side + 2,) * 3, dtype=np.float32)
    for start in range(0, side, planes):
        index = np.stack(np.mgrid[start : min(start + planes, side), :side, :side], axis=-1)
        values = yield from _ask(index.reshape(-1, 3), coarse, level)
        grid[1 + start : 1 + start + planes, 1:-1, 1:-1][: len(index)] = values.reshape(index.shape[:3])
    beyond = -1e4 * max(1.0, max(float(np.abs(plane[1:-1, 1:-1]).max()) for plane in grid[1:-1]))
    for axis in range(3):
        moved = np.moveaxis(grid, axis, 0)
        moved[0], moved[-1] = beyond, beyond
    return grid


def _ask(index_N3: np.ndarray, size: int, level: float) -> Generator[np.ndarray, np.ndarray, np.ndarray]:
    """The field minus the level at points of a grid of `size` cells per side, float32."""
    values = np.asarray((yield (index_N3 * (2.0 / size) - 1.0).astype(np.float32)), dtype=np.float32) - np.float32(
        level
    )
    if len(values) != len(index_N3) or not np.isfinite(values).all():
        raise ValueError("the field returned non-finite values, or not one a point")
    return values


class _Near:
    """The cells near the surface on a grid of `size` cells per side: their sorted keys,
    and the values at their corners.

    A key is ((x + 2) side + y + 2) side + z + 2: room for two layers beyond the box, and keys sort as (x, y, z) do.
    """

    def __init__(self, size: int, level: float, beyond: float) -> None:
        self.size, self.level, self.beyond = size, level, beyond
        self.cells, self.values_N8 = np.zeros(0, np.int64), np.zeros((0, 8), np.float32)

    @property
    def side(self) -> int:
        """Number of keys along an axis."""
        return self.size + 5

    @property
    def steps(self) -> tuple[int, int, int]:
        """Difference in key of a step along x, y and z."""
        return self.side**2, self.side, 1

    def pack(self, index_N3: np.ndarray) -> np.ndarray:
        """Keys of grid indices."""
        return (index_N3 + 2) @ np.array(self.steps)

    def unpack(self, keys_N: np.ndarray) -> np.ndarray:
        """Grid indices (N, 3) of keys."""
        rest, z = np.divmod(keys_N, self.side)
        x, y = np.divmod(rest, self.side)
        return np.stack([x, y, z], axis=1) - 2

    def set_cells(self, cells: np.ndarray, values_N8: np.ndarray) -> None:
        """Keep these cells and no others."""
        self.cells, self.values_N8 = cells, values_N8

    def refine(self) -> Generator[np.ndarray, np.ndarray, None]:
        """The next grid: the cells' children and the cells that the surface leads to from them, of
        which the crossed ones are kept.
        """
        points, values = self._corners()
        index, cells = self.unpack(points), self.unpack(self.cells)
        self.size *= 2
        points = self.pack(2 * index)  # keeps the order
        frontier = np.sort(np.concatenate([self.pack(2 * cells + corner) for corner in CORNERS]))
        done, kept_cells, kept_values = frontier, [], []
        while len(frontier):
            points, values = yield from self._evaluated(frontier, points, values)
            values_N8 = self._at_corners(frontier, points, values)
            inside_N8 = values_N8 > 0
            crossed_N = inside_N8.any(1) & ~inside_N8.all(1)
            kept_cells.append(frontier[crossed_N])
            kept_values.append(values_N8[crossed_N])
            frontier = _without(self._behind_crossed_faces(kept_cells[-1], inside_N8[crossed_N]), done)
            done = _joined(done, frontier)
        cells = np.concatenate(kept_cells)
        order = np.argsort(cells, kind="stable")
        self.set_cells(cells[order], np.concatenate(kept_values)[order])

    def _corners(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys of all corners of the cells, sorted, and their values."""
        points = self._corner_keys(self.cells)
        values = np.empty(len(points), dtype=np.float32)
        for k, place in enumerate(self._places(self.cells, points)):
            values[place] = self.values_N8[:, k]
        return points, values

    def _corner_keys(self, cells: np.ndarray) -> np.ndarray:
        points = cells
        for step in reversed(self.steps):
            points = _joined(points, points + step)
        return points

    def _places(self, cells: np.ndarray, points: np.ndarray) -> Iterable[np.ndarray]:
        """Index in the sorted `points` of each of the eight corners of the cells, corner by corner; z + 1 follows z."""
        step_x, step_y, _ = self.steps
        for x in (0, 1):
            for y in (0, 1):
                place = np.searchsorted(points, cells + (x * step_x + y * step_y))
                yield place
                yield place + 1

    def _evaluated(
        self, cells: np.ndarray, points: np.ndarray, values: np.ndarray
    ) -> Generator[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """Points and values that include all corners of the cells; only missing ones are evaluated."""
        wanted = _without(self._corner_keys(cells), points)
        fresh = np.full(len(wanted), self.beyond, dtype=np.float32)
        for start in range(0, len(wanted), _SLAB_POINTS):
            index = self.unpack(wanted[start : start + _SLAB_POINTS])
            in_box = ((index >= 0) & (index <= self.size)).all(axis=1)
            fresh[start : start + _SLAB_POINTS][in_box] = yield from _ask(index[in_box], self.size, self.level)
        keys = np.concatenate([points, wanted])
        order = np.argsort(keys, kind="stable")
        return keys[order], np.concatenate([values, fresh])[order]

    def _at_corners(self, cells: np.ndarray, points: np.ndarray, values: np.ndarray) -> np.ndarray:
        values_N8 = np.empty((len(cells), 8), dtype=np.float32)
        for k, place in enumerate(self._places(cells, points)):
            values_N8[:, k] = values[place]
        return values_N8

    def _behind_crossed_faces(self, cells: np.ndarray, inside_N8: np.ndarray) -> np.ndarray:
        """Cells that share a face which the surface crosses with one of the cells."""
        found = []
        for axis, end, corners in _FACES:
            on_face = inside_N8[:, corners]
            mixed = on_face.any(1) & ~on_face.all(1)
            found.append(cells[mixed] + (self.steps[axis] if end else -self.steps[axis]))
        return np.unique(np.concatenate(found))


def _joined(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Union of two sorted arrays without repeats."""
    both = np.concatenate([a, b])
    both.sort(kind="stable")  # two sorted runs: a merge
    first = np.ones(len(both), dtype=bool)
    np.not_equal(both[1:], both[:-1], out=first[1:])
    return both[first]


def _without(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The elements of `a` that are not in the sorted `b`."""
    if not len(b):
        return a
    place = np.searchsorted(b, a)
    return a[b[np.minimum(place, len(b) - 1)] != a]


def _crossed_cells(inside: np.ndarray) -> np.ndarray:
    """Cells of a dense grid whose corners are not all on one side."""
    ends = (slice(0, -1), slice(1, None))
    corners = [inside[x, y, z] for x in ends for y in ends for z in ends]
    return np.logical_or.reduce(corners) & ~np.logical_and.reduce(corners)


def _dilated(cells: np.ndarray) -> np.ndarray:
    """Cells and all their neighbours, diagonal ones too."""
    for axis in range(3):
        moved = np.moveaxis(cells, axis, 0)
        grown = moved.copy()
        grown[1:] |= moved[:-1]
        grown[:-1] |= moved[1:]
        cells = np.moveaxis(grown, 0, axis)
    return cells
