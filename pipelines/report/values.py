"""Numbers of a report: each is read from a file of the run, and the page records from where.

How: a `Source` is a parsed file (JSON, a ledger, a CSV table, a Parquet manifest) with its path below the report's
folder. `source.number("metrics", "iou_volume", spec=".3f")` looks up the value and writes it as `<data
data-source="tokenizer.json#/metrics/iou_volume" data-value="0.7861..." data-spec=".3f">0.786</data>`, so that a test
can compare every shown number with its file. The part after # is a JSON pointer (RFC 6901). Nothing is computed here.
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

NONE = Markup('<span class="none">none</span>')
MAX_JSON_BYTES = 256 * 2**20


class Unreadable(ValueError):
    """A file that the report needs is missing or damaged."""


@dataclass(frozen=True)
class Source:
    """The content of one file, and its name in the report."""

    name: str
    value: Any

    def get(self, *keys: str | int, default: Any = None) -> Any:
        """The value at a path of keys and indices; `default` if there is none."""
        found = self.value
        for key in keys:
            try:
                found = found[key]
            except (KeyError, IndexError, TypeError):
                return default
        return found

    def at(self, *keys: str | int) -> Source:
        """The part below `keys` as a Source that keeps its position in the file."""
        return Source(self.name + ("" if "#" in self.name else "#") + pointer(keys), self.get(*keys))

    def number(self, *keys: str | int, spec: str = ".3f", unit: str = "") -> Markup:
        """The number at `keys`, formatted by a Python format `spec` and followed by `unit`; `none` if there is none."""
        part = self.at(*keys)
        if isinstance(part.value, bool) or not isinstance(part.value, (int, float)):
            return NONE
        return Markup('<data value="{0}" data-source="{1}" data-value="{0}" data-spec="{2}">{3}</data>{4}').format(
            repr(part.value), part.name, spec, format(part.value, spec), unit
        )

    def interval(self, *keys: str | int, spec: str = ".3f") -> Markup:
        """`low to high` of a pair; empty if there is none."""
        pair = self.get(*keys)
        if not isinstance(pair, Sequence) or len(pair) != 2:
            return Markup("")
        return Markup('<span class="together">{} to {}</span>').format(
            self.number(*keys, 0, spec=spec), self.number(*keys, 1, spec=spec)
        )


def pointer(keys: Sequence[str | int]) -> str:
    """Keys as a JSON pointer."""
    return "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in keys)


def clock(seconds: Any) -> str:
    """A time in UTC, readable."""
    if not isinstance(seconds, (int, float)):
        return "unknown"
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


# ------------------------------------------------------------------------------------------------------------ reading


def name_of(file: Path, root: Path) -> str:
    """The file's path relative to the report's folder."""
    return Path(os.path.relpath(file, root)).as_posix()


def read_json(file: Path, root: Path) -> Source:
    """The JSON object in a file. Unreadable for anything else."""
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise Unreadable(f"{file}: larger than {MAX_JSON_BYTES >> 20} MB")
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # the last for a file of a thousand brackets
        raise Unreadable(f"{file}: not readable as JSON ({error})") from error
    if not isinstance(found, dict):
        raise Unreadable(f"{file}: not a JSON object")
    return Source(name_of(file, root), found)


def read_ledger(file: Path, root: Path) -> Source:
    """The complete records of a metrics.jsonl; empty if it is missing."""
    from pipelines.runs.ledger import Ledger

    try:
        return Source(name_of(file, root), Ledger(file).read())
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{file}: not a ledger of JSON lines ({error})") from error


def read_csv(file: Path, root: Path) -> Source:
    """The rows of a CSV table with a header. Values that look like numbers become numbers."""
    try:
        with open(file, newline="", encoding="utf-8") as lines:
            rows = [{name: _number(text) for name, text in row.items()} for row in csv.DictReader(lines)]
    except (OSError, ValueError, csv.Error) as error:
        raise Unreadable(f"{file}: not readable as CSV ({error})") from error
    return Source(name_of(file, root), rows)


def _number(text: Any) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except (TypeError, ValueError):
            continue
    return text


def read_parquet(file: Path, root: Path, limit: int) -> Source:
    """The first `limit` rows of a Parquet table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    try:
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=min(limit, 1024), use_threads=False):
                rows += batch.to_pylist()
                if len(rows) >= limit:
                    break
    except (OSError, pa.ArrowException) as error:
        raise Unreadable(f"{file}: not readable as Parquet ({error})") from error
    return Source(name_of(file, root), rows[:limit])
