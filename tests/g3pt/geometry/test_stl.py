"""STL files, binary and text, give the facets that they contain, whatever surrounds them."""

import struct

import numpy as np
import pytest

from g3pt.geometry.reading import MeshError
from g3pt.geometry.stl import read_stl

CORNERS = np.array([[[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 0, 0], [0, 1, 0], [0, 0, 1]]], dtype="<f4")


def binary(count: int = 2, header: bytes = b"", after: bytes = b"") -> bytes:
    facets = b"".join(struct.pack("<12fH", 0, 0, 0, *corners.reshape(-1), 0) for corners in CORNERS)
    return header.ljust(80, b"\0") + struct.pack("<I", count) + facets + after


def loop(corners: list, normal: str = "0 0 1") -> str:
    rows = "".join(f"vertex {x:g} {y:g} {z:g}\n" for x, y, z in corners)
    return f"facet normal {normal}\nouter loop\n{rows}endloop\nendfacet\n"


FACETS = "".join(loop(corners) for corners in CORNERS.tolist())


@pytest.mark.parametrize(
    "content",
    [
        binary(),
        binary(header=b"solid of a CAD program"),
        binary(header=b"solid facet normal endsolid"),
        binary(after=b"\n"),
        binary(header=b"solid x", after=bytes(49)),
        f"solid x\n{FACETS}endsolid x\n".encode(),
        f"\ufeff\n\t solid x\n{FACETS} end solid\n".encode(),
        f"SOLID endsolid outer loop\n{FACETS.upper()}ENDSOLID facet vertex\n".encode(),
        f"solid x\r{FACETS}endsolid x\r".replace("\n", "\r").encode(),
        f"solid x\n{FACETS}endsolid x\nthe end\n".encode(),
        f"solid x\n{loop(CORNERS[0].tolist(), 'a b')}endsolid\nsolid "
        f"y\n{loop(CORNERS[1].tolist(), '-1.#IND 0 0')}endsolid".encode(),
        f"solid x\n{FACETS}endsolid x\n".replace("endfacet", "end facet").replace("\n", " \n\t\t ").encode(),
    ],
)
def test_two_facets(content: bytes) -> None:
    vertices, faces = read_stl(content)
    np.testing.assert_array_equal(vertices[faces], CORNERS)


def test_a_count_below_the_facets_present_counts() -> None:
    vertices, faces = read_stl(binary(count=1))
    np.testing.assert_array_equal(vertices[faces], CORNERS[:1])


def test_a_facet_of_more_corners_is_cut_by_its_shape() -> None:
    arrow = [[4, 0, 0], [1, 1, 0], [0, 4, 0], [0, 0, 0]]
    vertices, faces = read_stl(f"solid x\n{loop(arrow)}{loop(arrow[:3])}endsolid".encode())
    assert sorted(map(sorted, faces.tolist())) == [[0, 1, 3], [1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("content", "reason", "message"),
    [
        (binary(count=3), "corrupt", "says 3 faces but contains 2"),
        (binary()[:70], "corrupt", "cut off"),
        (b"solid x\nendsolid x\n", "no-faces", "without a facet"),
        (f"solid x\n{FACETS}".encode(), "corrupt", "cut off"),
        (f"solid x\n{FACETS[:-10]}endsolid".encode(), "corrupt", "cut off"),
        (f"solid x\n{FACETS}endsolid".replace("vertex 1 0 0", "vertex 1 0").encode(), "corrupt", "line 5: "),
        (f"solid x\n{FACETS}endsolid".replace("vertex 1 0 0", "vertex 1 0 0 0").encode(), "corrupt", "line 5: "),
        (f"solid x\n{FACETS}endsolid".replace("vertex 1 0 0", "vertex 1 0 o").encode(), "corrupt", "'o'"),
        (f"solid x\n{FACETS}endsolid".replace("vertex 1 0 0", "vertex 1 0 -1.#IND").encode(), "non-finite", "line 5: "),
        (f"solid x\n{FACETS}endsolid".replace("vertex 1 0 0\n", "").encode(), "corrupt", "2 vertices"),
        (f"solid x\n{FACETS}endsolid".replace("loop\nvertex", "loop\nvertx").encode(), "corrupt", "vert"),
    ],
)
def test_refusals(content: bytes, reason: str, message: str) -> None:
    with pytest.raises(MeshError) as caught:
        read_stl(content)
    assert caught.value.reason == reason and message in str(caught.value)
