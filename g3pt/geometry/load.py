"""Read one mesh file into plain arrays, safely: .glb .gltf .obj .ply .stl .off. Which endings are meshes: reading.py.

Node transforms (and rest-pose skins) are applied, polygons triangulated, points and lines ignored, textures never read.
Faces without an area and vertices without a face are left out, except such faces that close a seam. Files that an asset
names are read only below `root`; others are refused with a reason. A MemoryError passes through: whether a mesh fits
depends on the machine (pipelines.preprocess.sandbox turns it into a failed row). Each reader refuses a file that claims
more than it contains before it allocates anything.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from g3pt.geometry.claims import refuse_foreign
from g3pt.geometry.cleanup import unique_rows
from g3pt.geometry.gltf import read_gltf
from g3pt.geometry.obj import read_obj
from g3pt.geometry.off import read_off
from g3pt.geometry.ply import read_ply
from g3pt.geometry.reading import (
    MAX_FACES,
    MESH_ENDINGS,
    MeshError,
    ReadFile,
    as_text,
    naming_file,
    read_below,
    sibling_reader,
)
from g3pt.geometry.stl import read_stl
from g3pt.geometry.surface import has_area

MAX_COORDINATE = 1e100  # squares of lengths must not overflow


@dataclass(frozen=True, kw_only=True)
class LoadedMesh:
    """vertices (V, 3) float64, faces (F, 3) int64, and the axis its format calls up ("y" or "unspecified")."""

    vertices: np.ndarray
    faces: np.ndarray
    up_axis: str


def load_mesh(path: str | Path, root: str | Path | None = None) -> LoadedMesh:
    """The mesh of one file. Files that it names are read only below `root`, by default its own folder.

    Raises MeshError for a file that can't be used, with a reason and a message that names the file.
    """
    path = Path(path)
    root = Path(path.parent if root is None else root).resolve()
    suffix = path.suffix.lower()
    if suffix not in MESH_ENDINGS:
        raise MeshError("unsupported", f"{path.name} is none of {', '.join(MESH_ENDINGS)}")
    content = read_below(path, root, "missing-file")
    if not content.strip():
        raise MeshError("empty", f"{path.name} is empty")
    with naming_file(path, root):
        vertices, faces = parsed(content, suffix, sibling_reader(path, root))
        return checked(vertices, faces, "y" if suffix in (".glb", ".gltf") else "unspecified")


def parsed(content: bytes, suffix: str, read_file: ReadFile) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) and faces (F, 3) as the content of a file with this suffix states them."""
    if suffix not in (".glb", ".gltf"):
        content = as_text(content, suffix)
    refuse_foreign(content, suffix)
    if suffix in (".glb", ".gltf"):
        return read_gltf(content, read_file)
    return {".obj": read_obj, ".off": read_off, ".stl": read_stl, ".ply": read_ply}[suffix](content)


def checked(vertices: np.ndarray, faces: np.ndarray, up_axis: str) -> LoadedMesh:
    """The mesh without faces that have no area and vertices that have no face. MeshError if nothing usable is left."""
    vertices, faces = np.ascontiguousarray(vertices, dtype=np.float64), np.ascontiguousarray(faces, dtype=np.int64)
    if vertices.shape[1:] != (3,) or faces.shape[1:] != (3,):
        raise MeshError("corrupt", f"vertices of shape {vertices.shape}, faces of shape {faces.shape}")
    if len(faces) == 0:
        raise MeshError("no-faces", "the mesh has no faces")
    if len(faces) > MAX_FACES:
        raise MeshError("too-large", f"{len(faces)} faces, the limit is {MAX_FACES}")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise MeshError("corrupt", f"face index {faces.max()} is out of range for {len(vertices)} vertices")
    corners = vertices[faces]
    if not np.isfinite(corners).all():
        first = faces.reshape(-1)[np.isfinite(corners.reshape(-1, 3)).all(axis=1).argmin()]
        raise MeshError("non-finite", "vertex {} is at ({:g}, {:g}, {:g})".format(first, *vertices[first]))
    largest = np.abs(corners).max()
    if largest > MAX_COORDINATE:
        raise MeshError("too-large", f"coordinates up to {largest:.1e}, the limit is {MAX_COORDINATE:.0e}")
    with_area = has_area(corners)
    if not with_area.any():
        raise MeshError("zero-extent", "no face has an area")
    vertices, faces = _used(vertices, faces[with_area | _on_seam(vertices, faces, with_area)])
    return LoadedMesh(vertices=vertices, faces=faces, up_axis=up_axis)


def _on_seam(vertices: np.ndarray, faces: np.ndarray, with_area: np.ndarray) -> np.ndarray:
    """Whether a face without an area joins others (F,): its corners are three different ones, each of a face
    with an area.

    Exporters close the seam at a corner in the middle of another face's side by such a face. It adds nothing to the
    box.
    """
    on_seam = np.zeros(len(faces), dtype=bool)
    candidates = np.flatnonzero(~with_area)
    if len(candidates) == 0:
        return on_seam
    solid_vertices = np.unique(faces[with_area])
    places = np.concatenate([vertices[solid_vertices], vertices[faces[candidates]].reshape(-1, 3)]) + 0.0  # no -0.0
    _, place = unique_rows(places)
    is_solid = np.zeros(len(places), dtype=bool)
    is_solid[place[: len(solid_vertices)]] = True
    a, b, c = place[len(solid_vertices) :].reshape(-1, 3).T
    on_seam[candidates] = is_solid[a] & is_solid[b] & is_solid[c] & (a != b) & (b != c) & (c != a)
    return on_seam


def _used(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mesh without the vertices that no face has."""
    is_used = np.zeros(len(vertices), dtype=bool)
    is_used[faces] = True
    return (vertices, faces) if is_used.all() else (vertices[is_used], (np.cumsum(is_used) - 1)[faces])
