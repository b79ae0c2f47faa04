"""Reads a JSON object of strings piece by piece: 800,000 pairs need no more memory than one piece."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import IO

PIECE = 2**16  # bytes
LONGEST_PAIR = 2**20
_PAIR = re.compile(rb'\s*("(?:[^"\\]|\\.)*")\s*:\s*("(?:[^"\\]|\\.)*")\s*([,}])')


def json_pairs(file: IO[bytes]) -> Iterator[tuple[str, str]]:
    """(name, value) of every member, in the file's order. ValueError for anything but one object of strings."""
    read, position = file.read(PIECE).lstrip(), 1
    if read[:1] != b"{":
        raise ValueError("it is not a JSON object")
    while True:
        found = _PAIR.match(read, position)
        if found:
            yield json.loads(found[1]), json.loads(found[2])
            position = found.end()
            if found[3] == b"}":
                return
        elif len(read) - position > LONGEST_PAIR or not (more := file.read(PIECE)):
            raise ValueError("it is truncated, or contains something other than strings")
        else:
            read, position = read[position:] + more, 0
