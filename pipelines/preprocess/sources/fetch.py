"""The files of objects: their content hash is taken from sidecars if nothing changed; they are read where they are
converted.

How: meshes of --source objaverse are downloaded a few ahead of the conversion. Once a mesh is in a shard it may be
deleted, or be on another node: its sidecar's entry is valid as long as no other file is in its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.cli.plain_text import plain
from pipelines.cluster.turns import Turn
from pipelines.preprocess.sources.content import Content, Stamp, is_unchanged, read_content, stamped_size
from pipelines.preprocess.sources.hub import Download, DownloadError, ahead, at_once
from pipelines.preprocess.sources.objects import SourceObject

if TYPE_CHECKING:
    from pipelines.preprocess.config import PreprocessConfig

LONGEST_PROBLEM = 300  # characters
READERS = 8  # threads: hashing and reading both release the interpreter


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """An object with its content hash and size, the stamps of its files, why it is missing (`problem`), and whether it
    was just downloaded.
    """

    item: SourceObject
    stamps: tuple[Stamp, ...] = ()
    problem: str = ""
    is_new: bool = False


def fetched(objects: Iterable[SourceObject], config: PreprocessConfig, turn: Turn = at_once) -> Iterator[Fetched]:
    """Read or download the objects' files, in order. Runs in the worker that converts them."""
    if config.source == "objaverse":
        yield from _downloaded(objects, Path(config.input), config.download_timeout_s, turn)
        return
    for item in objects:
        if item.content_sha256:  # a shape
            yield Fetched(item=item)
        else:
            found = read_content(Path(config.input), item.path)
            yield Fetched(item=_with(item, found), stamps=found.stamps)


def _downloaded(objects: Iterable[SourceObject], root: Path, limit_s: float, turn: Turn) -> Iterator[Fetched]:
    for item, download in ahead(objects, lambda item: Download(root, item.path, limit_s, turn)):
        try:
            download.result()
        except DownloadError as error:
            yield Fetched(item=item, problem=plain(" ".join(str(error).split()))[:LONGEST_PROBLEM])
        else:
            found = read_content(root, item.path, is_ours=download.is_new)
            yield Fetched(item=_with(item, found), stamps=found.stamps, is_new=download.is_new)


def drop_downloads(objects: Iterable[Fetched], config: PreprocessConfig) -> None:
    """Delete the meshes that were downloaded for these objects; files that existed before stay."""
    for found in objects:
        if found.is_new:
            (Path(config.input) / found.item.path).unlink(missing_ok=True)


def known_content(config: PreprocessConfig, objects: list[SourceObject], sidecar: dict[str, Any]) -> list[SourceObject]:
    """A shard's objects with the present content of their files: from its sidecar if the stamps are unchanged, else
    read.
    """
    root = Path(config.input or "")  # once: for each of ten million objects it would take minutes
    found = [item if item.content_sha256 else _recorded(root, config.rehash, item, sidecar) for item in objects]
    unread = [item for item, content in zip(objects, found, strict=True) if content is None]
    if unread:
        with ThreadPoolExecutor(READERS) as readers:
            read = dict(
                zip(unread, readers.map(lambda item: _with(item, read_content(root, item.path)), unread), strict=True)
            )
        found = [content or read[item] for item, content in zip(objects, found, strict=True)]
    return found


def _recorded(root: Path, rehash: bool, item: SourceObject, sidecar: dict[str, Any]) -> SourceObject | None:
    """An object with the content from its sidecar; None if that may have changed."""
    stamps = sidecar.get("files", {}).get(item.id, [])
    gone = item.source == "objaverse" and not (root / item.path).exists()
    if not gone and (rehash or not is_unchanged(root, stamps)):
        return None
    return _with(item, Content(sha256=sidecar["content"][item.id], size=stamped_size(stamps)))


def _with(item: SourceObject, content: Content) -> SourceObject:
    return SourceObject(
        **vars(item) | {"content_sha256": content.sha256, "size": content.size}
    )  # takes a third of the time of dataclasses.replace
