"""Which air an open surface encloses: a column without lids or a mountain without a floor becomes solid,
a cup stays hollow.

26 rays in fixed directions start at each grid point outside the solid. A ray that leaves through the backs of more
faces than it enters through their fronts votes for inside, one that enters more votes against. The air may be enclosed
where the votes for are ahead by more than half of the rays, or where rays through walls of several layers make up for
others. A connected part of that air is filled if its mean winding number is high and, somewhere in it, many of the 13
lines leave through faces at both ends (`ENCLOSED`). Less is enough for a part whose opening is flat
(`BEHIND_FLAT_OPENING`), such as a tile without a floor. So a sheet, an angle of two sheets and the space between bars
stay open, as does a vessel with an inner and an outer wall, whose cavity has winding number 0, and a room seen from
inside, whose winding number is negative. If many neighbouring faces contradict each other in orientation, rays with an
odd number of crossings are counted instead. The opening is closed a voxel beyond the place where the votes pass one
half, as walls are a voxel thick on either side: flat, if its rim is in a plane along the axes or their diagonals.

Source: generalised winding numbers, Jacobson et al. 2013; votes of rays by parity, Nooruddin and Turk 2003.
Ours: 26 lattice directions, whose crossings are found by drawing each triangle once per direction and adding up along
grid lines, in place of a sum over all triangles; the conditions on a part; in the mean winding number a ray counts at
most 2, so that walls of several layers (houses with trim) count as enclosing and stacked sheets do not add up.

Shapes: F faces, (X, Y, Z) grid points along the axes.
"""

from dataclasses import dataclass

import numpy as np

from g3pt.geometry.surface import bounds

WINDING, PARITY = "winding", "parity"
ENCLOSED = (
    0.65,
    7,
)  # least mean winding number, and least lines at the best point; an angle of 90 degrees has .57 to .63
BEHIND_FLAT_OPENING = (0.58, 4)  # the same for a part whose opening is flat; a cone of 30 degrees has .57 to .65
MIN_FLATNESS = 0.97  # of an opening: 1 in a plane of any direction, .5 to .93 for an angle, 0 for a tube's two
MAX_CONFLICTS = 0.25  # share of edges on which faces contradict each other, from which orientation says nothing
_RAYS, _LINES = 26, 13
_COARSE = 2  # grid points per point of the first look


@dataclass(frozen=True)
class Filling:
    """What was counted to decide (WINDING, PARITY, or "" where nothing was filled), and the share
    of the solid that filling added.
    """

    rule: str = ""
    share: float = 0.0


def fill_enclosed(field: np.ndarray, triangles: np.ndarray, snap: float) -> Filling:
    """Make enclosed air of `field` (X, Y, Z; positive in outside air) negative, in place; triangles (F, 3, 3)
    in grid units.
    """
    from g3pt.geometry._kernels import outside_field
    from g3pt.geometry._mesh_kernels import closed

    triangles, faces = distinct(triangles)
    if closed(faces, int(faces.max()) + 1) or not _may_enclose(field > 0, triangles):
        return Filling()
    rule = WINDING if conflicts(faces) <= MAX_CONFLICTS else PARITY
    air = field > 0
    filled = _enclosed(air, triangles, rule)
    if not filled.any():
        return Filling()
    _close(field, air, air & _grown(filled))
    outside_field(field, 0.0, snap)
    inside = int((field < 0).sum())
    return Filling(rule, (inside - int((~air).sum())) / inside)


def distinct(triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The triangles without repetitions, also turned ones, and their corners as numbers (F, 3): equal positions,
    equal numbers.
    """
    from g3pt.geometry._mesh_kernels import first_equal

    corners = np.ascontiguousarray(triangles.reshape(-1, 3)) + 0.0  # -0.0 becomes 0.0
    faces = first_equal(corners.view(np.int64)).reshape(-1, 3)
    first = first_equal(np.sort(faces, axis=1)) == np.arange(len(faces))
    return np.ascontiguousarray(triangles[first]), faces[first]


def conflicts(faces: np.ndarray) -> float:
    """Share of the edges of faces (F, 3) that two or more faces run in the same direction, among those of two
    or more faces.
    """
    start, end = faces.reshape(-1), np.roll(faces, -1, axis=1).reshape(-1)
    edges = np.minimum(start, end) * (faces.max() + 1) + np.maximum(start, end)
    edge = np.unique(edges, return_inverse=True)[1]
    count, forth = np.bincount(edge), np.bincount(edge, start < end)
    shared = count > 1
    return float(((forth > 1) | (count - forth > 1))[shared].mean()) if shared.any() else 0.0


def _may_enclose(air: np.ndarray, triangles: np.ndarray) -> bool:
    """Whether any of every second grid point along each axis is enclosed enough to begin a part."""
    from g3pt.geometry._fill_kernels import LINES, enclosure

    coarse = air[::_COARSE, ::_COARSE, ::_COARSE]
    shape = tuple(count + 1 for count in coarse.shape)  # the surface's box is inside the outermost layer
    _, _, exits, _, odd_lines = enclosure(triangles / _COARSE, shape, LINES)
    inner = tuple(slice(count) for count in coarse.shape)
    return bool((coarse & ((exits >= BEHIND_FLAT_OPENING[1]) | (odd_lines >= ENCLOSED[1]))[inner]).any())


def _enclosed(air: np.ndarray, triangles: np.ndarray, rule: str) -> np.ndarray:
    """Which points of the air are enclosed (X, Y, Z)."""
    from scipy.ndimage import label

    from g3pt.geometry._fill_kernels import LINES, enclosure

    votes, winding, exits, odd, odd_lines = enclosure(triangles, air.shape, LINES)
    if rule == PARITY:
        votes, winding, exits = odd, odd, odd_lines
    low, high = bounds(triangles)
    low, high = np.ceil(low), np.floor(high)
    box = tuple(slice(int(first), int(last) + 1) for first, last in zip(low, high, strict=True))
    enclosed = (votes > _RAYS // 2) | ((winding > _RAYS // 2) & (exits > _LINES // 4))
    candidates = np.zeros_like(air)
    candidates[box] = air[box] & enclosed[box]
    parts, count = label(candidates)
    inside = parts[candidates]
    size = np.maximum(np.bincount(inside, minlength=count + 1), 1)
    mean = np.bincount(inside, np.minimum(winding[candidates], _RAYS), count + 1) / (_RAYS * size)
    most = np.zeros(count + 1, np.uint8)
    np.maximum.at(most, inside, exits[candidates])
    flat = _flatness(parts, count, air) >= MIN_FLATNESS
    accepted = [(mean >= least) & (most >= lines) for least, lines in (ENCLOSED, BEHIND_FLAT_OPENING)]
    return (accepted[0] | (flat & accepted[1]))[parts] & candidates


def _flatness(parts: np.ndarray, count: int, air: np.ndarray) -> np.ndarray:
    """How flat the opening of each of the parts 1 to `count` is (count + 1,): 1 for one plane, less
    if its sides face each other.

    The sum of the outward normals of the grid faces between the part and open air, in absolute value, over their
    number.
    """
    open_air = air & (parts == 0)
    sums, total = np.zeros(count + 1), np.zeros(count + 1)
    for axis in range(3):
        part, free = np.moveaxis(parts, axis, 0), np.moveaxis(open_air, axis, 0)
        up = np.bincount(part[:-1][free[1:]], minlength=count + 1)
        down = np.bincount(part[1:][free[:-1]], minlength=count + 1)
        sums += np.abs(up - down)
        total += up + down
    return sums / np.maximum(total, 1)


def _close(field: np.ndarray, air: np.ndarray, filled: np.ndarray) -> None:
    """Lower the field in the filled air and at its openings, to the signed distance
    of a surface half-way between the points.

    The distance follows from the share of filled points among the air of each point's 27 neighbours, so that walls do
    not count.
    """
    share = _neighbours(filled) / np.maximum(_neighbours(air), 1)
    touched = air & (share > 0.0)
    field[touched] = np.minimum(field[touched], 3.0 * (0.5 - share[touched])).astype(np.float32)


def _grown(mask: np.ndarray) -> np.ndarray:
    """A mask (X, Y, Z) with the six neighbours of its points."""
    grown = mask.copy()
    for axis in range(3):
        to, of = np.moveaxis(grown, axis, 0), np.moveaxis(mask, axis, 0)
        to[1:] |= of[:-1]
        to[:-1] |= of[1:]
    return grown


def _neighbours(mask: np.ndarray) -> np.ndarray:
    """How many of each point's 27 neighbours, itself included, are set (X, Y, Z) uint8."""
    total = mask.astype(np.uint8)
    for axis in range(3):
        moved = np.moveaxis(total, axis, 0)
        sums = moved.copy()
        sums[1:] += moved[:-1]
        sums[:-1] += moved[1:]
        total = np.moveaxis(sums, 0, axis)
    return total
