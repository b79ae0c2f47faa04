"""What the triangles of OBJ and PLY files look like, read by trimesh: materials and pictures of OBJ, colours of PLY.

Files that an OBJ names (.mtl, pictures) are read by the reader passed in, never by trimesh itself. Colours in these formats are
sRGB.
"""

import io
import re
from typing import Any

import numpy as np

from g3pt.geometry.appearance import Material, Part, decode_image, linear_rgba, srgb_to_linear
from g3pt.geometry.reading import MeshError, ReadFile, as_utf8

_WHITE = (1.0, 1.0, 1.0, 1.0)
_PICTURE_KEY = "picture"  # an unknown word in a .mtl: trimesh keeps its value and opens nothing


class _MaterialFiles:
    """trimesh's resolver on the safe reader: it returns .mtl files only, without the word that makes trimesh open pictures."""

    file_name = None

    def __init__(self, read_file: ReadFile) -> None:
        self.read_file = read_file

    def get(self, name: str) -> bytes:
        """A .mtl file; FileNotFoundError if the safe reader refuses it, upon which trimesh continues without materials."""
        try:
            content = as_utf8(self.read_file(name.strip()))
        except MeshError as error:
            raise FileNotFoundError(name) from error
        return re.sub(rb"(?im)^\s*map_Kd\s", _PICTURE_KEY.encode() + b" ", content)

    __getitem__ = get


def obj_parts(content: bytes, read_file: ReadFile) -> tuple[list[Part], int]:
    """One part per material, and how many of the pictures that they name could not be used."""
    import trimesh

    content = as_utf8(content)
    loaded = trimesh.load_scene(io.BytesIO(content), file_type="obj", process=False, resolver=_MaterialFiles(read_file))
    pictures: dict[str, np.ndarray | None] = {}
    meshes = [mesh for mesh in loaded.dump() if isinstance(mesh, trimesh.Trimesh) and len(mesh.faces)]
    parts = [_obj_part(mesh, b"\nvn " in content, pictures, read_file) for mesh in meshes]
    return parts, sum(picture is None for picture in pictures.values())


def _obj_part(mesh: Any, has_normals: bool, pictures: dict[str, np.ndarray | None], read_file: ReadFile) -> Part:
    if mesh.visual.kind != "texture":
        return _coloured(mesh)
    uvs = mesh.visual.uv
    return Part(
        vertices=np.asarray(mesh.vertices),
        faces=np.asarray(mesh.faces),
        material=_obj_material(mesh.visual.material, pictures, read_file),
        normals=np.asarray(mesh.vertex_normals) if has_normals else None,
        uvs=None if uvs is None or len(uvs) != len(mesh.vertices) else np.asarray(uvs) * (1.0, -1.0) + (0.0, 1.0),
    )


def _obj_material(found: Any, pictures: dict[str, np.ndarray | None], read_file: ReadFile) -> Material:
    """Kd, d or Tr, and map_Kd, whose alpha counts only where there is a map_d.

    An invisible object is taken for a visible one: exporters disagree about whether 0 or 1 is opaque.
    """
    words = {str(name).lower(): value for name, value in found.kwargs.items()}
    image = None
    if _PICTURE_KEY in words:
        image = _picture(" ".join(words[_PICTURE_KEY]), pictures, read_file)
    elif "kd" not in words:
        return Material()
    alpha = _number(words.get("d"), 1.0 - _number(words.get("tr"), 0.0)) or 1.0
    rgb = srgb_to_linear(np.clip(words.get("kd", _WHITE[:3]), 0.0, 1.0))
    mode = "blend" if alpha < 1.0 else "mask" if "map_d" in words and image is not None else "opaque"
    return Material(colour=(*map(float, rgb), alpha), image=image, alpha_mode=mode)


def _number(words: Any, default: float) -> float:
    try:
        return min(max(float(words[-1]), 0.0), 1.0)
    except (TypeError, ValueError, IndexError):
        return default


def _picture(line: str, pictures: dict[str, np.ndarray | None], read_file: ReadFile) -> np.ndarray | None:
    """The picture's name in a map_Kd line, without options (-s 1 1 1, -o ..., -clamp on)."""
    name = re.sub(r"^(?:-\w+(?:\s+(?:-?[\d.]+|on|off))*\s+)+", "", line.strip())
    if name not in pictures:
        try:
            pictures[name] = decode_image(read_file(name))
        except (MeshError, ValueError):
            pictures[name] = None
    return pictures[name]


def ply_parts(content: bytes) -> list[Part]:
    """One part with vertex or face colours, or clay without any; no part for a file without faces."""
    import trimesh

    mesh = trimesh.load(io.BytesIO(content), file_type="ply", process=False, resolver=None)
    if not isinstance(mesh, trimesh.Trimesh) or len(mesh.faces) == 0:
        return []
    return [_coloured(mesh)]


def _coloured(mesh: Any) -> Part:
    kind = mesh.visual.kind
    if kind == "vertex":
        return Part(
            vertices=mesh.vertices,
            faces=mesh.faces,
            colours=linear_rgba(mesh.visual.vertex_colors),
            material=Material(colour=_WHITE),
        )
    if kind == "face":
        vertices, faces = mesh.vertices[mesh.faces].reshape(-1, 3), np.arange(3 * len(mesh.faces)).reshape(-1, 3)
        colours = linear_rgba(np.repeat(mesh.visual.face_colors, 3, axis=0))
        return Part(vertices=vertices, faces=faces, colours=colours, material=Material(colour=_WHITE))
    return Part(vertices=mesh.vertices, faces=mesh.faces)
