"""The files of objects: known without reading where nothing changed, and read by whoever converts them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.sources.content import Content, Stamp, is_unchanged, read_content, stamped_size
from pipelines.sources.objects import SourceObject

if TYPE_CHECKING:
    from pipelines.preprocess_config import PreprocessConfig

READERS = 8  # threads: hashing and reading both release the interpreter


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """An object with its content hash and size, the stamps of its files, and why it could not be had."""

    item: SourceObject
    stamps: tuple[Stamp, ...] = ()
    problem: str = ""


def fetched(objects: Iterable[SourceObject], config: PreprocessConfig) -> Iterator[Fetched]:
    """Read what the objects are made of, in their order; in the worker that converts them."""
    for item in objects:
        if item.content_sha256:  # of a shape
            yield Fetched(item=item)
        else:
            found = read_content(Path(config.input), item.path)
            yield Fetched(item=_with(item, found), stamps=found.stamps)


def known_content(config: PreprocessConfig, objects: list[SourceObject], sidecar: dict[str, Any]) -> list[SourceObject]:
    """A shard's objects with what their files hold now: from its sidecar as long as the stamps there hold, else read."""
    found = [item if item.content_sha256 else _recorded(config, item, sidecar) for item in objects]
    unread = [item for item, content in zip(objects, found, strict=True) if content is None]
    if unread:
        root = Path(config.input)
        with ThreadPoolExecutor(READERS) as readers:
            read = dict(zip(unread, readers.map(lambda item: _with(item, read_content(root, item.path)), unread), strict=True))
        found = [content or read[item] for item, content in zip(objects, found, strict=True)]
    return found


def _recorded(config: PreprocessConfig, item: SourceObject, sidecar: dict[str, Any]) -> SourceObject | None:
    """An object with the content that its sidecar knows; None if that may have changed."""
    stamps = sidecar.get("files", {}).get(item.id, [])
    if config.rehash or not is_unchanged(Path(config.input), stamps):
        return None
    return _with(item, Content(sha256=sidecar["content"][item.id], size=stamped_size(stamps)))


def _with(item: SourceObject, content: Content) -> SourceObject:
    return dataclasses.replace(item, content_sha256=content.sha256, size=content.size)
