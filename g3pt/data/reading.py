"""Reading a dataset: rows one by one, whole columns, or the arrays of some shards.

A row that is not `ok` contains zeros in its tensors: all functions here skip such rows unless asked for them.
Shapes: N objects.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from g3pt.data.datasets import DatasetInfo, open_dataset
from g3pt.data.records import ROWS_PER_GROUP, RecordConfig, id_hash, shard_index
from g3pt.data.selection import ALL, Selection
from g3pt.data.storage import Location, naming, open_parquet


def read_rows(
    dataset: str | Location | DatasetInfo,
    columns: Sequence[str],
    split: str | None = None,
    status: str | None = "ok",
    shards: Iterable[int] | None = None,
    ids: Container[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows as dicts of numpy arrays, strings and numbers, in order of shards and ids.

    `split`, `status` and `ids` of None keep all rows; `shards` of None reads all shards. With `ids`, row groups without
    any of them are not read.
    """
    info = dataset if isinstance(dataset, DatasetInfo) else open_dataset(dataset)
    unknown = [name for name in columns if name not in info.columns]
    if unknown:
        raise ValueError(f"dataset {info.path} has no column {unknown[0]!r}; it has {', '.join(info.columns)}")
    for index in sorted(info.shards) if shards is None else shards:
        yield from _shard_rows(info.shard_path(index), columns, split, status, ids)


def _shard_rows(
    path: Location, columns: Sequence[str], split: str | None, status: str | None, ids: Container[str] | None
) -> Iterator[dict[str, Any]]:
    wanted = list(dict.fromkeys([*columns, "split", "status"] + ["id"] * (ids is not None)))
    try:
        with naming(path), open_parquet(path) as file:
            groups = None if ids is None else _groups_with(file, ids)
            for batch in file.iter_batches(
                batch_size=ROWS_PER_GROUP, row_groups=groups, columns=wanted, use_threads=False
            ):
                yield from _batch_rows(batch, columns, split, status, ids)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing although dataset.json lists it") from None


def _groups_with(file: pq.ParquetFile, ids: Container[str]) -> list[int]:
    """The row groups that contain one of `ids`."""
    groups = range(file.num_row_groups)
    return [
        index
        for index in groups
        if any(name in ids for name in file.read_row_group(index, columns=["id"]).column("id").to_pylist())
    ]


def _batch_rows(
    batch: pa.RecordBatch, columns: Sequence[str], split: str | None, status: str | None, ids: Container[str] | None
) -> Iterator[dict[str, Any]]:
    splits, statuses = batch.column("split").to_pylist(), batch.column("status").to_pylist()
    names = batch.column("id").to_pylist() if ids is not None else []
    values = {name: column_values(batch.column(name)) for name in columns}
    for row in range(batch.num_rows):
        if split in (None, splits[row]) and status in (None, statuses[row]) and (ids is None or names[row] in ids):
            yield {name: values[name][row] for name in columns}


def column_values(column: pa.Array) -> np.ndarray | list[Any]:
    """A tensor column as one (N, ...) array, numbers as (N,), everything else as a list."""
    if isinstance(column.type, pa.FixedShapeTensorType):
        return column.to_numpy_ndarray()
    if pa.types.is_primitive(column.type) or pa.types.is_boolean(column.type):
        return column.to_numpy(zero_copy_only=False)
    return column.to_pylist()


def load_arrays(
    dataset: str | Location | DatasetInfo,
    split: str | None,
    columns: Sequence[str],
    status: str | None = "ok",
    selection: Selection = ALL,
    limit: int | None = None,
    ids: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Whole columns in memory, sorted by id: tensors as (N, ...) arrays, numbers as (N,), text and views as lists.

    With `limit` only the objects with the smallest sha256(id) are returned, a sample that no source or category
    dominates; with `ids` only these. Row groups without them are not read.
    """
    info = dataset if isinstance(dataset, DatasetInfo) else open_dataset(dataset)
    wanted = list(dict.fromkeys(["id", "license", *columns]))
    if limit is not None:
        ids = smallest_ids(info, split, limit, selection, status)
    chosen = None if ids is None else set(ids)
    shards = (
        None if chosen is None else sorted({shard_index(name, info.num_shards) for name in chosen} & info.shards.keys())
    )
    rows = [row for row in read_rows(info, wanted, split, status, shards, chosen) if selection.keeps(row)]
    assert chosen is None or len(rows) == len(chosen), f"{info.path}: objects are in other shards than their ids say"
    rows.sort(key=lambda row: row["id"])
    return {name: _stacked(name, [row[name] for row in rows], info.config) for name in columns}


def smallest_ids(
    info: DatasetInfo, split: str | None, limit: int, selection: Selection = ALL, status: str | None = "ok"
) -> list[str]:
    """The `limit` ids with the smallest sha256, sorted."""
    rows = read_rows(info, ["id", "license"], split, status)
    names = [row["id"] for row in rows if selection.keeps(row)]
    return sorted(sorted(names, key=lambda name: (id_hash(name), name))[:limit])


def count_objects(dataset: DatasetInfo, shard: int, split: str, selection: Selection = ALL) -> int:
    """Objects of a shard that are ok, in the split and selected."""
    return sum(selection.keeps(row) for row in read_rows(dataset, ["id", "license"], split, shards=[shard]))


def stored_bytes(path: Location, columns: Sequence[str]) -> int:
    """Uncompressed bytes of some columns of a Parquet file, from its footer alone."""
    with open_parquet(path) as file:
        chunks = [
            file.metadata.row_group(g).column(c)
            for g in range(file.num_row_groups)
            for c in range(file.metadata.num_columns)
        ]
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns)


def load_shards(
    dataset: DatasetInfo,
    split: str,
    columns: Sequence[str],
    shards: Sequence[int],
    count: int,
    selection: Selection = ALL,
) -> dict[str, Any]:
    """Columns of the `count` ok and selected objects of some shards, in the given order.

    Tensors are in memory once; the rest are lists.
    """
    arrays = {
        name: np.empty((count, *shape), dtype)
        for name, (dtype, shape) in dataset.config.tensors.items()
        if name in columns
    }
    lists: dict[str, list[Any]] = {name: [] for name in columns if name not in arrays}
    selected = (
        row for row in read_rows(dataset, [*columns, "id", "license"], split, shards=shards) if selection.keeps(row)
    )
    found = 0
    for found, row in enumerate(selected, start=1):
        if found > count:
            break
        for name, values in arrays.items():
            values[found - 1] = row[name]
        for name, kept in lists.items():
            kept.append(row[name])
    if found != count:
        raise ValueError(
            f"dataset {dataset.path}: shards {list(shards)} do not contain the {count} objects counted before: it "
            f"changed while it was read"
        )
    return arrays | lists


def _stacked(name: str, values: list[Any], config: RecordConfig) -> Any:
    if name in config.tensors:
        dtype, shape = config.tensors[name]
        return np.stack(values) if values else np.zeros((0, *shape), dtype)
    return np.array(values) if config.numbers.get(name, pa.string()) != pa.string() else values
