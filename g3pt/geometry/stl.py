"""Triangles of STL files, binary and text.

A file is binary if its count of facets fits its length exactly, or if it isn't text. Bytes after the last facet of a
binary file are ignored. Text may begin with a byte order mark or white space and name its solids by any words; facets
of any number of corners are triangulated by their shape, and normals are ignored.

Ours: trimesh 5.2 loses files with a byte after the last facet, "end solid", or a key word in a name.
"""

import re
import struct

import numpy as np

from g3pt.geometry.polygons import triangulate
from g3pt.geometry.reading import MeshError
from g3pt.geometry.text_numbers import as_number, line_number, ragged_numbers, unified_line_ends

_HEADER = 84  # bytes before the first facet of a binary file
_FACET = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_FACETS = re.compile(rb"(?<!\S)facet(?!\S)")
_END_FACETS = re.compile(rb"(?<!\S)endfacet(?!\S)")
_PARTED = re.compile(rb"(?<!\S)end[ \t]+(?=(?:facet|loop)(?!\S))")
_LOOP = re.compile(rb"(?<!\S)outer\s+loop(?!\S)(.*?)(?<!\S)endloop(?!\S)", re.DOTALL)
_VERTEX = re.compile(rb"(?<!\S)vertex(?!\S)")
_PLAIN = b"facet normal 0 0 0 outer loop vertex 0 0 0 vertex 0 0 0 vertex 0 0 0 endloop endfacet".split()  # 0: a number
_COORDINATES = (8, 9, 10, 12, 13, 14, 16, 17, 18)


def read_stl(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) float64, three or more for each facet, and faces (F, 3) int64."""
    count = struct.unpack_from("<I", content, 80)[0] if len(content) >= _HEADER else -1
    fits = count >= 0 and _HEADER + _FACET.itemsize * count == len(content)
    if not fits and _is_text(content):
        return _read_text(_lower(content))
    if count < 0:
        raise MeshError("corrupt", "STL header is cut off")
    if _HEADER + _FACET.itemsize * count > len(content):
        held = (len(content) - _HEADER) // _FACET.itemsize
        raise MeshError("corrupt", f"STL says {count} faces but contains {held}")
    vertices = np.frombuffer(content, _FACET, count, _HEADER)["corners"].reshape(-1, 3).astype(np.float64)
    return vertices, np.arange(len(vertices)).reshape(-1, 3)


def _is_text(content: bytes) -> bool:
    start = content[:2000].removeprefix(b"\xef\xbb\xbf").lstrip()
    return start[:5].lower() == b"solid" and (b"\0" not in start or _without_names(_lower(content))[1])


def _lower(content: bytes) -> bytes:
    return unified_line_ends(content.removeprefix(b"\xef\xbb\xbf")).lower()


def _without_names(text: bytes) -> tuple[bytes, bool]:
    """The text with the lines that begin with `solid`, `endsolid` or `end solid` blank,
    and whether a solid is closed.
    """
    kept, is_closed, at = [], False, 0
    while (word := text.find(b"solid", at)) >= 0:
        start = text.rfind(b"\n", 0, word) + 1
        before, end = text[start:word].strip(), text.find(b"\n", word) % (len(text) + 1)  # -1: the text's end
        is_name = before in (b"", b"end") and not text[word + 5 : word + 6].strip()
        kept.append(text[at : start if is_name else end])
        is_closed |= is_name and before == b"end"
        at = end
    return b"".join([*kept, text[at:]]), is_closed


def _read_text(text: bytes) -> tuple[np.ndarray, np.ndarray]:
    text, is_closed = _without_names(text)  # names may contain any words; lines are still counted rightly
    if b"end " in text or b"end\t" in text:
        text = _PARTED.sub(b"end", text)
    vertices = _plain_corners(text) if is_closed else None
    if vertices is not None:
        return vertices, np.arange(len(vertices)).reshape(-1, 3)
    num_facets = len(_FACETS.findall(text))
    loops = list(_LOOP.finditer(text))
    if not is_closed or num_facets != len(_END_FACETS.findall(text)) or num_facets != len(loops):
        raise MeshError(
            "corrupt", f"text STL is cut off or nests wrongly: {num_facets} facets, {len(loops)} closed loops"
        )
    if not loops:
        raise MeshError("no-faces", "text STL without a facet")
    try:
        vertices, sizes = _corners([loop[1] for loop in loops])
    except ValueError:
        _blame(text, loops)
        raise
    return vertices, triangulate(vertices, np.arange(len(vertices)), sizes)


def _plain_corners(text: bytes) -> np.ndarray | None:
    """Vertices (V, 3) of text in which each facet has three corners and all tokens are as expected; else None."""
    tokens = text.split()
    width = len(_PLAIN)
    if len(tokens) % width or not tokens:
        return None
    if any(tokens[k::width].count(word) * width != len(tokens) for k, word in enumerate(_PLAIN) if word != b"0"):
        return None
    coordinates = [b""] * (len(tokens) // width * len(_COORDINATES))
    for k, column in enumerate(_COORDINATES):
        coordinates[k :: len(_COORDINATES)] = tokens[column::width]
    try:
        numbers, widths = ragged_numbers([b" ".join(coordinates)], np.float64)
    except ValueError:
        return None
    return numbers.reshape(-1, 3) if widths[0] == len(coordinates) else None


def _corners(loops: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) of all loops, and how many each has. ValueError for a loop that isn't `vertex x y z ...`."""
    rows = [_VERTEX.split(loop) for loop in loops]
    sizes = np.array([len(row) - 1 for row in rows])
    numbers, widths = ragged_numbers([row for parts in rows for row in parts[1:]], np.float64)
    if any(parts[0].strip() for parts in rows) or (widths != 3).any() or (sizes < 3).any():
        raise ValueError("a loop isn't a list of vertices")
    return numbers.reshape(-1, 3), sizes


def _blame(text: bytes, loops: list[re.Match[bytes]]) -> None:
    """Raise MeshError for the first loop that isn't at least three times `vertex x y z`."""
    for loop in loops:
        starts = [match.start() + loop.start(1) for match in _VERTEX.finditer(loop[1])]
        try:
            if len(starts) < 3:
                raise MeshError("corrupt", f"a facet has {len(starts)} vertices")
            if text[loop.start(1) : starts[0]].strip():
                raise MeshError("corrupt", f"{text[loop.start(1) : starts[0]].split()[0][:40]!r} is no vertex")
        except MeshError as error:
            raise error.preceded_by(f"line {line_number(text, loop.start())}") from None
        for start, end in zip(starts, [*starts[1:], loop.end(1)], strict=True):
            tokens = text[start:end].split()[1:]
            try:
                for token in tokens:
                    as_number(token)
                if len(tokens) != 3:
                    raise MeshError("corrupt", f"a vertex has {len(tokens)} coordinates, not 3")
            except MeshError as error:
                raise error.preceded_by(f"line {line_number(text, start)}") from None
