"""All objects of a plan grouped by shard, in a temporary SQLite database: memory stays small at ten million objects.

How: `add` takes them in any order, `limit` keeps those with the smallest hash of their id, `group` sorts by shard and id. SQLite sorts outside of memory and its file goes with the connection (in SQLITE_TMPDIR, TMPDIR or /var/tmp).
"""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Iterable, Iterator

from g3pt import records
from pipelines.errors import UsageError
from pipelines.sources.objects import SourceObject

CACHE_KIB = 128 * 1024


class PlanStore:
    """Objects by shard; for one thread."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", check_same_thread=False)  # the collector may close it from another thread
        self._db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._db.execute("PRAGMA journal_mode = OFF")  # nothing is ever rolled back
        self._db.execute("CREATE TABLE listed (hash BLOB, id TEXT, object TEXT)")
        self.num_objects = 0
        weakref.finalize(self, self._db.close)

    def add(self, objects: Iterable[SourceObject]) -> None:
        """Take objects in."""
        self._db.executemany("INSERT INTO listed VALUES (?, ?, ?)", map(_row, objects))
        self.num_objects = self._count()

    def check_ids(self, where: str) -> None:
        """UsageError for ids that came more than once."""
        twice = "SELECT COUNT(*), MIN(id) FROM (SELECT id FROM listed GROUP BY hash, id HAVING COUNT(*) > 1)"
        count, first = self._db.execute(twice).fetchone()
        if count:
            raise UsageError(f"{where}: {count} ids appear more than once, the first is {first!r}")

    def limit(self, number: int) -> None:
        """Keep the objects with the smallest sha256(id)."""
        self._db.execute("DELETE FROM listed WHERE rowid NOT IN (SELECT rowid FROM listed ORDER BY hash, id LIMIT ?)", (number,))
        self.num_objects = self._count()

    def group(self, num_shards: int) -> None:
        """Sort what was taken in by shard and id."""
        self._db.create_function("shard_of", 1, lambda head: int.from_bytes(head, "big") % num_shards, deterministic=True)
        self._db.execute("CREATE TABLE grouped (shard INTEGER, id TEXT, object TEXT, PRIMARY KEY (shard, id)) WITHOUT ROWID")
        self._db.execute("INSERT INTO grouped SELECT shard_of(hash) AS shard, id, object FROM listed ORDER BY shard, id")
        self._db.execute("DROP TABLE listed")

    def sizes(self) -> dict[int, int]:
        """Objects of every shard that has any, in order of the shards."""
        return dict(self._db.execute("SELECT shard, COUNT(*) FROM grouped GROUP BY shard ORDER BY shard"))

    def objects(self, shard: int) -> list[SourceObject]:
        """A shard's objects, sorted by id."""
        found: Iterator[tuple[str]] = self._db.execute("SELECT object FROM grouped WHERE shard = ? ORDER BY id", (shard,))
        return [SourceObject.from_json(text) for (text,) in found]

    def _count(self) -> int:
        return self._db.execute("SELECT COUNT(*) FROM listed").fetchone()[0]


def _row(item: SourceObject) -> tuple[bytes, str, str]:
    return records.id_hash(item.id).to_bytes(8, "big"), item.id, item.to_json()
