"""Text from data, made safe for a terminal and short enough for a table."""

import unicodedata

UNSAFE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}  # control, format (right-to-left marks among them), halves of pairs, private, line ends


def plain(text: object) -> str:
    """The text on one line with everything that could move the cursor, change colours or the reading direction written as an escape."""
    return "".join(escaped(c) if unicodedata.category(c) in UNSAFE else c for c in str(text))


def escaped(char: str) -> str:
    """`\\x1b` for the escape character, and so on."""
    return char.encode("unicode_escape", errors="backslashreplace").decode("ascii")


def shortened(path: str, width: int) -> str:
    """A path cut in its middle to at most `width` characters: the end of its name tells most, then its beginning."""
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
