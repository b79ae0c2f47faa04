"""The objects of a plan, grouped by shard in a temporary SQLite database, so that ten million objects need little
memory.

How: `add` takes objects in any order, `limit` keeps those with the smallest hash of their id, `group` sorts once by
shard and id and finds duplicate ids. SQLite sorts on disk. Its file (in SQLITE_TMPDIR, TMPDIR or /var/tmp, 0.6 kB per
object of a manifest) disappears with the connection.
"""

from __future__ import annotations

import contextlib
import errno
import json
import sqlite3
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import fields
from operator import itemgetter

from g3pt.data import records
from pipelines.cli.errors import UsageError
from pipelines.preprocess.sources.objects import SourceObject

CACHE_KIB = 128 * 1024
TEXTS = tuple(field.name for field in fields(SourceObject) if field.name != "tags")  # one of them is a number, size
TEXTS_OF = itemgetter(*TEXTS)
NAMES = ", ".join(("tags", *TEXTS))
SIGN = 2**63  # SQLite's integers are signed: hashes are stored minus this, which keeps their order


class PlanStore:
    """Objects by shard. For use in one thread."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", check_same_thread=False)  # the garbage collector may close it in another thread
        self._db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._db.execute("PRAGMA journal_mode = OFF")  # nothing is ever rolled back
        self._db.execute(f"CREATE TABLE listed (hash INTEGER, {NAMES})")
        self.num_objects = 0
        weakref.finalize(self, self._db.close)

    def add(self, objects: Iterable[SourceObject]) -> None:
        """Add objects."""
        places = ", ".join("?" * (2 + len(TEXTS)))
        with _room():
            self.num_objects += self._db.executemany(
                f"INSERT INTO listed VALUES ({places})", map(_row, objects)
            ).rowcount

    def limit(self, number: int, where: str) -> None:
        """Keep the `number` objects with the smallest sha256(id).

        UsageError for duplicate ids, also among the dropped objects.
        """
        self._check_ids(where)
        with _room():
            self._db.execute(
                "DELETE FROM listed WHERE rowid NOT IN (SELECT rowid FROM listed ORDER BY hash, id LIMIT ?)", (number,)
            )
        self.num_objects = min(self.num_objects, number)

    def group(self, num_shards: int, where: str) -> None:
        """Sort the objects by shard and id. UsageError for duplicate ids."""
        # In SQLite % of a negative number is negative.
        shard = f"((hash % {num_shards} + {SIGN % num_shards} + {num_shards}) % {num_shards})"
        self._db.execute(f"CREATE TABLE grouped (shard INTEGER, {NAMES}, PRIMARY KEY (shard, id)) WITHOUT ROWID")
        with _room():
            taken = self._db.execute(
                f"INSERT OR IGNORE INTO grouped SELECT {shard} AS shard, {NAMES} FROM listed ORDER BY shard, id"
            ).rowcount
        if taken < self.num_objects:
            self._check_ids(where)
        self._db.execute("DROP TABLE listed")

    def sizes(self) -> dict[int, int]:
        """Number of objects per shard, for shards that have any, in order."""
        return dict(self._db.execute("SELECT shard, COUNT(*) FROM grouped GROUP BY shard ORDER BY shard"))

    def objects(self, shard: int) -> list[SourceObject]:
        """A shard's objects, sorted by id."""
        return [
            _object(row)
            for row in self._db.execute(f"SELECT {NAMES} FROM grouped WHERE shard = ? ORDER BY id", (shard,))
        ]

    def _check_ids(self, where: str) -> None:
        twice = "SELECT COUNT(*), MIN(id) FROM (SELECT id FROM listed GROUP BY hash, id HAVING COUNT(*) > 1)"
        with _room():
            count, first = self._db.execute(twice).fetchone()
        if count:
            raise UsageError(f"{where}: {count} ids appear more than once, the first is {first!r}")


@contextlib.contextmanager
def _room() -> Iterator[None]:
    """If the disk is full, say that it is the one with temporary files, not that of the input or output."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "full" not in str(error):
            raise
        raise OSError(
            errno.ENOSPC, "no room for the plan's temporary file; set SQLITE_TMPDIR to a folder of a larger disk"
        ) from error


def _row(item: SourceObject) -> tuple[int | str, ...]:
    return records.id_hash(item.id) - SIGN, json.dumps(item.tags) if item.tags else "", *TEXTS_OF(vars(item))


def _object(row: tuple[int | str, ...]) -> SourceObject:
    tags, *texts = row
    return SourceObject(**dict(zip(TEXTS, texts, strict=True)), tags=tuple(json.loads(tags)) if tags else ())
