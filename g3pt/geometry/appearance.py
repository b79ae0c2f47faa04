"""What a mesh's surface looks like: parts with textures, vertex colours and materials, which `render.py` draws.

Base colour texture and factor, vertex colours, alpha mode and sidedness are kept. `load_appearance.py` reads them from
files.

Shapes: V vertices, F faces.
"""

import io
from dataclasses import dataclass, field, replace

import numpy as np

MAX_TEXTURE = 1024  # pixels per side that are kept, which is more than a view shows
MAX_IMAGE_PIXELS = 1 << 26
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")
CLAY = (0.571, 0.571, 0.604, 1.0)  # linear
KINDS = ("texture", "texture-missing", "vertex-colours", "material", "none")


@dataclass(frozen=True, kw_only=True)
class Material:
    """Linear base colour, an sRGB picture over it (H, W, 4 uint8), alpha mode, and how u and v `wrap`."""

    colour: tuple[float, float, float, float] = CLAY
    image: np.ndarray | None = None
    wrap: tuple[str, str] = ("repeat", "repeat")  # or clamp, mirror
    alpha_mode: str = "opaque"  # or mask, blend
    cutoff: float = 0.5
    double_sided: bool = True
    unlit: bool = False


@dataclass(frozen=True, kw_only=True)
class Part:
    """Triangles of one material; normals (V, 3), uvs (V, 2; origin upper left), linear RGBA colours (V, 4)
    if the file has them.
    """

    vertices: np.ndarray
    faces: np.ndarray
    material: Material = field(default_factory=Material)
    normals: np.ndarray | None = None
    uvs: np.ndarray | None = None
    colours: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Appearance:
    """The parts of an object, and which of KINDS they are."""

    parts: list[Part]
    kind: str

    def placed(self, scale: float, offset: np.ndarray) -> "Appearance":
        """The appearance in its solid's coordinates: vertices * scale + offset."""
        return Appearance(
            parts=[replace(part, vertices=part.vertices * scale + offset) for part in self.parts], kind=self.kind
        )


def clay(vertices: np.ndarray, faces: np.ndarray) -> Appearance:
    """A bare mesh, as clay."""
    return Appearance(parts=[Part(vertices=np.asarray(vertices), faces=np.asarray(faces))], kind="none")


def decode_image(content: bytes) -> np.ndarray:
    """(H, W, 4) uint8 sRGB of a PNG, JPEG or WebP, at most MAX_TEXTURE per side. ValueError for anything else."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            image.draft(None, (2 * MAX_TEXTURE, 2 * MAX_TEXTURE))
            if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip
                image = image.point(lambda value: value / 256).convert("L")
            found = image.convert("RGBA")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow calls a broken PNG a SyntaxError
        raise ValueError(f"not a readable picture ({error})") from error
    factor = -(-max(found.size) // MAX_TEXTURE)
    return np.array(found.reduce(factor) if factor > 1 else found)


def smooth_normals(vertices: np.ndarray, faces: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Normals (V, 3), not of unit length: means over the faces around all vertices with equal rows of `same`
    (V, any).
    """
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
