"""Triangles of a glTF 2.0 asset (.gltf, .glb) at rest: node transforms, instances, skins and morph targets applied.

    gltf_document  GLB, JSON, buffers, accessors       gltf_scene  nodes and instances
    gltf_mesh      primitives, Draco, morphs, skins    here        placed parts of the default scene

Textures, points, lines, cameras and animations are not read here. An asset that requires an extension which may change
its triangles and is not decoded is refused by name; extensions of materials, pictures, lights, sound, physics,
animation and metadata may be required, since the triangles do not depend on them. trimesh 5.2 is not used for glTF
because it decodes every image, drops triangle fans silently, ignores skins and answers broken files with unrelated
exceptions.

Source: Khronos glTF 2.0 specification.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from g3pt.geometry.gltf_document import Document, listed, open_document
from g3pt.geometry.gltf_mesh import Primitive, joint_matrices, morphed, read_primitive, skinned
from g3pt.geometry.gltf_scene import Placement, Scene, check_nodes, default_scene
from g3pt.geometry.reading import MAX_FACES, MeshError, ReadFile

# What `extensionsRequired` may name: extensions that are decoded (meshopt is refused where a buffer view needs it) ...
_DECODED = {
    "KHR_draco_mesh_compression", "KHR_mesh_quantization", "EXT_mesh_gpu_instancing", "KHR_node_visibility",
    "EXT_meshopt_compression", "KHR_meshopt_compression",
}  # fmt: skip
# ... and those on which the triangles do not depend.
_WITHOUT_TRIANGLES = re.compile(
    r"(?:KHR|EXT|MSFT|ADOBE|NV|FB|GRIFFEL|AVR)_(?:materials|texture|lights|audio|packing|animation)_\w+|KHR_techniques_webgl"
    r"|KHR_(?:xmp|xmp_json_ld|node_hoverability|node_selectability|interactivity|physics_rigid_bodies|implicit_shapes)"
    r"|EXT_(?:image|structural|mesh_features|instance_features|mesh_manifold)\w*|CESIUM_primitive_outline|MSFT_lod"
    r"|AGI_\w+|OMI_\w+|VRM|VRMC_\w+"
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One triangle primitive where the scene places it: vertices (V, 3) float64 in the scene's coordinates, faces
    (F, 3).

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
    _refuse_required(listed(document.root, "extensionsRequired", str))
    parts = list(_scene_parts(document))
    if not parts:
        _refuse_empty(document)
    return document, parts


def _refuse_required(names: list[str]) -> None:
    missing = [name for name in names if name not in _DECODED and not _WITHOUT_TRIANGLES.fullmatch(name)]
    if missing:
        raise MeshError("unsupported", f"requires {', '.join(sorted(missing))}, which is not decoded")


def _refuse_empty(document: Document) -> NoReturn:
    """Raise the fault of what the scene leaves out (a missing buffer, a node that is its own ancestor),
    else `no-faces`.
    """
    document.check_buffers()
    check_nodes(document)
    for mesh in document.items("meshes"):
        for primitive in listed(mesh, "primitives", dict):
            read_primitive(document, primitive)
    raise MeshError("no-faces", "the scene has no triangles")


def _scene_parts(document: Document) -> Iterator[Part]:
    scene = default_scene(document)
    primitives: dict[int, list[Primitive]] = {}  # a mesh placed by several nodes is decoded once
    num_faces = num_vertices = 0
    for placement in scene.placements:
        mesh = placement.node["mesh"]
        json = document.item("meshes", mesh)
        if mesh not in primitives:
            found = [read_primitive(document, one) for one in listed(json, "primitives", dict)]
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
    weights = listed(node if "weights" in node else document.item("meshes", node["mesh"]), "weights", (int, float))
    vertices = morphed(document, primitive, weights)
    if "skin" in node and primitive.attribute("JOINTS_0") is not None:
        joints = joint_matrices(document, document.item("skins", node["skin"]), scene.world)
        yield Part(**skinned(primitive, vertices, joints), primitive=primitive)
        return
    for matrix in placement.matrices:
        with np.errstate(all="ignore"):  # non-finite positions are refused once, by load_mesh
            placed = vertices @ matrix[:3, :3].T + matrix[:3, 3]
            mirrored = np.linalg.det(matrix[:3, :3]) < 0.0
        faces = primitive.faces[:, ::-1] if mirrored else primitive.faces
        yield Part(vertices=placed, faces=faces, primitive=primitive)
