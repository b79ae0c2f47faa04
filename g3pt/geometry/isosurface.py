"""From a field to a surface: the search for the cells that the surface crosses, then marching cubes block by block.

A search (`g3pt.geometry.search`) is a generator that yields points and receives the field's values there: `extract`
runs one search on one field, `extract_many` runs a batch of searches together. The vertices are those of dense
decoding, except for parts that are entirely between the points of the coarse grid. Memory: that of the search, stated
there, one block of marching cubes (132^3 * 5 B = 12 MB) and the mesh.

Shapes: N points or cells, V vertices, F faces.
"""

from collections.abc import Callable, Iterator

import numpy as np

from g3pt.geometry.cleanup import clean, unique_rows
from g3pt.geometry.search import CORNERS, Crossed, EmptyField, FullField, NoSurface, TooComplexField, search

__all__ = [
    "EmptyField",
    "FullField",
    "NoSurface",
    "TooComplexField",
    "cleaned_mesh",
    "default_coarse",
    "extract",
    "extract_many",
    "marching_cubes",
    "search_many",
]

MIN_COARSE = 32  # a separate part thinner than 2 / 32 can be missed between the first grid's points
BLOCK = 130  # cells per side of a block of marching cubes: 128 cells and the two beyond the box are one block

Field = Callable[[np.ndarray], np.ndarray]


def extract(
    field: Field, resolution: int = 128, coarse: int | None = None, level: float = 0.0, chunk: int = 65536
) -> tuple[np.ndarray, np.ndarray]:
    """Surface where `field` equals `level`: vertices (V, 3) float32 in [-1, 1]^3, faces (F, 3) int64, facing outward.

    field: points (N, 3) float32 -> values (N,), above `level` inside; called on at most `chunk` points at a time.
    coarse: cells per side of the first grid; resolution must be coarse * 2^k (coarse = resolution decodes densely). By
    default the smallest such of at least MIN_COARSE.
    Raises EmptyField, FullField, TooComplexField; ValueError for non-finite values.
    """

    def answer(requests: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        points = requests[0]
        parts = [np.asarray(field(points[start : start + chunk])).reshape(-1) for start in range(0, len(points), chunk)]
        return {0: np.concatenate(parts) if parts else np.zeros(0)}

    (found,) = extract_many(answer, 1, resolution, coarse, level)
    if isinstance(found, NoSurface):
        raise found
    return found


def extract_many(
    answer: Callable[[dict[int, np.ndarray]], dict[int, np.ndarray]],
    count: int,
    resolution: int = 128,
    coarse: int | None = None,
    level: float = 0.0,
) -> list[tuple[np.ndarray, np.ndarray] | NoSurface]:
    """The surface of each of `count` fields, as `extract` returns it, or why it has none.

    The fields are evaluated together.

    answer: {index of the field: points (N, 3)} -> {index: values (N,)}, once per round for all unfinished searches. A
    field with few cells near its surface takes no more rounds than one with many. Memory: the sum of what each needs.
    """
    found = {
        number: field if isinstance(field, NoSurface) else marching_cubes(field)
        for number, field in search_many(answer, count, resolution, coarse, level)
    }
    return [found[number] for number in range(count)]


def search_many(
    answer: Callable[[dict[int, np.ndarray]], dict[int, np.ndarray]],
    count: int,
    resolution: int = 128,
    coarse: int | None = None,
    level: float = 0.0,
) -> Iterator[tuple[int, Crossed | NoSurface]]:
    """(index, the crossed cells or why there are none) of each field, as its search ends: all that needs the field."""
    coarse = default_coarse(resolution) if coarse is None else coarse
    searches = {number: search(resolution, coarse, level) for number in range(count)}
    replies: dict[int, np.ndarray | None] = dict.fromkeys(searches)  # None starts a generator
    while replies:
        requests: dict[int, np.ndarray] = {}
        for number, values in replies.items():
            try:
                requests[number] = searches[number].send(values)
            except StopIteration as end:
                yield number, end.value
            except NoSurface as reason:
                yield number, reason
        replies = dict(answer(requests)) if requests else {}


def cleaned_mesh(field: Crossed | NoSurface) -> tuple[np.ndarray, np.ndarray]:
    """The cleaned surface in the crossed cells: vertices (V, 3), faces (F, 3). Raises a NoSurface."""
    if isinstance(field, NoSurface):
        raise field
    return clean(*marching_cubes(field))


def default_coarse(resolution: int) -> int:
    """Smallest resolution / 2^k that is whole and at least MIN_COARSE; the resolution itself when there is none."""
    coarse = resolution
    while coarse % 2 == 0 and coarse // 2 >= MIN_COARSE:
        coarse //= 2
    return coarse


def marching_cubes(crossed: Crossed) -> tuple[np.ndarray, np.ndarray]:
    """The surface in the crossed cells, (V, 3) float32 and (F, 3) int64: Lewiner's marching cubes, one block
    of cells at a time.

    A vertex on the border of two blocks has bitwise the same coordinates in both (along the border both count from the
    same corner), so equal vertices can be merged.
    """
    block_N3 = (crossed.cells_N3 + 1) // BLOCK
    key_N = block_N3 @ np.array([1 << 40, 1 << 20, 1])
    order = np.argsort(key_N, kind="stable")
    starts = np.flatnonzero(np.diff(key_N[order], prepend=-1))
    vertices, faces, count = [], [], 0
    for rows in np.split(order, starts[1:]):
        corner = block_N3[rows[0]] * BLOCK - 1
        local, triangles = _block_surface(crossed.cells_N3[rows] - corner, crossed.values_N8[rows])
        vertices.append(
            np.clip((local.astype(np.float64) + corner) * (2.0 / crossed.resolution) - 1.0, -1.0, 1.0).astype(
                np.float32
            )
        )
        faces.append(triangles.astype(np.int64) + count)
        count += len(local)
    if len(vertices) == 1:
        return vertices[0], faces[0]
    unique, index = unique_rows(np.concatenate(vertices))
    return unique, index[np.concatenate(faces)]


def _block_surface(cells_N3: np.ndarray, values_N8: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and faces in units of cells; only corners of the given cells are read."""
    from skimage import measure

    shape = tuple(cells_N3.max(axis=0) + 2)
    volume, visited = np.full(shape, -1.0, dtype=np.float32), np.zeros(shape, dtype=bool)
    for k, corner in enumerate(CORNERS):
        volume[tuple((cells_N3 + corner).T)] = values_N8[:, k]
    visited[tuple((cells_N3 + 1).T)] = True  # scikit-image's mask names a cell by its upper corner
    vertices, faces, _, _ = measure.marching_cubes(volume, 0.0, gradient_direction="ascent", mask=visited)
    return vertices, faces
