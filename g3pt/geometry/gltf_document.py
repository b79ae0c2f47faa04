"""A glTF 2.0 document and its numbers: GLB chunks, JSON, buffers, buffer views, accessors.

Every read is checked against its buffer, so a false count or offset is a MeshError, not a crash.

Source: Khronos glTF 2.0 specification, 3.6 (buffers, accessors), 4.4 (GLB).
"""

import base64
import json
import struct
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import numpy as np

from g3pt.geometry.reading import MAX_FACES, MeshError, ReadFile

_DTYPES = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
_MAX_ZEROS = 1_000_000  # values of an accessor without data: a file of 200 bytes may claim any number
_MESHOPT = ("EXT_meshopt_compression", "KHR_meshopt_compression")


def open_document(content: bytes, read_file: ReadFile) -> "Document":
    """The document of a .glb or .gltf file."""
    document, chunk = _split_glb(content) if content[:4] == b"glTF" else (_parse_json(content), None)
    version = str(table(document.get("asset", {}), "asset").get("version", ""))
    if not version:
        raise MeshError("corrupt", "glTF without asset.version")
    if version.split(".")[0] != "2":
        raise MeshError("unsupported", f"glTF version {version}, only 2.x is read")
    return Document(document, chunk, read_file)


def table(value: Any, name: str) -> dict:
    """The value, which must be a JSON object."""
    if not isinstance(value, dict):
        raise MeshError("corrupt", f"glTF {name} is not an object")
    return value


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
    return table(document, "document")


def _data_uri_content(uri: str) -> bytes:
    """The bytes of a data URI: base64, without blanks and with its padding, or percent-encoded (RFC 2397)."""
    head, comma, data = uri.partition(",")
    if not comma:
        raise MeshError("corrupt", "a data URI has no comma before its data")
    content = unquote_to_bytes(data)
    if not head.lower().endswith(";base64"):
        return content
    try:
        return base64.b64decode(content, validate=True)
    except ValueError as error:
        raise MeshError("corrupt", f"a data URI is not base64 ({error})") from error


class Document:
    """Parsed JSON (`root`) with its buffers, which are read when first needed."""

    def __init__(self, root: dict, chunk: bytes | None, read_file: ReadFile) -> None:
        self.root, self.read_file = root, read_file
        self._chunk = chunk
        self._buffers: dict[int, bytes] = {}

    def item(self, kind: str, index: Any) -> dict:
        """`root[kind][index]`, checked."""
        items = self.root.get(kind, [])
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(items):
            raise MeshError("corrupt", f"{kind} has no item {index!r}")
        return table(items[index], f"{kind}[{index}]")

    def view(self, index: Any) -> tuple[memoryview, int]:
        """Bytes of a buffer view and its stride (0 when packed)."""
        view = self.item("bufferViews", index)
        compressed = sorted(set(view.get("extensions", {})).intersection(_MESHOPT))
        if compressed and self._without_fallback(compressed[0], view.get("buffer")):
            raise MeshError(
                "unsupported", f"bufferViews[{index}] is compressed with {compressed[0]}, which is not decoded"
            )
        data = self._buffer(view.get("buffer"))
        start, length, stride = int(view.get("byteOffset", 0)), int(view["byteLength"]), int(view.get("byteStride", 0))
        if min(start, length, stride) < 0 or start + length > len(data):
            raise MeshError("corrupt", f"bufferViews[{index}] reaches past its buffer of {len(data)} bytes")
        return memoryview(data)[start : start + length], stride

    def _without_fallback(self, extension: str, buffer: Any) -> bool:
        """Whether a compressed view's own buffer has no uncompressed copy of its data."""
        required = extension in self.root.get("extensionsRequired", [])
        return required or ("uri" not in self.item("buffers", buffer) and (buffer != 0 or self._chunk is None))

    def check_buffers(self) -> None:
        """Raise MeshError for a buffer that can't be read, whether anything uses it or not."""
        for index in range(len(self.root.get("buffers", []))):
            self._buffer(index)

    def _buffer(self, index: Any) -> bytes:
        if index not in self._buffers:
            self._buffers[index] = self._buffer_content(self.item("buffers", index).get("uri"))
        return self._buffers[index]

    def _buffer_content(self, uri: Any) -> bytes:
        if uri is None:
            if self._chunk is None:
                raise MeshError("corrupt", "a buffer has neither a URI nor a GLB chunk")
            return self._chunk
        return self.resource(str(uri))

    def resource(self, uri: str) -> bytes:
        """The content of an asset's URI: data within it, or a file below the root."""
        if uri[:5].lower() != "data:":
            return self.read_file(unquote(uri))
        return _data_uri_content(uri)

    def accessor(self, index: Any) -> np.ndarray:
        """Values (count, width) of an accessor; normalised integers become float."""
        accessor = self.item("accessors", index)
        dtype = np.dtype(_DTYPES[accessor["componentType"]])
        width, count = _WIDTHS[accessor["type"]], int(accessor["count"])
        if not 0 <= count <= 3 * MAX_FACES:
            raise MeshError("too-large", f"accessors[{index}] claims {count} values")
        if "bufferView" in accessor:
            values = self._strided(accessor["bufferView"], int(accessor.get("byteOffset", 0)), dtype, width, count)
        elif count > _MAX_ZEROS:
            raise MeshError("too-large", f"accessors[{index}] claims {count} values and holds none")
        else:
            values = np.zeros((count, width), dtype=dtype)
        if "sparse" in accessor:
            values = self._with_sparse(values, accessor["sparse"], dtype, width)
        if accessor.get("normalized") and dtype.kind in "iu":
            values = np.maximum(values.astype(np.float64) / np.iinfo(dtype).max, -1.0)
        return values

    def _strided(self, view: Any, offset: int, dtype: np.dtype, width: int, count: int) -> np.ndarray:
        data, stride = self.view(view)
        size = dtype.itemsize * width
        stride = stride or size
        if offset < 0 or (count and offset + stride * (count - 1) + size > len(data)):
            raise MeshError("corrupt", f"an accessor reaches past bufferViews[{view}]")
        return np.ndarray((count, width), dtype, data, offset, (stride, dtype.itemsize)).copy()

    def _with_sparse(self, values: np.ndarray, sparse: dict, dtype: np.dtype, width: int) -> np.ndarray:
        where, what, count = sparse["indices"], sparse["values"], int(sparse["count"])
        if not 0 <= count <= len(values):
            raise MeshError("corrupt", f"a sparse accessor replaces {count} of {len(values)} values")
        kind = np.dtype(_DTYPES[where["componentType"]])
        index = self._strided(where["bufferView"], int(where.get("byteOffset", 0)), kind, 1, count)[:, 0]
        if count and not 0 <= index.min() <= index.max() < len(values):
            raise MeshError("corrupt", "a sparse accessor points past its values")
        values[index] = self._strided(what["bufferView"], int(what.get("byteOffset", 0)), dtype, width, count)
        return values
