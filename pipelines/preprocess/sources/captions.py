"""Captions from a file in Cap3D's format: rows `uid,caption` without a header, quoted where a caption has a comma.

How: the file is copied to a temporary SQLite table, so that millions of captions need no memory. Each row is one line:
a quote that is never closed costs its own row and not those after it. Rows that are not such a pair are counted, and
the first is named with its line. The last of several captions of one object is used.
"""

from __future__ import annotations

import csv
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from pipelines.cli.errors import UsageError


class Captions:
    """Captions by id. `source`, for the column caption_source, is the file's name without its ending."""

    def __init__(self, file: Path) -> None:
        self.file, self.source, self.bad_rows, self.used = file, file.stem, 0, 0
        self.first_bad = ""  # the line and the reason of the first bad row
        self._db = sqlite3.connect("")  # on disk once it is large, deleted with the connection
        self._db.execute("CREATE TABLE captions (id TEXT PRIMARY KEY, caption TEXT) WITHOUT ROWID")
        try:
            self._db.executemany("INSERT OR REPLACE INTO captions VALUES (?, ?)", self._rows())
        except OSError as error:
            raise UsageError(f"--captions {file}: {error.strerror}") from error
        if not self._db.execute("SELECT 1 FROM captions LIMIT 1").fetchone():
            raise UsageError(f"--captions {file} contains no row `id,caption`{self._bad_rows()}")

    def of(self, object_id: str) -> str | None:
        """An object's caption, which is then counted as used; None if it has none."""
        found = self._db.execute("SELECT caption FROM captions WHERE id = ?", (object_id,)).fetchone()
        self.used += found is not None
        return found[0] if found else None

    def line(self, num_objects: int) -> str:
        """How many of `num_objects` objects got a caption, in words."""
        return f"captions of {self.file.name} for {self.used} of {num_objects} objects{self._bad_rows()}"

    def _bad_rows(self) -> str:
        if not self.bad_rows:
            return ""
        return f"; {self.bad_rows} of its rows are not `id,caption` and were left out, the first is {self.first_bad}"

    def _rows(self) -> Iterator[tuple[str, str]]:
        with open(self.file, encoding="utf-8-sig", errors="replace") as text:  # \r and \r\n end lines too
            for number, line in enumerate(text, start=1):
                if not line.strip():
                    continue
                try:
                    yield caption_row(line.lstrip("\ufeff"))  # of the beginning of a file appended to another
                except ValueError as error:
                    self.bad_rows += 1
                    self.first_bad = self.first_bad or f"line {number}: {error}"


def caption_row(line: str) -> tuple[str, str]:
    """(id, caption) of a line `id,caption`. ValueError for any other line."""
    if "\ufffd" in line or "\0" in line:
        raise ValueError("it is not UTF-8 text")
    try:
        row = next(csv.reader([line], strict=True))
    except csv.Error as error:
        raise ValueError("a quote is not closed" if "unexpected end" in str(error) else str(error)) from error
    pair = [part.strip() for part in row]
    if len(pair) != 2 or not all(pair):
        raise ValueError(f"it has {len(pair)} columns" if len(pair) != 2 else "it has an empty id or caption")
    return pair[0], pair[1]
