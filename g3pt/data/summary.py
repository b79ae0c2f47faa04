"""What a dataset's rows are together: counts by status, reason, split, licence and category, and quantiles of faces,
volume, thickness, seconds.

How: the small columns are added up one shard at a time; tensors are never read. The memory used does not grow with the
dataset: a count per name (`Names`, at most MOST_NAMES of them) and per bin of width 1 % (`Quantiles`).

Source: Masson et al. 2019, "DDSketch" (quantiles with a bounded relative error from bins of equal width in the
logarithm).
Ours: licences, categories and figures are those of ok rows; seconds are of all.
"""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from g3pt.data.records import SPLITS, failure_reason

MOST_NAMES, SHOWN_NAMES = 100_000, 8
LINE_WIDTH = 110
FURTHER_NAMES = "(further names)"
BIN_WIDTH = 1.01  # ratio of neighbouring bins: a quantile is wrong by half a percent at most
SHARES = {"least": 0.0, "1 %": 0.01, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "99 %": 0.99, "most": 1.0}
FIGURES = {
    "faces": "num_faces",
    "volume": "volume",
    "thickness": "thickness",
    "largest part": "largest_component_share",
}
COLUMNS = ("id", "content_sha256", "status", "error", "split", "license", "category", "filled_by", *FIGURES.values())
SMALL_SHARE = 0.5  # largest_component_share below which far parts shrink an object too much


class Names(Counter[str]):
    """Counts by name. Names beyond the first MOST_NAMES share one count, which bounds the memory."""

    def add(self, counts: Mapping[str, int]) -> None:
        """Add counts; an empty name is `not stated`."""
        for name, count in counts.items():
            shown = name or "not stated"
            self[shown if shown in self or len(self) < MOST_NAMES else FURTHER_NAMES] += count

    def line(self) -> str:
        """The most frequent names, as text."""
        said = ", ".join(f"{plain(name)} {count:,d}" for name, count in self.most_common(SHOWN_NAMES))
        return (said or "none") + (f", and {len(self) - SHOWN_NAMES:,d} more" if len(self) > SHOWN_NAMES else "")


class Quantiles:
    """Values counted in bins of equal width in the logarithm; values that are not positive count as 0."""

    def __init__(self) -> None:
        self.count, self.least, self.most = 0, math.inf, -math.inf
        self._bins: Counter[float] = Counter()

    def add(self, values: Iterable[float]) -> None:
        """Count values; NaN and infinity are left out."""
        found = np.fromiter(values, np.float64)
        found = found[np.isfinite(found)]
        if not found.size:
            return
        self.count += found.size
        self.least, self.most = min(self.least, float(found.min())), max(self.most, float(found.max()))
        positive = found[found > 0]
        self._bins[-math.inf] += found.size - positive.size
        bins, counts = np.unique(np.floor(np.log(positive) / math.log(BIN_WIDTH)), return_counts=True)
        self._bins.update(dict(zip(bins.tolist(), counts.tolist(), strict=True)))

    def at(self, share: float) -> float:
        """The quantile of a share, within half a percent (exact for 0 and 1); NaN without values."""
        if self.count and share in (0.0, 1.0):
            return self.most if share else self.least
        wanted, seen = max(1, math.ceil(share * self.count)), 0
        for place, count in sorted(self._bins.items()):
            seen += count
            if seen >= wanted:
                return min(max(BIN_WIDTH ** (place + 0.5), self.least), self.most)
        return math.nan


class Contents:
    """The sum of shards, as figures and as lines of text."""

    def __init__(self) -> None:
        self.num_rows = self.num_shards = self.num_bytes = self.num_small = 0
        self.statuses, self.reasons, self.splits = Names(), Names(), Names()
        self.licences, self.categories, self.filled = Names(), Names(), Names()
        self.spread = {name: Quantiles() for name in (*FIGURES, "seconds")}
        self.tensors: dict[str, str] = {}

    def add(self, table: pa.Table, num_bytes: int) -> None:
        """Add one shard: a table of COLUMNS, and the bytes of its parquet."""
        self.num_rows, self.num_shards, self.num_bytes = (
            self.num_rows + table.num_rows,
            self.num_shards + 1,
            self.num_bytes + num_bytes,
        )
        self.statuses.add(counted(table["status"]))
        good = pc.equal(table["status"], "ok")
        bad = table.select(["status", "error"]).filter(pc.invert(good)).to_pylist()
        self.reasons.add(Counter(map(failure_reason, bad)))
        ok = table.filter(good)
        for names, column in ((self.splits, "split"), (self.licences, "license"), (self.categories, "category")):
            names.add(counted(ok[column]))
        for name, column in FIGURES.items():
            if column in ok.column_names:  # an older dataset may lack it
                self.spread[name].add(ok[column].to_pylist())
        if "filled_by" in ok.column_names:
            self.filled.add({rule: count for rule, count in counted(ok["filled_by"]).items() if rule})
        if "largest_component_share" in ok.column_names:
            self.num_small += int(pc.sum(pc.less(ok["largest_component_share"], SMALL_SHARE)).as_py() or 0)

    def lines(self) -> list[str]:
        """Labelled counts, then a table of quantiles."""
        splits = ", ".join(f"{name} {self.splits[name]:,d}" for name in SPLITS)
        rows = [("status", self.statuses.line()), ("not ok", self.reasons.line()), ("splits", f"{splits} (ok objects)")]
        rows += [("licences", self.licences.line()), ("categories", self.categories.line())]
        if self.num_small:
            rows += [
                (
                    "shrunk",
                    f"{self.num_small:,d} ok objects whose largest component fills less than {SMALL_SHARE:g} of the "
                    f"box",
                )
            ]
        if self.filled:
            rows += [
                (
                    "filled",
                    f"{self.filled.total():,d} ok objects have enclosed air that was filled, by {self.filled.line()}",
                )
            ]
        rows += [("tensors", ", ".join(f"{name} {what}" for name, what in self.tensors.items()) or "none")]
        table = [" " * 14 + "".join(f"{share:>10}" for share in SHARES)]
        table += [
            f"  {name:<12}" + "".join(f"{shown(found.at(share)):>10}" for share in SHARES.values())
            for name, found in self.spread.items()
            if found.count
        ]
        return [line for row in rows for line in labelled(*row)] + (table if len(table) > 1 else [])


def labelled(label: str, text: str) -> list[str]:
    """`  label       text`, wrapped to LINE_WIDTH."""
    return textwrap.wrap(
        text,
        LINE_WIDTH,
        initial_indent=f"  {label:<12}",
        subsequent_indent=" " * 14,
        break_long_words=False,
        break_on_hyphens=False,
    )


def counted(column: pa.ChunkedArray) -> dict[str, int]:
    """Count of each text in a column."""
    found: Any = pc.value_counts(column)
    return dict(zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True))


def tensors_of(schema: pa.Schema) -> dict[str, str]:
    """Tensor column -> `float16[16384,6]`."""
    tensors = [field for field in schema if isinstance(field.type, pa.FixedShapeTensorType)]
    return {
        field.name: f"{field.type.value_type.to_pandas_dtype().__name__}[{','.join(map(str, field.type.shape))}]"
        for field in tensors
    }


def shown(value: float) -> str:
    """Three digits, the precision of the bins."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def plain(text: str) -> str:
    """Text from data with control characters, which could move a terminal's cursor, as question marks."""
    return "".join(char if char.isprintable() else "?" for char in text)
