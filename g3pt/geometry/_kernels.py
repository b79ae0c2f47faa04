"""Compiled loops over grids and triangles: narrow-band distance, exterior flood fill, ray parity.

All are sequential and deterministic, without fast-math, and cached on disk (`cache=True`) so that worker
processes do not compile again. Grids are arrays indexed [x, y, z]; kernels work in grid units
(neighbouring grid points are 1 apart). Imported only inside functions, because it needs numba.

Source: closest point on a triangle by Voronoi regions, Ericson, Real-Time Collision Detection, 5.1.5.
"""

import math

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def _squared_distance(
    px: float,
    py: float,
    pz: float,
    ax: float,
    ay: float,
    az: float,
    bx: float,
    by: float,
    bz: float,
    cx: float,
    cy: float,
    cz: float,
) -> float:
    """Squared distance from point p to triangle abc."""
    abx, aby, abz = bx - ax, by - ay, bz - az
    acx, acy, acz = cx - ax, cy - ay, cz - az
    apx, apy, apz = px - ax, py - ay, pz - az
    d1 = abx * apx + aby * apy + abz * apz
    d2 = acx * apx + acy * apy + acz * apz
    if d1 <= 0.0 and d2 <= 0.0:
        return apx * apx + apy * apy + apz * apz
    bpx, bpy, bpz = px - bx, py - by, pz - bz
    d3 = abx * bpx + aby * bpy + abz * bpz
    d4 = acx * bpx + acy * bpy + acz * bpz
    if d3 >= 0.0 and d4 <= d3:
        return bpx * bpx + bpy * bpy + bpz * bpz
    vc = d1 * d4 - d3 * d2
    if vc <= 0.0 and d1 >= 0.0 and d3 <= 0.0 and d1 != d3:
        t = d1 / (d1 - d3)
        dx, dy, dz = apx - t * abx, apy - t * aby, apz - t * abz
        return dx * dx + dy * dy + dz * dz
    cpx, cpy, cpz = px - cx, py - cy, pz - cz
    d5 = abx * cpx + aby * cpy + abz * cpz
    d6 = acx * cpx + acy * cpy + acz * cpz
    if d6 >= 0.0 and d5 <= d6:
        return cpx * cpx + cpy * cpy + cpz * cpz
    vb = d5 * d2 - d1 * d6
    if vb <= 0.0 and d2 >= 0.0 and d6 <= 0.0 and d2 != d6:
        t = d2 / (d2 - d6)
        dx, dy, dz = apx - t * acx, apy - t * acy, apz - t * acz
        return dx * dx + dy * dy + dz * dz
    va = d3 * d6 - d5 * d4
    e1, e2 = d4 - d3, d5 - d6
    if va <= 0.0 and e1 >= 0.0 and e2 >= 0.0 and e1 + e2 > 0.0:
        t = e1 / (e1 + e2)
        dx, dy, dz = bpx - t * (cx - bx), bpy - t * (cy - by), bpz - t * (cz - bz)
        return dx * dx + dy * dy + dz * dz
    denominator = va + vb + vc
    if denominator <= 0.0:  # a sliver beyond double precision: its nearest corner is close enough
        nearest = min(apx * apx + apy * apy + apz * apz, bpx * bpx + bpy * bpy + bpz * bpz)
        return min(nearest, cpx * cpx + cpy * cpy + cpz * cpz)
    v, w = vb / denominator, vc / denominator
    dx, dy, dz = apx - v * abx - w * acx, apy - v * aby - w * acy, apz - v * abz - w * acz
    return dx * dx + dy * dy + dz * dz


@njit(cache=True, nogil=True)
def _splat_triangle(squared: np.ndarray, corners: np.ndarray, band: float, edges: np.ndarray) -> None:
    """Lower `squared` to the squared distance to one triangle, at every grid point within `band` of it.

    Walks columns along the triangle's dominant axis `a`: across it (u, w) only columns over the grown triangle,
    along it only the slab within `band` of its plane.
    """
    _, n_y, n_z = squared.shape
    ax, ay, az = corners[0]
    bx, by, bz = corners[1]
    cx, cy, cz = corners[2]
    nx = (by - ay) * (cz - az) - (bz - az) * (cy - ay)
    ny = (bz - az) * (cx - ax) - (bx - ax) * (cz - az)
    nz = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    length = math.sqrt(nx * nx + ny * ny + nz * nz)
    if length == 0.0:
        return
    normal = (nx / length, ny / length, nz / length)
    a = 2
    if abs(nx) >= abs(ny) and abs(nx) >= abs(nz):
        a = 0
    elif abs(ny) >= abs(nz):
        a = 1
    u, w = (a + 1) % 3, (a + 2) % 3
    n_a, n_u, n_w = normal[a], normal[u], normal[w]

    turn = 1.0 if n_a > 0.0 else -1.0  # projected winding
    for k in range(3):  # outward edge lines of the projected triangle
        e_u = corners[(k + 1) % 3, u] - corners[k, u]
        e_w = corners[(k + 1) % 3, w] - corners[k, w]
        size = math.sqrt(e_u * e_u + e_w * e_w)
        if size > 0.0:
            edges[k, 0], edges[k, 1] = turn * e_w / size, -turn * e_u / size
            edges[k, 2] = edges[k, 0] * corners[k, u] + edges[k, 1] * corners[k, w] + band
        else:
            edges[k, 0], edges[k, 1], edges[k, 2] = 0.0, 0.0, band

    u_low = max(0, math.ceil(min(corners[0, u], corners[1, u], corners[2, u]) - band))
    u_high = min(squared.shape[u] - 1, math.floor(max(corners[0, u], corners[1, u], corners[2, u]) + band))
    w_low = max(0, math.ceil(min(corners[0, w], corners[1, w], corners[2, w]) - band))
    w_high = min(squared.shape[w] - 1, math.floor(max(corners[0, w], corners[1, w], corners[2, w]) + band))
    a_low = max(0.0, min(corners[0, a], corners[1, a], corners[2, a]) - band)
    a_high = min(squared.shape[a] - 1.0, max(corners[0, a], corners[1, a], corners[2, a]) + band)
    half = band / abs(n_a)
    stride_a = 1 if a == 2 else (n_z if a == 1 else n_y * n_z)
    stride_u = 1 if u == 2 else (n_z if u == 1 else n_y * n_z)
    stride_w = 1 if w == 2 else (n_z if w == 1 else n_y * n_z)
    flat = squared.reshape(-1)
    for i_u in range(u_low, u_high + 1):
        for i_w in range(w_low, w_high + 1):
            if edges[0, 0] * i_u + edges[0, 1] * i_w > edges[0, 2]:
                continue
            if edges[1, 0] * i_u + edges[1, 1] * i_w > edges[1, 2]:
                continue
            if edges[2, 0] * i_u + edges[2, 1] * i_w > edges[2, 2]:
                continue
            centre = corners[0, a] - (n_u * (i_u - corners[0, u]) + n_w * (i_w - corners[0, w])) / n_a
            low = math.ceil(max(a_low, centre - half))
            high = math.floor(min(a_high, centre + half))
            base = i_u * stride_u + i_w * stride_w
            for i_a in range(low, high + 1):
                plane = (i_a - centre) * n_a
                at = base + i_a * stride_a
                if plane * plane >= flat[at]:
                    continue
                if a == 0:
                    p_x, p_y, p_z = float(i_a), float(i_u), float(i_w)
                elif a == 1:
                    p_x, p_y, p_z = float(i_w), float(i_a), float(i_u)
                else:
                    p_x, p_y, p_z = float(i_u), float(i_w), float(i_a)
                d = _squared_distance(p_x, p_y, p_z, ax, ay, az, bx, by, bz, cx, cy, cz)
                if d < flat[at]:
                    flat[at] = d


@njit(cache=True, nogil=True)
def narrow_band(triangles: np.ndarray, shape: tuple[int, int, int], band: float) -> np.ndarray:
    """Distance (grid of `shape`, float32) to the triangles (F, 3, 3), exact up to `band`, 1e3 beyond it."""
    squared = np.full(shape, np.float32(1e6))
    edges = np.empty((3, 3))
    for i in range(triangles.shape[0]):
        _splat_triangle(squared, triangles[i], band, edges)
    flat = squared.reshape(-1)
    for i in range(flat.shape[0]):
        flat[i] = math.sqrt(flat[i])
    return squared


@njit(cache=True, nogil=True)
def outside_field(distance: np.ndarray, offset: float, snap: float) -> None:
    """Turn an unsigned distance into a field in place: minus the offset, at least `snap` from zero, negative inside.

    Outside is what 6-connected positive steps from corner (0, 0, 0) reach, by a scanline flood fill along z. Afterwards
    the positive points are one connected region.
    """
    n0, n1, n2 = distance.shape
    flat = distance.reshape(-1)
    for i in range(flat.shape[0]):
        value = flat[i] - np.float32(offset)
        flat[i] = -np.float32(snap) if abs(value) < snap else value
    reached = np.zeros(flat.shape[0], dtype=np.uint8)
    stack = np.empty(1 << 16, dtype=np.int64)
    stack[0] = 0
    top = 1 if flat[0] > 0.0 else 0
    while top > 0:
        top -= 1
        seed = stack[top]
        if reached[seed]:
            continue
        row = (seed // n2) * n2
        y = (seed // n2) % n1
        x = seed // (n1 * n2)
        low = seed
        while low > row and flat[low - 1] > 0.0:
            low -= 1
        high = seed
        while high < row + n2 - 1 and flat[high + 1] > 0.0:
            high += 1
        for i in range(low, high + 1):
            reached[i] = 1
        for side in range(4):
            if side == 0:
                if x == 0:
                    continue
                shift = -n1 * n2
            elif side == 1:
                if x == n0 - 1:
                    continue
                shift = n1 * n2
            elif side == 2:
                if y == 0:
                    continue
                shift = -n2
            else:
                if y == n1 - 1:
                    continue
                shift = n2
            fresh = True  # push one seed per run of unreached positive points
            for i in range(low + shift, high + shift + 1):
                if flat[i] > 0.0 and not reached[i]:
                    if fresh:
                        if top == stack.shape[0]:
                            larger = np.empty(2 * top, dtype=np.int64)
                            larger[:top] = stack
                            stack = larger
                        stack[top] = i
                        top += 1
                    fresh = False
                else:
                    fresh = True
    for i in range(flat.shape[0]):
        if flat[i] > 0.0 and not reached[i]:
            flat[i] = -1.0


@njit(cache=True, nogil=True)
def _crosses(px: float, py: float, ax: float, ay: float, bx: float, by: float) -> bool:
    """Whether the ray from p along +x crosses edge ab; the same answer bit for bit for ab and ba."""
    if (ay > py) == (by > py):
        return False
    if ay > by:
        ax, ay, bx, by = bx, by, ax, ay
    return px < ax + (py - ay) * (bx - ax) / (by - ay)


@njit(cache=True, nogil=True)
def _bin_of(value: float, low: float, per_unit: float, count: int) -> int:
    return min(max(int((value - low) * per_unit), 0), count - 1)


@njit(cache=True, nogil=True)
def _column_bins(corners: np.ndarray, low: np.ndarray, per_unit: np.ndarray, count: int) -> tuple:
    """Range of (x, y) bins under one triangle's box."""
    x_min = min(corners[0, 0], corners[1, 0], corners[2, 0])
    x_max = max(corners[0, 0], corners[1, 0], corners[2, 0])
    y_min = min(corners[0, 1], corners[1, 1], corners[2, 1])
    y_max = max(corners[0, 1], corners[1, 1], corners[2, 1])
    return (
        _bin_of(x_min, low[0], per_unit[0], count),
        _bin_of(x_max, low[0], per_unit[0], count),
        _bin_of(y_min, low[1], per_unit[1], count),
        _bin_of(y_max, low[1], per_unit[1], count),
    )


@njit(cache=True, nogil=True)
def column_index(triangles: np.ndarray, low: np.ndarray, per_unit: np.ndarray, count: int) -> tuple:
    """Triangles (F, 3, 3) listed by the bins of a (count, count) grid in x and y: (starts, members)."""
    starts = np.zeros(count * count + 1, dtype=np.int64)
    for i in range(triangles.shape[0]):
        x0, x1, y0, y1 = _column_bins(triangles[i], low, per_unit, count)
        for x in range(x0, x1 + 1):
            for y in range(y0, y1 + 1):
                starts[x * count + y + 1] += 1
    for i in range(count * count):
        starts[i + 1] += starts[i]
    cursor = starts[:-1].copy()
    members = np.empty(starts[-1], dtype=np.int32)
    for i in range(triangles.shape[0]):
        x0, x1, y0, y1 = _column_bins(triangles[i], low, per_unit, count)
        for x in range(x0, x1 + 1):
            for y in range(y0, y1 + 1):
                members[cursor[x * count + y]] = i
                cursor[x * count + y] += 1
    return starts, members


@njit(cache=True, nogil=True)
def ray_parity(
    triangles: np.ndarray,
    points: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    per_unit: np.ndarray,
    count: int,
    starts: np.ndarray,
    members: np.ndarray,
) -> np.ndarray:
    """Whether the ray from each point (N, 3) along +z crosses the closed surface an odd number of times.

    A triangle covers (x, y) by the crossing rule of its three edges; two triangles that share an edge get the
    same answer from it, so a ray through an edge or a corner is never counted twice or lost.
    """
    inside = np.zeros(points.shape[0], dtype=np.bool_)
    for i in range(points.shape[0]):
        px, py, pz = points[i, 0], points[i, 1], points[i, 2]
        if not (low[0] <= px <= high[0] and low[1] <= py <= high[1] and low[2] <= pz <= high[2]):
            continue
        cell = _bin_of(px, low[0], per_unit[0], count) * count + _bin_of(py, low[1], per_unit[1], count)
        odd = False
        for m in range(starts[cell], starts[cell + 1]):
            t = triangles[members[m]]
            if max(t[0, 2], t[1, 2], t[2, 2]) <= pz:
                continue
            covered = _crosses(px, py, t[0, 0], t[0, 1], t[1, 0], t[1, 1])
            covered ^= _crosses(px, py, t[1, 0], t[1, 1], t[2, 0], t[2, 1])
            covered ^= _crosses(px, py, t[2, 0], t[2, 1], t[0, 0], t[0, 1])
            if not covered:
                continue
            if min(t[0, 2], t[1, 2], t[2, 2]) > pz or _height(px, py, t) > pz:
                odd = not odd
        inside[i] = odd
    return inside


@njit(cache=True, nogil=True)
def _height(px: float, py: float, t: np.ndarray) -> float:
    """z of the triangle's plane at (px, py), clamped to the triangle's own range."""
    ux, uy, uz = t[1, 0] - t[0, 0], t[1, 1] - t[0, 1], t[1, 2] - t[0, 2]
    vx, vy, vz = t[2, 0] - t[0, 0], t[2, 1] - t[0, 1], t[2, 2] - t[0, 2]
    area = ux * vy - uy * vx
    z_low, z_high = min(t[0, 2], t[1, 2], t[2, 2]), max(t[0, 2], t[1, 2], t[2, 2])
    if area == 0.0:
        return z_high
    qx, qy = px - t[0, 0], py - t[0, 1]
    z = t[0, 2] + ((qx * vy - qy * vx) * uz + (ux * qy - uy * qx) * vz) / area
    return min(max(z, z_low), z_high)
