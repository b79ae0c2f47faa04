"""The folder that preprocessing writes: is it a dataset's, of this schema, writable, and does nobody else work there.

How: `check_output` looks before anything is planned. `alone_in` holds a lock of the kernel's (flock on `.lock`) as long as the work
lasts: it ends with its process, however that ends, so nothing has to be cleaned up after a kill.
Ours: a bucket has no such lock, nor has every network mount. Two runs with the same flags are safe there all the same (whole
      files of equal bytes); two with different flags undo each other's shards, and the later dataset.json may name replaced ones.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from g3pt.data import datasets
from g3pt.data.datasets import SHARD_FILE
from g3pt.data.records import SCHEMA_VERSION
from g3pt.data.storage import Location, RemotePath, listing, location
from pipelines.cli.errors import UsageError, bad_input
from pipelines.runs.notes import COMMAND_FILE, read_note

LOCK_FILE = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def check_output(output: str) -> None:
    """UsageError where the output holds another schema's dataset, or another program's files."""
    with bad_input("--output "):
        folder = location(output)
        if isinstance(folder, RemotePath):
            folder.check_store()
        elif folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is not a folder")
        if (folder / "dataset.json").exists():
            datasets.open_dataset(folder)
            return
        _check_unfinished(folder)


def _check_unfinished(folder: Location) -> None:
    """A folder without dataset.json: empty, or that of a preprocessing run that did not finish, with this schema."""
    names = list(listing(folder))
    sidecar = next((name for name in names if name.endswith(".json") and SHARD_FILE.fullmatch(name)), None)
    version = _schema_version(folder / sidecar) if sidecar else None
    if version not in (None, SCHEMA_VERSION):
        raise ValueError(
            f"{folder} holds shards of schema version {version!r}; this program writes version {SCHEMA_VERSION}: give another folder"
        )
    if isinstance(folder, Path):
        names += [entry.name for entry in folder.iterdir() if entry.is_dir()] if folder.exists() else []
        note = read_note(folder, COMMAND_FILE)
        foreign = sorted(name for name in names if not name.startswith("."))
        if foreign and sidecar is None and (note or {}).get("unit") != "objects":
            raise ValueError(
                f"{folder} holds no dataset but other files ({', '.join(foreign[:3])}): give a new or an empty folder"
            )


def _schema_version(sidecar: Location) -> object:
    """None if it can't be read: its shard is redone."""
    try:
        found = json.loads(sidecar.read_bytes())
    except ValueError:
        return None
    return found.get("schema_version") if isinstance(found, dict) else None


@contextlib.contextmanager
def alone_in(output: str) -> Iterator[None]:
    """Make a local folder and work there alone: UsageError if another run does, or if it can't be written.

    Folders that it made and that stay empty (the input was bad) go again.
    """
    folder = location(output)
    if isinstance(folder, RemotePath):
        yield
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder)
    except OSError as error:
        raise UsageError(f"--output {folder} can't be written: {error.strerror}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a disk that went read-only: the lock ends with this process
            (folder / LOCK_FILE).unlink(missing_ok=True)
        lock.close()
        with contextlib.suppress(OSError):  # not empty
            for path in made:
                path.rmdir()


def _lock(folder: Path) -> IO[str]:
    while True:
        file = open(folder / LOCK_FILE, "w")  # noqa: SIM115 (held by the caller; for writing, since NFS locks nothing else)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise UsageError(
                f"--output {folder}: another run works there{_who(folder)}; wait for its end, or give another folder"
            ) from None
        except OSError as error:
            if error.errno in NO_LOCKS:
                return file
            file.close()
            raise
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(folder / LOCK_FILE), os.fstat(file.fileno())):
                return file
        file.close()  # whoever held it before removed the file meanwhile: a lock on a name that is gone holds nobody off


def _who(folder: Path) -> str:
    note = read_note(folder, COMMAND_FILE) or {}
    if not {"pid", "host", "started"} <= note.keys():
        return ""
    return f" (process {note['pid']} on {note['host']}, since {time.strftime('%H:%M:%S', time.localtime(note['started']))})"
