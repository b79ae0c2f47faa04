"""The pictured objects of an evaluation as files: STEM.meshes/ beside STEM.json, for reports and any mesh viewer.

How: meshes are .glb. A cloud (the input of a reconstruction: surface points with normals) is a binary little-endian
.ply with float x y z nx ny nz. A picture that was a prompt is a .png. The folder is written under another name and
renamed, so it is complete or absent. The evaluation's JSON is written after it and lists its files under "gallery".
Names consist of a counter and the safe letters of the id.
"""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

FILES = ("cloud", "mesh", "view")
VIEW_PIXELS = 256
_CLOUD_HEADER = (
    "ply\nformat binary_little_endian 1.0\nelement vertex {}\n"
    + "".join(f"property float {n}\n" for n in ("x", "y", "z", "nx", "ny", "nz"))
    + "end_header\n"
)


def folder_of(output: Path) -> Path:
    """The gallery's folder of the evaluation `output` (STEM.json)."""
    return output.with_suffix(".meshes")


def write_gallery(items: Sequence[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Write each item's `cloud` (P, 6), `mesh` (vertices, faces) and `view` (an encoded picture); return the items with
    file names instead.

    An existing `folder` is replaced. Without items there is no folder.
    """
    from g3pt.geometry.files import write_mesh

    shutil.rmtree(folder, ignore_errors=True)
    if not items:
        return []
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    listed = []
    for number, item in enumerate(items):
        entry = {name: value for name, value in item.items() if name not in FILES} | dict.fromkeys(FILES)
        stem = f"{number:03d}-{_safe(str(item.get('id', '')))}"
        if item.get("cloud") is not None:
            entry["cloud"] = f"{stem}-input.ply"
            (temporary / entry["cloud"]).write_bytes(encode_cloud(item["cloud"]))
        if item.get("mesh") is not None and len(item["mesh"][1]):
            entry["mesh"] = f"{stem}.glb"
            write_mesh(temporary / entry["mesh"], *item["mesh"])
        if item.get("view") is not None:
            entry["view"] = f"{stem}-view.png"
            (temporary / entry["view"]).write_bytes(as_png(item["view"]))
        listed.append(entry)
    os.replace(temporary, folder)
    return listed


def is_whole(output: Path, listed: Sequence[dict[str, Any]]) -> bool:
    """Whether every file listed in the evaluation's JSON exists."""
    return all((folder_of(output) / entry[kind]).is_file() for entry in listed for kind in FILES if entry.get(kind))


def as_png(picture: bytes) -> bytes:
    """An encoded picture as a PNG on white, at most VIEW_PIXELS per side."""
    from PIL import Image

    with Image.open(io.BytesIO(picture)) as opened:
        image = opened.convert("RGBA")
    image.thumbnail((VIEW_PIXELS, VIEW_PIXELS))
    white, buffer = Image.new("RGBA", image.size, "white"), io.BytesIO()
    Image.alpha_composite(white, image).convert("RGB").save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def encode_cloud(points_P6: np.ndarray) -> bytes:
    """Points and normals as a binary PLY."""
    return _CLOUD_HEADER.format(len(points_P6)).encode("ascii") + np.ascontiguousarray(points_P6, "<f4").tobytes()


def decode_cloud(data: bytes) -> np.ndarray:
    """The inverse of `encode_cloud`: float32 (P, 6). ValueError for other PLY files."""
    header, end, rest = data.partition(b"end_header\n")
    count = re.search(rb"element vertex (\d{1,9})\n", header)
    if (
        not end
        or count is None
        or header + end != _CLOUD_HEADER.format(int(count[1])).encode("ascii")
        or len(rest) != 24 * int(count[1])
    ):
        raise ValueError("not a cloud that this program wrote")
    return np.frombuffer(rest, "<f4").reshape(-1, 6).astype(np.float32)


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text).strip("_")[:60] or "object"
