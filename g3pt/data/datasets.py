"""Writing and opening a dataset: its shards, their sidecars, and dataset.json.

How: a shard's parquet is written first and its sidecar second, each whole or not at all; dataset.json comes last. So a
file that exists is finished, and dataset.json has each shard's sha256.

Layout: docs/concepts/contracts.md.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from g3pt.data.records import (
    ADDED_COLUMNS,
    ROWS_PER_GROUP,
    SCHEMA_VERSION,
    SPLITS,
    RecordConfig,
    config_hash,
    failure_reason,
    rows_to_table,
    schema,
    shard_name,
)
from g3pt.data.storage import Location, RemotePath, listing, location, write_atomic
from g3pt.data.tally import Tally

SHARD_FILE = re.compile(r"shard-([0-9]+)\.(parquet|json)")


def write_shard(
    folder: Location,
    index: int,
    rows: Sequence[Mapping[str, Any]],
    config: RecordConfig,
    *,
    config_sha256: str = "",
    settings: Mapping[str, Any] | None = None,
    inputs_sha256: str = "",
    num_shards: int = 1,
    seconds: Mapping[str, float] | None = None,
    view_seconds: float = 0.0,
    files: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write one shard, parquet first and sidecar second, each whole or not at all. Returns the sidecar.

    `settings` is what config_sha256 covers. `files`: id -> stamps by which a later run recognises that the object's
    files are unchanged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = sorted(rows, key=lambda row: row["id"])
    data = parquet_bytes(rows_to_table(rows, config))
    # An old sidecar must never be beside a new parquet.
    (folder / f"{shard_name(index)}.json").unlink(missing_ok=True)
    write_atomic(folder / f"{shard_name(index)}.parquet", data)
    sidecar = {
        "schema_version": SCHEMA_VERSION,
        "config_sha256": config_sha256,
        "config": dict(settings or {}),
        "inputs_sha256": inputs_sha256,
        "num_shards": num_shards,
        "rows": len(rows),
        "counts": dict(sorted(Counter(row["status"] for row in rows).items())),
        "splits": dict(sorted(Counter(row["split"] for row in rows if row["status"] == "ok").items())),
        "failures": dict(sorted(Counter(failure_reason(row) for row in rows if row["status"] != "ok").items())),
        "content": {row["id"]: row["content_sha256"] for row in rows},
        "seconds": {name: round(value, 3) for name, value in sorted((seconds or {}).items())},
        "view_seconds": round(view_seconds, 3),  # of all rows together, part of their seconds
        "files": {name: list(stamps) for name, stamps in sorted((files or {}).items()) if stamps},
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    write_atomic(folder / f"{shard_name(index)}.json", json.dumps(sidecar, indent=1).encode("utf-8"))
    return sidecar


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as a Parquet file in memory: the same table gives the same bytes on the same versions."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, row_group_size=ROWS_PER_GROUP, compression="zstd", compression_level=3, use_dictionary=False
    )
    return sink.getvalue().to_pybytes()


def write_dataset(
    folder: Location,
    config: RecordConfig,
    settings: Mapping[str, Any],
    num_shards: int,
    shards: Tally | Mapping[int, Mapping[str, Any]],
) -> dict[str, Any]:
    """Write dataset.json from all sidecars (index -> sidecar) or their sum.

    `settings` is what the config hash covers.
    """
    tally = shards if isinstance(shards, Tally) else Tally(shards)
    config_sha256 = config_hash(settings)
    summary = {
        "schema_version": SCHEMA_VERSION,
        "config": dict(settings),
        "config_sha256": config_sha256,
        "record": config.as_json(),
        "columns": schema(config).names,
        "tensors": {name: {"dtype": np.dtype(d).name, "shape": list(s)} for name, (d, s) in config.tensors.items()},
        "counts": dict(sorted(tally.counts.items())),
        "failures": dict(sorted(tally.failures.items())),
        "splits": {name: tally.splits.get(name, 0) for name in SPLITS},
        "num_shards": num_shards,
        "shards": {str(index): sha256 for index, sha256 in sorted(tally.shards.items())},
        "fingerprint": tally.fingerprint(config_sha256),
    }
    write_atomic(folder / "dataset.json", json.dumps(summary, indent=1).encode("utf-8"))
    return summary


@dataclass(frozen=True)
class Found:
    """What a folder contains of one shard."""

    has_sidecar: bool = False
    parquet_bytes: int | None = None


NOT_THERE = Found()


def list_shards(folder: Location) -> dict[int, Found]:
    """Every shard of which a folder contains anything, from one listing."""
    sidecars: set[int] = set()
    parquets: dict[int, int] = {}
    for name, num_bytes in listing(folder).items():
        match = SHARD_FILE.fullmatch(name)
        if match and match[2] == "json":
            sidecars.add(int(match[1]))
        elif match:
            parquets[int(match[1])] = num_bytes
    return {index: Found(index in sidecars, parquets.get(index)) for index in sorted(sidecars | parquets.keys())}


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """dataset.json, checked. `splits` counts ok rows; `shards` maps shard index to the sha256 of its parquet."""

    path: Location
    config: RecordConfig
    settings: dict[str, Any]
    fingerprint: str
    schema_version: int
    num_shards: int
    counts: dict[str, int]
    failures: dict[str, int]
    splits: dict[str, int]
    shards: dict[int, str]
    columns: tuple[str, ...]

    def shard_path(self, index: int) -> Location:
        """The parquet file of one shard."""
        return self.path / f"{shard_name(index)}.parquet"


def open_dataset(path: str | Location) -> DatasetInfo:
    """Read and check dataset.json.

    ValueError, with one clear line, if it is missing, damaged or of another schema version.
    """
    folder = location(path)
    file = folder / "dataset.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(_why_missing(folder)) from None
    except ValueError as error:
        raise ValueError(f"{file} is not readable JSON: {error}") from error
    version = found.get("schema_version") if isinstance(found, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"dataset {folder} has schema version {version!r}; this program reads version {SCHEMA_VERSION}"
        )
    try:
        return _dataset_info(folder.resolve(), found)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged: {type(error).__name__}: {error}") from error


def _why_missing(folder: Location) -> str:
    if isinstance(folder, RemotePath):
        folder.check_store()
    elif not folder.is_dir():
        return f"no dataset at {folder}: the folder does not exist"
    return f"no dataset at {folder}: dataset.json is missing (preprocessing did not finish there)"


def _dataset_info(folder: Location, found: dict[str, Any]) -> DatasetInfo:
    config = RecordConfig(**found["record"])
    columns = schema(config).names
    if found["columns"] != [name for name in columns if name in found["columns"] or name not in ADDED_COLUMNS]:
        raise ValueError(f"its columns differ from schema version {SCHEMA_VERSION}")
    return DatasetInfo(
        path=folder,
        config=config,
        settings=found["config"],
        shards={int(index): sha256 for index, sha256 in found["shards"].items()},
        columns=tuple(found["columns"]),
        **{
            field.name: found[field.name]
            for field in fields(DatasetInfo)
            if field.name not in ("path", "config", "settings", "shards", "columns")
        },
    )
