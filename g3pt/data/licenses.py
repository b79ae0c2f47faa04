"""Licences of objects: which are open, and SPDX names for Objaverse's words. The one place for both.

Ours: `open` in a list of licences means all that released weights may be trained on: no condition but credit.
Non-commercial (NC), share-alike (SA) and no-derivatives (ND) licences must be named.
"""

from __future__ import annotations

import re
from collections.abc import Collection

OPEN = "open"  # the shorthand
_OPEN_NAMES = re.compile(r"CC0-1\.0|public-domain|CC-BY-\d\.\d|MIT|BSD-[23]-Clause|Apache-2\.0")

# Objaverse uses the words of Sketchfab's interface, without a version; Sketchfab's licences are version 4.0.
_OF_OBJAVERSE = {
    "by": "CC-BY-4.0",
    "by-sa": "CC-BY-SA-4.0",
    "by-nd": "CC-BY-ND-4.0",
    "by-nc": "CC-BY-NC-4.0",
    "by-nc-sa": "CC-BY-NC-SA-4.0",
    "by-nc-nd": "CC-BY-NC-ND-4.0",
    "cc0": "CC0-1.0",
}


def is_open(name: str) -> bool:
    """Whether weights trained on an object of this licence may be released under any licence, with credit."""
    return _OPEN_NAMES.fullmatch(name) is not None


def allowed(name: str, wanted: Collection[str]) -> bool:
    """Whether a licence is in `wanted`, compared exactly, or open if `open` is in it. An empty `wanted` allows all."""
    return (
        not wanted or is_open(name) and OPEN in wanted or name in set(wanted) - {OPEN}
    )  # a licence named "open" is none


def unknown(wanted: Collection[str], found: Collection[str]) -> list[str]:
    """The wanted names that no object has: a misspelt one would silently leave its objects out."""
    return [name for name in wanted if name not in found and name != OPEN]


def of_objaverse(word: str) -> str:
    """The SPDX name of Objaverse's word (`by-nc`: CC-BY-NC-4.0).

    An unknown word is returned as it is, so no list allows it.
    """
    return _OF_OBJAVERSE.get(word, word)
