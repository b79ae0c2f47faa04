"""Geometry of a glTF 2.0 asset (.gltf, .glb) at rest: triangles of the scene with node transforms and skins applied.

Textures, materials, lines, points, cameras and animations are never read. trimesh 5.2 is not used for glTF because it
decodes every image, drops triangle fans silently, ignores skins and answers broken files with unrelated exceptions.
Every read is checked against its buffer, so a false count or offset is a MeshError, not a crash.

Source: Khronos glTF 2.0 specification, 3.6 (buffers, accessors), 3.7.2 (meshes), 3.7.3 (skins), 4.4 (GLB);
KHR_draco_mesh_compression.
"""

import base64
import json
import struct
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import numpy as np

from g3pt.geometry.load import MAX_FACES, MeshError

_DTYPES = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
_GEOMETRY_EXTENSIONS = {"KHR_draco_mesh_compression", "KHR_mesh_quantization"}
_DECODERS_MISSING = {"EXT_meshopt_compression", "KHR_meshopt_compression", "EXT_mesh_gpu_instancing"}
_TRIANGLES, _STRIP, _FAN = 4, 5, 6
_MAX_DEPTH = 256
_MAX_VISITS = 100_000

ReadFile = Callable[[str], bytes]  # a relative URI of the asset -> its bytes, or MeshError


def read_gltf(content: bytes, read_file: ReadFile) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) float64 and faces (F, 3) int64 of the default scene."""
    document, chunk = _split_glb(content) if content[:4] == b"glTF" else (_parse_json(content), None)
    version = str(_table(document.get("asset", {}), "asset").get("version", ""))
    if version.split(".")[0] != "2":
        raise MeshError("unsupported", f"glTF version {version or 'unknown'}, only 2.x is read")
    missing = sorted(set(document.get("extensionsRequired", [])) & _DECODERS_MISSING)
    if missing:
        raise MeshError("unsupported", f"requires {', '.join(missing)}")
    return _Asset(document, chunk, read_file).scene()


def _split_glb(content: bytes) -> tuple[dict, bytes | None]:
    """JSON and binary chunk of a GLB."""
    if len(content) < 12:
        raise MeshError("corrupt", "GLB header is cut off")
    version, length = struct.unpack_from("<II", content, 4)
    if version != 2:
        raise MeshError("unsupported", f"GLB version {version}, only 2 is read")
    if length > len(content):
        raise MeshError("corrupt", f"GLB says {length} bytes but has {len(content)}")
    chunks, at = {}, 12
    while at + 8 <= length:
        size, kind = struct.unpack_from("<I4s", content, at)
        if at + 8 + size > length:
            raise MeshError("corrupt", "a GLB chunk is cut off")
        chunks.setdefault(kind, content[at + 8 : at + 8 + size])
        at += 8 + size
    if b"JSON" not in chunks:
        raise MeshError("corrupt", "GLB has no JSON chunk")
    return _parse_json(chunks[b"JSON"]), chunks.get(b"BIN\0")


def _parse_json(content: bytes) -> dict:
    try:
        document = json.loads(content.decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise MeshError("corrupt", f"not valid glTF JSON ({error})") from error
    return _table(document, "document")


def _table(value: Any, name: str) -> dict:
    if not isinstance(value, dict):
        raise MeshError("corrupt", f"glTF {name} is not an object")
    return value


def _quaternion_matrix(x: float, y: float, z: float, w: float) -> np.ndarray:
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ])


def _local_matrix(node: dict) -> np.ndarray:
    if "matrix" in node:
        return np.array(node["matrix"], dtype=np.float64).reshape(4, 4).T
    matrix = np.eye(4)
    scale = np.array(node.get("scale", [1, 1, 1]), dtype=np.float64)
    matrix[:3, :3] = _quaternion_matrix(*map(float, node.get("rotation", [0, 0, 0, 1]))) * scale
    matrix[:3, 3] = node.get("translation", [0, 0, 0])
    return matrix


class _Asset:
    """One parsed document with its buffers, read when first needed."""

    def __init__(self, document: dict, chunk: bytes | None, read_file: ReadFile) -> None:
        self.document, self.chunk, self.read_file = document, chunk, read_file
        self.buffers: dict[int, bytes] = {}
        self.world: dict[int, np.ndarray] = {}
        self.visits = 0

    def item(self, kind: str, index: Any) -> dict:
        items = self.document.get(kind, [])
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(items):
            raise MeshError("corrupt", f"{kind} has no item {index!r}")
        return _table(items[index], f"{kind}[{index}]")

    def buffer(self, index: int) -> bytes:
        if index not in self.buffers:
            uri = self.item("buffers", index).get("uri")
            self.buffers[index] = self._buffer_content(uri)
        return self.buffers[index]

    def _buffer_content(self, uri: Any) -> bytes:
        if uri is None:
            if self.chunk is None:
                raise MeshError("corrupt", "a buffer has neither a URI nor a GLB chunk")
            return self.chunk
        if str(uri).startswith("data:"):
            try:
                return base64.b64decode(str(uri).partition(",")[2])
            except ValueError as error:
                raise MeshError("corrupt", f"a data URI is not base64 ({error})") from error
        return self.read_file(unquote(str(uri)))

    def view(self, index: int) -> tuple[bytes, int]:
        """Bytes of a buffer view and its stride (0 when packed)."""
        view = self.item("bufferViews", index)
        data = self.buffer(view.get("buffer"))
        start, length = int(view.get("byteOffset", 0)), int(view["byteLength"])
        if start < 0 or length < 0 or start + length > len(data):
            raise MeshError("corrupt", f"bufferViews[{index}] reaches past its buffer of {len(data)} bytes")
        return data[start : start + length], int(view.get("byteStride", 0))

    def accessor(self, index: Any) -> np.ndarray:
        """Values (count, width) of an accessor; normalised integers become float."""
        accessor = self.item("accessors", index)
        dtype = np.dtype(_DTYPES[accessor["componentType"]])
        width, count = _WIDTHS[accessor["type"]], int(accessor["count"])
        if not 0 <= count <= 3 * MAX_FACES:
            raise MeshError("too-large", f"accessors[{index}] claims {count} values")
        if "bufferView" in accessor:
            values = self._strided(accessor["bufferView"], int(accessor.get("byteOffset", 0)), dtype, width, count)
        else:
            values = np.zeros((count, width), dtype=dtype)
        if "sparse" in accessor:
            values = self._with_sparse(values, accessor["sparse"], dtype, width)
        if accessor.get("normalized") and dtype.kind in "iu":
            values = np.maximum(values.astype(np.float64) / np.iinfo(dtype).max, -1.0)
        return values

    def _strided(self, view: int, offset: int, dtype: np.dtype, width: int, count: int) -> np.ndarray:
        data, stride = self.view(view)
        size = dtype.itemsize * width
        stride = stride or size
        if offset < 0 or (count and offset + stride * (count - 1) + size > len(data)):
            raise MeshError("corrupt", f"an accessor reaches past bufferViews[{view}]")
        return np.ndarray((count, width), dtype, data, offset, (stride, dtype.itemsize)).copy()

    def _with_sparse(self, values: np.ndarray, sparse: dict, dtype: np.dtype, width: int) -> np.ndarray:
        where, what, count = sparse["indices"], sparse["values"], int(sparse["count"])
        kind = np.dtype(_DTYPES[where["componentType"]])
        index = self._strided(where["bufferView"], int(where.get("byteOffset", 0)), kind, 1, count)[:, 0]
        if count and index.max() >= len(values):
            raise MeshError("corrupt", "a sparse accessor points past its values")
        values[index] = self._strided(what["bufferView"], int(what.get("byteOffset", 0)), dtype, width, count)
        return values

    def scene(self) -> tuple[np.ndarray, np.ndarray]:
        """All triangles below the default scene (the first if none is named)."""
        scenes = self.document.get("scenes", [])
        roots = self.item("scenes", self.document.get("scene", 0)).get("nodes", []) if scenes else []
        drawn: list[tuple[dict, np.ndarray]] = []
        for root in roots:
            self._walk(root, np.eye(4), (), drawn)
        parts = [part for node, matrix in drawn for part in self._node_parts(node, matrix)]
        if not parts:
            raise MeshError("no-faces", "the scene has no triangles")
        sizes = np.cumsum([0] + [len(vertices) for vertices, _ in parts])
        return (
            np.concatenate([vertices for vertices, _ in parts]),
            np.concatenate([faces + start for (_, faces), start in zip(parts, sizes, strict=False)]),
        )

    def _walk(self, index: int, parent: np.ndarray, above: tuple, drawn: list[tuple[dict, np.ndarray]]) -> None:
        """Collect the nodes with a mesh below `index`; a node placed by several parents is drawn for each."""
        node = self.item("nodes", index)
        if index in above or len(above) > _MAX_DEPTH:
            raise MeshError("corrupt", f"nodes[{index}] is its own ancestor, or is too deep")
        self.visits += 1
        if self.visits > _MAX_VISITS:
            raise MeshError("too-large", f"the scene places more than {_MAX_VISITS} nodes")
        matrix = parent @ _local_matrix(node)
        self.world[index] = matrix
        if "mesh" in node:
            drawn.append((node, matrix))
        for child in node.get("children", []):
            self._walk(child, matrix, (*above, index), drawn)

    def _node_parts(self, node: dict, matrix: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """(vertices, faces) of each triangle primitive of a node, in the scene's coordinates."""
        parts = []
        for primitive in self.item("meshes", node["mesh"]).get("primitives", []):
            if primitive.get("mode", _TRIANGLES) not in (_TRIANGLES, _STRIP, _FAN):
                continue
            vertices, faces, attributes = self._primitive(primitive)
            if "skin" in node and attributes is not None and "JOINTS_0" in attributes:
                vertices = self._skinned(vertices, attributes, self.item("skins", node["skin"]))
            else:
                with np.errstate(all="ignore"):  # non-finite positions are refused once, by load_mesh
                    vertices = vertices @ matrix[:3, :3].T + matrix[:3, 3]
            parts.append((vertices, faces))
        return parts

    def _primitive(self, primitive: dict) -> tuple[np.ndarray, np.ndarray, dict | None]:
        attributes = _table(primitive.get("attributes", {}), "attributes")
        if "POSITION" not in attributes:
            raise MeshError("corrupt", "a primitive has no POSITION")
        draco = primitive.get("extensions", {}).get("KHR_draco_mesh_compression")
        if draco is not None:
            return self._draco(draco)
        vertices = self.accessor(attributes["POSITION"]).astype(np.float64)
        if vertices.shape[1] != 3:
            raise MeshError("corrupt", "POSITION is not VEC3")
        if "indices" in primitive:
            order = self.accessor(primitive["indices"])[:, 0].astype(np.int64)
        else:
            order = np.arange(len(vertices))
        if len(order) and (order.max() >= len(vertices) or order.min() < 0):
            raise MeshError("corrupt", f"index {order.max()} is out of range for {len(vertices)} vertices")
        faces = _triangulated(order, primitive.get("mode", _TRIANGLES))
        return vertices, faces, {k: self.accessor(attributes[k]) for k in ("JOINTS_0", "WEIGHTS_0") if k in attributes}

    def _draco(self, extension: dict) -> tuple[np.ndarray, np.ndarray, dict | None]:
        import DracoPy

        data, _ = self.view(extension["bufferView"])
        try:
            mesh = DracoPy.decode(data)
        except Exception as error:  # DracoPy raises its own types for each broken stream
            raise MeshError("corrupt", f"Draco data can't be decoded ({error})") from error
        if not hasattr(mesh, "faces"):
            raise MeshError("no-faces", "Draco data is a point cloud")
        attributes = {}
        for name in ("JOINTS_0", "WEIGHTS_0"):
            if name in extension.get("attributes", {}):
                found = mesh.get_attribute_by_unique_id(extension["attributes"][name])
                attributes[name] = np.asarray(found["data"])
        vertices = np.asarray(mesh.points, dtype=np.float64).reshape(-1, 3)
        return vertices, np.asarray(mesh.faces, dtype=np.int64).reshape(-1, 3), attributes

    def _skinned(self, vertices: np.ndarray, attributes: dict, skin: dict) -> np.ndarray:
        """Vertices moved by the weighted joint matrices of the rest pose (the node's own transform doesn't count)."""
        joints = skin["joints"]
        inverse = np.tile(np.eye(4), (len(joints), 1, 1))
        if "inverseBindMatrices" in skin:
            inverse = self.accessor(skin["inverseBindMatrices"]).astype(np.float64).reshape(-1, 4, 4).transpose(0, 2, 1)
        matrices = np.stack([self.world.get(joint, np.eye(4)) @ inverse[k] for k, joint in enumerate(joints)])
        index, weights = attributes["JOINTS_0"].astype(np.int64), attributes["WEIGHTS_0"].astype(np.float64)
        if index.max(initial=0) >= len(joints):
            raise MeshError("corrupt", "a vertex names a joint that the skin lacks")
        total = weights.sum(axis=1, keepdims=True)
        weights = np.where(total > 0, weights / np.where(total > 0, total, 1.0), 1.0 / weights.shape[1])
        blended = np.einsum("vk,vkij->vij", weights, matrices[index])
        return np.einsum("vij,vj->vi", blended[:, :3, :3], vertices) + blended[:, :3, 3]


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
