"""The dataset on disk: one Parquet row per input object, readable by pyarrow, pandas, Ray Data and torch.

    DATASET/dataset.json         written last: its presence says that the dataset is complete
    DATASET/shard-00042.parquet  rows sorted by id, written to a temporary name and renamed
    DATASET/shard-00042.json     sidecar, written after its parquet: hashes, counts, seconds
    DATASET/derived/<kind>-<export-hash8>/shard-00042.parquet   tokens or features, joined by id

A row that is not `ok` holds zeros in its tensor columns, never nulls: one null in a fixed-size list makes the whole file
unreadable. Readers filter on `status`. An object's shard and split follow from its id alone, so neither depends on what
else is in the dataset.

Source: DESIGN, contract 3 (schema, hashes, splits).
Ours: `solid` is a binary PLY (any mesh tool reads it); `views` and `view_cameras` exist only where views were asked for;
      dataset.json lists its shards with their sha256, so a reader never mixes two states of a folder.

Shapes: P surface points, Q query points (a multiple of 8), V views.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from g3pt.selection import ALL, Selection

SCHEMA_VERSION = 2
STATUSES = ("ok", "failed", "timeout", "out-of-memory", "rejected")
SPLITS = ("train", "val", "test")
RETRIED_REASONS = ("timeout", "out-of-memory", "download")  # what --retry-failed tries again
ROWS_PER_GROUP = 32

TEXT_COLUMNS = (
    "id", "source", "path", "source_url", "content_sha256", "license", "author", "attribution_url", "caption",
    "caption_source", "name", "category", "split", "status", "error", "up_axis", "appearance",
)  # fmt: skip
LIST_COLUMNS = ("tags",)  # of text
NUMBER_COLUMNS: dict[str, pa.DataType] = {
    "num_faces": pa.int64(),  # of the mesh as given, as was_watertight
    "was_watertight": pa.bool_(),
    "num_components": pa.int64(),  # of the solid, as all that follow
    "solid_faces": pa.int64(),
    "solid_watertight": pa.bool_(),
    "volume": pa.float64(),
    "surface_area": pa.float64(),
    "thickness": pa.float64(),  # 2 volume / surface_area: that of a slab
    "volume_share": pa.float64(),  # of the volume points that lie inside
    "chamfer_to_input": pa.float64(),
    "scale": pa.float64(),
}


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """What fixes the schema: how many points, queries and views a row holds, and whether it keeps its solid."""

    num_surface: int = 16384
    num_sharp: int = 4096
    num_queries: int = 32768
    num_views: int = 0
    keep_solid: bool = False

    def __post_init__(self) -> None:
        for name in ("num_surface", "num_sharp"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_queries < 8 or self.num_queries % 8:
            raise ValueError(f"num_queries must be a positive multiple of 8, got {self.num_queries}")
        if self.num_views < 0:
            raise ValueError(f"num_views must not be negative, got {self.num_views}")

    @property
    def tensors(self) -> dict[str, tuple[type, tuple[int, ...]]]:
        """Tensor column -> (numpy type, shape of one row)."""
        half, byte = np.float16, np.uint8
        named: dict[str, tuple[type, tuple[int, ...]]] = {
            "offset": (np.float64, (3,)),
            "surface": (half, (self.num_surface, 6)),
            "sharp": (half, (self.num_sharp, 6)),
            "eval_surface": (half, (self.num_surface, 6)),
            "near_points": (half, (self.num_queries, 3)),
            "volume_points": (half, (self.num_queries, 3)),
            "near_occupancy": (byte, (self.num_queries // 8,)),
            "volume_occupancy": (byte, (self.num_queries // 8,)),
        }
        if self.num_views:
            named["view_cameras"] = (np.float32, (self.num_views, 4, 4))
        return named


# ---------------------------------------------------------------------------------------------------------------- ids


def id_hash(object_id: str) -> int:
    """First 8 bytes, big-endian, of sha256(utf-8 id)."""
    return int.from_bytes(hashlib.sha256(object_id.encode("utf-8")).digest()[:8], "big")


def shard_index(object_id: str, num_shards: int) -> int:
    """The shard an object belongs to."""
    return id_hash(object_id) % num_shards


def split_of(object_id: str) -> str:
    """train (0-79), val (80-89) or test (90-99) of (hash >> 32) mod 100."""
    percent = (id_hash(object_id) >> 32) % 100
    return "train" if percent < 80 else "val" if percent < 90 else "test"


def config_hash(settings: Mapping[str, Any]) -> str:
    """sha256 of settings as canonical JSON."""
    return hashlib.sha256(canonical_json(settings).encode("utf-8")).hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def dataset_fingerprint(content: Mapping[str, str], config_sha256: str) -> str:
    """Hash of the sorted (id, content sha256) pairs and the config hash."""
    return config_hash({"objects": sorted(content.items()), "config": config_sha256})


def shard_name(index: int) -> str:
    """`shard-00042`, without its ending."""
    return f"shard-{index:05d}"


# ------------------------------------------------------------------------------------------------------------- schema


def schema(config: RecordConfig) -> pa.Schema:
    """The Arrow schema of a shard."""
    columns = [pa.field(name, pa.string(), nullable=False) for name in TEXT_COLUMNS]
    columns += [pa.field(name, pa.list_(pa.string()), nullable=False) for name in LIST_COLUMNS]
    columns += [pa.field(name, kind, nullable=False) for name, kind in NUMBER_COLUMNS.items()]
    for name, (dtype, shape) in config.tensors.items():
        columns.append(pa.field(name, pa.fixed_shape_tensor(pa.from_numpy_dtype(dtype), shape), nullable=False))
    if config.num_views:
        columns.append(pa.field("views", pa.list_(pa.binary()), nullable=False))
    if config.keep_solid:
        columns.append(pa.field("solid", pa.binary(), nullable=False))
    return pa.schema(columns, metadata={"g3pt.schema_version": str(SCHEMA_VERSION)})


def empty_row(object_id: str, config: RecordConfig) -> dict[str, Any]:
    """A row of an object about which nothing is known yet: zeros and empty strings, status failed."""
    row: dict[str, Any] = dict.fromkeys(TEXT_COLUMNS, "")
    row |= {name: [] for name in LIST_COLUMNS}
    row |= {name: kind.to_pandas_dtype()() for name, kind in NUMBER_COLUMNS.items()}
    row |= {name: np.zeros(shape, dtype) for name, (dtype, shape) in config.tensors.items()}
    if config.num_views:
        row["views"] = []
    if config.keep_solid:
        row["solid"] = b""
    row |= {"id": object_id, "split": split_of(object_id), "status": "failed"}
    return row


def rows_to_table(rows: Sequence[Mapping[str, Any]], config: RecordConfig) -> pa.Table:
    """Rows as an Arrow table, each checked against the schema: ValueError names the object and the column."""
    for row in rows:
        _check_row(row, config)
    arrow = schema(config)
    columns = [_column([row[field.name] for row in rows], field, config) for field in arrow]
    return pa.Table.from_arrays(columns, schema=arrow)


def _check_row(row: Mapping[str, Any], config: RecordConfig) -> None:
    known = set(schema(config).names)
    if set(row) != known:
        raise ValueError(f"row {row.get('id')!r}: columns differ from the schema: {sorted(set(row) ^ known)}")
    if row["status"] not in STATUSES:
        raise ValueError(f"row {row['id']!r}: unknown status {row['status']!r}")
    for name, (dtype, shape) in config.tensors.items():
        value = row[name]
        if value.dtype != dtype or value.shape != shape:
            raise ValueError(f"row {row['id']!r}: {name} is {value.dtype}{value.shape}, not {np.dtype(dtype)}{shape}")
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ValueError(f"row {row['id']!r}: {name} is not finite")
    if config.num_views and len(row["views"]) not in (0, config.num_views):
        raise ValueError(f"row {row['id']!r}: {len(row['views'])} views, not {config.num_views}")


def _column(values: list[Any], field: pa.Field, config: RecordConfig) -> pa.Array:
    if field.name not in config.tensors:
        return pa.array(values, type=field.type)
    flat = pa.array(np.stack(values).reshape(-1) if values else np.zeros(0, config.tensors[field.name][0]))
    storage = pa.FixedSizeListArray.from_arrays(flat, type=field.type.storage_type)
    return pa.ExtensionArray.from_storage(field.type, storage)


def pack_occupancy(inside: np.ndarray) -> np.ndarray:
    """(..., Q) bool -> (..., Q/8) uint8, little bit order."""
    return np.packbits(inside, axis=-1, bitorder="little")


def unpack_occupancy(packed: np.ndarray) -> np.ndarray:
    """(..., Q/8) uint8 -> (..., Q) bool: True inside."""
    return np.unpackbits(packed, axis=-1, bitorder="little").astype(bool)


_PLY_FACE = np.dtype([("count", "u1"), ("corners", "<i4", (3,))])
_PLY_HEADER = (
    "ply\nformat binary_little_endian 1.0\nelement vertex {}\nproperty float x\nproperty float y\nproperty float z\n"
    "element face {}\nproperty list uchar int vertex_indices\nend_header\n"
)


def encode_solid(vertices: np.ndarray, faces: np.ndarray) -> bytes:
    """(V, 3) vertices and (F, 3) faces as a binary PLY."""
    corners = np.empty(len(faces), _PLY_FACE)
    corners["count"], corners["corners"] = 3, faces
    header = _PLY_HEADER.format(len(vertices), len(faces)).encode("ascii")
    return header + np.ascontiguousarray(vertices, "<f4").tobytes() + corners.tobytes()


def decode_solid(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `encode_solid`: float32 (V, 3), int64 (F, 3)."""
    end = data.index(b"end_header\n") + len(b"end_header\n")
    counts = [int(line.split()[-1]) for line in data[:end].decode("ascii").splitlines() if line.startswith("element")]
    vertices = np.frombuffer(data, "<f4", counts[0] * 3, end).reshape(-1, 3)
    faces = np.frombuffer(data, _PLY_FACE, counts[1], end + vertices.nbytes)["corners"]
    return vertices.astype(np.float32), faces.astype(np.int64)


# ------------------------------------------------------------------------------------------------------------ writing


def write_shard(
    folder: Path,
    index: int,
    rows: Sequence[Mapping[str, Any]],
    config: RecordConfig,
    *,
    config_sha256: str = "",
    inputs_sha256: str = "",
    num_shards: int = 1,
    seconds: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Write one shard, parquet first and sidecar second, each through a temporary name. Returns the sidecar."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = sorted(rows, key=lambda row: row["id"])
    data = parquet_bytes(rows_to_table(rows, config))
    (folder / f"{shard_name(index)}.json").unlink(
        missing_ok=True
    )  # an old sidecar must never stand beside a new parquet
    write_atomic(folder / f"{shard_name(index)}.parquet", data)
    sidecar = {
        "schema_version": SCHEMA_VERSION,
        "config_sha256": config_sha256,
        "inputs_sha256": inputs_sha256,
        "num_shards": num_shards,
        "rows": len(rows),
        "counts": dict(sorted(Counter(row["status"] for row in rows).items())),
        "splits": dict(sorted(Counter(row["split"] for row in rows if row["status"] == "ok").items())),
        "failures": dict(sorted(Counter(failure_reason(row) for row in rows if row["status"] != "ok").items())),
        "content": {row["id"]: row["content_sha256"] for row in rows},
        "seconds": {name: round(value, 3) for name, value in sorted((seconds or {}).items())},
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    write_atomic(folder / f"{shard_name(index)}.json", json.dumps(sidecar, indent=1).encode("utf-8"))
    return sidecar


def failure_reason(row: Mapping[str, Any]) -> str:
    """`failed/corrupt`, `timeout`: the status and the word before the colon of `error`, if it adds something."""
    reason = row["error"].split(":", 1)[0]
    return row["status"] if reason in ("", row["status"]) else f"{row['status']}/{reason}"


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as a Parquet file in memory: the same table gives the same bytes on the same versions."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, row_group_size=ROWS_PER_GROUP, compression="zstd", compression_level=3, use_dictionary=False
    )
    return sink.getvalue().to_pybytes()


def write_atomic(path: Path, data: bytes) -> None:
    """Write bytes under a temporary name in the same folder, flush to disk, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_dataset(
    folder: Path,
    config: RecordConfig,
    settings: Mapping[str, Any],
    num_shards: int,
    shards: Mapping[int, Mapping[str, Any]],
) -> dict[str, Any]:
    """Write dataset.json from the sidecars of all shards (index -> sidecar). `settings` is what the config hash covers."""
    content: dict[str, str] = {}
    counts: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    splits: Counter[str] = Counter()
    for sidecar in shards.values():
        content |= sidecar["content"]
        counts.update(sidecar["counts"])
        failures.update(sidecar["failures"])
        splits.update(sidecar["splits"])
    config_sha256 = config_hash(settings)
    summary = {
        "schema_version": SCHEMA_VERSION,
        "config": dict(settings),
        "config_sha256": config_sha256,
        "record": asdict(config),
        "columns": schema(config).names,
        "tensors": {name: {"dtype": np.dtype(d).name, "shape": list(s)} for name, (d, s) in config.tensors.items()},
        "counts": dict(sorted(counts.items())),
        "failures": dict(sorted(failures.items())),
        "splits": {name: splits.get(name, 0) for name in SPLITS},
        "num_shards": num_shards,
        "shards": {str(index): shards[index]["sha256"] for index in sorted(shards)},
        "fingerprint": dataset_fingerprint(content, config_sha256),
    }
    write_atomic(folder / "dataset.json", json.dumps(summary, indent=1).encode("utf-8"))
    return summary


# ------------------------------------------------------------------------------------------------------------ reading


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """dataset.json, checked. `splits` counts ok rows; `shards` maps shard index to the sha256 of its parquet."""

    path: Path
    config: RecordConfig
    settings: dict[str, Any]
    fingerprint: str
    schema_version: int
    num_shards: int
    counts: dict[str, int]
    failures: dict[str, int]
    splits: dict[str, int]
    shards: dict[int, str]
    columns: tuple[str, ...]

    def shard_path(self, index: int) -> Path:
        """The parquet file of one shard."""
        return self.path / f"{shard_name(index)}.parquet"


def open_dataset(path: str | Path) -> DatasetInfo:
    """Read and check dataset.json. ValueError with one clear line where there is none or its schema is another."""
    folder = local_folder(path)
    if not folder.is_dir():
        raise ValueError(f"no dataset at {folder}: the folder does not exist")
    file = folder / "dataset.json"
    if not file.is_file():
        raise ValueError(f"no dataset at {folder}: dataset.json is missing (preprocessing did not finish there)")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not readable JSON: {error}") from error
    version = found.get("schema_version") if isinstance(found, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"dataset {folder} has schema version {version!r}; this program reads version {SCHEMA_VERSION}"
        )
    try:
        return _dataset_info(folder.resolve(), found)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged: {type(error).__name__}: {error}") from error


def _dataset_info(folder: Path, found: dict[str, Any]) -> DatasetInfo:
    config = RecordConfig(**found["record"])
    if found["columns"] != schema(config).names:
        raise ValueError(f"its columns differ from schema version {SCHEMA_VERSION}")
    return DatasetInfo(
        path=folder,
        config=config,
        settings=found["config"],
        shards={int(index): sha256 for index, sha256 in found["shards"].items()},
        columns=tuple(found["columns"]),
        **{
            field.name: found[field.name]
            for field in fields(DatasetInfo)
            if field.name not in ("path", "config", "settings", "shards", "columns")
        },
    )


def local_folder(path: str | Path) -> Path:
    """A local path; ValueError for an object store's URI."""
    if "://" in str(path):
        raise ValueError(f"{path}: object stores are not built yet, give a local path")
    return Path(path)


def read_rows(
    dataset: str | Path | DatasetInfo,
    columns: Sequence[str],
    split: str | None = None,
    status: str | None = "ok",
    shards: Iterable[int] | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows as dicts of numpy arrays, strings and numbers; in shard order, within a shard by id.

    `split` and `status` None keep all; `shards` None reads all shards of the dataset.
    """
    info = dataset if isinstance(dataset, DatasetInfo) else open_dataset(dataset)
    unknown = [name for name in columns if name not in info.columns]
    if unknown:
        raise ValueError(f"dataset {info.path} has no column {unknown[0]!r}; it has {', '.join(info.columns)}")
    for index in sorted(info.shards) if shards is None else shards:
        yield from _shard_rows(info.shard_path(index), columns, split, status)


def _shard_rows(path: Path, columns: Sequence[str], split: str | None, status: str | None) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        raise ValueError(f"{path} is missing although dataset.json lists it")
    wanted = list(dict.fromkeys([*columns, "split", "status"]))
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=ROWS_PER_GROUP, columns=wanted, use_threads=False):
            yield from _batch_rows(batch, columns, split, status)


def _batch_rows(
    batch: pa.RecordBatch, columns: Sequence[str], split: str | None, status: str | None
) -> Iterator[dict[str, Any]]:
    splits, statuses = batch.column("split").to_pylist(), batch.column("status").to_pylist()
    values = {name: column_values(batch.column(name)) for name in columns}
    for row in range(batch.num_rows):
        if split in (None, splits[row]) and status in (None, statuses[row]):
            yield {name: values[name][row] for name in columns}


def column_values(column: pa.Array) -> np.ndarray | list[Any]:
    """A tensor column as one (N, ...) array, numbers as (N,), everything else as a list."""
    if isinstance(column.type, pa.FixedShapeTensorType):
        return column.to_numpy_ndarray()
    if pa.types.is_primitive(column.type) or pa.types.is_boolean(column.type):
        return column.to_numpy(zero_copy_only=False)
    return column.to_pylist()


def load_arrays(
    dataset: str | Path | DatasetInfo,
    split: str | None,
    columns: Sequence[str],
    status: str | None = "ok",
    selection: Selection = ALL,
    limit: int | None = None,
) -> dict[str, Any]:
    """Whole columns in memory, sorted by id: tensors as (N, ...) arrays, numbers as (N,), text and views as lists.

    With `limit` only the first objects; the others are passed by, not kept.
    """
    info = dataset if isinstance(dataset, DatasetInfo) else open_dataset(dataset)
    wanted = list(dict.fromkeys(["id", "license", *columns]))
    first = _first_ids(info, split, status, selection, limit) if limit is not None else None
    rows = [row for row in read_rows(info, wanted, split, status) if selection.keeps(row) and (first is None or row["id"] in first)]
    rows.sort(key=lambda row: row["id"])
    return {name: _stacked(name, [row[name] for row in rows], info.config) for name in columns}


def _first_ids(info: DatasetInfo, split: str | None, status: str | None, selection: Selection, limit: int) -> set[str]:
    rows = read_rows(info, ["id", "license"], split, status)
    return set(sorted(row["id"] for row in rows if selection.keeps(row))[:limit])


def count_objects(dataset: DatasetInfo, shard: int, split: str, selection: Selection = ALL) -> int:
    """Objects of a shard that are ok, in the split and selected."""
    return sum(selection.keeps(row) for row in read_rows(dataset, ["id", "license"], split, shards=[shard]))


def load_shards(
    dataset: DatasetInfo, split: str, columns: Sequence[str], shards: Sequence[int], count: int, selection: Selection = ALL
) -> dict[str, np.ndarray]:
    """Tensor columns of the `count` ok and selected objects of some shards, in the order named; never twice in memory."""
    arrays = {name: np.empty((count, *shape), dtype) for name, (dtype, shape) in dataset.config.tensors.items() if name in columns}
    selected = (row for row in read_rows(dataset, [*columns, "id", "license"], split, shards=shards) if selection.keeps(row))
    found = 0
    for found, row in enumerate(selected, start=1):
        if found > count:
            break
        for name, values in arrays.items():
            values[found - 1] = row[name]
    if found != count:
        raise ValueError(f"dataset {dataset.path}: shards {list(shards)} do not hold the {count} objects counted before: it changed while it was read")
    return arrays


def _stacked(name: str, values: list[Any], config: RecordConfig) -> Any:
    if name in config.tensors:
        dtype, shape = config.tensors[name]
        return np.stack(values) if values else np.zeros((0, *shape), dtype)
    return np.array(values) if name in NUMBER_COLUMNS else values


# ------------------------------------------------------------------------------------------------------------ derived


def derived_path(dataset: str | Path | DatasetInfo, kind: str, index: int) -> Path:
    """`derived/<kind>/shard-00042.parquet`; `kind` is `<name>-<export-hash8>`."""
    folder = dataset.path if isinstance(dataset, DatasetInfo) else local_folder(dataset)
    return folder / "derived" / kind / f"{shard_name(index)}.parquet"


def write_derived(dataset: DatasetInfo, kind: str, index: int, table: pa.Table) -> Path:
    """Write one derived shard (must have an `id` column) in one rename; it remembers the parquet it was made from."""
    if "id" not in table.column_names:
        raise ValueError(f"a derived table needs an id column, got {table.column_names}")
    path = derived_path(dataset, kind, index)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {**(table.schema.metadata or {}), b"g3pt.source_sha256": dataset.shards[index].encode("ascii")}
    write_atomic(path, parquet_bytes(table.replace_schema_metadata(metadata)))
    return path


def derived_is_current(dataset: DatasetInfo, kind: str, index: int) -> bool:
    """Whether the derived shard exists and was made from the shard as it stands."""
    path = derived_path(dataset, kind, index)
    if not path.is_file():
        return False
    metadata = pq.read_schema(path).metadata or {}
    return metadata.get(b"g3pt.source_sha256", b"").decode("ascii") == dataset.shards[index]


def read_derived(dataset: DatasetInfo, kind: str, shards: Iterable[int] | None = None) -> pa.Table:
    """All derived shards as one table sorted by id. ValueError names the first shard that is missing or stale."""
    tables = []
    for index in sorted(dataset.shards) if shards is None else shards:
        if not derived_is_current(dataset, kind, index):
            raise ValueError(f"{derived_path(dataset, kind, index)} is missing or older than its shard: make it again")
        tables.append(pq.read_table(derived_path(dataset, kind, index)))
    if not tables:
        raise ValueError(f"dataset {dataset.path} has no shards")
    return pa.concat_tables([table.replace_schema_metadata(None) for table in tables]).sort_by("id")
