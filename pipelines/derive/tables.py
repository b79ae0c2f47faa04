"""Derived tables of a whole dataset, shard by shard: on a Ray Data pool of actors that hold a model, or in this process.

A shard whose tables are there and were made from its source as it stands is skipped, so the same call resumes. The work itself is a
`ShardWorker`: it loads its model once and writes the tables of the shards it is given.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from g3pt.data import derived, records
from g3pt.data.datasets import DatasetInfo
from pipelines.cli.failures import on_disk
from pipelines.cli.progress import Progress


class ShardWorker:
    """A model held by one worker; called with a batch of shard numbers it writes their derived tables."""

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Ray Data's interface: {'shard': (n,)} -> {'shard', 'objects'}."""
        return {"shard": batch["shard"], "objects": np.array([self.encode(int(i)) for i in batch["shard"]])}

    def encode(self, index: int) -> int:
        """Write one shard's tables; the number of objects in it."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Who works: `num_workers` actors share the CPUs; where `device` means GPUs there is one for each GPU instead. Without Ray, this process."""

    num_workers: int = 2
    ray_address: str | None = None
    device: str = "auto"
    use_ray: bool = True


def derive(
    info: DatasetInfo, kinds: Sequence[str], worker: type[ShardWorker], arguments: Sequence[Any], stage: str, pool: Pool
) -> None:
    """Make the tables `kinds` of all shards that lack one of them; `stage` names the work for people and programs."""
    todo = [index for index in sorted(info.shards) if not is_done(info, kinds, index)]
    before = len(info.shards) - len(todo)
    print(f"{stage}: {len(info.shards)} shards, {before} encoded before, {len(todo)} to do", file=sys.stderr)
    if not todo:
        return
    with (
        on_disk(lambda: _safe(info, kinds)),
        Progress(stage, sum(_num_ok(info, index) for index in todo), "objects") as progress,
    ):
        done = 0
        for count in _on_ray(worker, arguments, todo, pool) if pool.use_ray else map(worker(*arguments).encode, todo):
            done += count
            progress.show(done)


def is_done(info: DatasetInfo, kinds: Sequence[str], index: int) -> bool:
    """Whether a shard has all these tables, made from it as it stands."""
    return all(derived.derived_is_current(info, kind, index) for kind in kinds)


def _safe(info: DatasetInfo, kinds: Sequence[str]) -> str:
    """What a stopped command leaves."""
    done = sum(is_done(info, kinds, index) for index in info.shards)
    folders = " and ".join(str(info.path / "derived" / kind) for kind in kinds)
    return f"{done} of {len(info.shards)} shards are encoded ({folders})"


def _num_ok(info: DatasetInfo, index: int) -> int:
    """Objects of a shard that are encoded, from its sidecar."""
    return json.loads((info.path / f"{records.shard_name(index)}.json").read_text())["counts"].get("ok", 0)


def _on_ray(worker: type[ShardWorker], arguments: Sequence[Any], todo: list[int], pool: Pool) -> Iterator[int]:
    """Objects of each shard as they are done."""
    import ray

    from pipelines.cluster import session

    session.connect(pool.ray_address)
    request, room = session.actor_resources(pool.device)
    workers = max(1, min(room if "num_gpus" in request else pool.num_workers, len(todo)))
    # One block each from the start: tasks that split them would wait for ever for a CPU that an actor holds.
    shards = ray.data.from_items([{"shard": index} for index in todo], override_num_blocks=len(todo))
    done = shards.map_batches(
        worker,
        fn_constructor_args=tuple(arguments),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        **request,
    )
    yield from (int(row["objects"]) for row in done.iter_rows())
