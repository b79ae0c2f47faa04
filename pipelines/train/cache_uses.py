"""Who uses which copies of a node's cache (`pipelines.train.node_cache`), and which copies go when room is needed.

How: a process notes the folders that it reads in `uses/<id>.json` of the cache and holds the lock `uses/<id>.lock`
until it ends, however it ends. Copies that no living process has noted are removed once no start has used them for
KEPT_DAYS, and earlier, those used longest ago first, where another dataset needs their room. The time of a folder is
that of its last use. Processes note and remove under one lock, so that nothing is removed between the two.

Ours: all of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from g3pt.data.cache import ColumnCache
from pipelines.runs.locks import LOCK_FILE, is_held, locked

KEPT_DAYS = 30.0
USES = "uses"  # folder of the notes
COPIES = re.compile(r"[0-9a-f]{32}-[a-z]+-\d+")  # folders of copies (`ColumnCache.folder_of`), of any format

_noted: dict[Path, tuple[str, set[str]]] = {}  # of this process: cache -> (id of its note, the folders in it)
_held = contextlib.ExitStack()  # this process's locks, until it ends


def note_use(cache: ColumnCache) -> None:
    """Keep the copies of a cache's dataset from being removed while this process lives."""
    folder, names = cache.folder, {cache.folder_of(shard).name for shard in cache.info.shards}
    with locked(folder / LOCK_FILE, wait_s=None):
        if folder not in _noted:
            (folder / USES).mkdir(exist_ok=True)
            name = uuid.uuid4().hex
            _held.enter_context(locked(folder / USES / f"{name}.lock"))
            _noted[folder] = name, set()
        name, noted = _noted[folder]
        noted |= names
        (folder / USES / f"{name}.json").write_text(json.dumps(sorted(noted)), encoding="utf-8")
        for copies in names:
            with contextlib.suppress(FileNotFoundError):
                os.utime(folder / copies)


def remove_unused(folder: Path, room: Callable[[], int], need: int = 0) -> int:
    """Remove copies below a cache's folder that no living process uses: those last used KEPT_DAYS ago, and others until
    `room()` is at least `need`. Returns how many folders are gone.
    """
    removed = 0
    with locked(folder / LOCK_FILE, wait_s=None):
        used = _used(folder)
        for last, copies in sorted(_copies(folder)):
            if copies.name not in used and (time.time() - last > KEPT_DAYS * 86400 or room() < need):
                shutil.rmtree(copies, ignore_errors=True)
                removed += 1
    return removed


def _copies(folder: Path) -> Iterable[tuple[float, Path]]:
    """(time of the last use, folder) of all copies."""
    for path in folder.iterdir():
        if COPIES.fullmatch(path.name):
            yield path.stat().st_mtime, path


def _used(folder: Path) -> set[str]:
    """Names of the folders that living processes have noted. Notes of others are removed."""
    found: set[str] = set()
    for note in (folder / USES).glob("*.json"):
        lock = note.with_suffix(".lock")
        if is_held(lock):
            found |= set(json.loads(note.read_text(encoding="utf-8")))
        else:
            note.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
    return found
