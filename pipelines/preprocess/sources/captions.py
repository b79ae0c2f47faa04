"""Captions from a file in Cap3D's format: rows `uid,caption` without a header, quoted where a caption has a comma.

How: the file is copied to a temporary SQLite table, so that millions of captions need no memory. Rows that are not such
a pair are counted and left out. The last of several captions of one object is used.
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
        self._db = sqlite3.connect("")  # on disk once it is large, deleted with the connection
        self._db.execute("CREATE TABLE captions (id TEXT PRIMARY KEY, caption TEXT) WITHOUT ROWID")
        try:
            self._db.executemany("INSERT OR REPLACE INTO captions VALUES (?, ?)", self._rows())
        except OSError as error:
            raise UsageError(f"--captions {file}: {error.strerror}") from error
        if not self._db.execute("SELECT 1 FROM captions LIMIT 1").fetchone():
            raise UsageError(f"--captions {file} contains no row `id,caption` ({self.bad_rows} other rows)")

    def of(self, object_id: str) -> str | None:
        """An object's caption, which is then counted as used; None if it has none."""
        found = self._db.execute("SELECT caption FROM captions WHERE id = ?", (object_id,)).fetchone()
        self.used += found is not None
        return found[0] if found else None

    def line(self, num_objects: int) -> str:
        """How many of `num_objects` objects got a caption, in words."""
        bad = f"; {self.bad_rows} of its rows are not `id,caption` and were left out" if self.bad_rows else ""
        return f"captions of {self.file.name} for {self.used} of {num_objects} objects{bad}"

    def _rows(self) -> Iterator[tuple[str, str]]:
        with open(self.file, newline="", encoding="utf-8-sig", errors="replace") as text:
            reader = csv.reader(text)
            while True:
                try:
                    row = next(reader, None)
                except csv.Error:  # a field longer than csv reads, or a zero byte
                    row = []
                if row is None:
                    return
                pair = [part.strip() for part in row]
                if len(pair) == 2 and all(pair) and "\ufffd" not in pair[0] + pair[1]:
                    yield pair[0], pair[1]
                else:
                    self.bad_rows += 1
