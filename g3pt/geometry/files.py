"""Meshes to files and back: .glb .obj .ply .stl, by trimesh; written whole or not at all.

All formats get the same coordinates, those of the model: y up and right-handed, as glTF prescribes, if it was trained
on glTF files or procedural shapes. Files of other formats keep their axes in training, so a model trained on those
keeps them too. OBJ and PLY files say so in a comment, STL files in their header.

Shapes: V vertices, F faces.
"""

import os
from pathlib import Path

import numpy as np

FORMATS = ("glb", "obj", "ply", "stl")
AXES = "axes of the model: y up as in glTF, unless its training files had others"
_STL_HEADER = 80  # bytes
MAX_FILE_BYTES = 512 * 2**20


def write_mesh(path: str | Path, vertices: np.ndarray, faces: np.ndarray) -> None:
    """Write .glb, .obj, .ply or .stl, by the suffix: complete or not at all (temporary file, then rename)."""
    import trimesh

    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise ValueError(f"mesh format must be one of {FORMATS}, not {path.suffix!r}")
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    options = {"include_normals": True} if kind in ("glb", "obj") else {}
    exported = mesh.export(file_type=kind, **options)
    content = _with_axes(kind, exported.encode() if isinstance(exported, str) else exported)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _with_axes(kind: str, content: bytes) -> bytes:
    """The file's content with AXES as a comment where its format has one; GLB has none, its axes are fixed."""
    axes = AXES.encode("ascii")
    if kind == "obj":
        return b"# " + axes + b"\n" + content
    if kind == "ply":
        start, first, rest = content.partition(b"comment ")
        assert start.startswith(b"ply\nformat ") and first, "trimesh writes a comment after the format"
        return start + b"comment " + axes + b"\n" + first + rest
    return axes.ljust(_STL_HEADER)[:_STL_HEADER] + content[_STL_HEADER:] if kind == "stl" else content


def read_mesh(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) and faces (F, 3) of a file that `write_mesh` wrote. ValueError if it does not open.

    Files of other programs are read by `g3pt.geometry.load`.
    """
    import trimesh

    if file.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"{file.name}: larger than {MAX_FILE_BYTES >> 20} MB")
    try:
        mesh = trimesh.load(file, force="mesh", process=False)
    except Exception as error:  # parsers raise anything
        raise ValueError(f"{file.name}: not a mesh ({type(error).__name__})") from error
    return np.asarray(mesh.vertices), np.asarray(mesh.faces)
