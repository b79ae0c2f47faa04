"""Condition features of a dataset: pretrained encoders' outputs for its captions and views, in float16,
one derived table per encoder; and its views as an encoder's input.

`DATASET/derived/text-<hash8>/` has `id` and `text` (C,). `DATASET/derived/image-<hash8>/` has `id`, `num_views` and one
column per view (`view_0`, `view_1`, ...) of (M, C). There each object is a row group of its own, so that training reads
only the view that it shows: 0.5 MB for DINOv2 ViT-L/14. hash8 covers encoder, revision (of a folder: its files), image
size and the preparation of pictures. A table's metadata names its encoder, so that reading needs neither the encoder
nor a hub.

Source: G3PT (arXiv 2409.06322): CLIP text embedding, DINOv2 patch tokens.
Ours: the layout.
Shapes: N objects, B batch, M image tokens, C width of an encoder.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from g3pt.config import CARConfig
from g3pt.data import derived, reading
from g3pt.data.datasets import DatasetInfo
from g3pt.data.pictures import cut_pixels, prepare_image
from g3pt.data.records import shard_index
from g3pt.data.storage import open_parquet
from g3pt.models.encoders import NONE, SMALL, ImageEncoder, StoredEncoder, TextEncoder, export_of

PREPARATION = 1  # of pictures: raise it when `prepare_image` changes pixels, so that older features are not used
ENCODE_BATCH = 16
OPEN_SHARDS = 64  # files a reader keeps open
METADATA = b"g3pt.encoder"
PICTURES = "pictures"
FEATURE_FILES = ("*.json", "*.safetensors", "*.txt")  # files of an encoder's folder that decide its output


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """One pretrained encoder whose outputs are stored, or the size of an encoder's stored inputs."""

    condition: str  # text, image, or pictures
    encoder: str  # hub id or folder; "" of pictures
    revision: str | None  # of a hub id: the commit
    image_size: int  # pixels; 0 for text

    @property
    def kind(self) -> str:
        """The derived table's name: text-<hash8>, image-<hash8> or pictures-<hash8>."""
        source = (
            {"files": _files_hash(self.encoder)}
            if self.encoder and Path(self.encoder).is_dir()
            else {"encoder": self.encoder, "revision": self.revision}
        )
        told = source | {"image_size": self.image_size, "preparation": PREPARATION if self.image_size else 0}
        return f"{self.condition}-{hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]}"

    def load(self) -> TextEncoder | ImageEncoder | Cutter:
        """The encoder with its weights, in float32; of pictures what cuts them out."""
        if self.condition == PICTURES:
            return Cutter(self.image_size)
        if self.condition == "text":
            exported = export_of(self.encoder)
            return TextEncoder.of_export(exported) if exported else TextEncoder(self.encoder, self.revision)
        return ImageEncoder(self.encoder, self.revision, self.image_size)


class Cutter(nn.Module):
    """Cuts the views out as the inputs of an encoder, in place of one."""

    revision = None

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size


def pictures_of(config: CARConfig) -> list[Encoding]:
    """The stored inputs of a generator's image encoder; none if it has no such encoder."""
    if config.image_encoder == NONE:
        return []
    return [Encoding(condition=PICTURES, encoder="", revision=None, image_size=config.image_size)]


@functools.cache
def _files_hash(folder: str) -> str:
    digest = hashlib.sha256()
    for file in sorted({file for pattern in FEATURE_FILES for file in Path(folder).glob(pattern)}):
        with open(file, "rb") as opened:
            digest.update(file.name.encode() + hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def encodings(config: CARConfig, text_export: str | None = None) -> list[Encoding]:
    """The frozen encoders of a generator whose inputs never change: not the text encoder if captions lose phrases at
    random. `text_export` is the export whose text encoder the generator takes, if there is one.
    """
    text = Encoding(
        condition="text", encoder=text_export or config.text_encoder, revision=config.text_revision, image_size=0
    )
    image = Encoding(
        condition="image", encoder=config.image_encoder, revision=config.image_revision, image_size=config.image_size
    )
    usable = [image] if config.drop_phrases else [text, image]
    return [one for one in usable if one.encoder not in (SMALL, NONE)]


def view_column(view: int) -> str:
    """The column of one view."""
    return f"view_{view}"


# --- writing ----------------------------------------------------------------------------------------------------------


def write_shard(encoding: Encoding, encoder: Any, info: DatasetInfo, index: int) -> int:
    """Write one shard's features, whole or not at all; returns the number of its `ok` objects."""
    if encoding.condition == "text":
        shape, tables = [encoder.width], _text_tables(encoder, info, index)
    elif encoding.condition == PICTURES:
        shape = [encoder.size, encoder.size, 3]
        tables = _view_tables(shape, np.uint8, functools.partial(_cut, encoder.size), info, index)
    else:
        shape = [encoder.num_tokens, encoder.width]
        tables = _view_tables(shape, np.float16, functools.partial(_seen, encoder), info, index)
    first = next(tables)  # without rows, for the columns
    told = {
        METADATA: json.dumps(asdict(encoding) | {"revision": encoder.revision, "shape": shape}, sort_keys=True).encode()
    }
    rows = 0

    def counted() -> Iterator[pa.Table]:
        nonlocal rows
        for table in tables:
            rows += table.num_rows
            yield table

    derived.write_derived_groups(info, encoding.kind, index, first.schema.with_metadata(told), counted())
    return rows


def _text_tables(encoder: TextEncoder, info: DatasetInfo, index: int) -> Iterator[pa.Table]:
    """An empty table, then one per batch of captions; zeros for objects without one."""
    rows = list(reading.read_rows(info, ["id", "caption"], shards=[index]))
    for part in [[], *_batches(rows)]:
        features_BC = np.zeros((len(part), encoder.width), np.float16)
        given = [k for k, row in enumerate(part) if row["caption"]]
        if given:
            features_BC[given] = _encoded(encoder, *encoder.tokenizer([part[k]["caption"] for k in given], cut=True))
        yield pa.table({"id": pa.array([row["id"] for row in part], pa.string()), "text": _tensor(features_BC)})


def _view_tables(
    shape: Sequence[int], dtype: type, made: Callable[[list[bytes]], np.ndarray], info: DatasetInfo, index: int
) -> Iterator[pa.Table]:
    """An empty table, then one per object; zeros for missing views. `made` returns (B, *shape) of B encoded views."""
    num_views, empty = info.config.num_views, np.zeros((0, *shape), dtype)
    yield _image_table([], [], [empty] * num_views)
    for row in reading.read_rows(info, ["id"] + ["views"] * bool(num_views), shards=[index]):
        views = row.get("views") or []
        values = np.zeros((num_views, *shape), dtype)
        for start in range(0, len(views), ENCODE_BATCH):
            try:
                some = made(views[start : start + ENCODE_BATCH])
            except ValueError as error:
                raise ValueError(f"views of {row['id']!r}: {error}") from error
            values[start : start + len(some)] = some
        yield _image_table([row["id"]], [len(views)], list(values[:, None]))


def _seen(encoder: ImageEncoder, views: list[bytes]) -> np.ndarray:
    """The encoder's output for some views."""
    return _encoded(encoder, torch.stack([prepare_image(view, encoder.size) for view in views]))


def _cut(size: int, views: list[bytes]) -> np.ndarray:
    """The views as inputs that are not normalised."""
    return np.stack([cut_pixels(view, size)[0].numpy() for view in views])


def _image_table(ids: list[str], counts: list[int], views: list[np.ndarray]) -> pa.Table:
    columns = {view_column(number): _tensor(view_BMC) for number, view_BMC in enumerate(views)}
    return pa.table({"id": pa.array(ids, pa.string()), "num_views": pa.array(counts, pa.uint16()), **columns})


@torch.inference_mode()
def _encoded(encoder: nn.Module, *inputs: torch.Tensor) -> np.ndarray:
    """The encoder's output as float16; ValueError if it exceeds that range."""
    device = next(encoder.parameters()).device
    features = encoder(*(one.to(device) for one in inputs)).half().cpu().numpy()
    if not np.isfinite(features).all():
        raise ValueError("a feature of the encoder does not fit float16: train with --features live")
    return features


def _tensor(values: np.ndarray) -> pa.Array:
    dtype = pa.from_numpy_dtype(values.dtype)
    kind = pa.fixed_shape_tensor(dtype, values.shape[1:])
    storage = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), dtype), type=kind.storage_type)
    return pa.ExtensionArray.from_storage(kind, storage)


def _batches(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    return [rows[start : start + ENCODE_BATCH] for start in range(0, len(rows), ENCODE_BATCH)]


# --- reading ----------------------------------------------------------------------------------------------------------


class StoredFeatures:
    """Reader of a dataset's features; `kinds` maps text, and image or pictures, to derived tables. Each thread needs
    its own.
    """

    def __init__(self, info: DatasetInfo, kinds: dict[str, str]) -> None:
        self.info, self.kinds = info, kinds
        self.views = kinds.get("image") or kinds.get(PICTURES)  # the table with a column per view
        self._open: OrderedDict[int, tuple[ExitStack, Any, dict[str, int]]] = OrderedDict()

    def again(self) -> StoredFeatures:
        """A second reader of the same tables, for another thread."""
        return StoredFeatures(self.info, self.kinds)

    def encoders(self) -> dict[str, nn.Module]:
        """The encoders' shapes without weights, which replace the encoders in a model."""
        return {condition: self._described(kind) for condition, kind in self.kinds.items() if condition != PICTURES}

    def _described(self, kind: str) -> StoredEncoder:
        index = min(self.info.shards)
        self._check(kind, index)
        with open_parquet(derived.derived_path(self.info, kind, index)) as file:
            told = json.loads(file.schema_arrow.metadata[METADATA])
        *tokens, width = told["shape"]
        return StoredEncoder(told["encoder"], told["revision"], width, *tokens)

    def _check(self, kind: str, index: int) -> None:
        if not derived.derived_is_current(self.info, kind, index):
            raise ValueError(
                f"{derived.derived_path(self.info, kind, index)} is missing or older than its shard: start the "
                f"command with --features stored again"
            )

    def columns(self, ids: Sequence[str], shards: Sequence[int]) -> dict[str, Any]:
        """`text` float16 (N, C) and `num_views` (N,) of objects in `shards`; views are read one by one, by `image`."""
        found: dict[str, Any] = {}
        for condition, name in (("text", "text"), ("image", "num_views"), (PICTURES, "num_views")):
            if condition not in self.kinds:
                continue
            values: dict[str, Any] = {}
            for index in shards:
                self._check(self.kinds[condition], index)
                with open_parquet(derived.derived_path(self.info, self.kinds[condition], index)) as file:
                    table = file.read(columns=["id", name])
                values |= zip(table["id"].to_pylist(), reading.column_values(table[name].combine_chunks()), strict=True)
            found[name] = [values[one] for one in ids]
        return found

    def image(self, object_id: str, view: int) -> np.ndarray:
        """One view of an object: its features float16 (M, C), or its pixels uint8 (H, H, 3)."""
        file, row_of = self._shard(shard_index(object_id, self.info.num_shards))
        (column,) = file.read_row_group(row_of[object_id], columns=[view_column(view)]).columns
        return reading.column_values(column.combine_chunks())[0].copy()  # arrow's memory is read-only

    def _shard(self, index: int) -> tuple[Any, dict[str, int]]:
        assert self.views is not None
        if index not in self._open:
            self._check(self.views, index)
            stack = ExitStack()
            file = stack.enter_context(open_parquet(derived.derived_path(self.info, self.views, index)))
            self._open[index] = (
                stack,
                file,
                {name: row for row, name in enumerate(file.read(columns=["id"])["id"].to_pylist())},
            )
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)[1][0].close()
        self._open.move_to_end(index)
        return self._open[index][1:]
