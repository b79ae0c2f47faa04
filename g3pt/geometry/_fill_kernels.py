"""Compiled loops that measure how a surface encloses each grid point: signed crossings along 13 lines through the
point.

Sequential and deterministic like `_kernels`; imported only inside functions, because it needs numba. Grids are arrays
indexed [x, y, z] in grid units; their outermost layer is outside the surface's box. Line k of point p contains the
points p + i LINES[k].

Shapes: F faces, (X, Y, Z) grid points along the axes.
"""

import math

import numpy as np
from numba import njit

LINES = np.array(
    [(x, y, z) for x in (0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1) if (x, y, z) > (0, 0, 0)], dtype=np.int64
)  # one of each pair of opposite neighbours


@njit(cache=True, nogil=True)
def _covered(row: float, corners: np.ndarray) -> tuple[float, float]:
    """The interval [low, high) of u in which the projected triangle (3, 3) covers v = row; low > high for none.

    The ends of an edge are ordered before it is evaluated, so that two triangles agree on the edge that they share.
    """
    low, high = math.inf, -math.inf
    for k in range(3):
        au, av = corners[k, 0], corners[k, 1]
        bu, bv = corners[(k + 1) % 3, 0], corners[(k + 1) % 3, 1]
        if (av > row) == (bv > row):
            continue
        if av > bv:
            au, av, bu, bv = bu, bv, au, av
        at = au + (row - av) * (bu - au) / (bv - av)
        low, high = min(low, at), max(high, at)
    return low, high


@njit(cache=True, nogil=True)
def _mark(triangles: np.ndarray, step: np.ndarray, marks: np.ndarray) -> None:
    """Add each crossing of the triangles (F, 3, 3) by a line along `step` to the first grid point of `marks`
    (int16) behind it.

    A crossing is +1 if the line leaves through the face (it comes out of the front), -1 if it enters.
    """
    a = 0 if step[0] else (1 if step[1] else 2)
    b, c = (a + 1) % 3, (a + 2) % 3
    strides = (marks.shape[1] * marks.shape[2], marks.shape[2], 1)
    along = strides[0] * step[0] + strides[1] * step[1] + strides[2] * step[2]
    flat = marks.reshape(-1)
    corners = np.empty((3, 3))
    for i in range(triangles.shape[0]):
        for k in range(3):  # u and v number the lines, t is the place along them
            t = triangles[i, k, a]
            corners[k, 0] = triangles[i, k, b] - step[b] * t
            corners[k, 1] = triangles[i, k, c] - step[c] * t
            corners[k, 2] = t
        au, av, at = corners[0, 0], corners[0, 1], corners[0, 2]
        bu, bv, bt = corners[1, 0] - au, corners[1, 1] - av, corners[1, 2] - at
        cu, cv, ct = corners[2, 0] - au, corners[2, 1] - av, corners[2, 2] - at
        area = bu * cv - bv * cu
        if area == 0.0:
            continue
        sign = 1 if area > 0.0 else -1
        slope_u, slope_v = (bt * cv - ct * bv) / area, (ct * bu - bt * cu) / area
        t_low, t_high = min(at, corners[1, 2], corners[2, 2]), max(at, corners[1, 2], corners[2, 2])
        v_low = math.ceil(min(av, corners[1, 1], corners[2, 1]))
        v_high = math.floor(max(av, corners[1, 1], corners[2, 1]))
        for v in range(v_low, v_high + 1):
            low, high = _covered(float(v), corners)
            if low >= high:
                continue
            for u in range(math.ceil(low), math.ceil(high)):
                t = min(max(at + slope_u * (u - au) + slope_v * (v - av), t_low), t_high)
                flat[(math.floor(t) + 1) * along + u * strides[b] + v * strides[c]] += sign


@njit(cache=True, nogil=True)
def _sum_before(marks: np.ndarray, step: np.ndarray, total: np.ndarray) -> None:
    """Set `total` to the sum of the marks on each point's line up to the point."""
    n0, n1, n2 = marks.shape
    d0, d1, d2 = step[0], step[1], step[2]
    for x in range(1, n0 - 1):
        for y in range(1, n1 - 1):
            row, there, last = total[x, y], marks[x, y], total[x - d0, y - d1]
            for z in range(1, n2 - 1):
                row[z] = last[z - d2] + there[z]


@njit(cache=True, nogil=True)
def _sum_after(marks: np.ndarray, step: np.ndarray, total: np.ndarray) -> None:
    """Set `total` to the sum of the marks on each point's line beyond the point."""
    n0, n1, n2 = marks.shape
    d0, d1, d2 = step[0], step[1], step[2]
    for x in range(n0 - 2, 0, -1):
        for y in range(n1 - 2, 0, -1):
            row, there, last = total[x, y], marks[x + d0, y + d1], total[x + d0, y + d1]
            for z in range(n2 - 2, 0, -1):
                row[z] = last[z + d2] + there[z + d2]


@njit(cache=True, nogil=True)
def enclosure(triangles: np.ndarray, shape: tuple[int, int, int], lines: np.ndarray) -> tuple:
    """How the triangles (F, 3, 3) enclose each grid point, by its 26 rays, two per line.

    Returns five grids. `votes` (int8): the rays that leave more faces than they enter, minus those that enter more.
    `winding` (int8): the sum over the rays of faces left minus faces entered, each ray limited to -2 to 2. `exits`
    (uint8): the lines on which both rays leave more faces than they enter. `odd` (uint8): the rays with an odd number
    of crossings. `odd_lines` (uint8): the lines of two such rays.
    """
    marks, before, after = np.zeros(shape, np.int16), np.zeros(shape, np.int16), np.zeros(shape, np.int16)
    votes, winding, exits = np.zeros(shape, np.int8), np.zeros(shape, np.int8), np.zeros(shape, np.uint8)
    odd, odd_lines = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    b, a = before.reshape(-1), after.reshape(-1)
    v, w, e, o, p = votes.reshape(-1), winding.reshape(-1), exits.reshape(-1), odd.reshape(-1), odd_lines.reshape(-1)
    for k in range(lines.shape[0]):
        marks[:] = 0
        _mark(triangles, lines[k], marks)
        _sum_before(marks, lines[k], before)
        _sum_after(marks, lines[k], after)
        for i in range(w.shape[0]):
            v[i] += min(max(a[i], -1), 1) - min(max(b[i], -1), 1)
            w[i] += min(max(a[i], -2), 2) - min(max(b[i], -2), 2)
            e[i] += (a[i] > 0) & (b[i] < 0)
            o[i] += (a[i] & 1) + (b[i] & 1)
            p[i] += a[i] & b[i] & 1
    return votes, winding, exits, odd, odd_lines
