"""Triangle primitives of a glTF mesh: indices, strips, fans, Draco, morph targets, skins.

Source: Khronos glTF 2.0 specification, 3.7.2 (meshes, morph targets), 3.7.3 (skins); KHR_draco_mesh_compression;
KHR_mesh_quantization (integer positions need nothing but the accessor's rules).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from g3pt.geometry.gltf_document import Document, listed, table
from g3pt.geometry.reading import MeshError

_TRIANGLES, _STRIP, _FAN = 4, 5, 6


@dataclass(frozen=True, kw_only=True)
class Primitive:
    """A triangle primitive as its mesh stores it: vertices (V, 3) float64, faces (F, 3) int64,
    and its material's index.

    `attribute(name)` returns a vertex attribute (V, width), or None; `json` is the primitive's own object.
    """

    vertices: np.ndarray
    faces: np.ndarray
    material: int | None
    attribute: Callable[[str], np.ndarray | None]
    json: dict


def read_primitive(document: Document, json: dict) -> Primitive | None:
    """One primitive, or None for points and lines."""
    mode = table(json, "primitive").get("mode", _TRIANGLES)
    if mode not in range(7) or isinstance(mode, (bool, float)):
        raise MeshError("corrupt", f"a primitive has the mode {str(mode)[:40]}")
    if mode not in (_TRIANGLES, _STRIP, _FAN):
        return None
    attributes = table(json.get("attributes", {}), "attributes")
    if "POSITION" not in attributes:
        raise MeshError("corrupt", "a primitive has no POSITION")
    draco = table(json.get("extensions", {}), "extensions").get("KHR_draco_mesh_compression")
    if draco is not None:
        return _draco_primitive(document, json, table(draco, "KHR_draco_mesh_compression"))
    vertices = _positions(document, attributes["POSITION"])
    order = np.arange(len(vertices))
    if "indices" in json:
        order = document.accessor(json["indices"])
        if order.shape[1] != 1 or order.dtype.kind != "u":
            raise MeshError("corrupt", "indices are not unsigned integers")
        order = order[:, 0].astype(np.int64)
    if len(order) and (order.max() >= len(vertices) or order.min() < 0):
        raise MeshError("corrupt", f"index {order.max()} is out of range for {len(vertices)} vertices")
    return Primitive(
        vertices=vertices,
        faces=_triangulated(order, mode),
        material=json.get("material"),
        attribute=_accessor_reader(document, attributes),
        json=json,
    )


def _positions(document: Document, accessor: object) -> np.ndarray:
    vertices = document.accessor(accessor).astype(np.float64)
    if vertices.shape[1] != 3:
        raise MeshError("corrupt", "POSITION is not VEC3")
    return vertices


def _accessor_reader(document: Document, attributes: dict) -> Callable[[str], np.ndarray | None]:
    return lambda name: document.accessor(attributes[name]) if name in attributes else None


def _draco_primitive(document: Document, json: dict, extension: dict) -> Primitive:
    import DracoPy

    data, _ = document.view(extension.get("bufferView"))
    try:
        mesh = DracoPy.decode(bytes(data))
    except Exception as error:  # DracoPy raises its own types for each broken stream
        raise MeshError("corrupt", f"Draco data can't be decoded ({error})") from error
    if not hasattr(mesh, "faces"):
        raise MeshError("no-faces", "Draco data is a point cloud")
    compressed = table(extension.get("attributes", {}), "attributes")
    elsewhere = _accessor_reader(document, json["attributes"])

    def attribute(name: str) -> np.ndarray | None:
        if name not in compressed:
            return elsewhere(name)
        return np.asarray(mesh.get_attribute_by_unique_id(compressed[name])["data"])

    return Primitive(
        vertices=np.asarray(mesh.points, dtype=np.float64).reshape(-1, 3),
        faces=np.asarray(mesh.faces, dtype=np.int64).reshape(-1, 3),
        material=json.get("material"),
        attribute=attribute,
        json=json,
    )


def _triangulated(order: np.ndarray, mode: int) -> np.ndarray:
    """Faces (F, 3) of a list, strip or fan of vertex indices."""
    if mode == _TRIANGLES:
        return order[: len(order) // 3 * 3].reshape(-1, 3)
    if len(order) < 3:
        return np.zeros((0, 3), dtype=np.int64)
    if mode == _FAN:
        return np.stack([np.full(len(order) - 2, order[0]), order[1:-1], order[2:]], axis=1)
    faces = np.stack([order[:-2], order[1:-1], order[2:]], axis=1)
    faces[1::2] = faces[1::2, [1, 0, 2]]
    return faces


def morphed(document: Document, primitive: Primitive, weights: list) -> np.ndarray:
    """Vertices with the morph targets added by their weights; the default weights give the rest pose."""
    vertices = primitive.vertices
    for weight, target in zip(weights, listed(primitive.json, "targets", dict), strict=False):
        if weight == 0.0 or "POSITION" not in target:
            continue
        moves = _positions(document, target["POSITION"])
        if moves.shape != vertices.shape:
            raise MeshError("corrupt", f"a morph target moves {len(moves)} of {len(vertices)} vertices")
        if not abs(weight) < 1e100:
            raise MeshError("non-finite", "a morph target's weight is not finite, or too large")
        with np.errstate(all="ignore"):  # non-finite positions are refused once, by load_mesh
            vertices = vertices + weight * moves
    return vertices


def joint_matrices(document: Document, skin: dict, world: dict[int, np.ndarray]) -> np.ndarray:
    """Matrices (J, 4, 4) of a skin's joints in the rest pose, from the bound mesh to the scene."""
    joints = listed(skin, "joints", int)
    if not joints:
        raise MeshError("corrupt", "a skin has no joints")
    inverse = np.tile(np.eye(4), (len(joints), 1, 1))
    if "inverseBindMatrices" in skin:
        inverse = document.accessor(skin["inverseBindMatrices"]).astype(np.float64)
        if inverse.shape[1] != 16:
            raise MeshError("corrupt", "inverseBindMatrices are not MAT4")
        inverse = inverse.reshape(-1, 4, 4).transpose(0, 2, 1)
    if len(inverse) < len(joints):
        raise MeshError("corrupt", f"a skin has {len(joints)} joints and {len(inverse)} bind matrices")
    return np.stack([world.get(joint, np.eye(4)) @ inverse[k] for k, joint in enumerate(joints)])


def skinned(primitive: Primitive, vertices: np.ndarray, matrices: np.ndarray) -> dict[str, np.ndarray]:
    """Vertices moved by the weighted joint matrices (J, 4, 4), and faces, turned where their first corner is mirrored.

    The node's own transform doesn't count.
    """
    index, weights = (_influences(primitive, name) for name in ("JOINTS", "WEIGHTS"))
    index, weights = index.astype(np.int64), weights.astype(np.float64)
    if index.shape != weights.shape or len(index) != len(vertices):
        raise MeshError("corrupt", "joints and weights of a skinned primitive differ in shape")
    if index.size and not 0 <= index.min() <= index.max() < len(matrices):
        raise MeshError("corrupt", "a vertex names a joint that the skin lacks")
    total = weights.sum(axis=1, keepdims=True)
    weights = np.where(total > 0, weights / np.where(total > 0, total, 1.0), 1.0 / weights.shape[1])
    moved, mirrored = np.zeros((len(vertices), 3)), np.zeros(len(vertices))
    with np.errstate(all="ignore"):  # non-finite positions are refused once, by load_mesh
        sign = np.sign(np.linalg.det(matrices[:, :3, :3]))
    for k in range(index.shape[1]):
        joint = matrices[index[:, k]]
        moved += weights[:, k, None] * (np.einsum("vij,vj->vi", joint[:, :3, :3], vertices) + joint[:, :3, 3])
        mirrored += weights[:, k] * sign[index[:, k]]
    faces = primitive.faces
    if len(faces):
        faces = np.where((mirrored[faces[:, 0]] < 0.0)[:, None], faces[:, ::-1], faces)
    return {"vertices": moved, "faces": faces}


def _influences(primitive: Primitive, name: str) -> np.ndarray:
    """JOINTS_0, JOINTS_1, ... (or WEIGHTS_) side by side."""
    sets = []
    while (found := primitive.attribute(f"{name}_{len(sets)}")) is not None:
        sets.append(found)
    if not sets:
        raise MeshError("corrupt", f"a skinned primitive has no {name}_0")
    return np.concatenate(sets, axis=1)
