"""What the triangles of an OBJ file look like: the triangles of `obj.py`, one part per material of its .mtl files.

Of a material, Kd, d or Tr, and map_Kd are read; colours are sRGB. Without a material, colours behind the vertices'
coordinates count. Files that an OBJ names (.mtl, pictures) are read by the reader passed in. A `#` in a material's name
is no comment. Texture coordinates and normals that are missing or can't be read leave a corner without them, never the
file.

Shapes: V vertices, C corners of all polygons, P polygons, F faces.
"""

import re
from collections.abc import Iterator

import numpy as np

from g3pt.geometry.appearance import Material, Part, decode_image, srgb_to_linear
from g3pt.geometry.obj import FACE, VERTEX, Polygons, read_polygons
from g3pt.geometry.polygons import triangulate
from g3pt.geometry.reading import MeshError, ReadFile, as_utf8
from g3pt.geometry.text_numbers import ragged_numbers, unified_line_ends

WHITE = (1.0, 1.0, 1.0, 1.0)
_NAMING = re.compile(rb"^[ \t]*(?:usemtl|mtllib)[ \t][^\n]*", re.MULTILINE)
_SHARP = b"\x01"  # a # in a name while comments are removed
_MTLLIB = re.compile(rb"^[ \t\v]*mtllib[ \t]+([^\n]*)", re.MULTILINE)
_USEMTL = re.compile(rb"^[ \t\v]*usemtl(?!\S)([^\n]*)", re.MULTILINE)
_STATEMENT = re.compile(rb"^[ \t\v]*(vt|vn|f)(?:(?<=f)o)?(?!\S)", re.MULTILINE)
Words = dict[str, str]  # a material's statements in lower case, with what follows


def obj_parts(content: bytes, read_file: ReadFile) -> tuple[list[Part], int]:
    """One part per material, and how many of the pictures that they name could not be used."""
    content = _NAMING.sub(lambda match: match[0].replace(b"#", _SHARP), unified_line_ends(as_utf8(content)))
    found = read_polygons(content)
    faces_F3 = triangulate(
        found.vertices[found.corners], np.arange(len(found.corners)), found.sizes
    )  # of corner numbers
    material_F = np.repeat(_polygon_materials(found.text), np.maximum(found.sizes - 2, 0))
    names = [_name(match) for match in _USEMTL.findall(found.text)]
    materials, pictures = _read_materials(found.text, read_file), _Pictures(read_file)
    corners = _Corners(found)
    parts = []
    by_name: dict[str, list[int]] = {}
    for number, name in enumerate(["", *names]):
        by_name.setdefault(name, []).append(number)
    for name, numbers in by_name.items():
        chosen = faces_F3[np.isin(material_F, numbers)]
        words = materials.get(name, materials.get(name.partition(" #")[0].rstrip()))
        if len(chosen):
            parts.append(corners.part(chosen, None if words is None else _material(words, pictures)))
    return parts, sum(picture is None for picture in pictures.read.values())


def _polygon_materials(text: bytes) -> np.ndarray:
    """For each polygon (P,), how many `usemtl` statements come before it."""
    segments = _USEMTL.split(text)[::2]
    return np.repeat(np.arange(len(segments)), [len(FACE.findall(segment)) for segment in segments])


def _name(rest: bytes) -> str:
    return rest.replace(_SHARP, b"#").decode("utf-8", "replace").strip()


# ------------------------------------------------------------------------------------------------------------ corners


class _Corners:
    """The corners of all polygons: positions, texture coordinates, normals and colours."""

    def __init__(self, found: Polygons) -> None:
        self.vertices, self.corners = found.vertices, found.corners
        self.uvs, self.normals = _rows_of(found.text, b"vt", 2), _rows_of(found.text, b"vn", 3)
        self.uv_C, self.normal_C = _beside(found, (len(self.uvs), len(self.normals)))
        self.colours = _vertex_colours(found.text)

    def part(self, faces_F3: np.ndarray, material: Material | None) -> Part:
        """A part of these triangles of corner numbers. Without a material, the vertices' colours count."""
        from g3pt.geometry.cleanup import unique_rows

        used = faces_F3.reshape(-1)
        rows = np.stack([self.corners[used], self.uv_C[used], self.normal_C[used]], axis=1).astype(np.float64)
        rows, index = unique_rows(rows)
        vertex, uv, normal = rows.astype(np.int64).T
        colours = self.colours[vertex] if material is None and self.colours is not None else None
        return Part(
            vertices=self.vertices[vertex],
            faces=index.reshape(-1, 3),
            material=material or Material(**({"colour": WHITE} if colours is not None else {})),
            normals=_chosen(self.normals, normal),
            uvs=None if (uv < 0).all() else _chosen(self.uvs, uv) * (1.0, -1.0) + (0.0, 1.0),
            colours=colours,
        )


def _chosen(values: np.ndarray, index: np.ndarray) -> np.ndarray | None:
    """Rows of `values`, zeros for an index below 0; None if all are."""
    if (index < 0).all():
        return None
    return np.where(index[:, None] >= 0, values[np.maximum(index, 0)], 0.0)


def _rows_of(text: bytes, word: bytes, width: int) -> np.ndarray:
    """The first numbers (N, width) of every `vt` or `vn` statement; zeros where they are not finite or missing;
    no rows if a token is no number.
    """
    rows = re.findall(rb"^[ \t\v]*" + word + rb"(?!\S)([^\n]*)", text, re.MULTILINE)
    try:
        numbers, widths = ragged_numbers(rows, np.float64)
    except ValueError:
        return np.zeros((0, width))
    within = np.arange(len(numbers)) - np.repeat(np.cumsum(widths) - widths, widths)
    table = np.zeros((len(rows), width))
    row_of = np.repeat(np.arange(len(rows)), widths)
    table[row_of[within < width], within[within < width]] = numbers[within < width]
    return np.nan_to_num(table, posinf=0.0, neginf=0.0)


def _beside(found: Polygons, counts: tuple[int, int]) -> np.ndarray:
    """Rows of `vt` and of `vn` (2, C) that the corners name; -1 for none."""
    nothing = np.full((2, len(found.corners)), -1)
    tokens = b" ".join(FACE.findall(found.text)).replace(b"//", b"/0/").split()
    try:
        numbers, widths = ragged_numbers([token.replace(b"/", b" ") for token in tokens], np.int64)
    except ValueError:
        return nothing
    if len(tokens) != len(found.corners) or (widths > 3).any() or (widths < 1).any():
        return nothing
    table = np.zeros((len(tokens), 3), dtype=np.int64)
    within = np.arange(len(numbers)) - np.repeat(np.cumsum(widths) - widths, widths)
    table[np.repeat(np.arange(len(tokens)), widths), within] = numbers
    kinds = np.array(_STATEMENT.findall(found.text), dtype="S2")
    for k, word in enumerate((b"vt", b"vn")):
        read_so_far = np.repeat(np.cumsum(kinds == word)[kinds == b"f"], found.sizes)
        index = table[:, k + 1]
        index = np.where(index < 0, index + read_so_far, index - 1)
        nothing[k] = np.where((table[:, k + 1] != 0) & (index >= 0) & (index < counts[k]), index, -1)
    return nothing


def _vertex_colours(text: bytes) -> np.ndarray | None:
    """Linear RGBA (V, 4) of vertices that are all `x y z r g b`, as shares or bytes; else None."""
    try:
        numbers, widths = ragged_numbers(VERTEX.findall(text), np.float64)
    except ValueError:
        return None
    if not len(widths) or (widths != 6).any():
        return None
    rgb = np.nan_to_num(numbers.reshape(-1, 6)[:, 3:], posinf=1.0, neginf=0.0)
    rgb = np.clip(rgb / (255.0 if rgb.max() > 1.0 else 1.0), 0.0, 1.0)
    return np.concatenate([srgb_to_linear(rgb), np.ones((len(rgb), 1), np.float32)], axis=1)


# ---------------------------------------------------------------------------------------------------------- materials


def _read_materials(text: bytes, read_file: ReadFile) -> dict[str, Words]:
    """The materials of every `mtllib` that can be read, by name; an earlier one of the same name wins."""
    materials: dict[str, Words] = {}
    for content in _material_files(text, read_file):
        words: Words = {}
        for line in unified_line_ends(as_utf8(content)).decode("utf-8", "replace").split("\n"):
            word, _, rest = line.strip().replace("\t", " ").partition(" ")
            if word.lower() == "newmtl":
                words = materials.setdefault(rest.strip(), {})
            elif word and not word.startswith("#"):
                words[word.lower()] = rest.strip()
    return materials


def _material_files(text: bytes, read_file: ReadFile) -> Iterator[bytes]:
    for line in _MTLLIB.findall(text):
        name = _name(line)
        for names in ([name], name.split()):  # a name may contain blanks, and a line several names
            found = [content for one in names if (content := _content(one, read_file)) is not None]
            if found:
                yield from found
                break


def _content(name: str, read_file: ReadFile) -> bytes | None:
    try:
        return read_file(name)
    except MeshError:
        return None


class _Pictures:
    """Pictures by the text after map_Kd, each read once; None for one that can't be used."""

    def __init__(self, read_file: ReadFile) -> None:
        self.read_file = read_file
        self.read: dict[str, np.ndarray | None] = {}

    def get(self, line: str) -> np.ndarray | None:
        """The picture of a map_Kd line, without options (-s 1 1 1, -o ..., -clamp on)."""
        name = re.sub(r"^(?:-\w+(?:\s+(?:-?[\d.]+|on|off))*\s+)+", "", line)
        if name not in self.read:
            try:
                self.read[name] = decode_image(self.read_file(name))
            except (MeshError, ValueError):
                self.read[name] = None
        return self.read[name]


def _material(words: Words, pictures: _Pictures) -> Material:
    """Kd, d or Tr, and map_Kd, whose alpha counts only where there is a map_d.

    An invisible object is taken for a visible one: exporters disagree about whether 0 or 1 is opaque.
    """
    image = pictures.get(words["map_kd"]) if words.get("map_kd") else None
    if not words.get("map_kd") and "kd" not in words:
        return Material()
    alpha = _share(words.get("d"), 1.0 - _share(words.get("tr"), 0.0)) or 1.0
    rgb = srgb_to_linear(np.array(_colour(words.get("kd", ""))))
    mode = "blend" if alpha < 1.0 else "mask" if "map_d" in words and image is not None else "opaque"
    return Material(colour=(*map(float, rgb), alpha), image=image, alpha_mode=mode)


def _colour(text: str) -> list[float]:
    """Red, green and blue in [0, 1]; one number is grey, and text that is no colour is white."""
    try:
        values = [min(max(float(word), 0.0), 1.0) for word in text.split()[:3]]
    except ValueError:
        return [1.0, 1.0, 1.0]
    return values if len(values) == 3 else values * 3 if len(values) == 1 else [1.0, 1.0, 1.0]


def _share(text: str | None, default: float) -> float:
    try:
        return min(max(float((text or "").split()[-1]), 0.0), 1.0)
    except (ValueError, IndexError):
        return default
