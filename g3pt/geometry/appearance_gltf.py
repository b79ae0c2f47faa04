"""What the triangles of a glTF asset look like: base colour, vertex colours, alpha, as parts of `appearance.py`.

The parts are those of `gltf.read_parts`, so they are where the solid's triangles are. Of materials only what a matt
picture needs is read. Normals are never transformed: vertices with the same position and normal in the file are smooth
together, other edges stay hard, and normals are computed from the placed triangles. So skins, mirrors and uneven scales
need no rules of their own.

Source: Khronos glTF 2.0, 3.9 (materials); KHR_texture_transform, KHR_materials_unlit,
KHR_materials_pbrSpecularGlossiness, KHR_materials_transmission, EXT_texture_webp.
Ours: transmission counts as transparency (a share GLASS of it); a primitive that is drawn in several ways is drawn
opaque.
"""

from typing import Any

import numpy as np

from g3pt.geometry.appearance import Material, Part, decode_image, smooth_normals
from g3pt.geometry.gltf import Part as Placed
from g3pt.geometry.gltf import read_parts
from g3pt.geometry.gltf_document import Document
from g3pt.geometry.reading import MeshError, ReadFile

WHITE = (1.0, 1.0, 1.0, 1.0)
GLASS = 0.75
_WRAPS = {33071: "clamp", 33648: "mirror", 10497: "repeat"}
_ALPHA_MODES = {"OPAQUE": "opaque", "MASK": "mask", "BLEND": "blend"}


def gltf_parts(content: bytes, read_file: ReadFile) -> tuple[list[Part], int]:
    """The parts of the default scene, and how many of the pictures that they name could not be used."""
    document, placed = read_parts(content, read_file)
    materials = _Materials(document)
    return [_part(part, materials) for part in placed], len(materials.missing)


def _part(placed: Placed, materials: "_Materials") -> Part:
    primitive = placed.primitive
    material, texture = materials.read(primitive.material)
    normals, colours = primitive.attribute("NORMAL"), _attribute(primitive.attribute("COLOR_0"), primitive, (3, 4))
    uvs = _uvs(primitive, texture) if material.image is not None else None
    if normals is not None and normals.shape == placed.vertices.shape:
        normals = smooth_normals(placed.vertices, placed.faces, np.concatenate([primitive.vertices, normals], axis=1))
    else:
        normals = None  # flat
    return Part(
        vertices=placed.vertices,
        faces=placed.faces,
        material=material,
        normals=normals,
        uvs=uvs,
        colours=None if colours is None else _rgba(colours),
    )


def _attribute(values: np.ndarray | None, primitive: Any, widths: tuple[int, ...]) -> np.ndarray | None:
    """An attribute with one row per vertex; None for one of another shape."""
    if values is None or len(values) != len(primitive.vertices) or values.shape[1] not in widths:
        return None
    return values


def _rgba(colours: np.ndarray) -> np.ndarray:
    """Linear RGBA (V, 4) of COLOR_0, which is linear; bytes are normalised."""
    if colours.dtype.kind in "iu":
        colours = colours / np.iinfo(colours.dtype).max
    rgba = np.ones((len(colours), 4), dtype=np.float32)
    rgba[:, : colours.shape[1]] = colours
    return rgba


def _uvs(primitive: Any, texture: dict) -> np.ndarray | None:
    """Texture coordinates (V, 2) with the texture's transform applied."""
    transform = _extension(texture, "KHR_texture_transform")
    number = transform.get("texCoord", texture.get("texCoord", 0))
    uvs = _attribute(primitive.attribute(f"TEXCOORD_{number}"), primitive, (2,))
    if uvs is None:
        return None
    offset, scale, turn = (
        transform.get(name, default) for name, default in (("offset", (0, 0)), ("scale", (1, 1)), ("rotation", 0.0))
    )
    cosine, sine = np.cos(float(turn)), np.sin(float(turn))
    scaled = uvs.astype(np.float64) * np.asarray(scale, dtype=np.float64)
    return scaled @ np.array([[cosine, -sine], [sine, cosine]]) + np.asarray(offset, dtype=np.float64)


def _extension(item: dict, name: str) -> dict:
    found = item.get("extensions", {}).get(name, {})
    return found if isinstance(found, dict) else {}


class _Materials:
    """The asset's materials and pictures, each read once."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.missing: set[int] = set()  # pictures that could not be used
        self._read: dict[int | None, tuple[Material, dict]] = {None: (Material(colour=WHITE, double_sided=False), {})}
        self._images: dict[int, np.ndarray | None] = {}

    def read(self, index: int | None) -> tuple[Material, dict]:
        """A material, and the description of its texture."""
        if index not in self._read:
            self._read[index] = self._material(self.document.item("materials", index))
        return self._read[index]

    def _material(self, json: dict) -> tuple[Material, dict]:
        surface, old = json.get("pbrMetallicRoughness", {}), _extension(json, "KHR_materials_pbrSpecularGlossiness")
        factor, texture = surface.get("baseColorFactor", WHITE), surface.get("baseColorTexture", {})
        if old and "baseColorTexture" not in surface:
            factor, texture = old.get("diffuseFactor", WHITE), old.get("diffuseTexture", {})
        colour, mode = (
            tuple(float(value) for value in factor),
            _ALPHA_MODES.get(json.get("alphaMode", "OPAQUE"), "opaque"),
        )
        through = float(_extension(json, "KHR_materials_transmission").get("transmissionFactor", 0.0))
        if mode == "opaque":
            colour = (*colour[:3], 1.0)
        if through > 0.0:
            colour, mode = (*colour[:3], colour[3] * (1.0 - GLASS * through)), "blend"
        image, wrap = self._texture(texture["index"]) if "index" in texture else (None, ("repeat", "repeat"))
        unlit = "KHR_materials_unlit" in json.get("extensions", {})
        material = Material(
            colour=colour, image=image, wrap=wrap, alpha_mode=mode, cutoff=float(json.get("alphaCutoff", 0.5)),
            double_sided=json.get("doubleSided", False) is True, unlit=unlit,
        )  # fmt: skip
        return material, texture

    def _texture(self, index: int) -> tuple[np.ndarray | None, tuple[str, str]]:
        """The picture and how it repeats."""
        texture = self.document.item("textures", index)
        sampler = self.document.item("samplers", texture["sampler"]) if "sampler" in texture else {}
        wrap = tuple(_WRAPS.get(sampler.get(name, 10497), "repeat") for name in ("wrapS", "wrapT"))
        source = _extension(texture, "EXT_texture_webp").get("source", texture.get("source"))
        if source is None:  # only a format that is not read
            self.missing.add(-1 - index)
            return None, wrap
        if source not in self._images:
            self._images[source] = self._image(source)
        return self._images[source], wrap

    def _image(self, index: int) -> np.ndarray | None:
        try:
            image = self.document.item("images", index)
            data = (
                self.document.view(image["bufferView"])[0]
                if "bufferView" in image
                else self.document.resource(str(image["uri"]))
            )
            return decode_image(bytes(data))
        except (MeshError, ValueError, KeyError):
            self.missing.add(index)
            return None
