"""Numbers of text mesh files: read in one call where every token is a number, else the first wrong token is named.

`rows` are the parts of the file that hold numbers, as bytes, one per vertex, face or loop.
"""

import re

import numpy as np

from g3pt.geometry.reading import MeshError

_END = 2**62  # marks the end of a row between the numbers; larger than any index or coordinate that is accepted


def unified_line_ends(content: bytes) -> bytes:
    """The content with every CR LF and lone CR as a line feed, and every vertical tab, form feed
    and zero as a blank.
    """
    return content.replace(b"\r\n", b"\n").translate(bytes.maketrans(b"\r\v\f\0", b"\n   "))


def line_number(text: bytes, position: int) -> int:
    """The number, from 1, of the line at a position."""
    return text.count(b"\n", 0, position) + 1


def ragged_numbers(rows: list[bytes], dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """All numbers of the rows in one array, and how many each row has. ValueError where a token is no number."""
    if not rows:
        return np.zeros(0, dtype=dtype), np.zeros(0, dtype=np.int64)
    end = b" %d " % _END
    found = np.fromstring(end.join(rows) + end, dtype=dtype, sep=" ")
    ends = np.flatnonzero(found == _END)
    if len(ends) != len(rows):
        raise ValueError("a number is out of range")
    return np.delete(found, ends), np.diff(ends, prepend=-1) - 1


_NUMBER = re.compile(rb"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_NOT_FINITE = re.compile(rb"[+-]?(?:nan|inf|infinity|\d+\.#(?:ind|inf|qnan|snan)\d*)", re.IGNORECASE)


def as_number(token: bytes) -> float:
    """The token's value; MeshError if it is no number, or not finite."""
    is_number = _NUMBER.fullmatch(token) is not None
    if is_number and np.isfinite(float(token)):
        return float(token)
    reason = "non-finite" if is_number or _NOT_FINITE.fullmatch(token) else "corrupt"
    raise MeshError(reason, f"{_shown(token)} is no finite number")


def as_index(token: bytes) -> int:
    """The token's value as an integer; MeshError if it is none."""
    if re.fullmatch(rb"[+-]?\d{1,18}", token) is None:
        raise MeshError("corrupt", f"{_shown(token)} is no integer, or too large")
    return int(token)


def _shown(token: bytes) -> str:
    return repr(token[:40].decode("utf-8", "replace"))
