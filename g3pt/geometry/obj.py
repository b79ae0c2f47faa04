"""Vertices and faces of Wavefront OBJ text: `v` and `f` statements.

Materials and colours are read by `appearance_obj.py`.

Rules: tokens are separated by any white space; a backslash at a line's end continues the statement, but not a comment;
a negative index counts back from the vertices read so far; indices 0 and beyond the file's vertices are refused; a
fourth number of a vertex that has exactly four is the weight w by which the others are divided; faces of any number of
corners are triangulated by their shape.

Ours: trimesh 5.2 resolves negative indices against all vertices, takes index 0 for the last vertex, continues comments,
loses a file for a normal that is no number, and cuts every polygon as a fan.
"""

import itertools
import re
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

from g3pt.geometry.polygons import triangulate
from g3pt.geometry.reading import MeshError
from g3pt.geometry.text_numbers import as_index, as_number, line_number, ragged_numbers, unified_line_ends

_COMMENT = re.compile(rb"#(?!(?<=\d\.#)(?:IND|INF|QNAN|SNAN))[^\n]*")  # 1.#IND is Microsoft's NaN
_CONTINUED = re.compile(rb"\\[ \t]*\n")
_JOINT = b"\v"  # replaces a continued line's end: white space that lets lines be counted
VERTEX = re.compile(rb"^[ \t\v]*v(?!\S)([^\n]*)", re.MULTILINE)
FACE = re.compile(rb"^[ \t\v]*fo?(?!\S)([^\n]*)", re.MULTILINE)
_STATEMENT = re.compile(rb"^[ \t\v]*(v|f)(?:(?<=f)o)?(?!\S)", re.MULTILINE)
_BESIDE = re.compile(rb"/[^\s]*")  # texture coordinate and normal of a corner


@dataclass(frozen=True, kw_only=True)
class Polygons:
    """The polygons of a file: vertices (V, 3), vertex indices (C,) of all corners, corners per polygon (P,).

    `text` is the content without comments and continued lines; VERTEX and FACE find its statements.
    """

    vertices: np.ndarray
    corners: np.ndarray
    sizes: np.ndarray
    text: bytes


def read_obj(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) float64 and faces (F, 3) int64. MeshError names the line and token that can't be used."""
    found = read_polygons(content)
    return found.vertices, triangulate(found.vertices, found.corners, found.sizes)


def read_polygons(content: bytes) -> Polygons:
    """The polygons as the file states them."""
    text = unified_line_ends(content)
    if b"#" in text:
        text = _COMMENT.sub(b"", text)
    if b"\\" in text:
        text = _CONTINUED.sub(_JOINT, text)
    vertices = _vertices(text)
    corners, sizes = _corners(text, len(vertices))
    finite = np.isfinite(vertices[corners]).all(axis=1)
    if not finite.all():
        _vertex(next(itertools.islice(VERTEX.finditer(text), int(corners[finite.argmin()]), None)), text)
    return Polygons(vertices=vertices, corners=corners, sizes=sizes, text=text)


def _vertices(text: bytes) -> np.ndarray:
    rows = VERTEX.findall(text)
    try:
        numbers, widths = ragged_numbers(rows, np.float64)
    except ValueError:  # a token is no number: perhaps a colour, which isn't needed
        numbers, widths = np.zeros(0), np.zeros(1)
    if (widths >= 3).all() and (widths == widths[:1]).all():
        table = numbers.reshape(len(rows), -1) if rows else np.zeros((0, 3))
        if table.shape[1] != 4 or (table[:, 3] == 1.0).all():
            return table[:, :3]
    return np.array([_vertex(match, text) for match in VERTEX.finditer(text)], dtype=np.float64).reshape(-1, 3)


def _vertex(match: re.Match[bytes], text: bytes) -> list[float]:
    """Coordinates of a vertex. MeshError, with the line, if they are not three finite numbers."""
    tokens = match[1].split()
    try:
        numbers = [as_number(token) for token in tokens[: 4 if len(tokens) == 4 else 3]]
        if len(numbers) < 3:
            raise MeshError("corrupt", f"a vertex has {len(tokens)} of 3 coordinates")
        if len(numbers) == 4 and numbers[3] == 0.0:
            raise MeshError("corrupt", "a vertex has the weight 0")
    except MeshError as error:
        raise error.preceded_by(f"line {_line(text, match.start())}") from None
    return [number / (numbers[3] if len(numbers) == 4 else 1.0) for number in numbers[:3]]


def _corners(text: bytes, num_vertices: int) -> tuple[np.ndarray, np.ndarray]:
    """Vertex indices (C,) from 0 of all faces, and how many corners each has."""
    rows = FACE.findall(text)
    try:
        indices, sizes = _indices(rows)
    except ValueError:
        _blame_face(text, num_vertices)
        raise
    corners = indices - 1
    if (indices < 0).any():
        kinds = np.frombuffer(b"".join(_STATEMENT.findall(text)), dtype="S1")
        read_so_far = np.repeat(np.cumsum(kinds == b"v")[kinds == b"f"], sizes)
        corners = np.where(indices < 0, indices + read_so_far, corners)
    if len(corners) and ((indices == 0).any() or corners.min() < 0 or corners.max() >= num_vertices):
        _blame_face(text, num_vertices)
    return corners, sizes


def _indices(rows: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    joined = b"\n".join(rows)
    if b"/" in joined:
        rows = _BESIDE.sub(b"", joined).split(b"\n")
    return ragged_numbers(rows, np.int64)


def _blame_face(text: bytes, num_vertices: int) -> None:
    """Raise MeshError for the first corner that names no vertex."""
    starts = [match.start() for match in VERTEX.finditer(text)]
    for match in FACE.finditer(text):
        before = bisect_left(starts, match.start())
        try:
            for token in match[1].split():
                index = as_index(token.partition(b"/")[0])
                if not (0 < index <= num_vertices or 0 > index >= -before):
                    raise MeshError(
                        "corrupt", f"face index {index} is out of range: {num_vertices} vertices, {before} before"
                    )
        except MeshError as error:
            raise error.preceded_by(f"line {_line(text, match.start())}") from None


def _line(text: bytes, position: int) -> int:
    return line_number(text, position) + text.count(_JOINT, 0, position)
