"""Triangles of a glTF 2.0 asset (.gltf, .glb) at rest: node transforms, instances, skins and morph targets applied.

    gltf_document  GLB, JSON, buffers, accessors       gltf_scene  nodes and instances
    gltf_mesh      primitives, Draco, morphs, skins    here        placed parts of the default scene

Textures, points, lines, cameras and animations are not read here. trimesh 5.2 is not used for glTF because it decodes
every image, drops triangle fans silently, ignores skins and answers broken files with unrelated exceptions.

Source: Khronos glTF 2.0 specification.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from g3pt.geometry.gltf_document import Document, open_document
from g3pt.geometry.gltf_mesh import Primitive, joint_matrices, morphed, read_primitive, skinned
from g3pt.geometry.gltf_scene import Placement, Scene, check_nodes, default_scene
from g3pt.geometry.reading import MAX_FACES, MeshError, ReadFile

_NOT_DECODED = {"WEB3D_quantized_attributes"}  # geometry that would be read wrongly


@dataclass(frozen=True, kw_only=True)
class Part:
    """One triangle primitive where the scene places it: vertices (V, 3) float64 in the scene's coordinates, faces (F, 3).

    Its vertices are in the order of `primitive`'s, so `primitive.attribute("TEXCOORD_0")` belongs to them.
    """

    vertices: np.ndarray
    faces: np.ndarray
    primitive: Primitive


def read_gltf(content: bytes, read_file: ReadFile) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) float64 and faces (F, 3) int64 of the default scene."""
    _, parts = read_parts(content, read_file)
    sizes = np.cumsum([0] + [len(part.vertices) for part in parts])
    return (
        np.concatenate([part.vertices for part in parts]),
        np.concatenate([part.faces + start for part, start in zip(parts, sizes, strict=False)]),
    )


def read_parts(content: bytes, read_file: ReadFile) -> tuple[Document, list[Part]]:
    """The document and all triangle parts below its default scene, at least one."""
    document = open_document(content, read_file)
    missing = sorted(set(document.root.get("extensionsRequired", [])) & _NOT_DECODED)
    if missing:
        raise MeshError("unsupported", f"requires {', '.join(missing)}, which is not decoded")
    parts = list(_scene_parts(document))
    if not parts:
        _refuse_empty(document)
    return document, parts


def _refuse_empty(document: Document) -> NoReturn:
    """Raise the fault of what the scene leaves out (a missing buffer, a node that is its own ancestor), else `no-faces`."""
    document.check_buffers()
    check_nodes(document)
    for mesh in range(len(document.root.get("meshes", []))):
        for primitive in document.item("meshes", mesh).get("primitives", []):
            read_primitive(document, primitive)
    raise MeshError("no-faces", "the scene has no triangles")


def _scene_parts(document: Document) -> Iterator[Part]:
    scene = default_scene(document)
    primitives: dict[int, list[Primitive]] = {}  # a mesh placed by several nodes is decoded once
    num_faces = num_vertices = 0
    for placement in scene.placements:
        mesh = placement.node["mesh"]
        if mesh not in primitives:
            found = [read_primitive(document, json) for json in document.item("meshes", mesh).get("primitives", [])]
            primitives[mesh] = [primitive for primitive in found if primitive is not None]
        num_faces += len(placement.matrices) * sum(len(primitive.faces) for primitive in primitives[mesh])
        num_vertices += len(placement.matrices) * sum(len(primitive.vertices) for primitive in primitives[mesh])
        if num_faces > MAX_FACES or num_vertices > 3 * MAX_FACES:  # before any copy is made
            raise MeshError("too-large", f"the scene places more than {MAX_FACES} faces, or {3 * MAX_FACES} vertices")
    for placement in scene.placements:
        for primitive in primitives[placement.node["mesh"]]:
            yield from _placed(document, primitive, placement, scene)


def _placed(document: Document, primitive: Primitive, placement: Placement, scene: Scene) -> Iterator[Part]:
    node = placement.node
    weights = node.get("weights", document.item("meshes", node["mesh"]).get("weights", []))
    vertices = morphed(document, primitive, weights)
    if "skin" in node and primitive.attribute("JOINTS_0") is not None:
        joints = joint_matrices(document, document.item("skins", node["skin"]), scene.world)
        yield Part(vertices=skinned(primitive, vertices, joints), faces=primitive.faces, primitive=primitive)
        return
    for matrix in placement.matrices:
        with np.errstate(all="ignore"):  # non-finite positions are refused once, by load_mesh
            placed = vertices @ matrix[:3, :3].T + matrix[:3, 3]
            mirrored = np.linalg.det(matrix[:3, :3]) < 0.0
        faces = primitive.faces[:, ::-1] if mirrored else primitive.faces
        yield Part(vertices=placed, faces=faces, primitive=primitive)
