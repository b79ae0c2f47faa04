"""A dataset's summary, written beside it: card.json (counts, histograms, slowest and failed objects), contact_sheet.png
and its credits.

How: one pass over the shards, one at a time, which reads only small columns. It keeps bins, counts of a bounded number
of names, the few largest values and the chosen ids, so memory does not grow with the dataset. Pictured are the ok
objects with the smallest sha256(id), whatever the order. The dataset's report shows the card, and preprocessing logs
all of it to MLflow.
"""

from __future__ import annotations

import bisect
import heapq
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from g3pt.data.datasets import DatasetInfo, open_dataset
from g3pt.data.reading import read_rows
from g3pt.data.records import id_hash, shard_index, shard_name
from g3pt.data.storage import read_many, write_atomic
from g3pt.data.summary import SMALL_SHARE, Names

if TYPE_CHECKING:
    from PIL import Image

CARD, SHEET = "card.json", "contact_sheet.png"
SHOWN_OBJECTS, SHOWN_SLOWEST, SHOWN_NOT_OK, SHOWN_NAMES = 64, 20, 100, 200
TILE, COLUMNS = 160, 8
THIRDS = [
    round(k * 10.0**e, 9) for e in range(-4, 8) for k in (1, 3)
]  # edges of bins, each about three times the one before
EDGES: dict[str, list[float]] = {
    "num_faces": [e for e in THIRDS if 1 <= e <= 1e7],
    "volume": [e for e in THIRDS if 1e-4 <= e <= 10],
    "thickness": [e for e in THIRDS if 1e-3 <= e <= 1],
    "chamfer_to_input": [e for e in THIRDS if 1e-4 <= e <= 1],
    "largest_component_share": [round(0.1 * k, 1) for k in range(1, 10)],
    "filled_share": [round(0.1 * k, 1) for k in range(1, 10)],
    "seconds": [e for e in THIRDS if 1e-2 <= e <= 1e3],
}
LIGHT = (
    "id",
    "status",
    "error",
    "category",
    "license",
    "author",
    "attribution_url",
    "source_url",
    "caption",
    "name",
    "appearance",
)


@dataclass
class Histogram:
    """Counts between edges.

    The first count is of values below the first edge, the last of values above the last edge.
    """

    edges: list[float]
    counts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.edges) + 1)

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect.bisect_right(self.edges, value)] += 1


class Summary:
    """What one pass over a dataset collects."""

    def __init__(self) -> None:
        self.named = {name: Names() for name in ("category", "license", "appearance")}
        self.num_filled = 0  # ok objects with enclosed air that was filled
        self.num_small = 0  # ok objects whose largest component fills less than SMALL_SHARE of their box
        self.histograms = {name: Histogram(edges) for name, edges in EDGES.items()}
        self.pictured: list[tuple[int, dict[str, Any]]] = []  # a heap of (-sha256(id), row)
        self.slowest: list[tuple[float, str]] = []
        self.not_ok: list[tuple[int, str, str, str]] = []

    def add(self, row: dict[str, Any]) -> None:
        """Add one row with the columns LIGHT and the measured ones."""
        rank = -id_hash(row["id"])
        if row["status"] != "ok":
            _keep(self.not_ok, (rank, row["id"], row["status"], row["error"]), SHOWN_NOT_OK)
            return
        for name, counter in self.named.items():
            counter.add({row[name]: 1})
        filled = bool(row.get("filled_by"))
        self.num_filled += filled
        for name in EDGES.keys() & row.keys():
            if filled or name != "filled_share":
                self.histograms[name].add(float(row[name]))
        self.num_small += int(row.get("largest_component_share", 1.0) < SMALL_SHARE)
        if len(self.pictured) < SHOWN_OBJECTS or rank > self.pictured[0][0]:
            _keep(self.pictured, (rank, {name: row[name] for name in LIGHT}), SHOWN_OBJECTS)

    def add_seconds(self, seconds: dict[str, float]) -> None:
        """Add the times of one sidecar."""
        for object_id, took in seconds.items():
            self.histograms["seconds"].add(took)
            _keep(self.slowest, (took, object_id), SHOWN_SLOWEST)

    def as_json(self, info: DatasetInfo) -> dict[str, Any]:
        """The content of card.json."""
        return {
            "fingerprint": info.fingerprint,
            "counts": info.counts,
            **{name: dict(counter.most_common(SHOWN_NAMES)) for name, counter in self.named.items()},
            "num_names": {name: len(counter) for name, counter in self.named.items()},
            "histograms": {
                name: {"edges": found.edges, "counts": found.counts} for name, found in self.histograms.items()
            },
            "filled": self.num_filled,
            "small_largest_component": self.num_small,
            "slowest": [{"id": object_id, "seconds": took} for took, object_id in sorted(self.slowest, reverse=True)],
            "not_ok": [
                {"id": name, "status": status, "error": error}
                for _, name, status, error in sorted(self.not_ok, reverse=True)
            ],
            "pictured": [row["id"] for row in self.in_order()],
        }

    def in_order(self) -> list[dict[str, Any]]:
        """The pictured objects, smallest hash first."""
        return [row for _, row in sorted(self.pictured, key=lambda item: -item[0])]


def _keep(heap: list[Any], item: Any, count: int) -> None:
    """Push onto a heap that keeps the `count` largest items."""
    (heapq.heappush if len(heap) < count else heapq.heappushpop)(heap, item)


def write_card(folder: Path) -> list[Path]:
    """Write the card of a finished dataset; return the files it wrote."""
    info = open_dataset(folder)
    summary = summarise(info)
    write_atomic(folder / CARD, json.dumps(summary.as_json(info), indent=1).encode("utf-8"))
    made = [folder / CARD]
    shown = summary.in_order()
    if shown:
        from g3pt.geometry.render import picture_sheet
        from pipelines.preprocess.credits import write_credits

        picture_sheet(
            folder / SHEET,
            [row["caption"] or row["name"] or row["id"] for row in shown],
            pictures(info, shown),
            COLUMNS,
            TILE,
        )
        made += [folder / SHEET, write_credits(folder / SHEET, shown)]
    return made


def summarise(info: DatasetInfo) -> Summary:
    """Summarise a dataset in one pass over its rows and sidecars."""
    summary = Summary()
    measured = [name for name in (*EDGES, "filled_by") if name in info.columns]
    for row in read_rows(info, [*LIGHT, *measured], status=None):
        summary.add(row)
    for content in read_many([info.path / f"{shard_name(index)}.json" for index in sorted(info.shards)]):
        summary.add_seconds(json.loads(content).get("seconds", {}))
    return summary


def pictures(info: DatasetInfo, rows: list[dict[str, Any]]) -> Iterator[Image.Image]:
    """Each row's picture (RGBA, TILE x TILE): its first view, or its surface points if the dataset has no views."""
    wanted = {row["id"] for row in rows}
    column = "views" if info.config.num_views else "surface"
    found = {}
    for index in sorted({shard_index(name, info.num_shards) for name in wanted}):
        for row in read_rows(info, ["id", column], shards=[index]):
            if row["id"] in wanted:
                found[row["id"]] = _view(row["views"][0]) if column == "views" else cloud_picture(row["surface"])
    yield from (found[row["id"]] for row in rows)


def _view(data: bytes) -> Image.Image:
    from PIL import Image

    return Image.open(io.BytesIO(data)).convert("RGBA").resize((TILE, TILE), Image.Resampling.LANCZOS)


def cloud_picture(
    surface_P6: np.ndarray, azimuth_degrees: float = 35.0, elevation_degrees: float = 20.0
) -> Image.Image:
    """Points with normals drawn as 2 x 2 pixels on white, lit from the camera, near ones over far ones; RGBA, TILE x
    TILE.
    """
    from PIL import Image

    azimuth, elevation = np.radians([azimuth_degrees, elevation_degrees])
    back = np.array([np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)])
    right = np.array([np.cos(azimuth), 0.0, -np.sin(azimuth)])
    axes = np.stack([right, -np.cross(back, right), back])
    placed, facing = surface_P6[:, :3].astype(np.float64) @ axes.T, surface_P6[:, 3:].astype(np.float64) @ back
    seen = facing > 0
    order = np.argsort(placed[seen, 2])  # far to near: a later point covers an earlier one
    pixel = np.clip((placed[seen][order, :2] / 1.45 + 1) * TILE / 2, 0, TILE - 2).astype(int)
    shade = (70 + 150 * facing[seen][order]).astype(np.uint8)[:, None]
    image = np.full((TILE, TILE, 3), 255, dtype=np.uint8)
    for down in (0, 1):
        for across in (0, 1):
            image[pixel[:, 1] + down, pixel[:, 0] + across] = shade
    return Image.fromarray(image).convert("RGBA")
