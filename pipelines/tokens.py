"""Codes of a whole dataset, written once by a frozen tokenizer: `DATASET/derived/tokens-<export hash>/shard-*.parquet`.

Each shard is one task of a Ray Data pool of actors that hold the tokenizer; a shard that is there and was made from its
source as it stands is skipped, so the same call resumes. The work itself, `encode_shard`, is a plain function.

Ours: objects are encoded in batches of one fixed size (the last one filled up), from the first stored points, so that codes
depend on neither worker count nor neighbours.
Shapes: B batch, P surface points, S tokens of all scales.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from g3pt import datasets, derived, reading, records
from g3pt.checkpoint import export_hash, read_export_config
from g3pt.config import CVQConfig, from_dict
from g3pt.datasets import DatasetInfo
from pipelines.errors import bad_input
from pipelines.failures import doing, on_disk
from pipelines.progress import Progress

ENCODE_BATCH = 16
READS = ("num_encode_points", "num_sharp_points")  # of an object, when it is encoded


def tokens_kind(tokenizer: str | Path) -> str:
    """The derived table's name: tokens-<first 8 hex digits of the export's hash>."""
    return f"tokens-{export_hash(tokenizer)[:8]}"


def encode_dataset(
    data: str | Path, tokenizer: str | Path, *, num_workers: int = 2, ray_address: str | None = None, device: str = "auto", use_ray: bool = True
) -> str:
    """Encode every `ok` object of a dataset; gives the derived kind. Without Ray the shards are done here, in turn.

    `num_workers` actors share the CPUs; where `device` means GPUs there is one for each GPU instead.
    """
    with bad_input():
        info = datasets.open_dataset(data)
        if read_export_config(tokenizer)["kind"] != "cvq":
            raise ValueError(f"{tokenizer}: not a tokenizer")
        kind = tokens_kind(tokenizer)
        check_points(info, from_dict(CVQConfig, read_export_config(tokenizer)["model"]))
    todo = [index for index in sorted(info.shards) if not derived.derived_is_current(info, kind, index)]
    before = len(info.shards) - len(todo)
    print(f"tokens: {len(info.shards)} shards, {before} encoded before, {len(todo)} to do", file=sys.stderr)
    if todo:
        with on_disk(lambda: _encoded_shards(info, kind)), Progress("tokens", sum(_num_ok(info, index) for index in todo), "objects") as progress:
            done = 0
            for count in _encoded(info, tokenizer, todo, num_workers, ray_address, device) if use_ray else _encoded_here(info, tokenizer, todo):
                done += count
                progress.show(done)
    return kind


def _encoded_shards(info: DatasetInfo, kind: str) -> str:
    """What a stopped command leaves."""
    done = sum(derived.derived_is_current(info, kind, index) for index in info.shards)
    return f"{done} of {len(info.shards)} shards are encoded ({info.path / 'derived' / kind})"


def _num_ok(info: DatasetInfo, index: int) -> int:
    """Objects of a shard that have codes, from its sidecar."""
    return json.loads((info.path / f"{records.shard_name(index)}.json").read_text())["counts"].get("ok", 0)


def _encoded_here(info: DatasetInfo, tokenizer: str | Path, todo: list[int]) -> Iterator[int]:
    """Objects of each shard, encoded in this process."""
    encoder = ShardEncoder(str(info.path), str(tokenizer))
    yield from map(encoder.encode, todo)


def check_points(info: DatasetInfo, config: CVQConfig, *, names: Sequence[str] = READS, reader: str = "the tokenizer") -> None:
    """A ValueError if `config` reads more points of an object than the dataset stores."""
    for name in names:
        stored = info.config.num_sharp if name == "num_sharp_points" else info.config.num_surface
        if getattr(config, name) > stored:
            raise ValueError(f"{reader} reads {name} = {getattr(config, name)}, dataset {info.path} stores {stored} per object")


def _encoded(info: DatasetInfo, tokenizer: str | Path, todo: list[int], num_workers: int, ray_address: str | None, device: str) -> Iterator[int]:
    """Objects of each shard, encoded on Ray, as they are done."""
    import ray

    from pipelines import cluster

    cluster.connect(ray_address)
    request, room = cluster.actor_resources(device)
    workers = max(1, min(room if "num_gpus" in request else num_workers, len(todo)))
    # One block each from the start: tasks that split them would wait for ever for a CPU that an actor holds.
    shards = ray.data.from_items([{"shard": index} for index in todo], override_num_blocks=len(todo))
    done = shards.map_batches(
        ShardEncoder,
        fn_constructor_args=(str(info.path), str(Path(tokenizer).resolve())),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        **request,
    )
    yield from (int(row["objects"]) for row in done.iter_rows())


class ShardEncoder:
    """A tokenizer held by one worker; called with a batch of shard numbers it writes their derived tables."""

    def __init__(self, data: str, tokenizer: str) -> None:
        import torch

        from g3pt.tokenizer import CVQ
        from pipelines import cluster

        torch.set_num_threads(1)
        self.info, self.kind = datasets.open_dataset(data), tokens_kind(tokenizer)
        self.model = CVQ.from_pretrained(tokenizer).to(cluster.torch_device())

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Ray Data's interface: {'shard': (n,)} -> {'shard', 'objects'}."""
        return {"shard": batch["shard"], "objects": np.array([self.encode(int(i)) for i in batch["shard"]])}

    def encode(self, index: int) -> int:
        """Write one shard's codes; the number of objects in it."""
        with doing(f"encoding {records.shard_name(index)} of {self.info.path}"):
            ids, codes_NS = encode_shard(self.model, self.info, index)
            derived.write_derived(self.info, self.kind, index, codes_table(ids, codes_NS))
        return len(ids)


def encode_shard(model: Any, info: DatasetInfo, index: int) -> tuple[list[str], np.ndarray]:
    """(ids, codes uint16 (N, S)) of the `ok` rows of one shard."""
    rows = list(reading.read_rows(info, ["id", *encoded_columns(model.config)], shards=[index]))
    return [row["id"] for row in rows], encode(model, rows).astype(np.uint16)


def encoded_columns(config: CVQConfig) -> list[str]:
    """The columns of a row that become its codes."""
    return ["surface"] + ["sharp"] * bool(config.num_sharp_points)


def encode(model: Any, rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """Codes int64 (N, S) of rows with `encoded_columns`, in batches of ENCODE_BATCH, the last filled up."""
    parts = [np.zeros((0, model.config.num_tokens), np.int64)]
    for start in range(0, len(rows), ENCODE_BATCH):
        part = list(rows[start : start + ENCODE_BATCH])
        parts.append(_encode_batch(model, part + part[-1:] * (ENCODE_BATCH - len(part)))[: len(part)])
    return np.concatenate(parts)


def _encode_batch(model: Any, rows: list[dict[str, Any]]) -> np.ndarray:
    return model.encode(*encoder_inputs(model, rows)).cpu().numpy()


def encoder_inputs(model: Any, rows: Sequence[dict[str, Any]]) -> tuple[Any, Any]:
    """What the encoder reads of rows with `encoded_columns`: surface_BP6, and sharp_BP6 or None."""
    import torch

    config, device = model.config, next(model.parameters()).device

    def points(name: str, count: int) -> torch.Tensor:
        stacked = np.stack([row[name][:count] for row in rows]).astype(np.float32)
        return torch.from_numpy(stacked).to(device)

    return points("surface", config.num_encode_points), points("sharp", config.num_sharp_points) if config.num_sharp_points else None


def codes_table(ids: list[str], codes_NS: np.ndarray) -> pa.Table:
    """The derived table: `id`, and `codes` as a tensor column of uint16 (S,)."""
    kind = pa.fixed_shape_tensor(pa.uint16(), (codes_NS.shape[1],))
    storage = pa.FixedSizeListArray.from_arrays(pa.array(codes_NS.reshape(-1), pa.uint16()), type=kind.storage_type)
    codes = pa.ExtensionArray.from_storage(kind, storage)
    return pa.table({"id": pa.array(ids, pa.string()), "codes": codes})


def load_codes(info: DatasetInfo, kind: str, shards: Iterable[int] | None = None) -> dict[str, np.ndarray]:
    """id -> codes uint16 (S,) of the whole dataset, or of some shards."""
    table = derived.read_derived(info, kind, shards)
    codes = reading.column_values(table["codes"].combine_chunks())
    return dict(zip(table["id"].to_pylist(), codes, strict=True))
