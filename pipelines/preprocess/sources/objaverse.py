"""Source `objaverse`: the 800,000 annotated objects of Objaverse 1.0, listed from the annotation files of its dataset
on the hub.

How: object-paths.json.gz contains the folder (one of 160) of each object, lvis-annotations.json.gz a category for
47,000 of them, and metadata/000-XXX.json.gz the name, tags, licence and author of a folder's objects. The requested
paths go into a temporary SQLite table. Only the metadata files of the remaining folders are fetched, and read one at a
time. Meshes are fetched where they are converted (`pipelines.preprocess.sources.fetch`). Downloads are stored below
--input by `pipelines.preprocess.sources.hub`.

Ours: an object's category is its LVIS category: the alphabetically first if it has several, empty if it has none;
      `--categories` selects it by each of them. Sketchfab's own categories are too coarse (18 in all). An object
      without annotation has no licence, and no list of licences accepts it.
Source: Deitke et al., Objaverse: A Universe of Annotated 3D Objects (arXiv:2212.08051); the files as objaverse 0.1.7
reads them.
"""

from __future__ import annotations

import contextlib
import difflib
import gzip
import itertools
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
)  # it becomes a local path, so nothing else is accepted
UID = re.compile(r"[0-9A-Za-z_-]+")
ADDRESS = f"https://huggingface.co/datasets/{REPOSITORY}/resolve/main"  # for source_url, whatever mirror was used
REMEDY = (
    "set HF_ENDPOINT to a mirror that you can reach, or set --input to a folder with the dataset's files "
    "(default $HF_HOME/objaverse)"
)
VIEWER = "https://sketchfab.com/3d-models"
Chosen = Callable[[str], bool]


class NotDownloaded(Exception):
    """A dry run needs a file that has not been downloaded yet."""


class Objaverse:
    """Iterates over the objects whose id is in `ids`, else those of the requested categories, else all."""

    def __init__(self, config: PreprocessConfig, ids: frozenset[str] | None) -> None:
        self.config, self.ids = config, ids
        self._categories: dict[str, tuple[str, ...]] = {}

    def categories_of(self, item: SourceObject) -> tuple[str, ...]:
        """The object's LVIS categories, known from the first object on; ("",) if it has none."""
        return self._categories.get(item.id, ("",))

    def __iter__(self) -> Iterator[SourceObject]:
        annotations = Annotations(self.config)
        self._categories = annotations.categories()
        _check_categories(self.config.wanted_categories, set(itertools.chain(*self._categories.values())))
        with contextlib.closing(Paths(annotations.paths(), self._is_chosen)) as paths:
            if self.config.limit is not None and _nothing_more_is_left_out(self.config, self.ids):
                paths.limit(self.config.limit)  # already here, or the metadata of all objects would be read for a few
            for folder, found in annotations.metadata(paths.folders()):
                for uid, path in paths.of(folder):
                    yield _object(uid, path, found.get(uid), self._categories.get(uid, ("",))[0])

    def _is_chosen(self, uid: str) -> bool:
        """Whether an object is read at all. If ids are given, `Listing` selects by category and counts what it leaves
        out.
        """
        if self.ids is not None:
            return uid in self.ids
        wanted = self.config.wanted_categories
        return not wanted or not set(wanted).isdisjoint(self._categories.get(uid, ("",)))


def _nothing_more_is_left_out(config: PreprocessConfig, ids: frozenset[str] | None) -> bool:
    return not config.wanted_licenses and (ids is None or not config.wanted_categories)


def _check_categories(wanted: Iterable[str], known: set[str]) -> None:
    unknown = [name for name in wanted if name not in known]
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, n=5, cutoff=0.4) or sorted(known)[:5]
        raise UsageError(
            f"--categories: LVIS has no category {', '.join(unknown)}; it has {len(known)}, such as {', '.join(close)}"
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
    """Text as a row can store it: valid UTF-8 on one line; empty for anything else."""
    return " ".join(value.encode("utf-8", errors="replace").decode("utf-8").split()) if isinstance(value, str) else ""


class Paths:
    """The paths of the chosen objects by folder, in a temporary SQLite table. For use in one thread."""

    def __init__(self, listed: Iterable[tuple[str, str, str]], chosen: Chosen) -> None:
        self._db = sqlite3.connect("", check_same_thread=False)  # the garbage collector may close it in another thread
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("CREATE TABLE paths (uid TEXT, folder TEXT, path TEXT)")
        self._db.executemany("INSERT INTO paths VALUES (?, ?, ?)", (row for row in listed if chosen(row[0])))
        self._db.execute("CREATE INDEX by_folder ON paths (folder)")

    def limit(self, number: int) -> None:
        """Keep the `number` objects with the smallest sha256(id)."""
        self._db.create_function("id_hash", 1, lambda uid: id_hash(uid).to_bytes(8, "big"), deterministic=True)
        self._db.execute(
            "DELETE FROM paths WHERE rowid NOT IN (SELECT rowid FROM paths ORDER BY id_hash(uid), uid LIMIT ?)",
            (number,),
        )

    def folders(self) -> list[str]:
        """The folders with chosen objects, sorted."""
        return [folder for (folder,) in self._db.execute("SELECT DISTINCT folder FROM paths ORDER BY folder")]

    def of(self, folder: str) -> list[tuple[str, str]]:
        """(id, path) of a folder's chosen objects."""
        return self._db.execute("SELECT uid, path FROM paths WHERE folder = ? ORDER BY uid", (folder,)).fetchall()

    def close(self) -> None:
        """Drop the table."""
        self._db.close()


class Annotations:
    """The dataset's annotation files, downloaded if missing. UsageError if one cannot be downloaded or read."""

    def __init__(self, config: PreprocessConfig) -> None:
        self.folder, self.limit_s, self.may_fetch = _input(config), config.download_timeout_s, not config.dry_run
        if self.may_fetch:
            remove_leftovers(self.folder)

    def categories(self) -> dict[str, tuple[str, ...]]:
        """Object -> its LVIS categories in alphabetical order."""
        found: dict[str, tuple[str, ...]] = {}
        with self._opened(LVIS, self._start(LVIS)) as file:
            for category, uids in sorted(json.load(file).items()):
                found.update((uid, (*found.get(uid, ()), category)) for uid in dict.fromkeys(uids))
        return found

    def paths(self) -> Iterator[tuple[str, str, str]]:
        """(object, folder, path in the dataset) of every object."""
        with self._opened(PATHS, self._start(PATHS)) as file:
            for uid, path in json_pairs(file):
                match = MESH_PATH.fullmatch(path)
                if not match or not UID.fullmatch(uid):
                    raise ValueError(f"it has {uid!r} in {path!r}, where glbs/000-000/ID.glb is expected")
                yield uid, match[1], path

    def metadata(self, folders: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each folder with the metadata of its objects."""
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
            raise NotDownloaded(f"{self.folder / name} is missing: a run downloads it from {endpoint()}")
        return Download(self.folder, name, self.limit_s)

    @contextlib.contextmanager
    def _opened(self, name: str, started: Download) -> Iterator[IO[bytes]]:
        """A downloaded file, opened. UsageError, one line, if it cannot be downloaded or read."""
        try:
            path = started.result()
        except DownloadError as error:
            raise UsageError(
                f"--source objaverse: {name} of {REPOSITORY} cannot be downloaded from {endpoint()} ({error}); {REMEDY}"
            ) from error
        try:
            with gzip.open(path) as file:
                yield file
        except (ValueError, TypeError, AttributeError, RecursionError, EOFError, OSError, zlib.error) as error:
            raise UsageError(f"{path} cannot be read ({error}): delete it, and it is downloaded again") from error


def _input(config: PreprocessConfig) -> Path:
    """The folder of downloads."""
    folder = Path(config.input or default_folder())
    if "://" in (config.input or ""):
        raise UsageError(f"--input {config.input}: downloads need a local or shared folder")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--input {folder} is not a folder")
    return folder
