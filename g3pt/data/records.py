"""The dataset on disk: one Parquet row per input object, readable by pyarrow, pandas, Ray Data and torch.

    DATASET/dataset.json         written last: its presence says that the dataset is complete
    DATASET/shard-00042.parquet  rows sorted by id, written to a temporary name and renamed
    DATASET/shard-00042.json     sidecar, written after its parquet: hashes, counts, seconds
    DATASET/derived/<kind>-<export-hash8>/shard-00042.parquet   tokens or features, joined by id

A row that is not `ok` contains zeros in its tensor columns, never nulls: one null in a fixed-size list makes the whole
file unreadable. Readers filter on `status`. An object's shard and split follow from its id alone, so neither depends on
what else is in the dataset.

This file defines a row. Elsewhere: datasets.py writes and opens datasets, reading.py reads rows, derived.py joins
tables to them, inspection.py checks a whole dataset, geometry/convert.py computes a row's tensors.

Layout, hashes and splits: docs/concepts/contracts.md.
Ours: `solid` is a binary PLY (any mesh tool reads it); views, sharp points and query points have columns only if they
were asked for; dataset.json lists its shards with their sha256, so a reader never mixes two states of a folder.

Shapes: P surface points, Q query points (a multiple of 8), V views.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

SCHEMA_VERSION = 2
STATUSES = ("ok", "failed", "timeout", "out-of-memory", "rejected")
SPLITS = ("train", "val", "test")
RETRIED_REASONS = ("timeout", "out-of-memory")  # failures that --retry-failed tries again
DOWNLOAD_REASON = "download-"  # and those whose reason begins like this
ROWS_PER_GROUP = 32

TEXT_COLUMNS = (
    "id", "source", "path", "source_url", "content_sha256", "license", "author", "attribution_url", "caption",
    "caption_source", "name", "category", "split", "status", "error", "up_axis", "appearance",
)  # fmt: skip
LIST_COLUMNS = ("tags",)  # of text
NUMBER_COLUMNS: dict[str, pa.DataType] = {
    "num_faces": pa.int64(),  # of the mesh as given, as is was_watertight
    "was_watertight": pa.bool_(),
    "num_components": pa.int64(),  # of the solid, as are all below
    # longest side of the largest component by area / longest side of the solid
    "largest_component_share": pa.float64(),
    "num_inner_shells": pa.int64(),  # components inside another one, or facing inward; 0 in a good row
    "solid_faces": pa.int64(),
    "solid_watertight": pa.bool_(),
    "volume": pa.float64(),
    "surface_area": pa.float64(),
    "thickness": pa.float64(),  # 2 volume / surface_area, which is exact for a thin slab
    "volume_share": pa.float64(),  # share of the volume points that are inside; nan without any
    "chamfer_to_input": pa.float64(),
    "scale": pa.float64(),
}
FILL_COLUMNS: dict[str, pa.DataType] = {  # of datasets in which air that open surfaces enclose is filled
    "filled_by": pa.string(),  # what was counted to decide: winding or parity; "" if nothing was filled
    "filled_share": pa.float64(),  # share of the solid's volume that filling added
}
ADDED_COLUMNS = ("largest_component_share",)  # since 0.1.0; datasets of this schema version may lack them


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """The schema's parameters: numbers of points, queries and views of a row, and whether it keeps its solid
    and has FILL_COLUMNS.
    """

    num_surface: int = 16384
    num_sharp: int = 4096
    num_queries: int = 32768
    num_views: int = 0
    keep_solid: bool = False
    filled: bool = False

    def __post_init__(self) -> None:
        if self.num_surface < 1:
            raise ValueError(f"num_surface must be at least 1, got {self.num_surface}")
        if self.num_queries < 0 or self.num_queries % 8:
            raise ValueError(f"num_queries must be 0 or a positive multiple of 8, got {self.num_queries}")
        for name in ("num_sharp", "num_views"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    def as_json(self) -> dict[str, Any]:
        """The parameters as JSON values; `filled` only if it is true, so
        that datasets without it are as they were before it.
        """
        return {name: value for name, value in asdict(self).items() if name != "filled" or value}

    @property
    def numbers(self) -> dict[str, pa.DataType]:
        """Columns of measured figures -> type."""
        return NUMBER_COLUMNS | (FILL_COLUMNS if self.filled else {})

    @property
    def tensors(self) -> dict[str, tuple[type, tuple[int, ...]]]:
        """Tensor column -> (numpy type, shape of one row).

        Columns of no points are left out: Parquet has no lists of length 0.
        """
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
        named = {name: (dtype, shape) for name, (dtype, shape) in named.items() if 0 not in shape}
        if self.num_views:
            named["view_cameras"] = (np.float32, (self.num_views, 4, 4))
        return named


# ---------------------------------------------------------------------------------------------------------------- ids


def id_hash(object_id: str) -> int:
    """First 8 bytes, big-endian, of sha256(utf-8 id)."""
    return int.from_bytes(hashlib.sha256(object_id.encode("utf-8")).digest()[:8], "big")


def shard_index(object_id: str, num_shards: int) -> int:
    """The shard of an object."""
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


def shard_name(index: int) -> str:
    """`shard-00042`, without its ending."""
    return f"shard-{index:05d}"


# ------------------------------------------------------------------------------------------------------------- schema


def schema(config: RecordConfig) -> pa.Schema:
    """The Arrow schema of a shard."""
    columns = [pa.field(name, pa.string(), nullable=False) for name in TEXT_COLUMNS]
    columns += [pa.field(name, pa.list_(pa.string()), nullable=False) for name in LIST_COLUMNS]
    columns += [pa.field(name, kind, nullable=False) for name, kind in config.numbers.items()]
    for name, (dtype, shape) in config.tensors.items():
        columns.append(pa.field(name, pa.fixed_shape_tensor(pa.from_numpy_dtype(dtype), shape), nullable=False))
    if config.num_views:
        columns.append(pa.field("views", pa.list_(pa.binary()), nullable=False))
    if config.keep_solid:
        columns.append(pa.field("solid", pa.binary(), nullable=False))
    return pa.schema(columns, metadata={"g3pt.schema_version": str(SCHEMA_VERSION)})


def empty_row(object_id: str, config: RecordConfig) -> dict[str, Any]:
    """A row of zeros and empty strings with status failed, for an object of which nothing is known yet."""
    row: dict[str, Any] = dict.fromkeys(TEXT_COLUMNS, "")
    row |= {name: [] for name in LIST_COLUMNS}
    row |= {name: "" if kind == pa.string() else kind.to_pandas_dtype()() for name, kind in config.numbers.items()}
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


def unpack_occupancy(packed: np.ndarray) -> np.ndarray:
    """(..., Q/8) uint8 in little bit order -> (..., Q) bool: True inside."""
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


def failure_reason(row: Mapping[str, Any]) -> str:
    """`failed/corrupt` or `timeout`: the status, and the word before the colon of `error` if it differs."""
    reason = row["error"].split(":", 1)[0]
    return row["status"] if reason in ("", row["status"]) else f"{row['status']}/{reason}"


def is_retried(failure: str) -> bool:
    """Whether --retry-failed retries objects with this `failure_reason`."""
    return any(word in RETRIED_REASONS or word.startswith(DOWNLOAD_REASON) for word in failure.split("/"))
