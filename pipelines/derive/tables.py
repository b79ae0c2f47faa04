"""Derived tables of a whole dataset, shard by shard, by a pool of workers that each hold a model
(`pipelines.cluster.pool`).

A shard whose tables exist and were made from the shard as it is now is skipped, so the same call resumes. A worker's
`run(index)` writes the tables of one shard and returns the number of objects in it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from g3pt.data import derived, records
from g3pt.data.datasets import DatasetInfo
from pipelines.cli.failures import on_disk
from pipelines.cli.progress import Progress
from pipelines.cluster.pool import Pool, Worker, run_items


def derive(
    info: DatasetInfo, kinds: Sequence[str], worker: type[Worker], arguments: Sequence[Any], stage: str, pool: Pool
) -> None:
    """Make the tables `kinds` of all shards that lack one of them; `stage` names the work in what is printed."""
    todo = [index for index in sorted(info.shards) if not is_done(info, kinds, index)]
    before = len(info.shards) - len(todo)
    print(f"{stage}: {len(info.shards)} shards, {before} done before, {len(todo)} to do", file=sys.stderr)
    if not todo:
        return
    with (
        on_disk(lambda: _safe(info, kinds)),
        Progress(stage, sum(_num_ok(info, index) for index in todo), "objects") as progress,
    ):
        done = 0
        for _, count in run_items(worker, arguments, todo, pool):
            done += count
            progress.show(done)


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
    return json.loads((info.path / f"{records.shard_name(index)}.json").read_text())["counts"].get("ok", 0)
