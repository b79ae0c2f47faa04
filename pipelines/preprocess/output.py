"""The folder that preprocessing writes: is it a dataset's, of this schema, writable, and does nobody else work there.

How: `check_output` looks before anything is planned. `alone_in` holds the folder's lock (`pipelines.runs.locks`) as long as the work lasts.
Ours: a bucket has no such lock, nor has every network mount. Two runs with the same flags are safe there all the same (whole
      files of equal bytes); two with different flags undo each other's shards, and the later dataset.json may name replaced ones.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

from g3pt.data import datasets
from g3pt.data.datasets import SHARD_FILE
from g3pt.data.records import SCHEMA_VERSION
from g3pt.data.storage import Location, RemotePath, listing, location
from pipelines.cli.errors import UsageError, bad_input
from pipelines.runs.locks import LOCK_FILE, Held, locked
from pipelines.runs.notes import COMMAND_FILE, read_note


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
        with _locked(folder):
            yield
    finally:
        with contextlib.suppress(OSError):  # not empty
            for path in made:
                path.rmdir()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The folder's lock. Without locks two runs with the same flags are safe all the same, so it is not needed."""
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder / LOCK_FILE, needed=False))
        except Held:
            raise UsageError(
                f"--output {folder}: another run works there{_who(folder)}; wait for its end, or give another folder"
            ) from None
        except OSError as error:
            raise UsageError(f"--output {folder} can't be written: {error.strerror}") from error
        yield


def _who(folder: Path) -> str:
    note = read_note(folder, COMMAND_FILE) or {}
    if not {"pid", "host", "started"} <= note.keys():
        return ""
    return f" (process {note['pid']} on {note['host']}, since {time.strftime('%H:%M:%S', time.localtime(note['started']))})"
