"""What feeding a training costs: CPU seconds, bytes read, and bytes touched, by way of reading.

    python benchmarks/data_path.py [--objects 384] [--epochs 4] [--features 64] [--folder DIR] [--output data_path.json]
                                   [--rows draw,bytes,ranks,loaders,pictures,features]

Needs torch, numpy, pyarrow and, for the pictures, PIL and SciPy. It makes a dataset of balls with the default numbers
of points in DIR (a temporary folder without it; 1.7 MB per object with its copies) and reads it with the preset
`small`. Rates are per CPU second of one process with one thread, because wall time says little on a shared machine;
compare within one run. `memory` holds the split, `parquet` streams its shards, `cache` maps a node's copies of them.

- draw: samples of a tokenizer's batches.
- bytes: bytes that come into memory per byte that a sample has. Of the cache these are the pages that are resident
  after a batch was drawn from files that were evicted.
- ranks: bytes that 4 ranks of one node ask the operating system for in one epoch (`rchar` of /proc/PID/io), filling the
  cache included, over those of one rank.
- loaders: CPU milliseconds of all processes per sample, by the number of loader processes.
- pictures: views of 256 pixels as inputs of an encoder for 224 pixels.
- features: one view's stored features of DINOv2 ViT-L/14, 257 x 1024 numbers in float16.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import io
import itertools
import json
import mmap
import multiprocessing
import os
import resource
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
from g3pt.data.cache import ID, ColumnCache, Source
from g3pt.data.loading import loaded
from g3pt.data.pictures import cut_pixels, normalised, prepare_image
from g3pt.geometry.render import encode
from g3pt.models import features
from pipelines.train.node_cache import node_cache

CONFIG, _ = cvq_preset("small")
BATCH = 32
SHARDS = 8
READS = (*COLUMNS, "sharp")
VIEW_SIZE, ENCODER_SIZE = 256, 224  # pixels
TOKENS, WIDTH = 257, 1024  # of DINOv2 ViT-L/14
KIND = "image-00000000"
WAYS = ("memory", "parquet", "cache")
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


def objects(info: datasets.DatasetInfo, way: str, folder: Path, rank: int = 0) -> Any:
    """The training objects, read in one of WAYS; `folder` is that of the cache."""
    limit = IN_MEMORY if way == "memory" else STREAMED
    wanted = streaming.Reading(dataset=info, columns=READS, in_memory_bytes=limit, group_bytes=GROUP_BYTES)
    return streaming.training_objects(wanted, node_cache(wanted, str(folder), rank) if way == "cache" else None)


def batches(
    info: datasets.DatasetInfo, way: str, rank: int = 0, count: int = 1, folder: str = "cache"
) -> SurfaceBatches:
    """The batches of one of `count` ranks."""
    return SurfaceBatches(objects(info, way, info.path.parent / folder, rank), CONFIG, BATCH, 0, rank, count)


def draw(info: datasets.DatasetInfo, flags: argparse.Namespace) -> dict[str, Any]:
    """Samples per CPU second of a tokenizer's batches by way of reading, in the first epoch and in later ones."""
    rates, steps = {}, max(1, flags.objects // BATCH)
    for way in WAYS:
        with contextlib.closing(batches(info, way)(0)) as stream:
            rates[f"{way}, first epoch"] = BATCH / cpu_seconds(functools.partial(next, stream), steps)
            rates[way] = BATCH / cpu_seconds(functools.partial(next, stream), flags.epochs * steps)
    return rates


def touched(info: datasets.DatasetInfo, flags: argparse.Namespace) -> dict[str, Any]:
    """Bytes that come into memory per byte that a sample has."""
    stream = batches(info, "cache")(0)
    files = [file for file in (info.path.parent / "cache").rglob("*.arrow") if file.stem in READS]
    for file in files:
        evict(file)
    left = sum(map(resident_bytes, files))
    batch = next(stream)
    drawn = sum(value.nbytes for name, value in batch.items() if name[:4] not in ("near", "occu"))
    drawn += batch["occupancy_BQ"].numel() // 8
    found = sum(map(resident_bytes, files)) - left
    per_object = streaming.object_bytes(info, READS)
    return {"bytes": drawn / BATCH, "parquet": per_object * BATCH / drawn, "cache": found / drawn, "not evicted": left}


def evict(file: Path) -> None:
    """Drop a file's pages from memory."""
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident_bytes(file: Path) -> int:
    """Bytes of a file that are in memory."""
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
        place = np.frombuffer(mapped, np.uint8)
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        ctypes.CDLL(None).mincore(ctypes.c_void_p(place.ctypes.data), ctypes.c_size_t(len(mapped)), pages)
        del place
        return mmap.PAGESIZE * sum(page & 1 for page in pages)


def ranks(info: datasets.DatasetInfo, flags: argparse.Namespace) -> dict[str, Any]:
    """Bytes that 4 ranks of a node read from files in one epoch, over those of one rank."""
    return {way: read_by(info, way, 4) / read_by(info, way, 1) for way in WAYS}


def read_by(info: datasets.DatasetInfo, way: str, count: int) -> int:
    """Bytes that `count` ranks ask the operating system for in one epoch, with a new cache."""
    with multiprocessing.get_context("fork").Pool(count) as pool:
        return sum(pool.starmap(_epoch, [(info, way, rank, count) for rank in range(count)], 1))


def _epoch(info: datasets.DatasetInfo, way: str, rank: int, count: int) -> int:
    torch.set_num_threads(1)
    before = asked_bytes()
    stream = batches(info, way, rank, count, f"cache-of-{count}")(0)
    for _ in range(max(1, info.splits["train"] // BATCH)):
        next(stream)
    stream.close()
    return asked_bytes() - before


def asked_bytes() -> int:
    """Bytes that this process has asked the operating system for so far."""
    return int(Path("/proc/self/io").read_text(encoding="utf-8").split()[1])


def loaders(info: datasets.DatasetInfo, flags: argparse.Namespace) -> dict[str, Any]:
    """CPU milliseconds per sample of this process and its loader processes, from the cache."""
    make, found = batches(info, "cache"), {}
    steps = 4 * flags.epochs * max(1, flags.objects // BATCH)
    for count in (0, 1, 2):
        start = all_cpu_seconds()
        with contextlib.closing(loaded(make, 0, count)) as stream:
            for _ in range(steps):
                next(stream)
        found[f"{count} processes"] = 1e3 * (all_cpu_seconds() - start) / (steps * BATCH)
    return found


def all_cpu_seconds() -> float:
    """CPU seconds of this process and of its children that ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


# --- generator --------------------------------------------------------------------------------------------------------


def pictures(info: datasets.DatasetInfo, flags: argparse.Namespace) -> dict[str, Any]:
    """Pictures per CPU second as inputs of an encoder: from a dataset's views, from stored ones, and from WebP of the
    encoder's size.
    """
    views = [encoded_view(number) for number in range(8)]
    stored = np.stack([cut_pixels(view, ENCODER_SIZE)[0].numpy() for view in views])
    webp = [encode(pixels) for pixels in stored]
    found = {"view": rate(lambda number: prepare_image(views[number], ENCODER_SIZE))}
    found["webp"] = rate(lambda number: normalised(torch.from_numpy(decoded(webp[number]))))
    return found | mapped_pictures(info, stored)


def mapped_pictures(info: datasets.DatasetInfo, stored: np.ndarray) -> dict[str, Any]:
    """The rate of stored pictures in a derived table and in a cache of it."""
    names = write_views(info, "pictures-00000000", lambda number: stored[None, number % len(stored)], 8 * SHARDS)
    reader = features.StoredFeatures(info, {"pictures": "pictures-00000000"})
    mapped = cached(info, "pictures-00000000", "view_0", len(names))
    return {
        "parquet": rate(lambda number: normalised(torch.from_numpy(reader.image(names[number], 0)))),
        "cache": rate(lambda number: normalised(torch.from_numpy(mapped[number].copy()))),
    }


def rate(make: Callable[[int], Any], count: int = 8, turns: int = 16) -> float:
    """Calls per CPU second of `make` with the numbers below `count`."""
    for number in range(count):
        make(number)
    return count / cpu_seconds(lambda: [make(number) for number in range(count)], turns)


def decoded(content: bytes) -> np.ndarray:
    """Pixels of an encoded picture."""
    from PIL import Image

    return np.array(Image.open(io.BytesIO(content)).convert("RGB"))


def cached(info: datasets.DatasetInfo, kind: str, column: str, count: int) -> list[np.ndarray]:
    """Values of a derived column, mapped from a cache."""
    cache = ColumnCache(info.path.parent / "views", info)
    for shard in sorted(info.shards):
        for source in (ID, Source(column, kind)):
            cache.fill(shard, source)
    return [value for shard in sorted(info.shards) for value in cache.open(shard, Source(column, kind))][:count]


def encoded_view(number: int, size: int = VIEW_SIZE) -> bytes:
    """A shaded ball with some noise on a transparent background, in the format of a dataset's views."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    height = np.sqrt(np.clip(0.6 - x**2 - y**2, 0, None))
    shade = 60 + 180 * height[..., None] * [0.9, 0.7, 0.5] + rng.normal(0, 2, (size, size, 3))
    alpha = np.where(height > 0, 255, 0)[..., None]
    return encode(np.concatenate([np.where(alpha > 0, shade, 0), alpha], -1).clip(0, 255).astype(np.uint8))


def stored_features(info: datasets.DatasetInfo, flags: argparse.Namespace) -> dict[str, Any]:
    """Stored features of one view, per CPU second."""
    rng = np.random.default_rng(0)
    names = write_views(
        info, KIND, lambda _: rng.normal(size=(1, TOKENS, WIDTH)).astype(np.float16), info.splits["train"]
    )
    reader, mapped = features.StoredFeatures(info, {"image": KIND}), cached(info, KIND, "view_0", len(names))
    count = min(flags.features, len(names))
    return {
        "parquet": rate(lambda number: reader.image(names[number], 0), count, 2),
        "cache": rate(lambda number: torch.from_numpy(mapped[number].copy()), count, 8),
    }


def write_views(info: datasets.DatasetInfo, kind: str, view: Callable[[int], np.ndarray], count: int) -> list[str]:
    """A derived table with one view for each object, `view(number)` of shape (1, ...); returns `count` ids."""
    found = []
    for shard in sorted(info.shards):
        names = [row["id"] for row in reading.read_rows(info, ["id"], shards=[shard])]
        tables = [features._image_table([name], [1], [view(number)]) for number, name in enumerate(names)]
        derived.write_derived_groups(info, kind, shard, tables[0].schema, tables)
        found += names
    return found[:count]


# --- measuring --------------------------------------------------------------------------------------------------------


def cpu_seconds(call: Callable[[], Any], count: int) -> float:
    """CPU seconds of this process per call."""
    start = time.process_time()
    for _ in range(count):
        call()
    return (time.process_time() - start) / count


ROWS = {
    "draw": draw,
    "bytes": touched,
    "ranks": ranks,
    "loaders": loaders,
    "pictures": pictures,
    "features": stored_features,
}


def main() -> None:
    """Measure the rows; print them and write them to --output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=384)
    parser.add_argument("--epochs", type=int, default=4, help="epochs after the first one")
    parser.add_argument("--features", type=int, default=64, help="objects whose stored features are read")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--output", type=Path, default=Path("data_path.json"))
    flags = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=flags.folder) as folder:
        info, found = make_dataset(Path(folder) / "data", flags.objects), machine.about("torch", "numpy", "pyarrow")
        for name in flags.rows.split(","):
            found[name] = ROWS[name](info, flags)
            print(f"{name}: " + ", ".join(f"{key} {value:,.4g}" for key, value in found[name].items()), flush=True)
            flags.output.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
