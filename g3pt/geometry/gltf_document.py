"""A glTF 2.0 document and its numbers: GLB chunks, JSON, buffers, buffer views, accessors.

Every read is checked against its buffer, so a false count or offset is a MeshError, not a crash.
An asset that needs a later version than 2.0 (`asset.minVersion`, or without it a major `asset.version` other than 2) is
refused.

Source: Khronos glTF 2.0 specification, 3.2 (versions), 3.6 (buffers, accessors), 4.4 (GLB).
"""

import base64
import json
import re
import struct
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import numpy as np

from g3pt.geometry.reading import MAX_FACES, MeshError, ReadFile

_DTYPES = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
_MAX_ZEROS = 1_000_000  # values of an accessor without data: a file of 200 bytes may claim any number
_KINDS = {dict: "objects", int: "indices", (int, float): "numbers", str: "names"}
_MESHOPT = ("EXT_meshopt_compression", "KHR_meshopt_compression")


def open_document(content: bytes, read_file: ReadFile) -> "Document":
    """The document of a .glb or .gltf file."""
    document, chunk = _split_glb(content) if content[:4] == b"glTF" else (_parse_json(content), None)
    _refuse_version(table(document.get("asset", {}), "asset"))
    return Document(document, chunk, read_file)


def _refuse_version(asset: dict) -> None:
    """MeshError if the asset states no version, or one that needs more than glTF 2.0."""
    if "version" not in asset:
        raise MeshError("corrupt", "glTF without asset.version")
    version, least = _version(asset, "version"), _version(asset, "minVersion") if "minVersion" in asset else None
    if least is None and version[0] != 2:
        raise MeshError("unsupported", f"glTF version {asset['version']}, only 2.x is read")
    if least is not None and (least > (2, 0) or version[0] < 2):
        raise MeshError("unsupported", f"asset.minVersion is {asset['minVersion']}, glTF up to 2.0 is read")


def _version(asset: dict, name: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,4})(?:\.([0-9]{1,4}))?", str(asset[name]))
    if match is None:
        raise MeshError("corrupt", f"asset.{name} is {str(asset[name])[:40]!r}, no version")
    return int(match[1]), int(match[2] or 0)


def table(value: Any, name: str) -> dict:
    """The value, which must be a JSON object."""
    if not isinstance(value, dict):
        raise MeshError("corrupt", f"glTF {name} is not an object")
    return value


def listed(item: dict, name: str, kind: type | tuple[type, ...]) -> list:
    """`item[name]`, which must be a list of values of this kind; empty if it is missing."""
    values = item.get(name, [])
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise MeshError("corrupt", f"glTF {name} is not a list of {_KINDS[kind]}")
    return values


def whole_number(item: dict, name: str, default: int | None = None) -> int:
    """`item[name]`, which must be a whole number from 0; the default if it is missing."""
    value = item.get(name, default)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise MeshError("corrupt", f"{name} is {str(value)[:40]}, not a whole number from 0")
    return value


def numbers(item: dict, name: str, default: list) -> np.ndarray:
    """`item[name]` (N,), as many numbers as the default has; the default if it is missing."""
    values = item.get(name, default)
    if not isinstance(values, list) or len(values) != len(default) or not all(map(_is_number, values)):
        raise MeshError("corrupt", f"{name} is {str(values)[:60]}, not {len(default)} numbers")
    return np.array([float(value) for value in values])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300 or value != value


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
        self._items: dict[str, list[dict]] = {}

    def item(self, kind: str, index: Any) -> dict:
        """`root[kind][index]`, checked."""
        items = self.items(kind)
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(items):
            raise MeshError("corrupt", f"{kind} has no item {index!r}")
        return items[index]

    def items(self, kind: str) -> list[dict]:
        """`root[kind]`, checked; empty if it is missing."""
        if kind not in self._items:
            self._items[kind] = listed(self.root, kind, dict)
        return self._items[kind]

    def view(self, index: Any) -> tuple[memoryview, int]:
        """Bytes of a buffer view and its stride (0 when packed)."""
        view = self.item("bufferViews", index)
        compressed = sorted(table(view.get("extensions", {}), "extensions").keys() & set(_MESHOPT))
        if compressed and self._without_fallback(compressed[0], view.get("buffer")):
            raise MeshError(
                "unsupported", f"bufferViews[{index}] is compressed with {compressed[0]}, which is not decoded"
            )
        data = self._buffer(view.get("buffer"))
        start, length = whole_number(view, "byteOffset", 0), whole_number(view, "byteLength")
        stride = whole_number(view, "byteStride", 0)
        if start + length > len(data):
            raise MeshError("corrupt", f"bufferViews[{index}] reaches past its buffer of {len(data)} bytes")
        return memoryview(data)[start : start + length], stride

    def _without_fallback(self, extension: str, buffer: Any) -> bool:
        """Whether a compressed view's own buffer has no uncompressed copy of its data."""
        required = extension in self.root.get("extensionsRequired", [])
        return required or ("uri" not in self.item("buffers", buffer) and (buffer != 0 or self._chunk is None))

    def check_buffers(self) -> None:
        """Raise MeshError for a buffer that can't be read, whether anything uses it or not."""
        for index in range(len(self.items("buffers"))):
            self._buffer(index)

    def _buffer(self, index: Any) -> bytes:
        uri = self.item("buffers", index).get("uri")
        if index not in self._buffers:
            if uri is None and (index != 0 or self._chunk is None):
                raise MeshError("corrupt", f"buffers[{index}] has neither a URI nor a GLB chunk")
            self._buffers[index] = self._chunk if uri is None else self.resource(str(uri))
        return self._buffers[index]

    def resource(self, uri: str) -> bytes:
        """The content of an asset's URI: data within it, or a file below the root."""
        if uri[:5].lower() != "data:":
            return self.read_file(unquote(uri))
        return _data_uri_content(uri)

    def accessor(self, index: Any) -> np.ndarray:
        """Values (count, width) of an accessor; normalised integers become float."""
        accessor = self.item("accessors", index)
        dtype = _component_type(accessor)
        if str(accessor.get("type")) not in _WIDTHS:
            raise MeshError("corrupt", f"accessors[{index}] has the type {str(accessor.get('type'))[:40]}")
        width, count = _WIDTHS[accessor["type"]], whole_number(accessor, "count")
        if count > 3 * MAX_FACES:
            raise MeshError("too-large", f"accessors[{index}] claims {count} values")
        if "bufferView" in accessor:
            values = self._strided(accessor, dtype, width, count)
        elif count > _MAX_ZEROS:
            raise MeshError("too-large", f"accessors[{index}] claims {count} values and holds none")
        else:
            values = np.zeros((count, width), dtype=dtype)
        if "sparse" in accessor:
            values = self._with_sparse(values, table(accessor["sparse"], "sparse"), dtype, width)
        if accessor.get("normalized") and dtype.kind in "iu":
            values = np.maximum(values.astype(np.float64) / np.iinfo(dtype).max, -1.0)
        return values

    def _strided(self, item: dict, dtype: np.dtype, width: int, count: int) -> np.ndarray:
        """Values (count, width) at an item's `bufferView` and `byteOffset`."""
        view, offset = item.get("bufferView"), whole_number(item, "byteOffset", 0)
        data, stride = self.view(view)
        size = dtype.itemsize * width
        if 0 < stride < size:
            raise MeshError("corrupt", f"bufferViews[{view}] has a byteStride of {stride} for values of {size} bytes")
        stride = stride or size
        if count and offset + stride * (count - 1) + size > len(data):
            raise MeshError("corrupt", f"an accessor reaches past bufferViews[{view}]")
        if count == 0:
            return np.zeros((0, width), dtype)
        return np.ndarray((count, width), dtype, data, offset, (stride, dtype.itemsize)).copy()

    def _with_sparse(self, values: np.ndarray, sparse: dict, dtype: np.dtype, width: int) -> np.ndarray:
        where, what = table(sparse.get("indices"), "sparse.indices"), table(sparse.get("values"), "sparse.values")
        count = whole_number(sparse, "count")
        if count > len(values):
            raise MeshError("corrupt", f"a sparse accessor replaces {count} of {len(values)} values")
        index = self._strided(where, _component_type(where), 1, count)[:, 0]
        if count and not 0 <= index.min() <= index.max() < len(values):
            raise MeshError("corrupt", "a sparse accessor points past its values")
        if index.dtype.kind == "f":
            raise MeshError("corrupt", "the indices of a sparse accessor are not integers")
        values[index] = self._strided(what, dtype, width, count)
        return values


def _component_type(item: dict) -> np.dtype:
    kind = item.get("componentType")
    if not isinstance(kind, int) or kind not in _DTYPES:
        raise MeshError("corrupt", f"componentType {str(kind)[:40]} is none of {', '.join(map(str, _DTYPES))}")
    return np.dtype(_DTYPES[kind])
