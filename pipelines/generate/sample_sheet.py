"""Draws generated meshes with their prompts, uncurated: an output folder of `jobs/generate.py` as one PNG.

    python -m pipelines.generate.sample_sheet out/samples --output docs/images/samples.png [--num 64]

How: shows the first `--num` rows of manifest.parquet in order, none left out. A sample without a mesh is a blank tile
with its status.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import tyro

from g3pt.geometry.files import read_mesh
from pipelines.cli.errors import UsageError, bad_input
from pipelines.cli.paths import file_below

Tile = tuple[np.ndarray, np.ndarray, str]
NO_MESH = (np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64))


@dataclass(frozen=True, kw_only=True)
class SampleSheetFlags:
    """Draw generated meshes with their prompts as one PNG, in the order of their manifest, none left out."""

    folder: tyro.conf.Positional[str]
    """output of jobs/generate.py"""
    output: str
    """PNG to write"""
    num: int = 64
    """number of samples, from the start of the manifest"""
    columns: int = 8
    """samples per row"""
    size: int = 160
    """width of a sample in pixels"""

    def __post_init__(self) -> None:
        for name in ("num", "columns", "size"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if Path(self.output).suffix != ".png":
            raise ValueError(f"--output must end in .png, got {self.output!r}")


def sample_sheet(flags: SampleSheetFlags) -> str:
    """Draw the picture and return its path. UsageError if the folder has no manifest or a listed mesh is missing."""
    from g3pt.geometry.render import contact_sheet

    if "://" in flags.folder:
        raise UsageError(f"{flags.folder}: object stores are not supported yet, copy the folder to this machine")
    folder, output = Path(flags.folder), Path(flags.output)
    manifest = folder / "manifest.parquet"
    if not manifest.is_file():
        raise UsageError(f"{manifest} is missing: use the output folder of a finished jobs/generate.py")
    rows = (
        pq.read_table(manifest, columns=["id", "text", "image", "seed", "file", "status"])
        .slice(0, flags.num)
        .to_pylist()
    )
    with bad_input():
        tiles = [tile(folder, row) for row in rows]
    output.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(tiles, output, columns=flags.columns, size=flags.size)
    print(f"{len(rows)} samples, {sum(row['status'] != 'ok' for row in rows)} of them without a mesh", file=sys.stderr)
    return str(output)


def tile(folder: Path, row: dict[str, Any]) -> Tile:
    """(vertices, faces, title) of one sample. ValueError if a mesh in the manifest is missing."""
    words = row["text"] or row["image"] or row["id"]
    if row["status"] != "ok":
        return (*NO_MESH, f"{row['status']}: {words}")
    file = file_below(folder, row["file"])
    if file is None:
        raise ValueError(
            f"{folder / str(row['file'])}: listed in manifest.parquet but missing; run jobs/generate.py again"
        )
    return (*read_mesh(file), words)


if __name__ == "__main__":
    from pipelines.cli.main import main

    main(
        SampleSheetFlags,
        sample_sheet,
        example="python -m pipelines.generate.sample_sheet out/samples --output docs/images/samples.png",
    )
