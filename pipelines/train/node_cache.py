"""Fills a node's cache of the training objects (`g3pt.data.cache`): who copies what, where, and when not.

All workers of a node fill its cache together. Each one begins at another shard and skips those that others copy. A lock
per shard keeps them, and other runs, from copying it twice; it ends with its process, and a shard whose copy was not
finished is copied again. Without room on the disk, or a folder that cannot be written, a worker reads the dataset
itself and says so: the batches are the same. Copies that nobody uses go (`pipelines.train.cache_uses`).

Ours: all of it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from g3pt.data import derived, reading
from g3pt.data.cache import ID, LICENSE, ColumnCache, Source
from g3pt.data.streaming import Reading
from pipelines.cli.progress import say
from pipelines.runs.locks import LOCK_FILE, Held, locked
from pipelines.train.cache_uses import note_use, remove_unused

AUTO, OFF = "auto", "off"
AUTO_BYTES = 2**30  # --cache auto: smaller splits are read whole by each worker
KEPT_FREE = 0.05  # share of the cache's disk that stays free
STARTS = 8  # places at which the workers of a node begin
SAMPLED = 16  # shards whose size is looked up to estimate that of the others


def node_cache(wanted: Reading, where: str, rank: int = 0) -> ColumnCache | None:
    """The filled cache of a worker's node; None if the objects are to be read without one.

    `where` is auto, off or a folder.
    """
    if where == OFF or (where == AUTO and wanted.num_bytes < AUTO_BYTES):
        return None
    folder = default_folder() if where == AUTO else Path(where)
    cache, sources = ColumnCache(folder, wanted.dataset), list(dict.fromkeys([ID, LICENSE, *wanted.sources.values()]))
    try:
        _make_private(folder)
        note_use(cache)
        if rank == 0:
            _say_removed(folder, remove_unused(folder, lambda: _room(folder)))
        return cache if _filled(cache, sources, rank) else None
    except OSError as error:
        say(f"  cache {folder}: {error.strerror or error}; reading {wanted.dataset.path} without it")
        return None


def default_folder() -> Path:
    """This user's cache below TMPDIR."""
    return Path(tempfile.gettempdir()) / f"g3pt-cache-{os.getuid()}"


def _make_private(folder: Path) -> None:
    """Make a folder that nobody else may write to; PermissionError for one that another user has made."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")


def _filled(cache: ColumnCache, sources: Sequence[Source], rank: int) -> bool:
    """Copy what is missing; False, with a line, if there is no room for it."""
    shards = sorted(cache.info.shards)
    start = rank % STARTS * len(shards) // STARTS
    missing = [shard for shard in shards[start:] + shards[:start] if not _has(cache, shard, sources)]
    if not missing:
        return True
    need, room = _bytes_of(cache, missing, sources), _room(cache.folder)
    if need > room:
        _say_removed(cache.folder, remove_unused(cache.folder, lambda: _room(cache.folder), need))
        room = _room(cache.folder)
    if need > room:
        say(
            f"  cache {cache.folder}: {cache.info.path} needs {_gib(need)}, {_gib(room)} can be used; reading it "
            f"without a cache, which is slower (--cache DIR names a larger disk)"
        )
        return False
    if rank == 0:
        say(f"  cache {cache.folder}: copying about {_gib(need)} of {cache.info.path}; delete the folder to free it")
    for wait_s in (0.0, None):  # at last for those that other processes copy
        missing = [shard for shard in missing if not _fill(cache, shard, sources, wait_s)]
    return True


def _say_removed(folder: Path, count: int) -> None:
    if count:
        say(f"  cache {folder}: removed the copies of {count} shards, which no running command uses")


def _fill(cache: ColumnCache, shard: int, sources: Sequence[Source], wait_s: float | None) -> bool:
    """Copy what is missing of a shard; False if another process has copied it for more than `wait_s` seconds."""
    folder = cache.folder_of(shard)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder / LOCK_FILE, wait_s=wait_s):
            for leftover in folder.glob(".*.tmp"):
                leftover.unlink(missing_ok=True)
            for source in sources:
                if not cache.has(shard, source):
                    cache.fill(shard, source)
    except Held:
        return False
    return True


def _has(cache: ColumnCache, shard: int, sources: Iterable[Source]) -> bool:
    return all(cache.has(shard, source) for source in sources)


def _bytes_of(cache: ColumnCache, shards: Sequence[int], sources: Sequence[Source]) -> int:
    """About the bytes of copies of these shards, from the footers of some of them."""
    some = shards[:: max(1, len(shards) // SAMPLED)]
    total = 0
    for shard in some:
        for kind in {source.kind for source in sources}:
            path = derived.derived_path(cache.info, kind, shard) if kind else cache.info.shard_path(shard)
            total += reading.stored_bytes(path, [source.column for source in sources if source.kind == kind])
    ok = max(1, cache.info.counts.get("ok", 0))
    return total * len(shards) // len(some) * cache.info.splits.get(cache.split, 0) // ok


def _room(folder: Path) -> int:
    """Bytes that a cache may add to the disk of its folder."""
    disk = shutil.disk_usage(folder)
    return max(0, disk.free - int(KEPT_FREE * disk.total))


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
