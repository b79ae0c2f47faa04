"""OFF text gives the vertices and faces that it states, whatever its variant; other files are refused
with their line.
"""

import numpy as np
import pytest

from g3pt.geometry.off import read_off
from g3pt.geometry.reading import MeshError

SQUARE = "0 0 0\n1 0 0\n1 1 0\n0 1 0\n"
EXPECTED = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]


def coloured(tail: str) -> str:
    return SQUARE.replace("\n", f" {tail}\n")


@pytest.mark.parametrize(
    "text",
    [
        f"OFF\n4 1 0\n{SQUARE}4 0 1 2 3\n",
        f"off\n4 1\n{SQUARE}4 0 1 2 3\n",
        f"OFF 4 1 0\n{SQUARE}4 0 1 2 3",
        f"4 1 0\n{SQUARE}4 0 1 2 3\n",
        f"\ufeff# made by x\nOFF # key\n\n4 1 0\n# vertices\n{SQUARE}# faces\n4 0 1 2 3 # red\n".removeprefix("\ufeff"),
        f"COFF\n4 1 0\n{coloured('255 0 0 255')}4 0 1 2 3 0.5 0.5 0.5\n",
        f"NOFF\n4 1 0\n{coloured('0 0 1')}4 0 1 2 3 7\n",
        f"STCNOFF\n4 1 0\n{coloured('0 0 1 1 1 1 1 0 0')}4 0 1 2 3\n",
        f"NOFF\n4 1 0\n{coloured('-1.#IND 0 nan')}4 0 1 2 3 red\n",
        f"OFF\n4 1 0\n{SQUARE}4 0 1 2 3\nthe end\n",
        f"OFF\n4 1 0\n{SQUARE}4 0 1 2 3\n".replace("\n", "\r"),
        f"OFF 4 1 0 {SQUARE}4 0 1 2 3".replace("\n", " "),
        f"OFF\n4 1 0\n{SQUARE}4 0 1\n2 3\n",
        f"OFF\n4 1 0\n{SQUARE}4 0 1 2 3\n".replace(" ", "\n"),
        "4OFF\n4 1 0\n0 0 0 1\n2 0 0 2\n3 3 0 3\n0 .5 0 .5\n4 0 1 2 3\n",
    ],
)
def test_a_square(text: str) -> None:
    vertices, faces = read_off(text.encode())
    np.testing.assert_array_equal(vertices, EXPECTED)
    assert faces.tolist() == [[0, 1, 2], [0, 2, 3]]


def test_faces_of_any_size_in_the_order_of_the_file() -> None:
    text = "OFF\n5 4 0\n0 0 0\n2 0 0\n3 1 0\n1 3 0\n-1 1 0\n3 0 1 2 9 9 9\n5 0 1 2 3 4\n2 0 1\n4 0 1 2 3\n"
    faces = read_off(text.encode())[1].tolist()
    assert faces == [[0, 1, 2], [0, 1, 2], [0, 2, 3], [0, 3, 4], [0, 1, 2], [0, 2, 3]]


@pytest.mark.parametrize(
    ("text", "reason", "message"),
    [
        (f"OFF\n4 1 0\n{SQUARE}4 0 1 2\n", "corrupt", "line 7: 4 of 5"),
        (f"OFF\n4 1 0\n{SQUARE}4 0 1 2 4\n", "corrupt", "line 7: index 4 "),
        (f"OFF\n4 1 0\n{SQUARE}4 0 1 2 -1\n", "corrupt", "line 7: index -1 "),
        (f"OFF\n4 1 0\n{SQUARE}4 0 1 2 x\n", "corrupt", "line 7: 'x'"),
        (f"OFF\n4 1 0\n{SQUARE}-4 0 1 2 3\n", "corrupt", "line 7: "),
        (f"OFF\n4 1 0\n{SQUARE}3 0 1 1.5\n", "corrupt", "line 7: index 1.5"),
        (f"OFF\n4 1 0\n{SQUARE}".replace("1 1 0", "1 0,5 0") + "3 0 1 2", "corrupt", "line 5: '0,5'"),
        (f"OFF\n4 2 0\n{SQUARE}4 0 1 2 3\n", "corrupt", "5 lines follow"),
        (f"nOFF\n3\n4 1 0\n{SQUARE}4 0 1 2 3\n", "unsupported", "dimension"),
        ("OFF BINARY\n\0\0\0\4", "unsupported", "binary"),
        ("OFF\nx y z\n", "corrupt", "numbers of vertices"),
        ("4OFF\n3 1 0\n0 0 0 1\n1 0 0 0\n0 1 0 1\n3 0 1 2\n", "corrupt", "line 4: the weight is 0"),
    ],
)
def test_refusals(text: str, reason: str, message: str) -> None:
    with pytest.raises(MeshError) as caught:
        read_off(text.encode())
    assert caught.value.reason == reason and message in str(caught.value)
