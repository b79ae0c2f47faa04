"""Source `objaverse`: the 800,000 annotated objects of Objaverse 1.0, listed from the annotation files of its dataset on the hub.

How: object-paths.json.gz says in which of 160 folders an object lies, lvis-annotations.json.gz has a category for 47,000 of them, and
metadata/000-XXX.json.gz holds name, tags, licence and author of a folder's objects. The paths go into a temporary SQLite table, cut down
to what is asked for, and only the metadata files of folders that are left are fetched, and read one at a time. Meshes are fetched by
whoever converts them (`pipelines.preprocess.sources.fetch`). The files lie in --input as `pipelines.preprocess.sources.hub` leaves them.

Ours: an object's category is its LVIS category, the alphabetically first where it has several, and empty where it has none: Sketchfab's
      own categories are too coarse (18 for everything). An object without annotation has no licence, which no allow-list lets in.
Source: Deitke et al., Objaverse: A Universe of Annotated 3D Objects (arXiv:2212.08051); the files as objaverse 0.1.7 reads them.
"""

from __future__ import annotations

import contextlib
import difflib
import gzip
import json
import re
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from g3pt.data import licenses
from g3pt.data.records import id_hash
from pipelines.cli.errors import UsageError
from pipelines.cli.progress import Progress
from pipelines.preprocess.sources.hub import (
    REPOSITORY,
    Download,
    DownloadError,
    ahead,
    default_folder,
    endpoint,
    remove_leftovers,
)
from pipelines.preprocess.sources.json_pairs import json_pairs
from pipelines.preprocess.sources.objects import SourceObject

if TYPE_CHECKING:
    from pipelines.preprocess.config import PreprocessConfig

PATHS, LVIS = "object-paths.json.gz", "lvis-annotations.json.gz"
MESH_PATH = re.compile(
    r"glbs/([0-9]{3}-[0-9]{3})/[0-9A-Za-z_-]+\.glb"
)  # it becomes a local path: nothing else is followed
UID = re.compile(r"[0-9A-Za-z_-]+")
ADDRESS = (
    f"https://huggingface.co/datasets/{REPOSITORY}/resolve/main"  # of source_url: the same whatever mirror was used
)
REMEDY = "set HF_ENDPOINT to a mirror in reach, or give with --input a folder that holds the dataset's files (default $HF_HOME/objaverse)"
VIEWER = "https://sketchfab.com/3d-models"
Chosen = Callable[[str], bool]


class NotDownloaded(Exception):
    """A dry run would need a file that is not there yet."""


def list_objaverse(config: PreprocessConfig, ids: frozenset[str] | None) -> Iterator[SourceObject]:
    """The objects with an id of `ids`, or else with a category that is wanted; of all, where neither is asked for."""
    annotations = Annotations(config)
    category_of = annotations.categories()
    _check_categories(config.wanted_categories, set(category_of.values()))
    with contextlib.closing(Paths(annotations.paths(), _chosen(config, ids, category_of))) as paths:
        if config.limit is not None and _nothing_more_is_left_out(config, ids):
            paths.limit(config.limit)  # here already: else the metadata of all objects would be read for a few
        for folder, found in annotations.metadata(paths.folders()):
            for uid, path in paths.of(folder):
                yield _object(uid, path, found.get(uid), category_of.get(uid, ""))


def _chosen(config: PreprocessConfig, ids: frozenset[str] | None, category_of: dict[str, str]) -> Chosen:
    """Whether an object is read at all. Where ids are given, categories are left to `Listing`, which counts what it leaves out."""
    if ids is not None:
        return ids.__contains__
    wanted = config.wanted_categories
    return (lambda uid: category_of.get(uid, "") in wanted) if wanted else (lambda uid: True)


def _nothing_more_is_left_out(config: PreprocessConfig, ids: frozenset[str] | None) -> bool:
    return not config.wanted_licenses and (ids is None or not config.wanted_categories)


def _check_categories(wanted: Iterable[str], known: set[str]) -> None:
    unknown = [name for name in wanted if name not in known]
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, n=5, cutoff=0.4) or sorted(known)[:5]
        raise UsageError(
            f"--categories: LVIS has no category {', '.join(unknown)} ({len(known)} in all, written like {', '.join(close)})"
        )


def _object(uid: str, path: str, about: Any, category: str) -> SourceObject:
    about = about if isinstance(about, dict) else {}
    user = about.get("user") if isinstance(about.get("user"), dict) else {}
    tags = about.get("tags") if isinstance(about.get("tags"), list) else []
    return SourceObject(
        id=uid,
        source="objaverse",
        path=path,
        source_url=f"{ADDRESS}/{path}",
        license=licenses.of_objaverse(_text(about.get("license"))),
        author=_text(user.get("displayName")) or _text(user.get("username")),
        attribution_url=_text(about.get("viewerUrl")) or f"{VIEWER}/{uid}",
        name=_text(about.get("name")),
        tags=tuple(filter(None, (_text(tag.get("name")) for tag in tags if isinstance(tag, dict)))),
        category=category,
    )


def _text(value: Any) -> str:
    """What a row can hold: text of whole characters on one line."""
    return " ".join(value.encode("utf-8", errors="replace").decode("utf-8").split()) if isinstance(value, str) else ""


class Paths:
    """Where the chosen objects lie, by folder, in a temporary SQLite table; for one thread."""

    def __init__(self, listed: Iterable[tuple[str, str, str]], chosen: Chosen) -> None:
        self._db = sqlite3.connect("", check_same_thread=False)  # the collector may close it from another thread
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("CREATE TABLE paths (uid TEXT, folder TEXT, path TEXT)")
        self._db.executemany("INSERT INTO paths VALUES (?, ?, ?)", (row for row in listed if chosen(row[0])))
        self._db.execute("CREATE INDEX by_folder ON paths (folder)")

    def limit(self, number: int) -> None:
        """Keep the objects with the smallest sha256(id)."""
        self._db.create_function("id_hash", 1, lambda uid: id_hash(uid).to_bytes(8, "big"), deterministic=True)
        self._db.execute(
            "DELETE FROM paths WHERE rowid NOT IN (SELECT rowid FROM paths ORDER BY id_hash(uid), uid LIMIT ?)",
            (number,),
        )

    def folders(self) -> list[str]:
        """Those that hold a chosen object."""
        return [folder for (folder,) in self._db.execute("SELECT DISTINCT folder FROM paths ORDER BY folder")]

    def of(self, folder: str) -> list[tuple[str, str]]:
        """Id and path of a folder's chosen objects."""
        return self._db.execute("SELECT uid, path FROM paths WHERE folder = ? ORDER BY uid", (folder,)).fetchall()

    def close(self) -> None:
        """Drop the table."""
        self._db.close()


class Annotations:
    """The dataset's annotation files, fetched where they are missing. UsageError where one can't be had or read."""

    def __init__(self, config: PreprocessConfig) -> None:
        self.folder, self.limit_s, self.may_fetch = _input(config), config.download_timeout_s, not config.dry_run
        if self.may_fetch:
            remove_leftovers(self.folder)

    def categories(self) -> dict[str, str]:
        """Object -> LVIS category."""
        found: dict[str, str] = {}
        with self._opened(LVIS, self._start(LVIS)) as file:
            for category, uids in sorted(json.load(file).items(), reverse=True):
                found.update(dict.fromkeys(uids, category))
        return found

    def paths(self) -> Iterator[tuple[str, str, str]]:
        """Object, folder, path in the dataset."""
        with self._opened(PATHS, self._start(PATHS)) as file:
            for uid, path in json_pairs(file):
                match = MESH_PATH.fullmatch(path)
                if not match or not UID.fullmatch(uid):
                    raise ValueError(f"it has {uid!r} in {path!r}, where glbs/000-000/ID.glb is expected")
                yield uid, match[1], path

    def metadata(self, folders: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each folder with what is known of its objects."""
        names = [f"metadata/{folder}.json.gz" for folder in folders]
        missing = any(not (self.folder / name).is_file() for name in names)
        with (
            Progress("annotations", len(names), "files")
            if missing and self.may_fetch
            else contextlib.nullcontext() as progress
        ):
            for done, (name, started) in enumerate(ahead(names, self._start), start=1):
                with self._opened(name, started) as file:
                    found = dict(json.load(file))
                if progress:
                    progress.show(done)
                yield folders[done - 1], found

    def _start(self, name: str) -> Download:
        if not self.may_fetch and not (self.folder / name).is_file():
            raise NotDownloaded(f"{self.folder / name} is not there yet: a run fetches it from {endpoint()}")
        return Download(self.folder, name, self.limit_s)

    @contextlib.contextmanager
    def _opened(self, name: str, started: Download) -> Iterator[IO[bytes]]:
        """A file's content, and what is wrong with it said in one line."""
        try:
            path = started.result()
        except DownloadError as error:
            raise UsageError(
                f"--source objaverse: {name} of {REPOSITORY} can't be had from {endpoint()} ({error}); {REMEDY}"
            ) from error
        try:
            with gzip.open(path) as file:
                yield file
        except (ValueError, TypeError, AttributeError, RecursionError, EOFError, OSError, zlib.error) as error:
            raise UsageError(f"{path} can't be read ({error}): delete it, and it is fetched again") from error


def _input(config: PreprocessConfig) -> Path:
    """The folder of downloads."""
    folder = Path(config.input or default_folder())
    if "://" in (config.input or ""):
        raise UsageError(f"--input {config.input}: downloads need a local or shared folder")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--input {folder} is not a folder")
    return folder
