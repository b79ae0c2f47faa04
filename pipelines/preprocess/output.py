"""Checks of the folder that preprocessing writes: a dataset of this schema (or empty), writable, and not in use by
another run.

How: `check_output` runs before anything is planned. `alone_in` holds the folder's lock (`pipelines.runs.locks`) during
the work.
Ours: buckets have no locks. Two runs with the same flags are safe there (both write whole files with equal bytes). Two
      runs with different flags overwrite each other's shards, and the later dataset.json may name replaced ones.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path

from g3pt.data import datasets
from g3pt.data.datasets import SHARD_FILE
from g3pt.data.records import SCHEMA_VERSION
from g3pt.data.storage import Location, RemotePath, listing, location
from pipelines.cli.errors import bad_input
from pipelines.runs import locks
from pipelines.runs.notes import COMMAND_FILE, read_note


def check_output(output: str) -> None:
    """UsageError if the output contains a dataset of another schema or files of another program."""
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
    """ValueError unless a folder without dataset.json is empty or belongs to an unfinished run with this schema."""
    names = list(listing(folder))
    sidecar = next((name for name in names if name.endswith(".json") and SHARD_FILE.fullmatch(name)), None)
    version = _schema_version(folder / sidecar) if sidecar else None
    if version not in (None, SCHEMA_VERSION):
        raise ValueError(
            f"{folder} contains shards of schema version {version!r}, this program writes version {SCHEMA_VERSION}: "
            "choose another folder"
        )
    if isinstance(folder, Path):
        names += [entry.name for entry in folder.iterdir() if entry.is_dir()] if folder.exists() else []
        note = read_note(folder, COMMAND_FILE)
        foreign = sorted(name for name in names if not name.startswith("."))
        if foreign and sidecar is None and (note or {}).get("unit") != "objects":
            raise ValueError(
                f"{folder} contains other files and no dataset ({', '.join(foreign[:3])}): choose a new or empty folder"
            )


def _schema_version(sidecar: Location) -> object:
    """The sidecar's schema version; None if it cannot be read, in which case its shard is redone."""
    try:
        found = json.loads(sidecar.read_bytes())
    except ValueError:
        return None
    return found.get("schema_version") if isinstance(found, dict) else None


def alone_in(output: str) -> AbstractContextManager[None]:
    """The lock of a local folder (`pipelines.runs.locks`); a bucket has none."""
    return locks.alone_in(location(output))
