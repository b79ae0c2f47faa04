"""SourceObject, one input object as every source lists it, and the hash of a shard's objects.

How: a source lists objects in any order. Objects from files have no content hash yet, because reading ten million files
would take days: a file is hashed where it is converted (`pipelines.preprocess.sources.content`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from g3pt.data.records import canonical_json


@dataclass(frozen=True, kw_only=True)
class SourceObject:
    """The columns of a row about its origin, its content hash, and the size of its files in bytes."""

    id: str
    source: str
    content_sha256: str = ""  # of files: empty until they are read, and if they cannot be read
    size: int = 0
    path: str = ""
    source_url: str = ""
    license: str = ""
    author: str = ""
    attribution_url: str = ""
    name: str = ""
    tags: tuple[str, ...] = ()
    caption: str = ""
    caption_source: str = ""
    category: str = ""

    def columns(self) -> dict[str, Any]:
        """The columns of a row known before conversion."""
        return {name: value for name, value in vars(self).items() if name != "size"} | {"tags": list(self.tags)}

    @classmethod
    def of(cls, values: dict[str, Any]) -> SourceObject:
        """From values as read from JSON."""
        return cls(**values | {"tags": tuple(values.get("tags", ()))})


def inputs_hash(objects: Iterable[SourceObject]) -> str:
    """sha256 over a shard's objects, sorted by id: ids, sizes, content hashes and the columns about their origin."""
    return hashlib.sha256(
        canonical_json([vars(item) for item in sorted(objects, key=lambda item: item.id)]).encode()
    ).hexdigest()
