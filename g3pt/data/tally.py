"""The sum of a dataset's sidecars, added one at a time: counts, each parquet's sha256, the fingerprint.

How: pairs of id and content hash go into a temporary SQLite table, which sorts them outside of memory: for ten million
objects the memory used depends on the number of shards only.

Fingerprint: docs/concepts/contracts.md.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import weakref
from collections import Counter
from collections.abc import Mapping
from typing import Any


class Tally:
    """The sum of sidecars, each of which may be added once. For one thread."""

    def __init__(self, sidecars: Mapping[int, Mapping[str, Any]] | None = None) -> None:
        self.rows = 0
        self.counts: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.splits: Counter[str] = Counter()
        self.shards: dict[int, str] = {}  # index -> sha256 of the parquet
        self._db = sqlite3.connect(
            "", check_same_thread=False
        )  # moves to disk when large, and is deleted with the connection
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("CREATE TABLE content (id TEXT, sha256 TEXT)")
        weakref.finalize(self, self._db.close)
        for index, sidecar in (sidecars or {}).items():
            self.add(index, sidecar)

    def add(self, index: int, sidecar: Mapping[str, Any]) -> None:
        """Add one shard."""
        assert index not in self.shards, index
        self.shards[index] = sidecar["sha256"]
        self.rows += sidecar["rows"]
        self.counts.update(sidecar["counts"])
        self.failures.update(sidecar["failures"])
        self.splits.update(sidecar["splits"])
        self._db.executemany("INSERT INTO content VALUES (?, ?)", sidecar["content"].items())

    def fingerprint(self, config_sha256: str) -> str:
        """sha256 of canonical JSON of the config hash and the sorted (id, content sha256) pairs,
        hashed piece by piece.
        """
        digest = hashlib.sha256(f'{{"config":{json.dumps(config_sha256)},"objects":['.encode())
        separator = ""
        for pair in self._db.execute("SELECT id, sha256 FROM content ORDER BY id"):
            digest.update((separator + json.dumps(pair, separators=(",", ":"))).encode())
            separator = ","
        digest.update(b"]}")
        return digest.hexdigest()
