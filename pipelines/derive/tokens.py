"""Codes of a whole dataset, computed once by a frozen tokenizer: `DATASET/derived/tokens-<export
hash>/shard-*.parquet`.

Each shard is one item of a pool of workers that hold the tokenizer (`pipelines.derive.tables`). The work itself,
`encode_shard`, is a plain function.

Ours: codes depend neither on the number of workers nor on other objects (`g3pt.models.encoding`).
Shapes: S tokens of all scales.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from g3pt.config import CVQConfig, from_dict
from g3pt.data import datasets, derived, reading, records
from g3pt.data.datasets import DatasetInfo
from g3pt.data.variants import COLUMNS as VARIED_BY
from g3pt.data.variants import varied
from g3pt.models.encoding import encode, encoded_columns
from g3pt.training.exports import export_hash, find_export, read_export_config
from pipelines.cli.errors import bad_input
from pipelines.cli.failures import doing, remedied
from pipelines.cli.main import absolute
from pipelines.cluster import session
from pipelines.cluster.pool import Pool, model_memory
from pipelines.derive.tables import WITHOUT_GPU, derive, is_done, made
from pipelines.runs.settings import flag

READS = ("num_encode_points", "num_sharp_points")  # how many points of an object are encoded
TRAINS_ON = ("num_points", *READS, "num_volume_queries", "num_near_queries")  # how many are read in training, too
COLUMN_OF = {  # and where they are stored: the column and the flag of jobs/preprocess.py
    "num_points": ("surface", "num_surface"),
    "num_encode_points": ("surface", "num_surface"),
    "num_sharp_points": ("sharp", "num_sharp"),
    "num_volume_queries": ("volume_points", "num_queries"),
    "num_near_queries": ("near_points", "num_queries"),
}


def tokens_kind(tokenizer: str | Path) -> str:
    """The derived table's name: tokens-<first 8 hex digits of the export's hash>."""
    return f"tokens-{export_hash(tokenizer)[:8]}"


def variant_kind(kind: str, variant: int) -> str:
    """The table with the codes of a variant (`g3pt.data.variants`): tokens-<hash8>, variant1-<hash8>, ..."""
    return kind.replace("tokens-", f"variant{variant}-", 1) if variant else kind


def encode_dataset(
    data: str | Path,
    tokenizer: str | Path,
    *,
    variants: int = 1,
    num_workers: int = 2,
    ray_address: str | None = None,
    device: str = "auto",
    use_ray: bool = True,
) -> str:
    """Encode every ok object of a dataset, and of each `variants` - 1 variants; return the derived kind of the objects.

    Without Ray the shards are encoded in this process, in turn.

    `num_workers` actors share the CPUs. If `device` selects GPUs there is one actor per GPU instead.
    """
    with bad_input():
        info = datasets.open_dataset(data)
        if read_export_config(tokenizer)["kind"] != "cvq":
            raise ValueError(f"{tokenizer}: not a tokenizer")
        kind = tokens_kind(tokenizer)
        check_points(info, from_dict(CVQConfig, read_export_config(tokenizer)["model"]))
    pool = Pool(
        num_workers=num_workers if use_ray else 0,
        all_gpus=True,
        ray_address=ray_address,
        device=device,
        memory=model_memory(find_export(tokenizer)),
    )
    kinds = [variant_kind(kind, variant) for variant in range(variants)]
    derive(info, kinds, ShardEncoder, (str(info.path), absolute(str(tokenizer)), variants), "tokens", pool)
    return kind


def check_points(
    info: DatasetInfo, config: CVQConfig, *, names: Sequence[str] = READS, reader: str = "the tokenizer"
) -> None:
    """ValueError if `config` reads more points of an object than the dataset stores."""
    for name in names:
        column, number = COLUMN_OF[name]
        stored = getattr(info.config, number)
        if getattr(config, name) > stored:
            raise ValueError(
                f"{reader} reads {name} = {getattr(config, name)}, dataset {info.path} stores {stored} per object in "
                f"column {column} ({flag(number)} of jobs/preprocess.py)"
            )


class ShardEncoder:
    """A worker with a tokenizer."""

    def __init__(self, data: str, tokenizer: str, variants: int = 1) -> None:
        import torch

        from g3pt.models.tokenizer import CVQ

        torch.set_num_threads(1)
        self.info, self.kind = datasets.open_dataset(data), tokens_kind(tokenizer)
        self.model = CVQ.from_pretrained(tokenizer).to(session.torch_device())
        self.variants = variants

    def run(self, index: int) -> dict[str, Any]:
        """Write the missing codes of one shard; return `made`."""
        tables, count = [], 0
        with doing(f"encoding {records.shard_name(index)} of {self.info.path}"), remedied(lambda: WITHOUT_GPU):
            for variant in range(self.variants):
                kind = variant_kind(self.kind, variant)
                if not is_done(self.info, [kind], index):
                    ids, codes_NS = encode_shard(self.model, self.info, index, variant)
                    tables.append(derived.write_derived(self.info, kind, index, codes_table(ids, codes_NS)))
                    count = len(ids)
        return made(count, tables)


class RowEncoder:
    """A worker with a tokenizer, for rows in memory."""

    def __init__(self, tokenizer: str) -> None:
        from g3pt.models.tokenizer import CVQ

        self.model = CVQ.from_pretrained(tokenizer).to(session.torch_device())

    def run(self, rows: Sequence[dict[str, Any]]) -> np.ndarray:
        """Codes int64 (N, S)."""
        return encode(self.model, rows)


def encode_shard(model: Any, info: DatasetInfo, index: int, variant: int = 0) -> tuple[list[str], np.ndarray]:
    """(ids, codes uint16 (N, S)) of the ok rows of one shard, or of a variant of each."""
    columns = [*VARIED_BY, *encoded_columns(model.config)]
    rows = [varied(row, variant) for row in reading.read_rows(info, columns, shards=[index])]
    return [row["id"] for row in rows], encode(model, rows).astype(np.uint16)


def codes_table(ids: list[str], codes_NS: np.ndarray) -> pa.Table:
    """The derived table with columns `id` and `codes`, a tensor column of uint16 (S,)."""
    kind = pa.fixed_shape_tensor(pa.uint16(), (codes_NS.shape[1],))
    storage = pa.FixedSizeListArray.from_arrays(pa.array(codes_NS.reshape(-1), pa.uint16()), type=kind.storage_type)
    codes = pa.ExtensionArray.from_storage(kind, storage)
    return pa.table({"id": pa.array(ids, pa.string()), "codes": codes})


def load_codes(info: DatasetInfo, kind: str, shards: Iterable[int] | None = None) -> dict[str, np.ndarray]:
    """id -> codes uint16 (S,), of the whole dataset or of these shards."""
    table = derived.read_derived(info, kind, shards)
    codes = reading.column_values(table["codes"].combine_chunks())
    return dict(zip(table["id"].to_pylist(), codes, strict=True))
