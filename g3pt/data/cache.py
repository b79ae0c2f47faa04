"""A node's copies of a dataset's columns: uncompressed and memory-mapped, so that a reader touches only the bytes that
it uses, and all processes of a node share them.

How: each column of a shard is one Arrow file with the `ok` rows of one split, in the order of the shard. Its folder is
named by the shard's sha256: a copy belongs to a content, wherever the dataset is, and datasets share the copies of
equal shards. A column counts when it has the size and the time that its stamp says; the stamp is written after it. So a
killed writer leaves nothing that counts, and a file that was changed later is made again. A column of a derived table
is stored in the order of its shard's rows.

Who fills a cache, when, and where: pipelines/train/node_cache.py.
Ours: all of it. Shapes: N objects.
"""

from __future__ import annotations

import ctypes
import functools
import json
import mmap
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from g3pt.data import derived
from g3pt.data.datasets import DatasetInfo
from g3pt.data.storage import naming, open_parquet, write_atomic, written_whole

MOST_OPENED = 2**14  # columns that a process keeps mapped; Linux allows 65,530 mappings
MAP_FAILED = ctypes.c_void_p(-1).value
FORMAT = 1  # part of a folder's name: raise it when the files change


@dataclass(frozen=True)
class Source:
    """A column of a dataset, or of its derived table `kind`."""

    column: str
    kind: str = ""

    @property
    def name(self) -> str:
        """The column's file, without its ending."""
        return f"{self.kind}.{self.column}" if self.kind else self.column


ID, LICENSE = Source("id"), Source("license")


class ColumnCache:
    """The copies below `folder` of one split of a dataset."""

    def __init__(self, folder: Path, info: DatasetInfo, split: str = "train") -> None:
        self.folder, self.info, self.split = folder, info, split
        self._opened: dict[tuple[int, Source], Any] = {}

    def folder_of(self, shard: int) -> Path:
        """The folder of a shard's copies."""
        return self.folder / f"{self.info.shards[shard][:32]}-{self.split}-{FORMAT}"

    def _file(self, shard: int, source: Source) -> Path:
        return self.folder_of(shard) / f"{source.name}.arrow"

    def has(self, shard: int, source: Source) -> bool:
        """Whether the copy of a column is there, as it was written."""
        file = self._file(shard, source)
        try:
            found = file.stat()
            return _stamp(found) == json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False

    def fill(self, shard: int, source: Source) -> None:
        """Copy a column, of a derived table after the shard's `id`. One process at a time may do this for a shard."""
        file = self._file(shard, source)
        file.parent.mkdir(parents=True, exist_ok=True)
        column = self._derived_column(shard, source) if source.kind else self._column(shard, source.column)
        table = pa.record_batch([column], names=[source.column])
        file.with_suffix(".json").unlink(missing_ok=True)
        with (
            written_whole(file) as name,
            pa.OSFile(str(name), "wb") as sink,
            pa.ipc.new_file(sink, table.schema) as writer,
        ):
            writer.write_batch(table)
        write_atomic(file.with_suffix(".json"), json.dumps(_stamp(file.stat())).encode("utf-8"))

    def _column(self, shard: int, column: str) -> pa.Array:
        """A column of the dataset: its ok rows of the split."""
        path = self.info.shard_path(shard)
        with naming(path), open_parquet(path) as file:
            table = file.read(columns=list(dict.fromkeys([column, "split", "status"])), use_threads=False)
        kept = [
            split == self.split and status == "ok"
            for split, status in zip(table["split"].to_pylist(), table["status"].to_pylist(), strict=True)
        ]
        return _taken(table[column], np.flatnonzero(kept))

    def _derived_column(self, shard: int, source: Source) -> pa.Array:
        """A column of a derived table, in the order of the shard's rows."""
        path = derived.derived_path(self.info, source.kind, shard)
        if not derived.derived_is_current(self.info, source.kind, shard):
            raise ValueError(f"{path} is missing or older than its shard: make it again")
        with naming(path), open_parquet(path) as file:
            table = file.read(columns=["id", source.column], use_threads=False)
        place = {name: row for row, name in enumerate(table["id"].to_pylist())}
        return _taken(table[source.column], [place[name] for name in self.open(shard, ID).to_pylist()])

    def open(self, shard: int, source: Source) -> Any:
        """The values of a column, one per object: an array (N, ...) of tensors or numbers, else text and bytes.

        Nothing is read before a value is used. A process opens each column once.
        """
        key = (shard, source)
        if key not in self._opened:
            if len(self._opened) >= MOST_OPENED:
                self._opened.clear()
            self._opened[key] = self._values(self._file(shard, source))
        return self._opened[key]

    def _values(self, file: Path) -> Any:
        with naming(file):
            column = pa.ipc.open_file(pa.BufferReader(_mapped(file))).get_batch(0).column(0)
        if isinstance(column.type, pa.FixedShapeTensorType):
            return column.to_numpy_ndarray()
        return column.to_numpy() if pa.types.is_primitive(column.type) else _Scalars(column)


class Mapped(Sequence[Any]):
    """One column of some objects of several shards. Object i is row `rows[i]` of `shards[places[i]]`."""

    def __init__(self, shards: Sequence[Any], places: Sequence[int], rows: Sequence[int]) -> None:
        self.shards, self.places, self.rows = shards, places, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.shards[self.places[index]][self.rows[index]]


class _Scalars:
    """An Arrow array whose values are Python's."""

    def __init__(self, values: pa.Array) -> None:
        self.values = values

    def __getitem__(self, row: int) -> Any:
        return self.values[row].as_py()

    def to_pylist(self) -> list[Any]:
        """All values."""
        return self.values.to_pylist()


def _stamp(found: os.stat_result) -> dict[str, int]:
    return {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns}


def _taken(column: pa.ChunkedArray, rows: Any) -> pa.Array:
    """Rows of a column as one array."""
    whole = column.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):  # combine_chunks of a column without rows
        whole = pa.array([], whole.type) if not whole.num_chunks else whole.chunk(0)
    indices = pa.array(rows, pa.int64())
    if isinstance(whole, pa.ExtensionArray):
        return pa.ExtensionArray.from_storage(whole.type, whole.storage.take(indices))
    return whole.take(indices)


def _mapped(file: Path) -> pa.Buffer:
    """A file's content as a buffer of mapped pages.

    Unlike Arrow's own mapping it asks the kernel for no pages before they are used, and for none around those that are;
    unlike Python's it keeps no file open.
    """
    with open(file, "rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        place = _libc().mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, opened.fileno(), 0)
    if place in (None, MAP_FAILED):
        raise OSError(ctypes.get_errno(), f"{file} cannot be mapped")
    pages = _Pages(place, size)
    if random := getattr(mmap, "MADV_RANDOM", None):
        _libc().madvise(place, size, random)
    return pa.foreign_buffer(place, size, pages)


class _Pages:
    """Mapped pages, until the last buffer of them is gone."""

    def __init__(self, place: int, size: int) -> None:
        weakref.finalize(self, _libc().munmap, place, size)


@functools.cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    number, place = ctypes.c_size_t, ctypes.c_void_p
    libc.mmap.restype, libc.mmap.argtypes = place, (place, number, ctypes.c_int, ctypes.c_int, ctypes.c_int, number)
    libc.munmap.argtypes, libc.madvise.argtypes = (place, number), (place, number, ctypes.c_int)
    return libc
