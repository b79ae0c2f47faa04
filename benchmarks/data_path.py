"""What feeding a training costs: CPU seconds, bytes read, and bytes touched, by way of reading.

    python benchmarks/data_path.py [--objects 384] [--features 64] [--rows draw,bytes,ranks,pictures,features]
                                   [--folder DIR] [--output data_path.json]

Needs torch, numpy, pyarrow and, for the pictures, PIL and SciPy. It makes a dataset of balls with the default numbers
of points in DIR (a temporary folder without it; 0.9 MB per object) and reads it with the preset `small`. Rates are per
CPU second of one process with one thread, because wall time says little on a shared machine; compare within one run.

- draw: samples of a tokenizer's batches, from memory and streamed from Parquet.
- bytes: bytes that are decompressed per sample, and bytes that the sample contains.
- ranks: bytes that the ranks of one node ask the operating system for in one epoch (`rchar` of /proc/PID/io).
- pictures: views of 256 pixels as inputs of an encoder for 224 pixels.
- features: one view's stored features of DINOv2 ViT-L/14, 257 x 1024 numbers in float16.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks import machine
from benchmarks.tokenizer import COLUMNS, balls
from g3pt.config import cvq_preset
from g3pt.data import datasets, derived, reading, records, streaming
from g3pt.data.batches import SurfaceBatches
from g3pt.data.pictures import prepare_image
from g3pt.models import features

CONFIG, _ = cvq_preset("small")
BATCH = 32
SHARDS = 8
READS = (*COLUMNS, "sharp")
VIEW_SIZE, ENCODER_SIZE = 256, 224  # pixels
TOKENS, WIDTH = 257, 1024  # of DINOv2 ViT-L/14
KIND = "image-00000000"
WAYS = ("memory", "parquet")
IN_MEMORY, STREAMED = 2**40, 0  # `in_memory_bytes` that choose one way or the other
GROUP_BYTES = 64 * 2**20


def make_dataset(folder: Path, count: int) -> datasets.DatasetInfo:
    """A dataset of `count` balls, all of the train split, in SHARDS shards."""
    config, arrays = records.RecordConfig(), balls(CONFIG, count=32)
    names = list(
        itertools.islice((f"ball-{i}" for i in itertools.count() if records.split_of(f"ball-{i}") == "train"), count)
    )
    shards = {}
    for shard in range(SHARDS):
        mine = [name for name in names if records.shard_index(name, SHARDS) == shard]
        shards[shard] = datasets.write_shard(folder, shard, [_row(name, config, arrays) for name in mine], config)
    datasets.write_dataset(folder, config, {}, SHARDS, shards)
    return datasets.open_dataset(folder)


def _row(name: str, config: records.RecordConfig, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    ball = records.id_hash(name) % 32
    row = records.empty_row(name, config) | {"status": "ok"}
    return row | {column: arrays[column][ball] for column in READS} | {"eval_surface": arrays["surface"][ball]}


# --- tokenizer --------------------------------------------------------------------------------------------------------


def objects(info: datasets.DatasetInfo, way: str) -> Any:
    """The training objects, read in one of WAYS."""
    limit = IN_MEMORY if way == "memory" else STREAMED
    return streaming.training_objects(info, READS, in_memory_bytes=limit, group_bytes=GROUP_BYTES)


def draw(info: datasets.DatasetInfo, flags: argparse.Namespace) -> dict[str, Any]:
    """Samples per CPU second of a tokenizer's batches in one epoch, by way of reading."""
    rates = {}
    for way in WAYS:
        stream = SurfaceBatches(objects(info, way), CONFIG, BATCH, 0)(0)
        next(stream)
        number = max(1, flags.objects // BATCH)
        rates[way] = BATCH / cpu_seconds(functools.partial(next, stream), number)
        stream.close()
    return rates


def touched(info: datasets.DatasetInfo, flags: argparse.Namespace) -> dict[str, Any]:
    """Bytes that are read into memory per sample, over the bytes of the dataset that a sample has."""
    queries = CONFIG.num_volume_queries + CONFIG.num_near_queries
    drawn = 12 * (CONFIG.num_points + CONFIG.num_sharp_points) + 6 * queries + queries // 8
    return {"drawn": drawn, "parquet": streaming.object_bytes(info, READS) / drawn}


def ranks(info: datasets.DatasetInfo, flags: argparse.Namespace) -> dict[str, Any]:
    """Bytes that 4 ranks of a node read from files in one epoch, over those of one rank."""
    return {way: read_by(info, way, 4) / read_by(info, way, 1) for way in WAYS}


def read_by(info: datasets.DatasetInfo, way: str, count: int) -> int:
    """Bytes that `count` ranks ask the operating system for in one epoch."""
    context = multiprocessing.get_context("fork")
    with context.Pool(count) as pool:
        return sum(pool.starmap(_epoch, [(info, way, rank, count) for rank in range(count)], 1))


def _epoch(info: datasets.DatasetInfo, way: str, rank: int, count: int) -> int:
    torch.set_num_threads(1)
    before = asked_bytes()
    found = objects(info, way)
    stream = SurfaceBatches(found, CONFIG, BATCH, 0, rank, count)(0)
    for _ in range(max(1, info.splits["train"] // BATCH)):
        next(stream)
    stream.close()
    return asked_bytes() - before


def asked_bytes() -> int:
    """Bytes that this process has asked the operating system for so far."""
    return int(Path("/proc/self/io").read_text(encoding="utf-8").split()[1])


# --- generator --------------------------------------------------------------------------------------------------------


def pictures(info: datasets.DatasetInfo, flags: argparse.Namespace) -> dict[str, Any]:
    """Pictures per CPU second as inputs of an encoder."""
    encoded = [encoded_view(number) for number in range(8)]
    views = itertools.cycle(encoded)
    return {"view": 1 / cpu_seconds(lambda: prepare_image(next(views), ENCODER_SIZE), 64)}


def encoded_view(number: int, size: int = VIEW_SIZE) -> bytes:
    """A shaded ball with some noise on a transparent background, in the format of a dataset's views."""
    from g3pt.geometry.render import encode

    rng = np.random.default_rng(number)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    height = np.sqrt(np.clip(0.6 - x**2 - y**2, 0, None))
    shade = 60 + 180 * height[..., None] * [0.9, 0.7, 0.5] + rng.normal(0, 2, (size, size, 3))
    alpha = np.where(height > 0, 255, 0)[..., None]
    return encode(np.concatenate([np.where(alpha > 0, shade, 0), alpha], -1).clip(0, 255).astype(np.uint8))


def stored_features(info: datasets.DatasetInfo, flags: argparse.Namespace) -> dict[str, Any]:
    """Stored features of one view, per CPU second."""
    names = write_features(info, flags.features)
    reader, turns = features.StoredFeatures(info, {"image": KIND}), itertools.cycle(names)
    reader.image(names[0], 0)
    return {"parquet": 1 / cpu_seconds(lambda: reader.image(next(turns), 0), len(names))}


def write_features(info: datasets.DatasetInfo, count: int) -> list[str]:
    """Features of one view for `count` objects, random numbers; returns their ids."""
    rng, found = np.random.default_rng(0), []
    for shard in info.shards:
        names = [row["id"] for row in reading.read_rows(info, ["id"], shards=[shard])][: max(1, count // SHARDS)]
        tables = [
            features._image_table([name], [1], [rng.normal(size=(1, TOKENS, WIDTH)).astype(np.float16)])
            for name in names
        ]
        derived.write_derived_groups(info, KIND, shard, tables[0].schema, tables)
        found += names
    return found


# --- measuring --------------------------------------------------------------------------------------------------------


def cpu_seconds(call: Callable[[], Any], count: int) -> float:
    """CPU seconds of this process per call."""
    start = time.process_time()
    for _ in range(count):
        call()
    return (time.process_time() - start) / count


ROWS = {"draw": draw, "bytes": touched, "ranks": ranks, "pictures": pictures, "features": stored_features}


def main() -> None:
    """Measure the rows; print them and write them to --output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=384)
    parser.add_argument("--features", type=int, default=64, help="objects with stored features")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--output", type=Path, default=Path("data_path.json"))
    flags = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=flags.folder) as folder:
        info, found = make_dataset(Path(folder), flags.objects), machine.about("torch", "numpy", "pyarrow")
        for name in flags.rows.split(","):
            found[name] = ROWS[name](info, flags)
            print(f"{name}: " + ", ".join(f"{key} {value:,.4g}" for key, value in found[name].items()), flush=True)
            flags.output.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
