"""Vertices and faces of PLY files: text and binary of either byte order, polygons of any size, triangle strips.

All elements and properties are read as the header declares them; x, y, z of `vertex`, the index list of `face`
(vertex_indices or vertex_index) and of `tristrips` (where -1 begins a new strip) are used. Text is a stream of numbers,
so that a row may have several lines; rows longer than declared are refused. What follows the last element is ignored,
and header comments may be in any encoding.

Ours: trimesh 5.2 refuses binary files of mixed polygons or with bytes after the end, and cuts polygons as fans. VTK 9.7
reads no strips, and reads from a path only.
Source: G. Turk, "The PLY Polygon File Format" (1994).

Shapes: R rows of an element, L values of all its lists.
"""

import re
import struct
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from g3pt.geometry.polygons import triangulate
from g3pt.geometry.reading import MeshError
from g3pt.geometry.text_numbers import as_number, ragged_numbers, unified_line_ends

_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "double": "f8",
    "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4", "float32": "f4",
    "float64": "f8",
}  # fmt: skip
_CODES = {"i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I", "f4": "f", "f8": "d"}  # of struct
_FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_END = re.compile(rb"(?:^|[\r\n])[ \t]*end_header[ \t]*(\r\n|\n|\r)")
_INDEX_LISTS = ("vertex_indices", "vertex_index")


@dataclass(frozen=True, kw_only=True)
class Property:
    """One property: its values' type, and its list's length type (None for a scalar)."""

    name: str
    type: str
    length_type: str | None = None


@dataclass(kw_only=True)
class Element:
    """An element as declared, and once read its scalars (R,) and lists (values (L,), lengths (R,))."""

    name: str
    count: int
    properties: list[Property] = field(default_factory=list)
    scalars: dict[str, np.ndarray] = field(default_factory=dict)
    lists: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


def read_ply(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) float64 and faces (F, 3) int64."""
    return surface(read_elements(content))


def read_elements(content: bytes) -> dict[str, Element]:
    """All elements by name, read."""
    elements, byte_order, start = _header(content)
    if byte_order:
        _read_binary(elements, byte_order, memoryview(content)[start:])
    else:
        _read_text(elements, content[start:])
    return {element.name: element for element in elements}


def surface(elements: dict[str, Element]) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) float64 and faces (F, 3) int64, those of polygons before those of strips."""
    if "vertex" not in elements or not {"x", "y", "z"} <= elements["vertex"].scalars.keys():
        raise MeshError("corrupt", "PLY without vertices that have x, y and z")
    with np.errstate(all="ignore"):  # NaN of some bits
        vertices = np.stack([elements["vertex"].scalars[axis].astype(np.float64) for axis in "xyz"], axis=1)
    faces = [_polygons(elements.get("face"), vertices), _strips(elements.get("tristrips"), vertices)]
    return vertices, np.concatenate(faces)


def face_polygons(elements: dict[str, Element]) -> np.ndarray:
    """For each face of `surface` that is part of a polygon, the polygon's row."""
    _, sizes = _index_list(elements.get("face"))
    return np.repeat(np.arange(len(sizes)), np.maximum(sizes - 2, 0))


def _header(content: bytes) -> tuple[list[Element], str, int]:
    """The declared elements, the byte order ("" for text), and where the data begins."""
    end = _END.search(content)
    if end is None or not content.removeprefix(b"\xef\xbb\xbf").startswith(b"ply"):
        raise MeshError("corrupt", "PLY header is cut off or is none")
    has_lone_cr = end[1] == b"\r\n" and b"\r\n" not in content[: end.start(1)]  # then \n is the data's first byte
    lines = [line.decode("latin-1") for line in re.split(rb"[\r\n]+", content[: end.start()])[1:]]
    elements: list[Element] = []
    byte_order = None
    for words in filter(None, (line.split() for line in lines)):
        if words[0] == "format" and len(words) >= 2 and words[1] in _FORMATS:
            byte_order = _FORMATS[words[1]]
        elif words[0] == "element" and len(words) == 3 and re.fullmatch(r"\d{1,18}", words[2]):
            elements.append(Element(name=words[1], count=int(words[2])))
        elif words[0] == "property" and elements:
            elements[-1].properties.append(_property(words))
        elif words[0] not in ("comment", "obj_info"):
            raise MeshError("corrupt", f"PLY header has the line {' '.join(words)[:60]!r}")
    names = [element.name for element in elements] + [f"{e.name}.{p.name}" for e in elements for p in e.properties]
    if len(set(names)) < len(names):
        raise MeshError("corrupt", f"PLY header declares {Counter(names).most_common(1)[0][0][:60]!r} twice")
    if byte_order is None:
        raise MeshError("corrupt", "PLY header states no known format")
    return elements, byte_order, end.end() - has_lone_cr


def _property(words: list[str]) -> Property:
    if len(words) == 5 and words[1] == "list" and words[2] in _TYPES and words[3] in _TYPES:
        return Property(name=words[4], type=_TYPES[words[3]], length_type=_TYPES[words[2]])
    if len(words) == 3 and words[1] in _TYPES:
        return Property(name=words[2], type=_TYPES[words[1]])
    raise MeshError("corrupt", f"PLY header has the property {' '.join(words)[:60]!r}")


# ------------------------------------------------------------------------------------------------------------- binary


def _read_binary(elements: list[Element], byte_order: str, data: memoryview) -> None:
    at = 0
    for element in elements:
        least = sum(np.dtype(p.length_type or p.type).itemsize for p in element.properties)
        if element.count * least > len(data) - at:
            raise MeshError("corrupt", f"PLY claims {element.count} {element.name} rows in {len(data) - at} bytes")
        at += _binary_rows(element, byte_order, data[at:]) if element.count else 0


def _binary_rows(element: Element, byte_order: str, data: memoryview) -> int:
    """Fill the element's arrays; returns how many bytes it takes."""
    lengths = _first_lengths(element, byte_order, data)
    row = _row_type(element, byte_order, lengths)
    if row.itemsize * element.count <= len(data):
        rows = np.frombuffer(data, row, element.count)
        if all((rows[f"#{name}"] == length).all() for name, length in lengths.items()):
            for p in element.properties:
                _store(element, p, rows[p.name], lengths.get(p.name))
            return row.itemsize * element.count
    return _binary_walk(element, byte_order, data)


def _first_lengths(element: Element, byte_order: str, data: memoryview) -> dict[str, int]:
    """The length of each list in the first row."""
    lengths, at = {}, 0
    for p in element.properties:
        if p.length_type is not None:
            lengths[p.name], at = _length(byte_order + p.length_type, data, at)
        at += np.dtype(p.type).itemsize * lengths.get(p.name, 1)
    return lengths


def _length(kind: str, data: memoryview, at: int) -> tuple[int, int]:
    """A list's length at a position, and where its values begin."""
    size = np.dtype(kind).itemsize
    if at + size > len(data):
        raise MeshError("corrupt", "PLY is cut off within a list")
    length = np.frombuffer(data, kind, 1, at)[0]
    if not 0 <= length <= len(data) or length != int(length):
        raise MeshError("corrupt", f"PLY has a list of length {length}")
    return int(length), at + size


def _row_type(element: Element, byte_order: str, lengths: dict[str, int]) -> np.dtype:
    fields: list[tuple] = []
    for p in element.properties:
        if p.length_type is not None:
            fields.append((f"#{p.name}", byte_order + p.length_type))
        fields.append(
            (p.name, byte_order + p.type, (lengths[p.name],)) if p.name in lengths else (p.name, byte_order + p.type)
        )
    return np.dtype(fields)


def _store(element: Element, p: Property, values: np.ndarray, length: int | None) -> None:
    if length is None:
        element.scalars[p.name] = values
    else:
        element.lists[p.name] = (values.reshape(-1), np.full(element.count, length))


def _binary_walk(element: Element, byte_order: str, data: memoryview) -> int:
    """As `_binary_rows`, row by row, for lists of different lengths."""
    spans: dict[str, list[int]] = {p.name: [] for p in element.properties}  # start and length, in turn
    plan = [
        (
            spans[p.name],
            np.dtype(p.type).itemsize,
            struct.Struct(byte_order + _CODES[p.length_type]) if p.length_type else None,
        )
        for p in element.properties
    ]
    at = 0
    for _ in range(element.count):
        for span, size, length_of in plan:
            length = 1
            if length_of is not None:
                if at + length_of.size > len(data):
                    break
                length = length_of.unpack_from(data, at)[0]
                at += length_of.size
                if not 0 <= length <= len(data) or length != int(length):
                    raise MeshError("corrupt", f"PLY has a list of length {length}")
            span += (at, int(length))
            at += size * int(length)
    if at > len(data) or any(len(span) != 2 * element.count for span in spans.values()):
        raise MeshError("corrupt", f"PLY is cut off within its {element.name} rows")
    for p in element.properties:
        starts, lengths = np.array(spans[p.name], dtype=np.int64).reshape(-1, 2).T
        values = _gathered(data, starts, lengths, np.dtype(byte_order + p.type))
        if p.length_type is None:
            element.scalars[p.name] = values
        else:
            element.lists[p.name] = (values, lengths)
    return at


def _gathered(data: memoryview, starts: np.ndarray, lengths: np.ndarray, kind: np.dtype) -> np.ndarray:
    """The values (L,) of lists that begin at these bytes."""
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    places = np.repeat(starts, lengths) + within * kind.itemsize
    return np.frombuffer(data, np.uint8)[places[:, None] + np.arange(kind.itemsize)].view(kind)[:, 0]


# --------------------------------------------------------------------------------------------------------------- text


def _read_text(elements: list[Element], body: bytes) -> None:
    body = unified_line_ends(body)
    numbers = _all_numbers(body)
    at = 0
    for element in elements:
        if element.count * len(element.properties) > len(numbers) - at:
            claim = f"{element.count} {element.name} rows"
            raise MeshError("corrupt", f"PLY claims {claim} in {len(numbers) - at} numbers")
        at = _text_rows(element, numbers, at)
    if at < len(numbers):
        _refuse_long_rows(body, sum(element.count for element in elements), at)


def _refuse_long_rows(body: bytes, num_rows: int, num_read: int) -> None:
    """Raise MeshError if the numbers that are left are not after the last row, but within rows longer than declared."""
    lines = [line for line in body.split(b"\n") if line and not line.isspace()]
    if sum(len(line.split()) for line in lines[:num_rows]) > num_read:
        raise MeshError("corrupt", f"PLY has rows with more numbers than its header declares ({num_read} in all)")


def _text_rows(element: Element, numbers: np.ndarray, at: int) -> int:
    """Fill the element's arrays from the numbers at a position; returns the position after its last row."""
    if any(p.length_type for p in element.properties):
        return _text_walk(element, numbers, at)
    width = len(element.properties)
    table = numbers[at : at + element.count * width].reshape(element.count, width)
    element.scalars = {p.name: table[:, k] for k, p in enumerate(element.properties)}
    return at + table.size


def _all_numbers(body: bytes) -> np.ndarray:
    """Every token as a number; NaN for one that is none, which matters only if it is needed."""
    try:
        return ragged_numbers([body], np.float64)[0]
    except ValueError:
        return np.array([_number_or_nan(token) for token in body.split()])


def _number_or_nan(token: bytes) -> float:
    try:
        return as_number(token)
    except MeshError:
        return np.nan


def _text_walk(element: Element, numbers: np.ndarray, at: int) -> int:
    """As `_text_rows`, row by row, for an element with lists."""
    counts = {p.name: np.zeros(element.count, dtype=np.int64) for p in element.properties}
    starts = {p.name: np.zeros(element.count, dtype=np.int64) for p in element.properties}
    total = len(numbers)
    for row in range(element.count):
        for p in element.properties:
            length = 1
            if p.length_type is not None:
                value = numbers[at] if at < total else -1.0
                if not 0 <= value <= total or value != int(value):
                    raise MeshError(
                        "corrupt", f"PLY is cut off, or has a list of length {value:g}, in {element.name} {row}"
                    )
                length, at = int(value), at + 1
            starts[p.name][row], counts[p.name][row] = at, length
            at += length
    if at > total:
        raise MeshError("corrupt", f"PLY is cut off within its {element.name} rows")
    for p in element.properties:
        lengths = counts[p.name]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        values = numbers[np.repeat(starts[p.name], lengths) + within]
        if p.length_type is None:
            element.scalars[p.name] = values
        else:
            element.lists[p.name] = (values, lengths)
    return at


# -------------------------------------------------------------------------------------------------------------- faces


def _polygons(element: Element | None, vertices: np.ndarray) -> np.ndarray:
    corners, sizes = _index_list(element)
    return triangulate(vertices, _indices(corners, sizes, 0, len(vertices)), sizes)


def _strips(element: Element | None, vertices: np.ndarray) -> np.ndarray:
    """Faces of triangle strips; each second triangle is turned, so that all face the same way."""
    corners, sizes = _index_list(element)
    corners = _indices(corners, sizes, -1, len(vertices))
    position = np.arange(len(corners))
    begins = np.zeros(len(corners), dtype=bool)
    begins[(np.cumsum(sizes) - sizes)[sizes > 0]] = True
    begins[1:] |= corners[:-1] == -1
    within = position - np.maximum.accumulate(np.where(begins, position, 0))
    last = np.flatnonzero((within >= 2) & (corners != -1))
    faces = np.stack([corners[last - 2], corners[last - 1], corners[last]], axis=1)
    turned = within[last] % 2 == 1
    faces[turned] = faces[turned][:, [1, 0, 2]]
    return faces


def _index_list(element: Element | None) -> tuple[np.ndarray, np.ndarray]:
    names = [name for name in _INDEX_LISTS if element is not None and name in element.lists]
    if element is None or not names:
        return np.zeros(0), np.zeros(0, dtype=np.int64)
    return element.lists[names[0]]


def _indices(values: np.ndarray, sizes: np.ndarray, lowest: int, num_vertices: int) -> np.ndarray:
    wrong = ~((values >= lowest) & (values < num_vertices) & (values == np.floor(values)))
    if wrong.any():
        first = int(wrong.argmax())
        row = int(np.searchsorted(np.cumsum(sizes), first, side="right"))
        raise MeshError("corrupt", f"face {row} has the index {values[first]:g} for {num_vertices} vertices")
    return values.astype(np.int64)
