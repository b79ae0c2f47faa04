"""Text for a terminal: text of data made safe, paths and durations shortened, tables of a readable width."""

from __future__ import annotations

import os
import re
import unicodedata
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

UNSAFE = {
    "Cc",
    "Cf",
    "Cs",
    "Co",
    "Zl",
    "Zp",
}  # control, format (such as right-to-left marks), surrogates, private use, line and paragraph separators


def plain(text: object) -> str:
    """The text on one line.

    Characters that could move the cursor or change colours or the reading direction become escapes.
    """
    return "".join(escaped(c) if unicodedata.category(c) in UNSAFE else c for c in str(text))


def without_login(text: str) -> str:
    """The text without the user and password of its URIs, which must not be written or printed."""
    return re.sub(r"(?<=://)[^/\s]*@", "", text)


def escaped(char: str) -> str:
    """`\\x1b` for the escape character, and so on."""
    return char.encode("unicode_escape", errors="backslashreplace").decode("ascii")


def shortened(path: str, width: int) -> str:
    """A path cut in the middle to at most `width` characters; more of its end is kept than of its beginning."""
    if len(path) <= width:
        return path
    keep_end = max(1, (width - 1) * 2 // 3)
    return path[: max(0, width - 1 - keep_end)] + "…" + path[-keep_end:]


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`, `2.1 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"


def with_flop(count: float) -> str:
    """1070000000 as 1.07 GFLOP."""
    return with_unit(count, 1000, ["FLOP", *(f"{letter}FLOP" for letter in "kMGTPEZ")])


def with_bytes(count: float) -> str:
    """1073741824 as 1 GiB."""
    return with_unit(count, 1024, ["B", *(f"{letter}iB" for letter in "KMGTP")])


def with_unit(count: float, step: int, units: list[str]) -> str:
    """The count with three digits and the largest unit that keeps it at least 1."""
    power = 0
    while count >= step and power < len(units) - 1:
        count, power = count / step, power + 1
    return f"{count:.3g} {units[power]}" if count < 1000 else f"{count:.0f} {units[power]}"


def console(widest: int, narrowest: int = 60, file: TextIO | None = None) -> Console:
    """A console for tables: as wide as the terminal within these limits, without escape sequences under NO_COLOR."""
    from rich.console import Console

    found = Console(
        file=file,
        highlight=False,
        markup=False,
        emoji=False,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
    )
    found.width = min(widest, max(narrowest, found.width))
    return found
