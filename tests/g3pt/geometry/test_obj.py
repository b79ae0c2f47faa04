"""OBJ text gives the vertices and faces that it states; what can't be used is refused with its line and token."""

import numpy as np
import pytest

from g3pt.geometry.obj import read_obj
from g3pt.geometry.reading import MeshError

SQUARE = b"v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"


@pytest.mark.parametrize(
    ("face", "expected"),
    [
        (b"f 1 2 3 4", [[0, 1, 2], [0, 2, 3]]),
        (b"\t f\t1/2/3  2//x\t3/ 4 ", [[0, 1, 2], [0, 2, 3]]),
        (b"f 1 2 \\\n 3", [[0, 1, 2]]),
        (b"# note \\\nf 1 2 3 # f 1 2 4", [[0, 1, 2]]),
        (b"f -4 -3 -2\nv 9 9 9\nf -1 -5 -3", [[0, 1, 2], [4, 0, 2]]),
        (b"f 1 2 3\rf 1 3 4\r", [[0, 1, 2], [0, 2, 3]]),
        (b"f 1 2\nf\nl 1 2\nvn a b c\nvt -1.#IND 0\no 3#4\nf 1 3 4", [[0, 2, 3]]),
        (b"f 1 2 5\nv 2 2 2", [[0, 1, 4]]),
    ],
)
def test_faces(face: bytes, expected: list) -> None:
    assert read_obj(SQUARE + face)[1].tolist() == expected


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (b"v 1 2 3 0.5 0.5 0.5\nv 4 5 6", [[1, 2, 3], [4, 5, 6]]),
        (b"v 1 2 3 red\x20green blue\nv 4 5 6 0 0 -1.#IND", [[1, 2, 3], [4, 5, 6]]),
        (b"v 2 4 6 2\nv 4 5 6 1", [[1, 2, 3], [4, 5, 6]]),
        (b"v 1 2 3#c\n  v\t4 5\\\n6 # v 7 8 9", [[1, 2, 3], [4, 5, 6]]),
        (b"v 1. .2e1 +3\r\nv 4 5 6\r\n", [[1, 2, 3], [4, 5, 6]]),
    ],
)
def test_vertices(rows: bytes, expected: list) -> None:
    np.testing.assert_array_equal(read_obj(rows)[0], expected)


@pytest.mark.parametrize(
    ("content", "reason", "line", "token"),
    [
        (SQUARE + b"f 1 2 0\n", "corrupt", 5, "index 0 "),
        (SQUARE + b"# a\n\nf 1 2 3\nf 1 2 5\n", "corrupt", 8, "index 5 "),
        (SQUARE + b"f -1 -2 -5\nv 2 2 2", "corrupt", 5, "index -5 "),
        (SQUARE + b"f 1 \\\n 2 3\nf 1 2 3x\n", "corrupt", 7, "'3x'"),
        (SQUARE + b"f 1 2 99999999999999999999\n", "corrupt", 5, "99999999999999999999"),
        (SQUARE + b"f 1 2 1.5\n", "corrupt", 5, "'1.5'"),
        (b"v 0 0 0\nv 1,5 0 0\n", "corrupt", 2, "'1,5'"),
        (b"v 0 0 0\nv 0 0 -1.#IND\n", "non-finite", 2, "'-1.#IND'"),
        (b"v 0 0 0\nv 1_0 0 0\n", "corrupt", 2, "'1_0'"),
        (b"v 0 0 0\nv 1 0\nv 1 2 3 4 5 6 7\n", "corrupt", 2, "2 of 3"),
        (b"v 0 0 0\nv\n", "corrupt", 2, "0 of 3"),
        (b"v 0 0 0\nv 1 1 1 0\n", "corrupt", 2, "weight 0"),
    ],
)
def test_refusals_name_line_and_token(content: bytes, reason: str, line: int, token: str) -> None:
    with pytest.raises(MeshError) as caught:
        read_obj(content)
    assert caught.value.reason == reason
    assert f"line {line}: " in str(caught.value) and token in str(caught.value)
