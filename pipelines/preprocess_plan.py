"""Which shards of a dataset are stale: objects compared with the sidecars that lie in the output folder.

How: an object's shard follows from its id, so the plan needs no state: a shard is current when its sidecar carries the hash
of this configuration and of these inputs.

Source: DESIGN, contract 3.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from g3pt import records
from pipelines.preprocess_config import PreprocessConfig
from pipelines.sources import SourceObject, inputs_hash

OBJECTS_PER_SHARD = 16
MAX_SHARDS = 1024


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One stale shard: everything that a worker needs to write it, as plain data."""

    index: int
    num_shards: int
    objects: list[SourceObject]
    reason: str

    def to_json(self) -> str:
        """Text that `from_json` reads back; a task travels to its worker like this."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ShardTask:
        """The inverse of `to_json`."""
        found = json.loads(text)
        return cls(**found | {"objects": [SourceObject(**item) for item in found["objects"]]})


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will do: shards to write, shards that are current, and shards that no object belongs to any more."""

    num_shards: int
    tasks: list[ShardTask]
    current: dict[int, dict[str, Any]]
    extra: list[int]

    @property
    def num_finished(self) -> int:
        """Objects in shards that are current."""
        return sum(sidecar["rows"] for sidecar in self.current.values())

    def lines(self) -> list[str]:
        """The plan for a person."""
        todo = sum(len(task.objects) for task in self.tasks)
        reasons = Counter(task.reason for task in self.tasks)
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        said = (
            [f"{self.num_finished} objects in {len(self.current)} shards are finished and skipped"]
            if self.current
            else []
        )
        if self.tasks:
            said.append(f"{todo} objects in {len(self.tasks)} shards to convert ({why})")
        if self.extra:
            said.append(f"{len(self.extra)} shards to remove: no object belongs to them any more")
        return said or ["nothing to do"]


def make_plan(config: PreprocessConfig, objects: list[SourceObject]) -> Plan:
    """Compare the objects with what lies in the output folder."""
    folder = Path(config.output)
    found = _read_sidecars(folder)
    num_shards = config.num_shards or _num_shards_before(found) or default_num_shards(len(objects))
    shards: dict[int, list[SourceObject]] = {}
    for item in objects:
        shards.setdefault(records.shard_index(item.id, num_shards), []).append(item)
    config_sha256 = records.config_hash(config.settings)
    tasks, current = [], {}
    for index, items in sorted(shards.items()):
        reason = _stale_reason(folder, index, found.get(index), config_sha256, inputs_hash(items), config.retry_failed)
        if reason:
            tasks.append(ShardTask(index=index, num_shards=num_shards, objects=items, reason=reason))
        else:
            current[index] = found[index]
    written = {int(file.stem.split("-")[1]) for file in folder.glob("shard-[0-9]*.*")} if folder.is_dir() else set()
    return Plan(num_shards=num_shards, tasks=tasks, current=current, extra=sorted(written - shards.keys()))


def default_num_shards(num_objects: int) -> int:
    """One shard per 16 objects, at most 1024."""
    return min(MAX_SHARDS, max(1, -(-num_objects // OBJECTS_PER_SHARD)))


def _num_shards_before(sidecars: dict[int, dict[str, Any]]) -> int | None:
    counts = {sidecar.get("num_shards") for sidecar in sidecars.values()}
    return counts.pop() if len(counts) == 1 else None


def _read_sidecars(folder: Path) -> dict[int, dict[str, Any]]:
    """Index -> sidecar of every shard that has a readable one."""
    found = {}
    for file in sorted(folder.glob("shard-[0-9]*.json")) if folder.is_dir() else []:
        try:
            sidecar = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:  # cut off: its shard counts as not finished
            continue
        if isinstance(sidecar, dict):
            found[int(file.stem.split("-")[1])] = sidecar
    return found


def _stale_reason(
    folder: Path, index: int, sidecar: dict[str, Any] | None, config_sha256: str, inputs_sha256: str, retry_failed: bool
) -> str | None:
    """Why a shard must be written, None when it is current."""
    parquet = folder / f"{records.shard_name(index)}.parquet"
    if sidecar is None:
        return "unfinished" if parquet.exists() else "new"
    if not parquet.is_file() or parquet.stat().st_size != sidecar.get("bytes"):
        return "damaged"
    if sidecar.get("config_sha256") != config_sha256:
        return "stale: settings changed"
    if sidecar.get("inputs_sha256") != inputs_sha256:
        return "stale: inputs changed"
    if retry_failed and any(set(failure.split("/")) & set(records.RETRIED_REASONS) for failure in sidecar["failures"]):
        return "to retry"
    return None
