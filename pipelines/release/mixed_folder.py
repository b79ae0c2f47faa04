"""Makes a folder of real meshes and procedural shapes under one manifest, for `jobs/preprocess.py --source dir`.

    python -m pipelines.release.mixed_folder --meshes MESHES --shapes 1000 --output FOLDER

The released tokenizer was trained on such a folder. It contains only objects that `pipelines.release.job` accepts.
Files are copied; shapes are written as .ply, with licence CC0-1.0 and author g3pt.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
from pathlib import Path
from typing import Any

from pipelines.cli.errors import UsageError, bad_input
from pipelines.release.job import refusal

COLUMNS = ("id", "path", "caption", "category", "license", "author", "attribution_url")


def real_rows(meshes: Path) -> list[dict[str, str]]:
    """Rows of the folder's manifest whose objects may be in released weights."""
    manifest = meshes / "manifest.csv"
    if not manifest.is_file():
        raise ValueError(f"{manifest}: missing; licences are read from it")
    with open(manifest, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    kept = [row for row in rows if refusal(row) is None]
    if not kept:
        raise ValueError(f"{manifest}: none of its {len(rows)} objects has a free and confirmed licence")
    return kept


def shape_rows(count: int, output: Path) -> list[dict[str, str]]:
    """Write the first `count` shapes by sha256 of their id, as jobs/preprocess.py does, and return their rows."""
    import trimesh

    from g3pt.data.records import id_hash
    from g3pt.shapes import make_shape, shape_ids

    rows = []
    for shape_id in sorted(shape_ids(), key=id_hash)[:count]:
        shape, path = make_shape(shape_id), Path(f"{shape_id}.ply")
        (output / path).parent.mkdir(parents=True, exist_ok=True)
        trimesh.Trimesh(shape.vertices, shape.faces, process=False).export(output / path)
        rows.append(
            {
                "id": shape_id,
                "path": path.as_posix(),
                "caption": shape.caption,
                "category": shape.family,
                "license": "CC0-1.0",
                "author": "g3pt (procedural)",
            }
        )
    return rows


def build(meshes: Path, shapes: int, output: Path) -> int:
    """Fill `output` and return the number of objects.

    Whole folders are copied because of buffers and textures; links stay links, which the loader checks.
    """
    if (output / "manifest.csv").exists():
        raise ValueError(f"{output} has a manifest already; choose an empty folder")
    rows = real_rows(meshes)
    for folder in sorted({Path(row["path"]).parts[0] for row in rows}):
        source = (meshes / folder).resolve()
        if source.parent != meshes.resolve():
            raise ValueError(
                f"{meshes / 'manifest.csv'}: a path begins with {folder!r}, which is not a file or folder of "
                f"{meshes}; correct it"
            )
        if source.is_dir():
            shutil.copytree(source, output / folder, symlinks=True, dirs_exist_ok=True)
        else:
            output.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, output / folder)
    rows = [{name: row.get(name) or "" for name in COLUMNS} for row in [*rows, *shape_rows(shapes, output)]]
    with open(output / "manifest.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return len(rows)


def main(arguments: list[str] | None = None) -> Any:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.release.mixed_folder",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--meshes", type=Path, required=True, help="folder of meshes with a manifest.csv")
    parser.add_argument("--shapes", type=int, default=1000, help="number of procedural shapes to add")
    parser.add_argument("--output", type=Path, required=True)
    flags = parser.parse_args(arguments)
    try:
        with bad_input():
            count = build(flags.meshes, flags.shapes, flags.output)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{count} objects\nresult: {flags.output.absolute()}")


if __name__ == "__main__":
    main()
