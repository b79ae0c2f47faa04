"""Where files lie: paths, and writing a file so that it appears whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def local_folder(path: str | Path) -> Path:
    """A local path; ValueError for an object store's URI."""
    if "://" in str(path):
        raise ValueError(f"{path}: object stores are not built yet, give a local path")
    return Path(path)


def write_atomic(path: Path, data: bytes) -> None:
    """Write bytes under a temporary name in the same folder, flush to disk, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
