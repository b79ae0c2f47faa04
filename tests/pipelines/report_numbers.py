"""Holds every number of a report's page against the file that it names; written apart from the code
that wrote the page.
"""

from __future__ import annotations

import csv
import html.parser
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq


class Numbers(html.parser.HTMLParser):
    """The attributes and the visible text of every <data> element."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[dict[str, str | None], str]] = []
        self._open: tuple[dict[str, str | None], list[str]] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "data":
            self._open = (dict(attrs), [])

    def handle_data(self, data: str) -> None:
        if self._open:
            self._open[1].append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "data" and self._open:
            self.found.append((self._open[0], "".join(self._open[1])))
            self._open = None


def check_numbers(page: str, root: Path) -> int:
    """Every number equals its file's value and is shown as its format says; how many there are."""
    numbers = Numbers()
    numbers.feed(page)
    files: dict[str, Any] = {}
    for attrs, shown in numbers.found:
        name, _, pointer = (attrs["data-source"] or "").partition("#")
        if name not in files:
            files[name] = load(root / name)
        value = look_up(files[name], pointer)
        assert float(attrs["data-value"] or "nan") == float(value), (
            f"{attrs['data-source']}: {attrs['data-value']} is not {value}"
        )
        assert shown == format(value, attrs["data-spec"] or ""), (
            f"{attrs['data-source']}: {shown!r} is not {value} as {attrs['data-spec']!r}"
        )
    return len(numbers.found)


def load(file: Path) -> Any:
    """A run's file as plain data."""
    if file.suffix == ".json":
        return json.loads(file.read_text())
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in file.read_text().splitlines()]
    if file.suffix == ".csv":
        with open(file, newline="") as lines:
            return list(csv.DictReader(lines))
    assert file.suffix == ".parquet", file
    return pq.read_table(file).to_pylist()


def look_up(values: Any, pointer: str) -> int | float:
    """The number at a JSON pointer."""
    for key in pointer.split("/")[1:]:
        key = key.replace("~1", "/").replace("~0", "~")
        values = values[int(key)] if isinstance(values, list) else values[key]
    return values if isinstance(values, (int, float)) else int(values) if values.isdigit() else float(values)
