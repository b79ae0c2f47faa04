"""The content of an object's files: one hash over a mesh and the buffers it names, and stamps that show whether they
have changed.

How: beside each content hash a shard's sidecar keeps the size and modification time of every file that went into it
(stamps). While they are unchanged the next start takes the hash from the sidecar, so a second start of a job over 10 TB
reads none of it. `--rehash` reads all.

Ours: the hash of a glTF also covers the buffers it names (their bytes are its vertices), but not its textures.
      A file modified in the last seconds gets no stamp: another change could leave its modification time the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import struct
import time
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from g3pt.data.records import canonical_json

SETTLED_NS = 2 * 10**9
MAX_JSON = 256 * 2**20  # bytes; buffers are not looked for in a longer description
Stamp = list[str | int]  # path below the root, size (-1: missing), modification time in nanoseconds


@dataclass(frozen=True, kw_only=True)
class Content:
    """The content of an object's files.

    No sha256 if its mesh file cannot be read, no stamps if they cannot be trusted.
    """

    sha256: str = ""
    size: int = 0
    stamps: tuple[Stamp, ...] = ()


def read_content(root: Path, path: str, *, is_ours: bool = False) -> Content:
    """Hash a mesh file together with the buffers it names.

    Files outside `root` are never read; the row will say why it failed.

    A file that this program wrote (`is_ours`) gets its stamp at once, since nobody else modifies it.
    """
    files = [path]
    stamps = [_stamp(root, path)]
    main = _inside_file(root, path)
    if main is None:
        return Content()
    digest, size, uris = main
    buffers: dict[str, str] = {}
    for uri in uris:
        files.append(posixpath.join(posixpath.dirname(path), urllib.parse.unquote(uri)))
        stamps.append(_stamp(root, files[-1]))
        part = _inside_file(root, files[-1])
        buffers[uri] = part[0] if part else ""
        size += part[1] if part else 0
    if buffers:
        digest = hashlib.sha256(canonical_json({"main": digest, "buffers": buffers}).encode("utf-8")).hexdigest()
    settled = is_ours or all(int(when) < time.time_ns() - SETTLED_NS for _, _, when in stamps)
    return Content(sha256=digest, size=size, stamps=tuple(stamps) if settled else ())


def is_unchanged(root: Path, stamps: list[Stamp]) -> bool:
    """Whether all files have the size and time that they had when they were hashed."""
    return bool(stamps) and all(_stamp(root, str(stamp[0])) == stamp for stamp in stamps)


def stamped_size(stamps: list[Stamp]) -> int:
    """Total bytes of the files."""
    return sum(max(0, int(size)) for _, size, _ in stamps)


def _stamp(root: Path, path: str) -> Stamp:
    try:
        found = os.stat(os.path.join(root, path))
    except (OSError, ValueError):
        return [path, -1, 0]
    return [path, found.st_size, found.st_mtime_ns]


def _inside_file(root: Path, path: str) -> tuple[str, int, list[str]] | None:
    """(sha256, size, URIs of buffers) of a regular file below `root`; None for anything else."""
    try:
        resolved = (root / path).resolve()
        if not resolved.is_relative_to(root) or not resolved.is_file():  # reading a pipe would never end
            return None
        with open(resolved, "rb") as file:
            digest, size = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
            return digest, size, buffer_uris(_gltf_json(file))
    except (OSError, ValueError):  # missing, unreadable, or an invalid name: loading it will say which
        return None


def buffer_uris(description: bytes) -> list[str]:
    """The files that a glTF's JSON names as buffers, sorted; empty for anything else."""
    try:
        found = json.loads(description).get("buffers", [])
        uris = [entry["uri"] for entry in found if isinstance(entry, dict) and isinstance(entry.get("uri"), str)]
    except (ValueError, AttributeError, TypeError, RecursionError):
        return []
    return sorted({uri for uri in uris if not uri.startswith("data:")})


def _gltf_json(file: BinaryIO) -> bytes:
    """The JSON of a .glb or .gltf file, recognised by its content, not by its name; empty for other files."""
    file.seek(0)
    start = file.read(4096)
    if start[:4] == b"glTF":
        file.seek(20)
        return file.read(min(struct.unpack_from("<I", start, 12)[0], MAX_JSON)) if len(start) >= 20 else b""
    is_json = start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{"
    return start + file.read(MAX_JSON) if is_json else b""
