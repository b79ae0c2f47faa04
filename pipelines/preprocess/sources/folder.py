"""Source `dir`: a folder of meshes, listed by its manifest.csv, or without one every mesh file below it.

Streams and opens no mesh.
"""

from __future__ import annotations

import csv
import os
import sys
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from g3pt.geometry.reading import MESH_ENDINGS
from pipelines.cli.errors import UsageError
from pipelines.preprocess.sources.objects import SourceObject

MANIFEST = "manifest.csv"
COPIED = (
    "license",
    "author",
    "attribution_url",
    "name",
    "caption",
    "category",
)  # columns of a manifest that are copied as they are
Row = dict[str, str]


def input_folder(folder: str) -> Path:
    """The folder, resolved. UsageError unless it is an existing local folder."""
    if "://" in folder:
        raise UsageError(f"--input {folder}: object stores are not supported yet, use a local folder")
    path = Path(folder)
    if not path.exists():
        raise UsageError(f"--input {folder} does not exist")
    if not path.is_dir():
        raise UsageError(f"--input {folder} is not a folder")
    return path.resolve()


def list_folder(root: Path) -> Iterator[SourceObject]:
    """Every object of a folder. UsageError if it has none, or if its manifest or a file name cannot be read."""
    manifest = root / MANIFEST
    found = None
    for row in _manifest_rows(manifest) if manifest.is_file() else _walked_rows(root):
        yield (found := _file_object(row))
    if found is None:
        what = f"{MANIFEST} has no rows" if manifest.is_file() else f"no {' '.join(MESH_ENDINGS)} file below it"
        raise UsageError(f"--input {root} contains no objects: {what}")


def _walked_rows(root: Path) -> Iterator[Row]:
    for parent, _folders, names in os.walk(root):
        for name in names:
            file = os.path.join(parent, name)
            if os.path.splitext(name)[1].lower() in MESH_ENDINGS and os.path.isfile(file):
                path = Path(file).relative_to(root).as_posix()
                _check_name(root, path)
                yield {"id": path, "path": path}


def _check_name(root: Path, name: str) -> None:
    """UsageError for a file name that this machine can't open, or that is no text for ids."""
    shown = name.encode("utf-8", errors="backslashreplace").decode("utf-8")
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8" and not name.isascii():  # the same file would have another id on another machine
        raise UsageError(
            f"--input {root}: the file name {shown!r} is not ASCII, and this locale's file names are {encoding}: "
            "set PYTHONUTF8=1"
        )
    if shown != name:  # an id is text in rows and tables
        raise UsageError(f"--input {root}: the file name {shown!r} is not UTF-8, rename it")


def _manifest_rows(manifest: Path) -> Iterator[Row]:
    """The rows by column. UsageError for a quote that is not closed or a row with too many values, which would give
    other values silently.
    """
    begun = 0  # the last line of the row before
    try:
        with open(manifest, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)  # csv.DictReader takes twice as long
            columns = next(filter(None, reader), [])
            if "path" not in columns:
                raise UsageError(f"{manifest} has no column 'path'; it has {', '.join(columns) or 'none'}")
            repeated = [name for name, count in Counter(columns).items() if name and count > 1]
            if repeated:
                raise UsageError(f"{manifest} has the column {repeated[0]!r} more than once")
            begun = reader.line_num
            for values in reader:
                if values:
                    row = _manifest_row(f"{manifest} line {begun + 1}", columns, values)
                    _check_name(manifest.parent, row["path"])
                    yield row
                begun = reader.line_num
    except UnicodeDecodeError as error:
        raise UsageError(f"{manifest} is not a readable CSV file: {error}") from error
    except csv.Error as error:
        told = "a quote is not closed" if "unexpected end" in str(error) else str(error)
        raise UsageError(f"{manifest} is not a readable CSV file: {told} (in the row of line {begun + 1})") from error


def _manifest_row(where: str, columns: list[str], values: list[str]) -> Row:
    if any(values[len(columns) :]):
        raise UsageError(f"{where} has {len(values)} values for {len(columns)} columns; quote values that have commas")
    row = dict(zip(columns, values, strict=False))  # a short row lacks its last columns
    if not row.get("path"):
        raise UsageError(f"{where} has an empty path")
    return row


def _file_object(row: Row) -> SourceObject:
    return SourceObject(
        id=row.get("id") or row["path"],
        source="dir",
        path=row["path"],
        source_url=row.get("source_url") or _github_url(row),
        tags=tuple(filter(None, map(str.strip, (row.get("tags") or "").split(";")))),
        caption_source="manifest" if row.get("caption") else "",
        **{column: row.get(column) or "" for column in COPIED},
    )


def _github_url(row: Row) -> str:
    parts = [row.get(name) or "" for name in ("source_repo", "source_commit", "source_path")]
    return "https://github.com/{}/blob/{}/{}".format(*parts[:2], urllib.parse.quote(parts[2])) if all(parts) else ""
