"""Compiled loops over a mesh's faces: equal vertices, closed surfaces, neighbours, components, crossings.

Sequential, deterministic and cached on disk like `_kernels`. Imported only inside functions, because it needs numba.

Shapes: V vertices, F faces.
"""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def normals_and_areas(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit normals (F, 3), zero for degenerate faces, and areas (F,), in the precision of the vertices (V, 3)."""
    count = faces.shape[0]
    normals, areas = np.empty((count, 3), dtype=vertices.dtype), np.empty(count, dtype=vertices.dtype)
    for f in range(count):
        a, b, c = vertices[faces[f, 0]], vertices[faces[f, 1]], vertices[faces[f, 2]]
        p0, p1, p2 = b[0] - a[0], b[1] - a[1], b[2] - a[2]
        q0, q1, q2 = c[0] - a[0], c[1] - a[1], c[2] - a[2]
        x, y, z = p1 * q2 - p2 * q1, p2 * q0 - p0 * q2, p0 * q1 - p1 * q0
        length = np.sqrt(x * x + y * y + z * z)
        unit = length if length > 0.0 else 1.0
        normals[f, 0], normals[f, 1], normals[f, 2] = x / unit, y / unit, z / unit
        areas[f] = length / 2
    return normals, areas


@njit(cache=True, nogil=True)
def first_equal(bits: np.ndarray) -> np.ndarray:
    """For each row of (V, 3) int64, the smallest index of a row with the same values (V,).

    A hash table with open addressing, half empty at most: one pass, where sorting the rows took seconds.
    """
    count = bits.shape[0]
    size = 16
    while size < 2 * count:
        size *= 2
    table = np.full(size, -1, dtype=np.int64)
    first = np.empty(count, dtype=np.int64)
    for i in range(count):
        h = np.uint64(bits[i, 0])
        for k in range(1, 3):  # Fibonacci hashing: the high bits of a product depend on all bits below
            h = (h ^ (h >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(bits[i, k])
        h = (h ^ (h >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
        at = np.int64((h ^ (h >> np.uint64(29))) & np.uint64(size - 1))
        while table[at] >= 0:
            j = table[at]
            if bits[j, 0] == bits[i, 0] and bits[j, 1] == bits[i, 1] and bits[j, 2] == bits[i, 2]:
                break
            at = (at + 1) & (size - 1)
        if table[at] < 0:
            table[at] = i
        first[i] = table[at]
    return first


@njit(cache=True, nogil=True)
def _bucket(a: int, b: int, num_vertices: int) -> int:
    """The bucket of an edge: by the sum of its ends, so that the many edges of one corner (a fan's) are
    in different ones.
    """
    total = a + b
    return total - num_vertices if total >= num_vertices else total


@njit(cache=True, nogil=True)
def closed(faces: np.ndarray, num_vertices: int) -> bool:
    """Whether each edge of the faces (F, 3) belongs to exactly two of them, which run it in opposite directions."""
    starts = np.zeros(num_vertices + 1, dtype=np.int64)
    for f in range(faces.shape[0]):
        for k in range(3):
            starts[_bucket(faces[f, k], faces[f, (k + 1) % 3], num_vertices) + 1] += 1
    for i in range(num_vertices):
        starts[i + 1] += starts[i]
    cursor = starts[:-1].copy()
    far = np.empty(3 * faces.shape[0], dtype=np.int64)  # the edge's larger end, negative if the face runs towards it
    for f in range(faces.shape[0]):
        for k in range(3):
            a, b = faces[f, k], faces[f, (k + 1) % 3]
            bucket = _bucket(a, b, num_vertices)
            far[cursor[bucket]] = ~b if a < b else a
            cursor[bucket] += 1
    for bucket in range(num_vertices):
        for i in range(starts[bucket], starts[bucket + 1]):
            same = opposite = 0
            for j in range(starts[bucket], starts[bucket + 1]):
                same += far[j] == far[i]
                opposite += far[j] == ~far[i]
            if same != 1 or opposite != 1:
                return False
    return True


@njit(cache=True, nogil=True)
def edge_neighbours(faces: np.ndarray, num_vertices: int) -> np.ndarray:
    """For each side k of each face (F, 3), from corner k to k + 1: the one other face on it, -1 for none, -2 for more.

    A counting sort by buckets, then short lists are compared.
    """
    num_faces = faces.shape[0]
    starts = np.zeros(num_vertices + 1, dtype=np.int64)
    for f in range(num_faces):
        for k in range(3):
            starts[_bucket(faces[f, k], faces[f, (k + 1) % 3], num_vertices) + 1] += 1
    for i in range(num_vertices):
        starts[i + 1] += starts[i]
    cursor = starts[:-1].copy()
    sides = np.empty(3 * num_faces, dtype=np.int64)
    far = np.empty(3 * num_faces, dtype=np.int64)
    for f in range(num_faces):
        for k in range(3):
            a, b = faces[f, k], faces[f, (k + 1) % 3]
            bucket = _bucket(a, b, num_vertices)
            sides[cursor[bucket]], far[cursor[bucket]] = 3 * f + k, max(a, b)
            cursor[bucket] += 1
    result = np.full(3 * num_faces, -1, dtype=np.int64)
    for bucket in range(num_vertices):
        for i in range(starts[bucket], starts[bucket + 1]):
            matches = 0
            for j in range(starts[bucket], starts[bucket + 1]):
                if j != i and far[j] == far[i]:
                    matches += 1
                    result[sides[i]] = sides[j] // 3
            if matches > 1:
                result[sides[i]] = -2
    return result.reshape(num_faces, 3)


@njit(cache=True, nogil=True)
def component_labels(faces: np.ndarray, num_vertices: int) -> np.ndarray:
    """Smallest vertex index of each vertex's connected component (V,); unused vertices are their own."""
    parent = np.arange(num_vertices)
    for f in range(faces.shape[0]):
        for k in range(2):
            a, b = faces[f, k], faces[f, k + 1]
            while parent[a] != a:
                parent[a] = parent[parent[a]]
                a = parent[a]
            while parent[b] != b:
                parent[b] = parent[parent[b]]
                b = parent[b]
            if a < b:
                parent[b] = a
            else:
                parent[a] = b
    for i in range(num_vertices):
        parent[i] = parent[parent[i]]
    return parent


@njit(cache=True, nogil=True)
def column_crossings(corners: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Signed crossings of the vertical lines through a grid's columns by triangles (F, 3, 3) in cells, int32 (X,
    Y + 1, Z).

    Cell centres are at whole numbers. A crossing is counted at the number of centres below it: +1 for a face that looks
    up.
    """
    num_x, num_y, num_z = shape
    crossings = np.zeros((num_x, num_y + 1, num_z), dtype=np.int32)
    for f in range(len(corners)):
        a, b, c = corners[f, 0], corners[f, 1], corners[f, 2]
        area = (b[0] - a[0]) * (c[2] - a[2]) - (c[0] - a[0]) * (b[2] - a[2])
        if abs(area) < 1e-12:
            continue
        sign = 1 if area < 0 else -1  # a face whose normal looks up has negative area in (x, z)
        x0, x1 = max(0, int(np.ceil(min(a[0], b[0], c[0])))), min(num_x - 1, int(max(a[0], b[0], c[0])))
        z0, z1 = max(0, int(np.ceil(min(a[2], b[2], c[2])))), min(num_z - 1, int(max(a[2], b[2], c[2])))
        for x in range(x0, x1 + 1):
            for z in range(z0, z1 + 1):
                u = ((x - a[0]) * (c[2] - a[2]) - (c[0] - a[0]) * (z - a[2])) / area
                v = ((b[0] - a[0]) * (z - a[2]) - (x - a[0]) * (b[2] - a[2])) / area
                if u >= 0 and v >= 0 and u + v <= 1:
                    y = int(np.ceil(a[1] + u * (b[1] - a[1]) + v * (c[1] - a[1])))
                    crossings[x, min(max(y, 0), num_y), z] += sign
    return crossings
