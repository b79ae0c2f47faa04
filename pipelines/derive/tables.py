"""Derived tables of a whole dataset, shard by shard, by a pool of workers that each hold a model
(`pipelines.cluster.pool`).

A shard whose tables exist and were made from the shard as it is now is skipped, so the same call resumes. A worker's
`run(index)` writes the tables of one shard and returns `made`. The name of a table contains the hash of the model that
makes it, so that a model with other settings has tables of its own.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from g3pt.data import derived, records
from g3pt.data.datasets import DatasetInfo
from g3pt.data.storage import Location
from pipelines.cli.failures import on_disk
from pipelines.cli.progress import Progress, say
from pipelines.cluster.nodes import node_name
from pipelines.cluster.pool import Pool, Worker, run_items
from pipelines.cluster.storage import check_arrived, join, sizes_of
from pipelines.runs.locks import LOCK_FILE, Held, locked

WITHOUT_GPU = "--device cpu: the command then encodes without a GPU, and what is encoded is kept for a start with one"


def derive(
    info: DatasetInfo, kinds: Sequence[str], worker: type[Worker], arguments: Sequence[Any], stage: str, pool: Pool
) -> None:
    """Make the tables `kinds` of all shards that lack one of them; `stage` names the work in what is printed."""
    if not to_do(info, kinds):
        _say_count(info, stage, 0)
        return
    with _alone(info, kinds, stage):
        todo = to_do(info, kinds)
        _say_count(info, stage, len(todo))
        if todo and pool.num_workers != 0:
            join(pool.ray_address, writes=[str(info.path / "derived")], reads=[str(info.path / "dataset.json")])
        with (
            on_disk(lambda: _safe(info, kinds)),
            Progress(stage, sum(_num_ok(info, index) for index in todo), "objects") as progress,
        ):
            for _, made in run_items(worker, arguments, todo, pool, stage, name=records.shard_name):
                check_arrived(made["files"], made["node"])
                progress.show(progress.done + made["objects"])


def made(num_objects: int, tables: Sequence[Location]) -> dict[str, Any]:
    """What a worker returns of one shard: its number of objects, this node, and the local tables (path -> bytes)."""
    return {"objects": num_objects, "node": node_name(), "files": sizes_of(tables)}


def to_do(info: DatasetInfo, kinds: Sequence[str]) -> list[int]:
    """The shards that lack one of these tables."""
    return [index for index in sorted(info.shards) if not is_done(info, kinds, index)]


def _say_count(info: DatasetInfo, stage: str, todo: int) -> None:
    before = len(info.shards) - todo
    print(f"{stage}: {len(info.shards)} shards, {before} done before, {todo} to do", file=sys.stderr)


@contextlib.contextmanager
def _alone(info: DatasetInfo, kinds: Sequence[str], stage: str) -> Iterator[None]:
    """Hold the locks of local tables. Unlike a command's output, several commands want the same tables: the second one
    waits, and finds them made.
    """
    with contextlib.ExitStack() as stack:
        for kind in sorted(kinds):
            folder = info.path / "derived" / kind
            if not isinstance(folder, Path):
                continue
            folder.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(locked(folder / LOCK_FILE))
            except Held as held:
                say(f"{stage}: another command makes {folder} ({held.holder or 'unknown'}); waiting for it")
                stack.enter_context(locked(folder / LOCK_FILE, wait_s=None))
        yield


def is_done(info: DatasetInfo, kinds: Sequence[str], index: int) -> bool:
    """Whether a shard has all these tables, made from its present content."""
    return all(derived.derived_is_current(info, kind, index) for kind in kinds)


def _safe(info: DatasetInfo, kinds: Sequence[str]) -> str:
    """What is finished when the command stops, in words."""
    done = sum(is_done(info, kinds, index) for index in info.shards)
    folders = " and ".join(str(info.path / "derived" / kind) for kind in kinds)
    return f"{done} of {len(info.shards)} shards are encoded ({folders})"


def _num_ok(info: DatasetInfo, index: int) -> int:
    """Number of ok objects of a shard, from its sidecar."""
    return json.loads((info.path / f"{records.shard_name(index)}.json").read_text(encoding="utf-8"))["counts"].get(
        "ok", 0
    )
