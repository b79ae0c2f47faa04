"""The parts of an appearance as the arrays that the compiled rasteriser reads: one vertex list, one table
of texels with mip levels.

Shapes: V vertices, F faces, M materials, L mip levels, T texels.
"""

from typing import NamedTuple

import numpy as np

from g3pt.geometry.appearance import Part, srgb_to_linear

OPAQUE, MASK, BLEND = 0, 1, 2
REPEAT, CLAMP, MIRROR = 0, 1, 2
MODES = {"opaque": OPAQUE, "mask": MASK, "blend": BLEND}
WRAPS = {"repeat": REPEAT, "clamp": CLAMP, "mirror": MIRROR}
LINEAR = srgb_to_linear(np.arange(256) / 255)


class Scene(NamedTuple):
    """All triangles of an object, their materials, and the pixels of all mip levels one after another."""

    vertices: np.ndarray  # (V, 3) float64
    normals: np.ndarray  # (V, 3) float32; zero: the face's own normal
    uvs: np.ndarray  # (V, 2) float32, origin at the picture's upper left
    colours: np.ndarray  # (V, 4) float32, linear, the material's factor included
    faces: np.ndarray  # (F, 3) int64
    material: np.ndarray  # (F,) int32
    mode: np.ndarray  # (M,) int32: OPAQUE, MASK, BLEND
    cutoff: np.ndarray  # (M,) float32
    double_sided: np.ndarray  # (M,) bool
    unlit: np.ndarray  # (M,) bool
    wrap: np.ndarray  # (M, 2) int32
    levels: np.ndarray  # (M, 2) int32: first level, number of levels (0: no texture)
    level: np.ndarray  # (L, 3) int64: first texel, width, height
    texels: np.ndarray  # (T, 4) uint8, sRGB and alpha
    linear: np.ndarray  # (256,) float32: sRGB byte to linear


def build_scene(parts: list[Part]) -> Scene:
    """All parts together; pictures that several materials share are stored once."""
    starts = np.cumsum([0, *(len(part.vertices) for part in parts)])
    faces = [np.asarray(part.faces, dtype=np.int64) + start for part, start in zip(parts, starts, strict=False)]
    materials = [part.material for part in parts]
    levels, level, texels = _textures(parts)
    return Scene(
        vertices=_stacked([part.vertices for part in parts], np.float64),
        normals=_stacked([_or_zeros(part.normals, part, 3) for part in parts]),
        uvs=_stacked([_or_zeros(part.uvs, part, 2) for part in parts]),
        colours=_stacked([_colours(part) for part in parts]),
        faces=_stacked(faces, np.int64),
        material=np.repeat(np.arange(len(parts), dtype=np.int32), [len(part.faces) for part in parts]),
        mode=np.array([_mode(part) for part in parts], dtype=np.int32),
        cutoff=np.array([material.cutoff for material in materials], dtype=np.float32),
        double_sided=np.array([material.double_sided for material in materials]),
        unlit=np.array([material.unlit for material in materials]),
        wrap=np.array([[WRAPS[name] for name in material.wrap] for material in materials], dtype=np.int32),
        levels=levels,
        level=level,
        texels=texels,
        linear=LINEAR,
    )


def _stacked(values: list[np.ndarray], dtype: type = np.float32) -> np.ndarray:
    """One array in C order: in another order the rasteriser would be compiled again."""
    return np.ascontiguousarray(np.concatenate(values), dtype=dtype)


def _or_zeros(values: np.ndarray | None, part: Part, width: int) -> np.ndarray:
    found = np.zeros((len(part.vertices), width), np.float32) if values is None else np.asarray(values, np.float32)
    return np.nan_to_num(found, posinf=0.0, neginf=0.0)


def _colours(part: Part) -> np.ndarray:
    colour = np.broadcast_to(np.array(part.material.colour, dtype=np.float32), (len(part.vertices), 4))
    colour = colour if part.colours is None else colour * part.colours
    return np.clip(np.nan_to_num(colour), 0.0, 1.0).astype(np.float32)


def _mode(part: Part) -> int:
    """The material's alpha mode; a blended material that is opaque everywhere is drawn as opaque, which is faster."""
    mode = MODES[part.material.alpha_mode]
    image = part.material.image
    whole = _colours(part)[:, 3].min(initial=1.0) >= 1.0 and (image is None or image[..., 3].min() == 255)
    return OPAQUE if whole and mode == BLEND else mode


def _textures(parts: list[Part]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Levels of each material (M, 2), the levels (L, 3), the texels (T, 4)."""
    known: dict[tuple[int, bool], tuple[int, int]] = {}
    level, pictures, used = [], [], 0
    levels = np.zeros((len(parts), 2), dtype=np.int32)
    for number, part in enumerate(parts):
        image, opaque = part.material.image, part.material.alpha_mode == "opaque"
        if image is None or part.uvs is None:
            continue
        if (id(image), opaque) not in known:
            chain = mip_levels(_without_alpha(image) if opaque else image)
            known[id(image), opaque] = (len(level), len(chain))
            for picture in chain:
                level.append((used, picture.shape[1], picture.shape[0]))
                pictures.append(picture.reshape(-1, 4))
                used += len(pictures[-1])
        levels[number] = known[id(image), opaque]
    texels = np.concatenate(pictures) if pictures else np.zeros((0, 4), dtype=np.uint8)
    return levels, np.array(level, dtype=np.int64).reshape(-1, 3), texels


def _without_alpha(image: np.ndarray) -> np.ndarray:
    opaque = image.copy()
    opaque[..., 3] = 255
    return opaque


def mip_levels(image: np.ndarray) -> list[np.ndarray]:
    """The picture (H, W, 4) and its halvings, down to 4 pixels; colours are weighted by their alpha."""
    from PIL import Image

    found, picture = [np.ascontiguousarray(image)], Image.fromarray(image)
    while min(picture.size) >= 8:
        picture = picture.reduce(2)
        found.append(np.array(picture))
    return found
