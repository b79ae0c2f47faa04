"""A study's points as a table: read from CSV or Parquet, checked line by line, imported from what others published.

A point is one trained model: parameters N by three counts, samples D, seed, counted operations, test loss. Columns:
docs/concepts/contracts.md; fits need one count of parameters, samples and a loss. A Parquet table has the same rows,
and with each the losses of its test objects in columns that begin with OBJECTS.

Shapes: n points, o test objects.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

COUNTS = ("params_no_embed", "params_no_adaln", "params_total")
LOSS = "test_ce"
OBJECTS = "objects_"  # of a column with a list per point: objects_id, objects_ce, objects_ce_scale_<k>
# Header of a published table -> (column of ours -> column of theirs). Samples are counted in their unit, mostly tokens.
KNOWN: dict[str, dict[str, str]] = {
    "Epoch AI's reading of Chinchilla's figure 4": {"params_total": "Model Size", "flops": "Training FLOP",
                                                    LOSS: "loss"},
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Objects:
    """Losses of the test objects that all points of a study were evaluated on."""

    ids: tuple[str, ...]
    loss_no: np.ndarray

    @property
    def relative_no(self) -> np.ndarray:
        """Losses over their mean at the point, less 1."""
        return self.loss_no / self.loss_no.mean(axis=1, keepdims=True) - 1

    def covariance_nn(self) -> np.ndarray:
        """Covariance of the logarithms of the points' losses that the choice of the test objects gives them."""
        return shared_evaluation(self, self)


def shared_evaluation(first: Objects, second: Objects) -> np.ndarray:
    """(n, m) covariance of the logarithms of two studies' losses by the test objects that both were evaluated on."""
    where = {name: k for k, name in enumerate(second.ids)}
    pairs = [(k, where[name]) for k, name in enumerate(first.ids) if name in where]
    if len(pairs) < 2:
        return np.zeros((len(first.loss_no), len(second.loss_no)))
    mine, theirs = (np.array(side) for side in zip(*pairs, strict=True))
    product = first.relative_no[:, mine] @ second.relative_no[:, theirs].T / (len(pairs) - 1)
    return product * len(pairs) / (len(first.ids) * len(second.ids))


@dataclass(frozen=True, kw_only=True)
class Points:
    """Points of one law, one value per point."""

    params: np.ndarray  # N, by `count`
    samples: np.ndarray  # D
    loss: np.ndarray
    size: tuple[str, ...]  # name of the size: points of one size share its error
    seed: tuple[str, ...]
    flops: np.ndarray  # counted, of the whole run; nan if unknown
    count: str = COUNTS[0]
    column: str = LOSS
    source: str = ""
    objects: Objects | None = None  # None unless every point has the losses of the same objects

    def __len__(self) -> int:
        return len(self.loss)

    def where(self, chosen_n: np.ndarray) -> Points:
        """The points that a mask or indices choose."""
        index = np.arange(len(self))[chosen_n]
        return Points(
            params=self.params[index], samples=self.samples[index], loss=self.loss[index],
            size=tuple(self.size[k] for k in index), seed=tuple(self.seed[k] for k in index), flops=self.flops[index],
            count=self.count, column=self.column, source=self.source,
            objects=self.objects and Objects(ids=self.objects.ids, loss_no=self.objects.loss_no[index]),
        )  # fmt: skip

    @property
    def evaluation_nn(self) -> np.ndarray | None:
        """(n, n) covariance of log L by the choice of the test objects; None where their losses are not known."""
        return self.objects.covariance_nn() if self.objects else None

    @property
    def sha256(self) -> str:
        """Hash of all values that a fit reads, in the order of the points."""
        rows = zip(self.size, self.seed, self.params, self.samples, self.loss, strict=True)
        text = "\n".join(f"{size},{seed},{n!r},{d!r},{loss!r}" for size, seed, n, d, loss in _plain(rows))
        return hashlib.sha256(f"{self.count},{self.column}\n{text}".encode()).hexdigest()


def _plain(rows: object) -> list[tuple[str, str, float, float, float]]:
    return [(size, seed, float(n), float(d), float(loss)) for size, seed, n, d, loss in rows]  # type: ignore[attr-defined]


def read_points(path: Path | str, *, count: str = "", column: str = LOSS, held_out: bool = False) -> Points:
    """The points of a CSV file without those that it marks as held out, or only those; N is column `count`, by default
    the first of COUNTS that the file has.

    ValueError names file, line, column and value of what is missing or is no positive number.
    """
    path, every = table_of(path), read_rows(path)
    header = set(every[0])
    count = count or next((name for name in COUNTS if name in header), COUNTS[0])
    for name in (count, "samples", column):
        if name not in header:
            raise ValueError(f"{path} has no column {name!r}; it has {', '.join(sorted(header)) or 'no rows'}")
    chosen = [k for k, row in enumerate(every) if (row.get("held_out") == "1") == held_out]
    rows = [every[k] for k in chosen]
    values = {
        name: np.array([_number(path, k, row, name) for k, row in enumerate(rows)])
        for name in (count, "samples", column)
    }
    return Points(
        params=values[count], samples=values["samples"], loss=values[column],
        size=tuple(row.get("size") or row[count] for row in rows), seed=tuple(row.get("seed") or "0" for row in rows),
        flops=np.array([_number(path, k, row, "flops") if row.get("flops") else math.nan for k,
                        row in enumerate(rows)]),
        count=count, column=column, source=str(path), objects=_objects(path, chosen, column),
    )  # fmt: skip


def table_of(path: Path | str) -> Path:
    """The file itself, or the table in a study's folder: points.parquet if it is there, else points.csv."""
    path = Path(path)
    if not path.is_dir():
        return path
    return next(
        (path / name for name in ("points.parquet", "points.csv") if (path / name).exists()), path / "points.csv"
    )


def _objects(path: Path, rows: Sequence[int], column: str) -> Objects | None:
    """Losses of the objects of these rows; None if a row has none, or those of other objects."""
    if path.suffix != ".parquet" or not rows:
        return None
    import pyarrow.parquet as pq

    names = [f"{OBJECTS}id", OBJECTS + column.removeprefix("test_")]
    with pq.ParquetFile(path) as file:
        if not set(names) <= set(file.schema_arrow.names):
            return None
        ids, losses = (column.take(rows).to_pylist() for column in file.read(names, use_threads=False).columns)
    if not ids[0] or any(one != ids[0] for one in ids) or None in losses:
        return None
    return Objects(ids=tuple(ids[0]), loss_no=np.array(losses))


def read_rows(path: Path | str) -> list[dict[str, str]]:
    """The rows of a CSV or Parquet file by column, without losses of objects. ValueError for a file that is none."""
    path = table_of(path)
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _csv_rows(path)
    if not rows:
        raise ValueError(f"{path} has no points")
    return rows


def _parquet_rows(path: Path | str) -> list[dict[str, str]]:
    """Rows of a Parquet file as those of a CSV file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if not name.startswith(OBJECTS)]
            rows = file.read(names, use_threads=False).to_pylist()
    except pa.ArrowException as error:
        raise ValueError(f"{path} is not a readable Parquet file: {error}") from error
    return [{name: "" if value is None else str(value) for name, value in row.items()} for row in rows]


def _csv_rows(path: Path | str) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a readable CSV file: {error}") from error
    for k, row in enumerate(rows):
        if None in row or None in row.values():
            raise ValueError(f"{path} line {k + 2} has another number of values than the header")
    return rows


def _number(path: Path | str, k: int, row: Mapping[str, str], name: str) -> float:
    try:
        value = float(row[name])
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{path} line {k + 2}: {name} must be a positive number, got {row[name]!r}")
    return value


def import_rows(path: Path | str, columns: Mapping[str, str] | None = None) -> list[dict[str, str]]:
    """Rows of our columns from a published table; `columns` maps ours to theirs, by default that of a known header.

    Without a column for samples, D = operations / (6 N), as its authors count. ValueError if columns are missing.
    """
    rows = read_rows(path)
    given = dict(columns or next((known for known in KNOWN.values() if set(known.values()) <= set(rows[0])), {}))
    if not given:
        raise ValueError(
            f"{path} is of no known table ({'; '.join(KNOWN)}): name its columns, as in "
            "--columns params_total=N,samples=D,test_ce=loss"
        )
    missing = [theirs for theirs in given.values() if theirs not in rows[0]]
    if missing:
        raise ValueError(f"{path} has no column {missing[0]!r}; it has {', '.join(rows[0])}")
    count = next((name for name in COUNTS if name in given), None)
    if count is None or LOSS not in given or not {"samples", "flops"} & set(given):
        raise ValueError(
            f"an import needs {LOSS}, one of {', '.join(COUNTS)}, and samples or flops; got {', '.join(given)}"
        )
    found = []
    for k, row in enumerate(rows):
        mine = {ours: row[theirs] for ours, theirs in given.items()}
        if "samples" not in mine:
            mine["samples"] = repr(_number(path, k, mine, "flops") / 6 / _number(path, k, mine, count))
        found.append({"size": mine[count], "seed": "0"} | mine)
    return found


def write_rows(rows: Sequence[Mapping[str, object]], path: Path | str) -> None:
    """Write a CSV file, complete or not at all."""
    import os

    names = list(dict.fromkeys(name for row in rows for name in row))
    temporary = Path(path).with_name(f".{Path(path).name}.{os.getpid()}")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


def write_parquet(
    rows: Sequence[Mapping[str, object]], losses: Sequence[Mapping[str, Sequence[object]] | None], path: Path | str
) -> None:
    """Write the same table as Parquet, complete or not at all, with the losses of each point's test objects: columns of
    equal length, `id` and numbers, or None for a point whose objects were not kept.
    """
    import pyarrow as pa

    names = list(dict.fromkeys(name for row in rows for name in row))
    arrays = {name: pa.array([row.get(name) for row in rows]) for name in names}
    kinds = list(dict.fromkeys(name for columns in losses if columns for name in columns))
    for name in kinds or ("id",):
        kind = pa.list_(pa.string() if name == "id" else pa.float32())
        arrays[OBJECTS + name] = pa.array([columns and columns.get(name) for columns in losses], kind)
    write_arrays(arrays, path)


def write_arrays(arrays: Mapping[str, object], path: Path | str) -> None:
    """Write columns of equal length as `write_parquet` does."""
    import os

    import pyarrow as pa
    import pyarrow.parquet as pq

    temporary = Path(path).with_name(f".{Path(path).name}.{os.getpid()}")
    pq.write_table(pa.table(arrays), temporary, compression="zstd", use_dictionary=_as_dictionary(arrays))
    os.replace(temporary, path)


def _as_dictionary(arrays: Mapping[str, object]) -> list[str]:
    """Paths of the columns whose values repeat: all but losses of objects."""
    repeated = [name for name in arrays if not name.startswith(OBJECTS)]
    return [*repeated, f"{OBJECTS}id.list.element"]
