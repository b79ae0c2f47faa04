"""Which meshes a glTF scene places, and where: nodes, their transforms, instances, visibility.

Rules where the specification is silent or broken: `scene` that is absent means the first scene, and `scenes` that are
absent mean all nodes that no node has for a child. A quaternion of another length is scaled to length 1, and one of
length 0 turns nothing. A node with a matrix ignores its translation, rotation and scale.

Ours: three.js also takes the first scene and the matrix, but shows nothing without scenes and shears by a quaternion
that is not of unit length. Blender's importer scales the quaternion, as here, and also takes nodes that no scene has.
Source: Khronos glTF 2.0 specification, 3.5 (scenes, nodes); EXT_mesh_gpu_instancing; KHR_node_visibility.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from g3pt.geometry.gltf_document import Document, listed, numbers, table
from g3pt.geometry.reading import MeshError

MAX_PLACEMENTS = 100_000
_MAX_DEPTH = 256


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A node with a mesh, and matrices (K, 4, 4) from the mesh to the scene, one for each instance."""

    node: dict
    matrices: np.ndarray


@dataclass(kw_only=True)
class Scene:
    """The default scene: its placements, and each visited node's matrix (4, 4) to the scene (the joints of skins)."""

    placements: list[Placement] = field(default_factory=list)
    world: dict[int, np.ndarray] = field(default_factory=dict)


def default_scene(document: Document) -> Scene:
    """The scene that `scene` names, else the first, else all root nodes; the asset's other scenes are not read."""
    walk = _Walk(document)
    for root in _roots(document):
        walk.below(root, np.eye(4), ())
    return walk.scene


def _roots(document: Document) -> list:
    if document.items("scenes") or "scene" in document.root:
        return listed(document.item("scenes", document.root.get("scene", 0)), "nodes", int)
    nodes = document.items("nodes")
    children = {child for node in nodes for child in listed(node, "children", int)}
    return [index for index in range(len(nodes)) if index not in children]


def check_nodes(document: Document) -> None:
    """MeshError for a node that is its own ancestor or names something missing, whether a scene contains it or not."""
    walk = _Walk(document)
    for index in range(len(document.items("nodes"))):
        walk.below(index, np.eye(4), ())


class _Walk:
    """Collects the placements at and below a node; a node with several parents is placed by each."""

    def __init__(self, document: Document) -> None:
        self.document, self.scene = document, Scene()
        self._local: dict[int, np.ndarray] = {}
        self._placed = 0

    def below(self, index: Any, parent: np.ndarray, above: tuple[int, ...]) -> None:
        node = self.document.item("nodes", index)
        if index in above or len(above) > _MAX_DEPTH:
            raise MeshError("corrupt", f"nodes[{index}] is its own ancestor, or is too deep")
        self._count(1)
        if index not in self._local:
            self._local[index] = _local_matrix(node)
        matrix = self.scene.world[index] = parent @ self._local[index]
        if _extension(node, "KHR_node_visibility").get("visible", True) is False:
            return
        if "mesh" in node:
            instances = _instance_matrices(self.document, node)
            self._count(len(instances) - 1)
            self.scene.placements.append(Placement(node=node, matrices=matrix @ instances))
        for child in listed(node, "children", int):
            self.below(child, matrix, (*above, index))

    def _count(self, placed: int) -> None:
        self._placed += placed
        if self._placed > MAX_PLACEMENTS:
            raise MeshError("too-large", f"the scene places more than {MAX_PLACEMENTS} nodes and instances")


def _extension(item: dict, name: str) -> dict:
    return table(table(item.get("extensions", {}), "extensions").get(name, {}), name)


def _local_matrix(node: dict) -> np.ndarray:
    if "matrix" in node:
        return numbers(node, "matrix", [0.0] * 16).reshape(4, 4).T
    translation, rotation, scale = (
        numbers(node, name, default)[None]
        for name, default in (("translation", [0, 0, 0]), ("rotation", [0, 0, 0, 1]), ("scale", [1, 1, 1]))
    )
    return _matrices(translation, rotation, scale)[0]


def _instance_matrices(document: Document, node: dict) -> np.ndarray:
    """Matrices (K, 4, 4) of a node's instances in its own coordinates; one identity for a node without them."""
    attributes = table(_extension(node, "EXT_mesh_gpu_instancing").get("attributes", {}), "attributes")
    given = {
        name: document.accessor(attributes[name]).astype(np.float64)
        for name in ("TRANSLATION", "ROTATION", "SCALE")
        if name in attributes
    }
    for name, values in given.items():
        if values.shape[1] != (4 if name == "ROTATION" else 3):
            raise MeshError("corrupt", f"the instance attribute {name} has {values.shape[1]} numbers")
    if not given or "skin" in node:  # a skin places its mesh by joints: instances of it are not defined
        return np.eye(4)[None]
    counts = {len(values) for values in given.values()}
    if len(counts) > 1:
        raise MeshError("corrupt", f"instance attributes have different counts {sorted(counts)}")
    one = np.ones((counts.pop(), 1))
    return _matrices(
        given.get("TRANSLATION", one * [0, 0, 0]),
        given.get("ROTATION", one * [0, 0, 0, 1]),
        given.get("SCALE", one * [1, 1, 1]),
    )


def _matrices(translation: np.ndarray, rotation: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Matrices (K, 4, 4) of translations (K, 3), quaternions x, y, z, w (K, 4) and scales (K, 3)."""
    length = np.linalg.norm(rotation, axis=1)
    nothing = length == 0.0
    x, y, z, w = np.where(nothing, [[0.0], [0.0], [0.0], [1.0]], rotation.T / np.where(nothing, 1.0, length))
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    matrices = np.tile(np.eye(4), (len(translation), 1, 1))
    matrices[:, :3, :3] = np.array(rows).transpose(2, 0, 1) * scale[:, None, :]
    matrices[:, :3, 3] = translation
    return matrices
