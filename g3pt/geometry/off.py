"""Vertices and faces of OFF text: [ST][C][N][4]OFF in any case, or the counts without a key word.

Comments begin with # and end with the line. Where each vertex and each face has its own line, tokens after the
coordinates and after the face's corners (normals, colours, texture coordinates) are ignored. Otherwise the file is a
stream of tokens: plain OFF and 4OFF only, since nothing says how many tokens a colour has. In 4OFF the fourth
coordinate divides the others. Faces of any number of corners are triangulated by their shape. nOFF and binary OFF are
refused.

Ours: trimesh 5.2 reads faces of three and four corners only, ignores 4OFF's fourth coordinate, and cuts quads as fans.
Source: geomview's manual, "OFF Files".
"""

import re
from collections.abc import Callable

import numpy as np

from g3pt.geometry.polygons import triangulate
from g3pt.geometry.reading import MeshError
from g3pt.geometry.text_numbers import as_index, as_number, line_number, ragged_numbers, unified_line_ends

_COMMENT = re.compile(rb"#[^\n]*")
_KEYWORD = re.compile(rb"\s*(?:(?:ST)?C?N?(4)?(n)?OFF(?!\S)(\s+BINARY(?!\S))?)?", re.IGNORECASE)
_COUNTS = re.compile(rb"\s*(\d{1,18})\s+(\d{1,18})(?!\S)(?:[ \t]+\d+(?!\S))?")
_EDGES = re.compile(rb"\s*\d+(?!\S)")
_TOKEN = re.compile(rb"\S+")
Rows = list[tuple[int, bytes]]  # line number, text of one vertex or face


def read_off(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) float64 and faces (F, 3) int64. MeshError names the line and token that can't be used."""
    text = _COMMENT.sub(b"", unified_line_ends(content))
    keyword = _KEYWORD.match(text)
    assert keyword is not None  # every part is optional
    if keyword[2] or keyword[3] or keyword[0].lstrip().startswith(b"nOFF"):
        raise MeshError("unsupported", "OFF of another dimension, or binary, is not read")
    counts = _COUNTS.match(text, keyword.end())
    if counts is None:
        raise MeshError("corrupt", "OFF without its numbers of vertices and faces")
    num_vertices, num_faces, width = int(counts[1]), int(counts[2]), 4 if keyword[1] else 3
    lines = _lines(text, counts.end())
    try:
        return _mesh(lines, num_vertices, num_faces, width)
    except MeshError:
        is_plain = keyword[0].strip().lower() in (b"", b"off", b"4off")
        for start in _starts(text, counts.end()) if is_plain else ():
            stream = _stream(text, start, num_vertices, num_faces, width)
            if stream is not None:
                return _mesh(stream, num_vertices, num_faces, width)
        raise


def _starts(text: bytes, after_counts: int) -> list[int]:
    """Where a stream's vertices may begin: after the two counts, or after the number of edges on a line of its own."""
    edges = _EDGES.match(text, after_counts)
    return [after_counts] if edges is None else [after_counts, edges.end()]


def _lines(text: bytes, start: int) -> Rows:
    """The lines from `start` that are not blank."""
    first = line_number(text, start)
    return [(first + k, line) for k, line in enumerate(text[start:].split(b"\n")) if line and not line.isspace()]


def _stream(text: bytes, start: int, num_vertices: int, num_faces: int, width: int) -> Rows | None:
    """Rows of a file that isn't divided into lines; None if its tokens are not exactly those that its counts need."""
    tokens = [(match.start(), match[0]) for match in _TOKEN.finditer(text, start)]
    if num_vertices * width + num_faces > len(tokens):
        return None
    sizes, at = [width] * num_vertices, num_vertices * width
    for _ in range(num_faces):
        if at >= len(tokens) or not tokens[at][1].isdigit() or len(tokens[at][1]) > 9:
            return None
        sizes.append(int(tokens[at][1]) + 1)
        at += sizes[-1]
    if at != len(tokens):
        return None
    ends = np.cumsum(sizes).tolist()
    return [
        (line_number(text, tokens[end - size][0]), b" ".join(token for _, token in tokens[end - size : end]))
        for size, end in zip(sizes, ends, strict=True)
    ]


def _mesh(rows: Rows, num_vertices: int, num_faces: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    if num_vertices + num_faces > len(rows):
        claim = f"{num_vertices} vertices and {num_faces} faces"
        raise MeshError("corrupt", f"OFF header claims {claim}, {len(rows)} lines follow")
    vertex_rows, face_rows = rows[:num_vertices], rows[num_vertices : num_vertices + num_faces]
    numbers, widths = _numbers(vertex_rows, lambda tokens: width)
    _refuse_short(vertex_rows, widths, np.full(num_vertices, width))
    vertices = numbers[(np.cumsum(widths) - widths)[:, None] + np.arange(width)]
    if width == 4:
        if (vertices[:, 3] == 0.0).any():
            raise MeshError("corrupt", f"line {vertex_rows[int((vertices[:, 3] == 0.0).argmax())][0]}: the weight is 0")
        vertices = vertices[:, :3] / vertices[:, 3:]
    corners, sizes = _faces(face_rows, num_vertices)
    return vertices, triangulate(vertices, corners, sizes)


def _faces(rows: Rows, num_vertices: int) -> tuple[np.ndarray, np.ndarray]:
    """Corners (C,) of all faces, and how many each has."""
    numbers, widths = _numbers(rows, lambda tokens: max(as_index(tokens[0]), 0) + 1)
    starts = np.cumsum(widths) - widths
    sizes = numbers[starts]
    wrong = ~((sizes >= 0) & (sizes == np.floor(sizes)))
    if wrong.any():
        first = int(wrong.argmax())
        raise MeshError("corrupt", f"line {rows[first][0]}: {sizes[first]:g} is no number of corners")
    _refuse_short(rows, widths, sizes + 1)
    sizes = sizes.astype(np.int64)
    is_corner = np.repeat(sizes, widths) > np.arange(len(numbers)) - np.repeat(starts, widths) - 1
    is_corner[starts] = False
    corners, row_of = numbers[is_corner], np.repeat(np.arange(len(rows)), widths)[is_corner]
    wrong = (corners != np.floor(corners)) | (corners < 0) | (corners >= num_vertices)
    if wrong.any():
        first = int(wrong.argmax())
        raise MeshError(
            "corrupt", f"line {rows[row_of[first]][0]}: index {corners[first]:g} is no vertex of {num_vertices}"
        )
    return corners.astype(np.int64), sizes


def _refuse_short(rows: Rows, widths: np.ndarray, needed: np.ndarray) -> None:
    """Raise MeshError for the first row with fewer numbers than it needs."""
    wrong = widths < needed
    if wrong.any():
        first = int(wrong.argmax())
        raise MeshError("corrupt", f"line {rows[first][0]}: {widths[first]} of {needed[first]:g} numbers")


def _numbers(rows: Rows, needed: Callable[[list[bytes]], int]) -> tuple[np.ndarray, np.ndarray]:
    """All numbers of the rows, and how many each has; where a token is no number, only those that are `needed`."""
    try:
        return ragged_numbers([row for _, row in rows], np.float64)
    except ValueError:
        found = [_needed_numbers(number, row.split(), needed) for number, row in rows]
        return np.array([value for row in found for value in row]), np.array([len(row) for row in found])


def _needed_numbers(line: int, tokens: list[bytes], needed: Callable[[list[bytes]], int]) -> list[float]:
    try:
        return [as_number(token) for token in tokens[: needed(tokens)]]
    except MeshError as error:
        raise error.preceded_by(f"line {line}") from None
