"""Local copies of small folders of a bucket, such as exports: fetched once per machine and version.

How: a copy is in COPIES under a name that contains the hash of its address and of the sizes and entity tags of its
files, so that files that were replaced are fetched again. It is renamed into place when it is whole and nothing has
changed meanwhile. A process asks a bucket once and keeps to what it found.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from g3pt.data.storage import RemotePath, listing, read_many, stamp

COPIES = Path("~/.cache/g3pt")


@functools.cache
def fetched(folder: RemotePath) -> Path:
    """A local folder with the files that are directly in `folder`. ValueError if they change while they are read."""
    names = sorted(listing(folder))
    version = _version(folder, names)
    place = COPIES.expanduser() / f"{folder.name}-{hashlib.sha256(version.encode()).hexdigest()[:16]}"
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".incoming-", dir=place.parent))
    try:
        for name in names:  # one after another: weights may be large
            (content,) = read_many([folder / name])
            (temporary / name).write_bytes(content)
        if _version(folder, names) != version:
            raise ValueError(f"{folder}: its files were replaced while they were fetched; start the command again")
        if not place.is_dir():
            os.replace(temporary, place)
    except OSError:
        if not place.is_dir():  # another process was faster
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return place


def _version(folder: RemotePath, names: list[str]) -> str:
    return json.dumps([str(folder), [[name, *stamp(folder / name)] for name in names]])
