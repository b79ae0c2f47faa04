"""PLY files, text and binary, give the vertices and faces that they declare; other files are refused."""

import struct

import numpy as np
import pytest

from g3pt.geometry.ply import read_ply
from g3pt.geometry.reading import MeshError

CORNERS = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1]]
FACES = [[0, 1, 2, 3], [0, 1, 4], [0, 1, 2, 3, 4]]
EXPECTED = [[0, 1, 2], [0, 2, 3], [0, 1, 4]]


def header(
    kind: str, faces: int = 2, end: str = "\n", more: str = "", face: str = "list uchar int vertex_indices"
) -> str:
    lines = [
        "ply", f"format {kind} 1.0", "comment caf\xe9 \x85 end_header", "obj_info x", "element vertex 5",
        "property float x", "property float y", "property float z", *more.split("|") * bool(more),
        f"element face {faces}", *(f"property {name}" for name in face.split("|")), "end_header", "",
    ]  # fmt: skip
    return end.join(lines)


def text(*rows: str, **options: str) -> bytes:
    vertices = "".join(f"{x} {y} {z}\n" for x, y, z in CORNERS)
    return (header("ascii", **options) + vertices + "".join(row + "\n" for row in rows)).encode("latin-1")


def binary(order: str, end: str = "\n", after: bytes = b"") -> bytes:
    name = {"<": "little", ">": "big"}[order]
    body = b"".join(struct.pack(f"{order}3f", *corner) for corner in CORNERS)
    body += b"".join(struct.pack(f"{order}B{len(face)}i", len(face), *face) for face in FACES[:2])
    return header(f"binary_{name}_endian", end=end).encode("latin-1") + body + after


@pytest.mark.parametrize(
    "content",
    [
        binary("<"),
        binary(">"),
        binary("<", end="\r\n", after=b"\n\n"),
        binary(">", end="\r", after=bytes(7)),
        text("4 0 1 2 3", "3 0 1 4"),
        text("4 0 1 2 3", "3 0 1 4", end="\r\n"),
        text("4 0 1 2 3", "3 0 1 4", "the end", "7 8 9"),
        text("4 0 1", "2 3", "3 0 1 4"),
        text("7 2 .5 .5 4 0 1 2 3", "8 0 3 0 1 4",
             face="uchar red|list uchar float texcoord|list uchar uint vertex_index"),
        text("4 0 1 2 3 -1.#IND", "3 0 1 4 x", face="list uchar int vertex_indices|float quality"),
        text("1 2", "4 0 1 2 3", "3 0 1 4", more="element edge 1|property int a|property int b"),
    ],
)  # fmt: skip
def test_a_quad_and_a_triangle(content: bytes) -> None:
    vertices, faces = read_ply(content)
    np.testing.assert_array_equal(vertices, CORNERS)
    assert faces.tolist() == EXPECTED


def test_a_header_that_ends_with_cr_before_data_that_begins_with_lf() -> None:
    lines = ["ply", "format binary_little_endian 1.0", "element vertex 3", "property uchar x", "property uchar y",
             "property uchar z", "element face 1", "property list uchar uchar vertex_indices", "end_header",
             ""]  # fmt: skip
    vertices, faces = read_ply("\r".join(lines).encode() + bytes([10, 0, 0, 1, 0, 0, 0, 1, 0, 3, 0, 1, 2]))
    assert vertices.tolist() == [[10, 0, 0], [1, 0, 0], [0, 1, 0]] and faces.tolist() == [[0, 1, 2]]


def test_strips_face_one_way_and_begin_anew_at_minus_one() -> None:
    content = text("6 0 1 3 2 -1 4", "4 -1 0 1 4").replace(b"element face", b"element tristrips")
    assert read_ply(content)[1].tolist() == [[0, 1, 3], [3, 1, 2], [0, 1, 4]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (binary("<")[:-1], "cut off"),
        (text("4 0 1 2 3", "3 0 1"), "cut off"),
        (text("4 0 1 2 3", "3 0 1 5"), "index 5 "),
        (text("4 0 1 2 3", "3 0 1 -1"), "index -1 "),
        (text("4 0 1 2 3", "3 0 1 1.5"), "index 1.5 "),
        (text("4 0 1 2 3", "3 0 1 x"), "index nan "),
        (text("4 0 1 2 3", "x 0 1 4"), "list of length nan"),
        (text("4 0 1 2 3", "3 0 1 4").replace(b"\n1 0 0\n", b"\n1 0 0 1\n"), "more numbers"),
        (text("4 0 1 2 3", "3 0 1 4").replace(b"float z", b"float w"), "x, y and z"),
        (text("4 0 1 2 3", "3 0 1 4").replace(b"float z", b"half z"), "property half z"),
        (text("4 0 1 2 3", "3 0 1 4").replace(b"format ascii", b"format utf8"), "format utf8"),
        (text("4 0 1 2 3", "3 0 1 4").replace(b"vertex 5", b"vertex 5000000000000"), "claims 5000000000000"),
    ],
)
def test_refusals(content: bytes, message: str) -> None:
    with pytest.raises(MeshError) as caught:
        read_ply(content)
    assert caught.value.reason == "corrupt" and message in str(caught.value)
