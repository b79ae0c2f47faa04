"""Which shards of a dataset are stale: the objects are compared with the sidecars in the output folder.

How: an object's shard follows from its id, so the plan needs no state. A shard is current if its sidecar contains the
hash of this configuration and of these inputs. Objects are kept in a `PlanStore`, and sidecars are read one at a time
and only added up (`Tally`), so memory grows with the number of shards, not of objects. A shard without sidecar is stale
and its worker hashes its files. For the others a file is read again only if its stamp in the sidecar has changed
(`pipelines.preprocess.sources.content`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from g3pt.data import records
from g3pt.data.datasets import NOT_THERE, Found, list_shards
from g3pt.data.storage import Location, location, read_many
from g3pt.data.tally import Tally
from pipelines.preprocess.config import PreprocessConfig
from pipelines.preprocess.plan_store import PlanStore
from pipelines.preprocess.sources import SourceObject, inputs_hash
from pipelines.preprocess.sources.fetch import known_content

OBJECTS_PER_SHARD = 16  # of a small dataset: many shards, so that every worker gets some
MOST_OBJECTS_PER_SHARD = 128  # about 100 MB of Parquet
MANY_SHARDS = 1024
MAX_SHARDS = 100_000  # their names have five digits
Sidecar = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One stale shard with everything that a worker needs to write it, as plain data."""

    index: int
    num_shards: int
    objects: list[SourceObject]
    reason: str

    def to_json(self) -> str:
        """JSON that `from_json` reads; tasks travel to workers in this form."""
        return json.dumps(vars(self) | {"objects": [vars(item) for item in self.objects]})

    @classmethod
    def from_json(cls, text: str) -> ShardTask:
        """The inverse of `to_json`."""
        found = json.loads(text)
        return cls(**found | {"objects": [SourceObject.of(item) for item in found["objects"]]})


class Tasks(Sequence[ShardTask]):
    """The shards to write, in order. The objects of a task are looked up when the task is indexed."""

    def __init__(self, store: PlanStore, num_shards: int, reasons: dict[int, str], num_objects: int) -> None:
        self._store, self._num_shards = store, num_shards
        self.reasons, self.indices, self.num_objects = reasons, tuple(reasons), num_objects

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> ShardTask:  # type: ignore[override]  # no slices
        index = self.indices[position]
        return ShardTask(
            index=index, num_shards=self._num_shards, objects=self._store.objects(index), reason=self.reasons[index]
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The work of a run: shards to write, current shards, and extra shards to which no object belongs any more."""

    num_objects: int
    num_shards: int
    tasks: Tasks
    current: Tally
    extra: list[int]
    other: Sidecar | None = None  # of the first finished shard that was made with other settings

    def lines(self) -> list[str]:
        """The plan in words."""
        reasons = Counter(self.tasks.reasons.values())
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        finished = len(self.current.shards)
        said = [f"{self.current.rows} objects in {finished} shards are finished and skipped"] if finished else []
        if self.tasks:
            said.append(f"{self.tasks.num_objects} objects in {len(self.tasks)} shards to convert ({why})")
        if self.extra:
            said.append(f"{len(self.extra)} shards to remove: no objects belong to them any more")
        return said or ["nothing to do"]


def make_plan(config: PreprocessConfig, objects: Iterable[SourceObject]) -> Plan:
    """Compare the objects with the output folder."""
    store = PlanStore()
    store.add(objects)
    where = f"--input {config.input}" if config.input else f"--source {config.source}"
    if config.limit is not None:
        store.limit(config.limit, where)
    folder = location(config.output)
    found = list_shards(folder)
    num_shards = config.num_shards or _num_shards_before(folder, found) or default_num_shards(store.num_objects)
    store.group(num_shards, where)
    sizes = store.sizes()
    reasons: dict[int, str] = {}
    current, other = Tally(), None
    config_sha256 = records.config_hash(config.settings)
    extra = sorted(found.keys() - sizes.keys())
    for index, sidecar in _with_sidecars(folder, [*sizes, *extra], found):
        if other is None and _is_other(found.get(index, NOT_THERE), sidecar, config_sha256, num_shards):
            other = sidecar
        if index not in sizes:
            continue
        reason = _stale_reason(found.get(index, NOT_THERE), sidecar, config_sha256) or _changed(
            config, store.objects(index), sidecar
        )
        if reason:
            reasons[index] = reason
        else:
            current.add(index, sidecar)
    tasks = Tasks(store, num_shards, reasons, sum(sizes[index] for index in reasons))
    return Plan(
        num_objects=store.num_objects,
        num_shards=num_shards,
        tasks=tasks,
        current=current,
        extra=extra,
        other=other,
    )


def default_num_shards(num_objects: int) -> int:
    """One shard per 16 objects up to 1024 shards, then up to 128 objects per shard; at most 100,000 shards."""
    few = min(MANY_SHARDS, -(-num_objects // OBJECTS_PER_SHARD))
    return max(1, few, min(MAX_SHARDS, -(-num_objects // MOST_OBJECTS_PER_SHARD)))


# -------------------------------------------------------------------------------------------------------- what is there


def _with_sidecars(
    folder: Location, indices: Iterable[int], found: dict[int, Found]
) -> Iterator[tuple[int, Sidecar | None]]:
    """Each shard with its sidecar, or None if the sidecar is missing or truncated: such shards count as unfinished."""
    there = [index for index in indices if found.get(index, NOT_THERE).has_sidecar]
    contents = read_many([folder / f"{records.shard_name(index)}.json" for index in there])
    has_sidecar = set(there)
    for index in indices:
        yield index, _parsed(next(contents)) if index in has_sidecar else None


def _parsed(content: bytes) -> Sidecar | None:
    try:
        sidecar = json.loads(content)
    except ValueError:
        return None
    return sidecar if isinstance(sidecar, dict) else None


def _num_shards_before(folder: Location, found: dict[int, Found]) -> int | None:
    """The number of shards in the first readable sidecar.

    Shards made for another number are stale anyway, since their objects differ.
    """
    sidecars = (
        _parsed((folder / f"{records.shard_name(index)}.json").read_bytes())
        for index, what in found.items()
        if what.has_sidecar
    )
    return next((sidecar.get("num_shards") for sidecar in sidecars if sidecar), None)


def _is_other(found: Found, sidecar: Sidecar | None, config_sha256: str, num_shards: int) -> bool:
    """Whether a shard is finished, with other settings or for another number of shards."""
    if sidecar is None or found.parquet_bytes != sidecar.get("bytes"):
        return False
    return sidecar.get("config_sha256") != config_sha256 or sidecar.get("num_shards", num_shards) != num_shards


def _stale_reason(found: Found, sidecar: Sidecar | None, config_sha256: str) -> str | None:
    """Why a shard must be written, judged by its files alone; None if its objects have to be compared."""
    if sidecar is None:
        return "new" if found.parquet_bytes is None else "unfinished"
    if found.parquet_bytes != sidecar.get("bytes"):
        return "damaged"
    if sidecar.get("config_sha256") != config_sha256:
        return "stale: settings changed"
    return None


def _changed(config: PreprocessConfig, objects: list[SourceObject], sidecar: Sidecar) -> str | None:
    """Why a complete shard must be written again: its objects changed, or failed ones are retried.

    None if it is current.
    """
    same = {item.id for item in objects} == sidecar["content"].keys()  # if not, no file has to be read
    if not same or inputs_hash(known_content(config, objects, sidecar)) != sidecar.get("inputs_sha256"):
        return "stale: inputs changed"
    failed_again = any(map(records.is_retried, sidecar["failures"]))
    return "to retry" if config.retry_failed and failed_again else None
