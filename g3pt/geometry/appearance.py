"""How a mesh file looks: its parts with textures, vertex colours and materials, for `render.py`.

`load_appearance` reads the same triangles as `load_mesh`, in the same coordinates, but keeps what their surface looks like:
base colour texture and factor, vertex colours, alpha mode, sidedness. Emission, metalness, roughness, normal maps are not read.
A picture that is missing, broken, too large or of another kind than PNG, JPEG or WebP leaves its material with the plain colour,
and the kind says so; it never costs the row. Formats without colours (.stl .off) have no appearance: they are drawn as clay.

Shapes: V vertices, F faces.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from g3pt.geometry.load import MeshError

MAX_TEXTURE = 1024  # pixels a side that are kept: more than a view shows
MAX_IMAGE_PIXELS = 1 << 26
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")
CLAY = (0.571, 0.571, 0.604, 1.0)  # linear
KINDS = ("texture", "texture-missing", "vertex-colours", "material", "none")

ReadFile = Callable[[str], bytes]


@dataclass(frozen=True, kw_only=True)
class Material:
    """Linear base colour, an sRGB picture over it (H, W, 4 uint8), and how alpha counts. `wrap` is of u and v."""

    colour: tuple[float, float, float, float] = CLAY
    image: np.ndarray | None = None
    wrap: tuple[str, str] = ("repeat", "repeat")  # or clamp, mirror
    alpha_mode: str = "opaque"  # or mask, blend
    cutoff: float = 0.5
    double_sided: bool = True
    unlit: bool = False


@dataclass(frozen=True, kw_only=True)
class Part:
    """Triangles of one material; normals (V, 3), uvs (V, 2; origin upper left) and linear RGBA colours (V, 4) where the file has them."""

    vertices: np.ndarray
    faces: np.ndarray
    material: Material = field(default_factory=Material)
    normals: np.ndarray | None = None
    uvs: np.ndarray | None = None
    colours: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Appearance:
    """What is drawn, and of which of KINDS it is."""

    parts: list[Part]
    kind: str

    def placed(self, scale: float, offset: np.ndarray) -> "Appearance":
        """The same where its solid stands: vertices * scale + offset."""
        return Appearance(
            parts=[replace(part, vertices=part.vertices * scale + offset) for part in self.parts], kind=self.kind
        )


def clay(vertices: np.ndarray, faces: np.ndarray) -> Appearance:
    """A bare mesh, as clay."""
    return Appearance(parts=[Part(vertices=np.asarray(vertices), faces=np.asarray(faces))], kind="none")


def load_appearance(path: str | Path, root: str | Path) -> Appearance | None:
    """What the file below `root` looks like; None for a format or file without any colour. MeshError as `load_mesh`."""
    from g3pt.geometry.load import read_below, sibling_reader

    path, root = Path(path), Path(root).resolve()
    readers = {".glb": _gltf, ".gltf": _gltf, ".obj": _obj, ".ply": _ply}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        return None
    content = read_below(path, root, "missing-file")
    try:
        parts, missing = reader(content, sibling_reader(path, root))
    except (MeshError, MemoryError):
        raise
    except Exception as error:  # as in load_mesh: a parser may answer a broken file with any exception
        raise MeshError("corrupt", f"{path.name}: {type(error).__name__}: {error}") from error
    return Appearance(parts=parts, kind=_kind(parts, missing)) if parts else None


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


def decode_image(content: bytes) -> np.ndarray:
    """(H, W, 4) uint8 sRGB of a PNG, JPEG or WebP, at most MAX_TEXTURE a side. ValueError for anything else."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            image.draft(None, (2 * MAX_TEXTURE, 2 * MAX_TEXTURE))
            if image.mode.startswith("I"):  # 16 bits a grey: Pillow would clip them
                image = image.point(lambda value: value / 256).convert("L")
            found = image.convert("RGBA")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow calls a broken PNG a SyntaxError
        raise ValueError(f"not a readable picture ({error})") from error
    factor = -(-max(found.size) // MAX_TEXTURE)
    return np.array(found.reduce(factor) if factor > 1 else found)


def smooth_normals(vertices: np.ndarray, faces: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Normals (V, 3), not of unit length: the mean over the faces around, of vertices whose rows of `same` (V, any) are equal."""
    from g3pt.geometry.cleanup import unique_rows

    rows, group = unique_rows(np.ascontiguousarray(same, dtype=np.float32))
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    cross = np.cross(b - a, c - a)
    corners = group[faces.T].reshape(-1)
    sums = [np.bincount(corners, np.tile(cross[:, axis], 3), len(rows)) for axis in range(3)]
    normals = np.stack(sums, axis=1)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return (normals / np.where(length > 0.0, length, 1.0))[group]


def srgb_to_linear(values: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] to linear light."""
    values = np.asarray(values, dtype=np.float32)
    return np.where(values <= 0.04045, values / 12.92, ((np.maximum(values, 0.0) + 0.055) / 1.055) ** 2.4).astype(
        np.float32
    )


def linear_rgba(colours: np.ndarray) -> np.ndarray:
    """sRGB bytes (N, 3 or 4) to linear RGBA float32 (N, 4)."""
    rgba = np.ones((len(colours), 4), dtype=np.float32)
    rgba[:, : colours.shape[1]] = np.asarray(colours, dtype=np.float32) / 255
    rgba[:, :3] = srgb_to_linear(rgba[:, :3])
    return rgba


def _gltf(content: bytes, read_file: ReadFile) -> tuple[list[Part], int]:
    from g3pt.geometry.appearance_gltf import gltf_parts

    return gltf_parts(content, read_file)


def _obj(content: bytes, read_file: ReadFile) -> tuple[list[Part], int]:
    from g3pt.geometry.appearance_trimesh import obj_parts

    return obj_parts(content, read_file)


def _ply(content: bytes, read_file: ReadFile) -> tuple[list[Part], int]:
    from g3pt.geometry.appearance_trimesh import ply_parts

    return ply_parts(content), 0
