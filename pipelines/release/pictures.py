"""Draws held-out objects beside their reconstructions with IoU, for a page, and writes the credits of the objects
beside the picture.

    python -m pipelines.release.pictures out/cvq.json --output docs/images/reconstructions.png [--num 24] [--meshes
    FOLDER]

How: the picture is drawn from an evaluation's gallery (`jobs/evaluate.py --num-pictures N`), so its numbers are the
evaluation's own and no model is loaded. If --meshes names the folder from which the dataset was made, inputs are shown
as source meshes, otherwise as the surface points that the model read. Objects without an individually confirmed licence
are left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro

from g3pt.geometry.files import read_mesh
from pipelines.cli.errors import UsageError, bad_input
from pipelines.cli.paths import file_below
from pipelines.evaluate.gallery import decode_cloud, folder_of
from pipelines.preprocess.credits import write_credits
from pipelines.release.job import UNCONFIRMED

if TYPE_CHECKING:
    from PIL import Image

Mesh = tuple[np.ndarray, np.ndarray]
CELL, TEXT, PAIRS = (
    168,
    24,
    3,
)  # pixels of a view, pixels of the line below it, pairs per row: about the width of a README


@dataclass(frozen=True, kw_only=True)
class PicturesFlags:
    """Draw held-out objects beside their reconstructions, and write the credits of the objects beside the picture."""

    evaluation: tyro.conf.Positional[str]
    """JSON of jobs/evaluate.py for a tokenizer, with its gallery beside it"""
    output: str
    """PNG to write; credits go to the same name with .credits.md"""
    num: int = 24
    """number of objects, evenly spaced among the evaluation's pictured ones"""
    meshes: str | None = None
    """folder from which the dataset was made, to show source meshes instead of surface points; default none"""

    def __post_init__(self) -> None:
        if self.num < 1:
            raise ValueError(f"--num must be at least 1, got {self.num}")
        if Path(self.output).suffix != ".png":
            raise ValueError(f"--output must end in .png, got {self.output!r}")


def pictures(flags: PicturesFlags) -> str:
    """Draw the picture, write its credits, and return the picture's path."""
    from g3pt.geometry.render import write_whole

    file, output = Path(flags.evaluation), Path(flags.output)
    with bad_input():
        found = read_evaluation(file)
        entries = chosen(found["gallery"], flags.num, file)
        placed = placements(Path(found["dataset"]["path"]), {entry["id"] for entry in entries}) if flags.meshes else {}
    pairs = []
    for entry in entries:
        shown = source_mesh(Path(flags.meshes), placed[entry["id"]]) if flags.meshes else cloud(file, entry)
        pairs.append((shown, reconstruction(file, entry), words(entry)))
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, sheet(pairs))
    credits = write_credits(output, entries)
    print(f"{len(entries)} objects; credits in {credits}", file=sys.stderr)
    return str(output)


def read_evaluation(file: Path) -> dict[str, Any]:
    """The JSON of a tokenizer's evaluation. ValueError for anything else."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        whole = (
            isinstance(found["gallery"], list) and found["kind"] == "cvq" and isinstance(found["dataset"]["path"], str)
        )
    except FileNotFoundError:
        raise ValueError(f"{file}: no such evaluation") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: not an evaluation's JSON ({error})") from None
    if not whole:
        raise ValueError(f"{file}: not the evaluation of a tokenizer")
    return found


def chosen(gallery: Sequence[dict[str, Any]], num: int, file: Path) -> list[dict[str, Any]]:
    """`num` evenly spaced pictured objects with confirmed licences."""
    spread = [
        entry for entry in gallery if entry.get("spread")
    ]  # the gallery also has the worst objects, which would bias the picture
    clear = [entry for entry in spread if not any(fnmatchcase(entry["id"], pattern) for pattern in UNCONFIRMED)]
    if len(clear) < num:
        raise ValueError(
            f"{file}: its gallery has {len(clear)} objects with confirmed licences, fewer than --num {num}; evaluate "
            "with more --num-pictures"
        )
    return [clear[k] for k in np.linspace(0, len(clear) - 1, num).round().astype(int)]


def placements(dataset: Path, ids: set[str]) -> dict[str, dict[str, Any]]:
    """Path, scale and offset of these objects' source meshes, by id."""
    from g3pt.data.reading import read_rows

    rows = read_rows(dataset, ["id", "path", "scale", "offset"])
    return {row["id"]: row for row in rows if row["id"] in ids}


def source_mesh(root: Path, row: dict[str, Any]) -> Mesh:
    """The source mesh at the place of its solid."""
    from g3pt.geometry.load import load_mesh

    loaded = load_mesh(root / row["path"], root)
    return loaded.vertices * row["scale"] + row["offset"], loaded.faces


def cloud(file: Path, entry: dict[str, Any]) -> Mesh:
    """The surface points as small triangles."""
    from pipelines.evaluate.cvq import cloud_mesh

    found = file_below(folder_of(file), str(entry.get("cloud") or ""))
    if found is None:
        raise UsageError(f"{folder_of(file)}: the input of {entry['id']} is missing")
    return cloud_mesh(decode_cloud(found.read_bytes()), num_points=16384, size=0.025)


def reconstruction(file: Path, entry: dict[str, Any]) -> Mesh | None:
    """The reconstruction; None if it has no surface."""
    found = file_below(folder_of(file), str(entry.get("mesh") or ""))
    return read_mesh(found) if found else None


def words(entry: dict[str, Any]) -> str:
    """The line under a pair."""
    name = str(entry.get("caption") or entry["id"])
    return f"{name if len(name) <= 34 else name[:33] + '…'}  IoU {entry['iou_volume']:.2f}"


def sheet(pairs: Sequence[tuple[Mesh, Mesh | None, str]]) -> Image.Image:
    """All pairs, PAIRS per row, each with a centred line below. Both of a pair are seen from the same side."""
    from PIL import Image, ImageDraw, ImageFont

    from g3pt.geometry.render import picture

    width, height, gap = 2 * CELL, CELL + TEXT, 10
    rows = -(-len(pairs) // PAIRS)
    page = Image.new("RGB", (PAIRS * (width + gap) - gap, rows * height), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=15)
    for number, (given, made, text) in enumerate(pairs):
        left, top = number % PAIRS * (width + gap), number // PAIRS * height
        draw.rectangle((left, top, left + width - 1, top + CELL - 1), fill="#f4f5f7")
        for place, mesh in enumerate((given, made)):
            if mesh is not None and len(mesh[1]):
                view = picture(*mesh, CELL)
                page.paste(view, (left + place * CELL, top), view)
        draw.text((left + width / 2, top + CELL + TEXT / 2), text, fill="#1d2430", font=font, anchor="mm")
    return page


if __name__ == "__main__":
    from pipelines.cli.main import main

    main(
        PicturesFlags,
        pictures,
        example="python -m pipelines.release.pictures out/cvq.json --output docs/images/reconstructions.png",
    )
