"""Meshes to files: .glb .obj .ply .stl, by trimesh, whole or not at all.

Shapes: V vertices, F faces.
"""

import os
from pathlib import Path

import numpy as np

FORMATS = ("glb", "obj", "ply", "stl")


def write_mesh(path: str | Path, vertices: np.ndarray, faces: np.ndarray) -> None:
    """Write .glb, .obj, .ply or .stl, by the suffix: complete or not at all (temporary file, then rename)."""
    import trimesh

    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise ValueError(f"mesh format must be one of {FORMATS}, not {path.suffix!r}")
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    options = {"include_normals": True} if kind in ("glb", "obj") else {}
    content = mesh.export(file_type=kind, **options)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
