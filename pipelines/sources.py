"""Where objects come from: `shapes` (procedural), `dir` (a folder of meshes). Each object is known by id and content.

How: `list_objects` gives every object of a source, already limited to the N smallest sha256(id), with what a row says about
its origin and a hash of what it is made of. Nothing is converted here, and of a folder only the chosen files are read.

Ours: the content hash of a glTF covers the buffers it names too (their bytes are its vertices); textures are left out.
      A shape's covers the source code of its generator, its id and the seed.
"""

from __future__ import annotations

import csv
import hashlib
import json
import struct
import urllib.parse
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from g3pt.records import canonical_json
from pipelines.errors import UsageError

SOURCES = ("shapes", "dir", "objaverse")
MESH_ENDINGS = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off")
MANIFEST = "manifest.csv"


@dataclass(frozen=True, kw_only=True)
class SourceObject:
    """One input object: what its row will say about its origin, its content hash and its size in bytes."""

    id: str
    source: str
    content_sha256: str
    size: int
    path: str = ""
    source_url: str = ""
    license: str = ""
    author: str = ""
    attribution_url: str = ""
    caption: str = ""
    caption_source: str = ""
    category: str = ""

    def columns(self) -> dict[str, str]:
        """The columns of a row that are known before conversion."""
        return {name: value for name, value in asdict(self).items() if name != "size"}


def list_objects(source: str, folder: str | None, limit: int | None, seed: int) -> list[SourceObject]:
    """All objects of a source sorted by id, or the `limit` ones with the smallest sha256(id)."""
    if source == "objaverse":
        raise UsageError("--source objaverse is not built yet: use shapes or dir")
    if source == "shapes":
        return _list_shapes(limit, seed)
    if source != "dir":
        raise UsageError(f"--source must be one of {', '.join(SOURCES)}, got {source!r}")
    if folder is None:
        raise UsageError("--source dir needs --input, a folder of meshes")
    return _list_folder(input_folder(folder), limit)


def input_folder(folder: str) -> Path:
    """An existing local folder; UsageError otherwise."""
    if "://" in folder:
        raise UsageError(f"--input {folder}: object stores are not built yet, give a local folder")
    path = Path(folder)
    if not path.exists():
        raise UsageError(f"--input {folder} does not exist")
    if not path.is_dir():
        raise UsageError(f"--input {folder} is not a folder")
    return path.resolve()


def limited(ids: list[str], limit: int | None) -> list[str]:
    """The `limit` ids with the smallest sha256(id), or all of them; sorted by id."""
    if limit is None or limit >= len(ids):
        return sorted(ids)
    return sorted(sorted(ids, key=lambda name: hashlib.sha256(name.encode("utf-8")).digest())[:limit])


# ------------------------------------------------------------------------------------------------------------- shapes


def _list_shapes(limit: int | None, seed: int) -> list[SourceObject]:
    from g3pt.shapes import shape_ids

    generator = generator_hash()
    return [_shape_object(name, seed, generator) for name in limited(shape_ids(), limit)]


def generator_hash() -> str:
    """sha256 over the source of g3pt.shapes. Building 100,000 shapes only to hash them would take ten minutes."""
    import g3pt.shapes

    files = sorted(Path(g3pt.shapes.__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.name.encode("utf-8") + file.read_bytes() for file in files)).hexdigest()


def _shape_object(name: str, seed: int, generator: str) -> SourceObject:
    """What a shape is made of is its generator, id and seed; caption and category are filled in when it is made."""
    made_of = canonical_json({"generator": generator, "id": name, "seed": seed})
    content = hashlib.sha256(made_of.encode("utf-8")).hexdigest()
    return SourceObject(
        id=name, source="shapes", content_sha256=content, size=0, license="CC0-1.0", author="g3pt shapes"
    )


# ---------------------------------------------------------------------------------------------------------------- dir


def _list_folder(root: Path, limit: int | None) -> list[SourceObject]:
    manifest = root / MANIFEST
    rows = _manifest_rows(manifest) if manifest.is_file() else _walked_rows(root)
    if not rows:
        what = f"{MANIFEST} has no rows" if manifest.is_file() else f"no {' '.join(MESH_ENDINGS)} file below it"
        raise UsageError(f"--input {root} holds no objects: {what}")
    twice = [name for name, count in Counter(row["id"] for row in rows).items() if count > 1]
    if twice:
        raise UsageError(f"--input {root}: {len(twice)} ids appear more than once, the first is {min(twice)!r}")
    by_id = {row["id"]: row for row in rows}
    return [_file_object(root, by_id[name]) for name in limited(list(by_id), limit)]


def _walked_rows(root: Path) -> list[dict[str, str]]:
    files = [file for file in root.rglob("*") if file.suffix.lower() in MESH_ENDINGS and file.is_file()]
    names = [file.relative_to(root).as_posix() for file in files]
    for name in names:
        try:
            name.encode("utf-8")
        except UnicodeEncodeError as error:  # an id is text, in rows and in tables
            shown = name.encode("utf-8", errors="backslashreplace").decode("utf-8")
            raise UsageError(f"--input {root}: the file name {shown!r} is not UTF-8, rename it") from error
    return [{"id": name, "path": name} for name in names]


def _manifest_rows(manifest: Path) -> list[dict[str, str]]:
    try:
        with open(manifest, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = [{key: value or "" for key, value in row.items() if isinstance(key, str)} for row in reader]
            columns = reader.fieldnames or []
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{manifest} is not a readable CSV file: {error}") from error
    if "path" not in columns:
        raise UsageError(f"{manifest} has no column 'path'; it has {', '.join(columns) or 'none'}")
    for number, row in enumerate(rows, start=2):
        if not row["path"]:
            raise UsageError(f"{manifest} line {number} has an empty path")
        row["id"] = row.get("id") or row["path"]
    return rows


def _file_object(root: Path, row: dict[str, str]) -> SourceObject:
    content, size = content_hash(root, row["path"])
    return SourceObject(
        id=row["id"],
        source="dir",
        path=row["path"],
        content_sha256=content,
        size=size,
        source_url=row.get("source_url") or _github_url(row),
        license=row.get("license", ""),
        author=row.get("author", ""),
        attribution_url=row.get("attribution_url", ""),
        caption=row.get("caption", ""),
        caption_source="manifest" if row.get("caption") else "",
        category=row.get("category", ""),
    )


def _github_url(row: dict[str, str]) -> str:
    parts = [row.get(name, "") for name in ("source_repo", "source_commit", "source_path")]
    return "https://github.com/{}/blob/{}/{}".format(*parts[:2], urllib.parse.quote(parts[2])) if all(parts) else ""


def content_hash(root: Path, path: str) -> tuple[str, int]:
    """sha256 and size of a mesh file; with the buffers it names, of all of them. ("", 0) where it can't be read.

    Files outside root are never read: the row will say why it failed.
    """
    data = _inside_bytes(root, root / path)
    if data is None:
        return "", 0
    digest, size = hashlib.sha256(data).hexdigest(), len(data)
    buffers = {}
    for uri in buffer_uris(data):
        part = _inside_bytes(root, (root / path).parent / urllib.parse.unquote(uri))
        buffers[uri] = "" if part is None else hashlib.sha256(part).hexdigest()
        size += 0 if part is None else len(part)
    if buffers:
        digest = hashlib.sha256(canonical_json({"main": digest, "buffers": buffers}).encode("utf-8")).hexdigest()
    return digest, size


def _inside_bytes(root: Path, file: Path) -> bytes | None:
    try:
        resolved = file.resolve()
        return resolved.read_bytes() if resolved.is_relative_to(root) else None
    except (OSError, ValueError):  # not there, not readable, or no valid name: loading it says which
        return None


def buffer_uris(data: bytes) -> list[str]:
    """The files that a .gltf or .glb names as its buffers; nothing for other formats and broken files."""
    try:
        document = json.loads(_gltf_json(data))
        found = document.get("buffers", [])
        uris = [entry["uri"] for entry in found if isinstance(entry, dict) and isinstance(entry.get("uri"), str)]
    except (ValueError, AttributeError, TypeError, RecursionError, struct.error):
        return []
    return sorted({uri for uri in uris if not uri.startswith("data:")})


def _gltf_json(data: bytes) -> bytes:
    if data[:4] == b"glTF":
        length, _kind = struct.unpack_from("<I4s", data, 12)
        return data[20 : 20 + length]
    return data if data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{" else b""


def inputs_hash(objects: list[SourceObject]) -> str:
    """sha256 over the sorted objects of a shard: ids, sizes, content hashes and what their rows say about them."""
    rows: list[dict[str, Any]] = [asdict(item) for item in sorted(objects, key=lambda item: item.id)]
    return hashlib.sha256(canonical_json(rows).encode("utf-8")).hexdigest()
