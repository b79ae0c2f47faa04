"""Read what a mesh file's surface looks like, as `load.py` reads its triangles: the same triangles
in the same coordinates.

Emission, metalness, roughness and normal maps are not read. A picture that is missing, broken, too large or neither
PNG, JPEG nor WebP leaves its material with the plain colour, and the kind says so; the object is kept. Formats without
colours (.stl .off) have no appearance and are drawn as clay.
"""

from pathlib import Path

from g3pt.geometry.appearance import CLAY, Appearance, Part
from g3pt.geometry.appearance_gltf import gltf_parts
from g3pt.geometry.appearance_obj import obj_parts
from g3pt.geometry.appearance_ply import ply_parts
from g3pt.geometry.reading import ReadFile, as_text, naming_file, read_below, sibling_reader


def load_appearance(path: str | Path, root: str | Path) -> Appearance | None:
    """What the file below `root` looks like; None for a format or file without any colour. MeshError as `load_mesh`."""
    path, root = Path(path), Path(root).resolve()
    readers = {".glb": gltf_parts, ".gltf": gltf_parts, ".obj": obj_parts, ".ply": _ply}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        return None
    content = read_below(path, root, "missing-file")
    with naming_file(path, root):
        parts, missing = reader(content, sibling_reader(path, root))
    return Appearance(parts=parts, kind=_kind(parts, missing)) if parts else None


def _ply(content: bytes, _: ReadFile) -> tuple[list[Part], int]:
    return ply_parts(as_text(content, ".ply")), 0  # a PLY names no pictures


def _kind(parts: list[Part], missing: int) -> str:
    if missing:
        return "texture-missing"
    if any(part.material.image is not None for part in parts):
        return "texture"
    if any(
        part.colours is not None and part.colours.min(initial=1.0) < 1.0 for part in parts
    ):  # white ones say nothing
        return "vertex-colours"
    return "material" if any(part.material.colour != CLAY for part in parts) else "none"
