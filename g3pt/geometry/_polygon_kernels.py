"""Compiled ear cutting of plane polygons. Imported only inside functions, because it needs numba.

Shapes: N corners.
"""

import numpy as np
from numba import njit

_FLAT = 1e-12  # twice a triangle's area below which its three corners are on one line; the polygon's box has side 1


@njit(cache=True, nogil=True)
def cut_ears(plane: np.ndarray, triangles: np.ndarray) -> None:
    """Fill `triangles` (N - 2, 3) with the corners of the triangles of a counter-clockwise polygon (N, 2).

    A corner is an ear if it is convex and no other corner is in its triangle. Where none is left, a corner on a
    straight line is cut; where there is none either, because the polygon crosses itself, the convex corner of the least
    area.
    """
    count = plane.shape[0]
    before, after = np.arange(-1, count - 1), np.arange(1, count + 1)
    before[0], after[count - 1] = count - 1, 0
    at = 1  # the corner after the first: a convex polygon becomes the fan from corner 0
    for made in range(count - 2):
        left = count - made
        cut, straight, least = -1, -1, -1
        least_area = np.inf
        for _ in range(left):
            area = _turn(plane, before[at], at, after[at])
            if area > _FLAT:
                if left == 3 or _is_ear(plane, before, after, at):
                    cut = at
                    break
                if area < least_area:
                    least, least_area = at, area
            elif straight < 0 and area >= -_FLAT:
                straight = at
            at = after[at]
        if cut < 0:
            cut = straight if straight >= 0 else least if least >= 0 else at
        triangles[made, 0], triangles[made, 1], triangles[made, 2] = before[cut], cut, after[cut]
        after[before[cut]], before[after[cut]] = after[cut], before[cut]
        at = after[cut]


@njit(cache=True, nogil=True)
def _turn(plane: np.ndarray, a: int, b: int, c: int) -> float:
    """Twice the signed area of the triangle a, b, c."""
    return (plane[b, 0] - plane[a, 0]) * (plane[c, 1] - plane[a, 1]) - (plane[b, 1] - plane[a, 1]) * (
        plane[c, 0] - plane[a, 0]
    )


@njit(cache=True, nogil=True)
def _same(plane: np.ndarray, a: int, b: int) -> bool:
    return plane[a, 0] == plane[b, 0] and plane[a, 1] == plane[b, 1]


@njit(cache=True, nogil=True)
def _holds(plane: np.ndarray, a: int, b: int, c: int, j: int) -> bool:
    """Whether j is in the triangle a, b, c or on its sides."""
    return _turn(plane, a, b, j) >= -_FLAT and _turn(plane, b, c, j) >= -_FLAT and _turn(plane, c, a, j) >= -_FLAT


@njit(cache=True, nogil=True)
def _is_ear(plane: np.ndarray, before: np.ndarray, after: np.ndarray, tip: int) -> bool:
    """Whether no other corner is in the tip's triangle or on its sides, and no edge from the tip's place crosses it."""
    a, c = before[tip], after[tip]
    j = after[c]
    while j != a:
        if _same(plane, j, tip):  # a keyhole's bridge passes here twice
            if _crosses(plane, a, c, tip, before[j]) or _crosses(plane, a, c, tip, after[j]):
                return False
        elif not _same(plane, j, a) and not _same(plane, j, c) and _holds(plane, a, tip, c, j):
            return False
        j = after[j]
    return True


@njit(cache=True, nogil=True)
def _crosses(plane: np.ndarray, a: int, c: int, tip: int, end: int) -> bool:
    """Whether the edge from the tip to `end` leaves the tip's triangle through its side from a to c."""
    return _turn(plane, a, tip, end) > _FLAT and _turn(plane, tip, c, end) > _FLAT and _turn(plane, c, a, end) < -_FLAT
