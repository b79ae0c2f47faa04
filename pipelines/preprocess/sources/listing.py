"""The requested objects of a source: selected by id, category and licence, with captions added.

How: objects are streamed; memory contains the ids of --ids and one count per category and licence. At the end of the
stream a category or licence that no object has is refused, because a misspelling would silently leave objects out.
`--limit` is applied by the plan, since it needs all ids.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from g3pt.data import licenses
from pipelines.cli.errors import UsageError
from pipelines.preprocess.sources.captions import Captions
from pipelines.preprocess.sources.folder import input_folder, list_folder
from pipelines.preprocess.sources.objaverse import Objaverse
from pipelines.preprocess.sources.objects import SourceObject
from pipelines.preprocess.sources.shapes import list_shapes

if TYPE_CHECKING:
    from pipelines.preprocess.config import PreprocessConfig

SHOWN = 8  # most frequent licences or categories in a message


class Listing:
    """One pass over a source. Afterwards `lines` says what was left out."""

    def __init__(self, config: PreprocessConfig) -> None:
        self.config = config
        self.ids = read_ids(Path(config.ids)) if config.ids else None
        self.wanted_categories, self.wanted_licenses = config.wanted_categories, config.wanted_licenses
        self.captions = Captions(Path(config.captions)) if config.captions else None
        self.categories_of: Callable[[SourceObject], tuple[str, ...]] = lambda item: (item.category,)
        self.listed = 0
        self.categories: Counter[str] = Counter()
        self.licenses: Counter[str] = Counter()  # of the objects selected by id and category
        self.left_out: Counter[str] = Counter()

    def __iter__(self) -> Iterator[SourceObject]:
        for item in self._source():
            if self.ids is not None and item.id not in self.ids:
                continue
            self.listed += 1
            reason = self._reason(item)
            if reason:
                self.left_out[reason] += 1
            else:
                yield self._captioned(item)
        self._check()

    def lines(self) -> list[str]:
        """The result of the selection in words."""
        said = []
        if self.left_out:
            why = ", ".join(f"{reason} {count}" for reason, count in self.left_out.most_common(SHOWN))
            more = f" and {len(self.left_out) - SHOWN} more reasons" if len(self.left_out) > SHOWN else ""
            said.append(f"{self.left_out.total()} of {self.listed} objects are left out: {why}{more}")
        if self.ids is not None and self.listed < len(self.ids):
            said.append(f"{len(self.ids) - self.listed} of {len(self.ids)} ids of --ids are not in the source")
        if self.captions:
            said.append(
                self.captions.line(self.listed - self.left_out.total())
                + (", before --limit" if self.config.limit else "")
            )
        return said

    def _source(self) -> Iterator[SourceObject]:
        config = self.config
        if config.source == "shapes":
            return list_shapes(config.seed, config.wanted_seeds)
        if config.source == "objaverse":
            source = Objaverse(config, self.ids)
            self.categories_of = source.categories_of
            return iter(source)
        if config.input is None:
            raise UsageError("--source dir needs --input, a folder of meshes")
        return list_folder(input_folder(config.input))

    def _reason(self, item: SourceObject) -> str | None:
        """Why an object is left out; None if it is kept."""
        if self.wanted_categories:  # only then: a source with one category per object would fill the memory
            categories = self.categories_of(item)
            self.categories.update(categories)
            if not set(self.wanted_categories).intersection(categories):
                return "category"
        if not self.wanted_licenses:  # likewise
            return None
        self.licenses[item.license] += 1
        return None if licenses.allowed(item.license, self.wanted_licenses) else f"licence {item.license or 'none'}"

    def _captioned(self, item: SourceObject) -> SourceObject:
        caption = self.captions.of(item.id) if self.captions else None
        return dataclasses.replace(item, caption=caption, caption_source=self.captions.source) if caption else item

    def _check(self) -> None:
        if self.ids is not None and not self.listed:
            raise UsageError(f"--ids {self.config.ids}: none of its {len(self.ids)} ids is in the source")
        self._check_names("--categories", self.wanted_categories, self.categories, "category")
        unknown = licenses.unknown(self.wanted_licenses, self.licenses)
        self._check_names("--licenses", unknown, self.licenses, "licence")
        if self.listed and self.left_out.total() == self.listed:
            raise UsageError(f"nothing to convert: {self.lines()[0]}")

    @staticmethod
    def _check_names(flag: str, wanted: tuple[str, ...] | list[str], found: Counter[str], what: str) -> None:
        missing = [name for name in wanted if name not in found]
        if missing:
            known = ", ".join(f"{name or 'none'} ({count})" for name, count in found.most_common(SHOWN))
            more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            raise UsageError(f"{flag}: no object has the {what} {', '.join(missing)}; the source has {known}{more}")


def read_ids(file: Path) -> frozenset[str]:
    """The ids in a file, one per line."""
    try:
        found = frozenset(filter(None, map(str.strip, file.read_text(encoding="utf-8-sig").splitlines())))
    except OSError as error:
        raise UsageError(f"--ids {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--ids {file} is not UTF-8 text: {error}") from error
    if not found:
        raise UsageError(f"--ids {file} contains no id; write one per line")
    return found
