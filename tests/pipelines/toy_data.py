"""A dataset of analytic boxes and balls, captioned, with views, and an untrained tokenizer's export:
no geometry code needed.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from g3pt.data import datasets, records
from tests.g3pt.tiny import tiny_tokenizer

TOY = records.RecordConfig(num_surface=128, num_sharp=8, num_queries=64, num_views=2)


def toy_row(number: int, config: records.RecordConfig = TOY) -> dict:
    """The row of a ball or a box; every seventh object failed."""
    object_id = f"toy/{number:03d}"
    row = records.empty_row(object_id, config)
    if number % 7 == 6:
        return row | {"error": "corrupt: made so"}
    rng = np.random.default_rng(number)
    direction = rng.normal(size=(config.num_surface, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    is_ball = number % 2 == 0
    points = direction * 0.8 if is_ball else direction / np.abs(direction).max(axis=1, keepdims=True) * 0.8
    row["surface"] = np.concatenate([points, direction], axis=1).astype(np.float16)
    row |= {
        "status": "ok",
        "caption": "a round ball" if is_ball else "a square box",
        "license": "CC0-1.0",
        "author": "nobody",
    }
    if config.num_views:
        row["views"] = [_picture(is_ball, view) for view in range(config.num_views)]
    return row


def _picture(is_ball: bool, view: int) -> bytes:
    from PIL import Image, ImageDraw

    image, buffer = Image.new("RGBA", (40, 40), (0, 0, 0, 0)), io.BytesIO()
    draw = ImageDraw.Draw(image)
    (draw.ellipse if is_ball else draw.rectangle)((4 + view, 4, 35, 35), fill=(200, 40, 40, 255))
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_toy_dataset(
    folder: Path, count: int = 60, num_shards: int = 3, config: records.RecordConfig = TOY
) -> datasets.DatasetInfo:
    """`count` objects in `num_shards` shards."""
    rows = [toy_row(number, config) for number in range(count)]
    shards = {}
    for index in range(num_shards):
        mine = sorted((r for r in rows if records.shard_index(r["id"], num_shards) == index), key=lambda r: r["id"])
        shards[index] = datasets.write_shard(folder, index, mine, config, num_shards=num_shards)
    datasets.write_dataset(folder, config, {"toy": 1}, num_shards, shards)
    return datasets.open_dataset(folder)


def write_toy_tokenizer(folder: Path) -> Path:
    """An untrained tokenizer of scales 1, 3, 6, 8."""
    return tiny_tokenizer().save_pretrained(folder)


def write_encoded_toy(folder: Path, count: int = 60) -> dict[str, str]:
    """A toy dataset with its codes by a toy tokenizer: `data` and `tokenizer`, as a run's paths have them."""
    from pipelines.derive import tokens

    info, tokenizer = write_toy_dataset(folder / "data", count=count), write_toy_tokenizer(folder / "tokenizer")
    tokens.encode_dataset(info.path, tokenizer, use_ray=False)
    return {"data": str(info.path), "tokenizer": str(tokenizer)}
