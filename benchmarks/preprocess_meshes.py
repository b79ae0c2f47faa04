"""The meshes that preprocessing is measured on: real ones over the range of face counts, or generated ones."""

import csv
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from g3pt.geometry.load import load_mesh
from g3pt.geometry.reading import MESH_ENDINGS, MeshError

LOOKED_AT = 96  # meshes are chosen among those with the smallest sha256(id); loading all takes a minute


def chosen(folder: Path, count: int) -> list[tuple[str, int]]:
    """(path, faces) of `count` files, spread evenly over the logarithm of the face count."""
    found = []
    for path in smallest(folder, LOOKED_AT):
        try:
            found.append((path, len(load_mesh(folder / path, folder).faces)))
        except MeshError:
            continue
    logs = np.log([faces for _, faces in found])
    steps = np.clip(((logs - logs.min()) / max(np.ptp(logs), 1e-9) * count).astype(int), 0, count - 1)
    firsts = [int(np.flatnonzero(steps == step)[0]) for step in range(count) if (steps == step).any()]
    return sorted((found[at] for at in firsts), key=lambda item: item[1])


def smallest(folder: Path, count: int) -> list[str]:
    """Paths of the `count` meshes with the smallest sha256(id)."""
    return [
        path for _, path in sorted(_ids(folder), key=lambda item: hashlib.sha256(item[0].encode()).digest())[:count]
    ]


def _ids(folder: Path) -> Iterator[tuple[str, str]]:
    """(id, path) of the rows of manifest.csv, or of all mesh files without one."""
    manifest = folder / "manifest.csv"
    if manifest.is_file():
        with open(manifest, newline="", encoding="utf-8-sig") as file:
            yield from ((row.get("id") or row["path"], row["path"]) for row in csv.DictReader(file))
        return
    for path in folder.rglob("*"):
        if path.suffix.lower() in MESH_ENDINGS:
            yield path.relative_to(folder).as_posix(), path.relative_to(folder).as_posix()


def made(folder: Path | None = None) -> Path:
    """Write seven PLY files of 12 to 1,310,720 faces and return their folder."""
    import trimesh

    folder = folder or Path(tempfile.mkdtemp(prefix="g3pt-bench-"))
    shapes = {"box": trimesh.creation.box((1.0, 0.6, 0.4)), "torus": trimesh.creation.torus(1.0, 0.3)}
    shapes |= {f"ball{k}": trimesh.creation.icosphere(k) for k in (2, 4, 6, 7)} | {
        "million": trimesh.creation.icosphere(8)
    }
    for name, shape in shapes.items():
        shape.export(folder / f"{name}.ply")
    return folder
