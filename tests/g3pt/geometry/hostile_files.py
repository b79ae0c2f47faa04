"""Files made to break a reader, written where a test wants them, each with the reason class it must be refused with."""

import base64
import gzip
import io
import json
import os
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

CORNERS = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype="<f4")
FACES = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], dtype="<u2")
TETRAHEDRON = CORNERS.tobytes() + FACES.tobytes()  # 48 + 24 bytes


def data_uri(content: bytes, kind: str = "") -> str:
    return f"data:{kind};base64," + base64.b64encode(content).decode("ascii")


def gltf(**changes: object) -> dict:
    """A tetrahedron in glTF; `changes` replace top-level entries."""
    document = {
        "asset": {"version": "2.0"}, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "buffers": [{"byteLength": 72, "uri": data_uri(TETRAHEDRON)}],
        "bufferViews": [{"buffer": 0, "byteLength": 48}, {"buffer": 0, "byteOffset": 48, "byteLength": 24}],
        "accessors": [accessor(4, "VEC3", 0, 5126), accessor(12, "SCALAR", 1, 5123)],
    }  # fmt: skip
    return document | changes


def accessor(count: int, kind: str, view: int | None, component: int) -> dict:
    return {"count": count, "type": kind, "componentType": component} | ({} if view is None else {"bufferView": view})


def glb(document: dict, chunk: bytes = TETRAHEDRON) -> bytes:
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    body = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(chunk), b"BIN\0") + chunk
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body


def good_files() -> dict[str, bytes]:
    """One small valid file of each format, and of each way to write it."""
    number = lambda row: " ".join(f"{x:g}" for x in row)  # noqa: E731
    vertices, faces = [number(row) for row in CORNERS], [number(row) for row in FACES]
    ply = (
        "ply\nformat {}\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\nelement face 4\n"
        "property list uchar int vertex_indices\nend_header\n"
    )
    rows = b"".join(struct.pack("<B3i", 3, *row) for row in FACES)
    triangles = CORNERS[FACES]
    facets = b"".join(struct.pack("<12fH", 0, 0, 0, *corners.reshape(-1), 0) for corners in triangles)
    text = "\n".join(
        "facet normal 0 0 0\nouter loop\n" + "".join(f"vertex {number(c)}\n" for c in corners) + "endloop\nendfacet"
        for corners in triangles
    )
    return {
        "good.gltf": json.dumps(gltf()).encode(),
        "good.glb": glb(gltf(buffers=[{"byteLength": 72}])),
        "good.obj": "\n".join(
            [*(f"v {row}" for row in vertices), *(f"f {number(row + 1)}" for row in FACES), ""]
        ).encode(),
        "good.off": "\n".join(["OFF", "4 4 0", *vertices, *(f"3 {row}" for row in faces), ""]).encode(),
        "good.ply": ply.format("binary_little_endian 1.0").encode() + CORNERS.tobytes() + rows,
        "good_text.ply": (
            ply.format("ascii 1.0") + "\n".join([*vertices, *(f"3 {row}" for row in faces), ""])
        ).encode(),
        "good.stl": bytes(80) + struct.pack("<I", 4) + facets,
        "good_text.stl": f"solid x\n{text}\nendsolid x\n".encode(),
    }


def bad_files() -> dict[str, tuple[bytes, str]]:
    """Name -> (content, reason) of files that must be refused, each in milliseconds and without much memory."""
    found = {name: (json.dumps(document).encode(), reason) for name, document, reason in _bad_gltf()}
    nan, infinite, far = (
        np.full((4, 3), value, dtype="<f4").tobytes() + FACES.tobytes() for value in (np.nan, np.inf, 3e38)
    )
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb.obj", bytes(10_000_000))
    bomb = gzip.compress(bytes(10_000_000))
    for suffix in ("glb", "gltf", "obj", "ply", "stl", "off"):
        found[f"gzip.{suffix}"] = (bomb, "unsupported")
        found[f"zip.{suffix}"] = (zipped.getvalue(), "unsupported")
        found[f"empty.{suffix}"] = (b"", "empty")
        found[f"noise.{suffix}"] = (random.Random(suffix).randbytes(3000), "corrupt" if suffix != "obj" else "no-faces")
    return found | {
        "nan.glb": (glb(gltf(buffers=[{"byteLength": 72}]), nan), "non-finite"),
        "infinite.glb": (glb(gltf(buffers=[{"byteLength": 72}]), infinite), "non-finite"),
        "too_far.gltf": (json.dumps(gltf(buffers=[{"uri": data_uri(far)}])).encode(), "zero-extent"),
        "too_large.gltf": (json.dumps(gltf(nodes=[{"mesh": 0, "scale": [1e150] * 3}])).encode(), "too-large"),
        "nan.obj": (b"v 0 0 0\nv nan 0 0\nv 0 1 0\nf 1 2 3\n", "non-finite"),
        "overflow.obj": (b"v 0 0 0\nv 1e400 0 0\nv 0 1 0\nf 1 2 3\n", "non-finite"),
        "huge_index.obj": (b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 99999999999999\n", "corrupt"),
        "huge_count.off": (b"OFF\n9999999999 9999999999 0\n0 0 0\n", "corrupt"),
        "huge_count.stl": (bytes(80) + b"\xff" * 4 + bytes(50), "corrupt"),
        "huge_vertices.ply": (_ply("binary_little_endian", 10**15, 1), "corrupt"),
        "huge_faces.ply": (_ply("binary_big_endian", 1, 10**15), "corrupt"),
        "huge_text.ply": (_ply("ascii", 10**15, 10**15), "corrupt"),
        "huge_list.ply": (_ply("binary_little_endian", 0, 1) + struct.pack("<I", 2**31 - 1), "corrupt"),
        "huge_chunk.glb": (struct.pack("<4sIII4s", b"glTF", 2, 20, 2**32 - 1, b"JSON"), "corrupt"),
        "huge_draco.glb": (glb(_draco_gltf(), b"DRACO\x02\x02\x01\x01\0\0" + b"\xff" * 40), "corrupt"),
        "deep_json.gltf": (b'{"asset":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "corrupt"),
    }  # fmt: skip


def _ply(kind: str, vertices: int, faces: int) -> bytes:
    return (
        f"ply\nformat {kind} 1.0\nelement vertex {vertices}\nproperty float x\nproperty float y\nproperty float z\n"
        f"element face {faces}\nproperty list uint int vertex_indices\nend_header\n"
    ).encode()


def _draco_gltf() -> dict:
    packed = {"KHR_draco_mesh_compression": {"bufferView": 0, "attributes": {"POSITION": 0}}}
    return gltf(
        buffers=[{"byteLength": 51}], meshes=[{"primitives": [{"attributes": {"POSITION": 0}, "extensions": packed}]}]
    )


def _bad_gltf() -> Iterator[tuple[str, dict, str]]:
    yield "cycle.gltf", gltf(nodes=[{"mesh": 0, "children": [1]}, {"children": [0]}]), "corrupt"
    yield "deep.gltf", gltf(nodes=[{"children": [k + 1]} for k in range(100_000)] + [{"mesh": 0}]), "corrupt"
    yield "exponential.gltf", gltf(nodes=[{"children": [k + 1] * 10} for k in range(30)] + [{"mesh": 0}]), "too-large"
    yield "crowd.gltf", _crowd(), "too-large"
    yield "huge_count.gltf", gltf(accessors=[accessor(10**12, "VEC3", 0, 5126)] * 2), "too-large"
    yield "negative_count.gltf", gltf(accessors=[accessor(-1, "VEC3", 0, 5126)] * 2), "corrupt"
    yield "zeros.gltf", gltf(accessors=[accessor(59_999_999, "VEC3", None, 5126)] * 2), "too-large"
    yield "past_buffer.gltf", gltf(bufferViews=[{"buffer": 0, "byteLength": 10**12}] * 2), "corrupt"
    yield "no_scene.gltf", gltf(scenes=[]), "ok"
    yield (
        "gzip_uri.gltf",
        gltf(buffers=[{"uri": data_uri(gzip.compress(bytes(10**7)), "application/gzip")}]),
        "zero-extent",
    )
    yield "short_uri.gltf", gltf(buffers=[{"uri": data_uri(b"PK\x03\x04")}]), "corrupt"
    uris = {
        "climb": "../../../../etc/passwd", "climb_escaped": "%2e%2e/%2e%2e/etc/passwd",
        "climb_inside": "a/../../secret.bin",
        "absolute": "/etc/passwd", "file": "file:///etc/passwd", "http": "http://127.0.0.1:9/a.bin",
        "windows": "C:\\secret.bin",
        "share": "\\\\host\\share", "linked": "link_out.bin", "linked_folder": "folder_out/secret.bin",
    }  # fmt: skip
    for name, uri in uris.items():
        yield f"uri_{name}.gltf", gltf(buffers=[{"byteLength": 72, "uri": uri}]), "external-uri"
    for name, uri in {"absent": "absent.bin", "folder": "folder.glb", "pipe": "pipe.glb"}.items():
        yield f"uri_{name}.gltf", gltf(buffers=[{"byteLength": 72, "uri": uri}]), "missing-file"
    for name, uri in {"long": "a" * 5000, "zero_byte": "a%00b", "circle": "circle.bin"}.items():
        yield f"uri_{name}.gltf", gltf(buffers=[{"byteLength": 72, "uri": uri}]), "unreadable"


def _crowd() -> dict:
    """25,000 nodes that each place 3,000 vertices with one face."""
    points = np.zeros((3000, 3), "<f4").tobytes() + bytes([0, 0, 1, 0, 2, 0, 0, 0])
    views = [{"buffer": 0, "byteLength": 36_000}, {"buffer": 0, "byteOffset": 36_000, "byteLength": 6}]
    return gltf(
        nodes=[{"mesh": 0}] * 25_000, scenes=[{"nodes": list(range(25_000))}], bufferViews=views,
        buffers=[{"uri": data_uri(points)}], accessors=[accessor(3000, "VEC3", 0, 5126),
                                                        accessor(3, "SCALAR", 1, 5123)],
    )  # fmt: skip


ODD_NAMES = (
    "ümläut 木.obj",
    "two\nlines.obj",
    " space .obj",
    "\x1b[31mred.obj",
    ".hidden.obj",
    "UPPER.OBJ",
    "'quote\".obj",
    "-dash.obj",
    "n" * 251 + ".obj",
)


def write_all(folder: Path) -> dict[str, str]:
    """Write good, bad, oddly named and special files into `folder`.

    Returns path -> reason, or "ok" where one must load.
    """
    folder.mkdir(parents=True)
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "secret.bin").write_bytes(TETRAHEDRON)
    good = good_files()
    (outside / "good.obj").write_bytes(good["good.obj"])
    expected = (
        dict.fromkeys(good, "ok")
        | dict.fromkeys(ODD_NAMES, "ok")
        | {name: reason for name, (_, reason) in bad_files().items()}
    )
    for name, content in {
        **good,
        **dict.fromkeys(ODD_NAMES, good["good.obj"]),
        **{name: content for name, (content, _) in bad_files().items()},
    }.items():
        (folder / name).write_bytes(content)
    for name, scale in (("tiny.gltf", 1e-30), ("large.gltf", 1e30)):
        (folder / name).write_text(json.dumps(gltf(nodes=[{"mesh": 0, "scale": [scale] * 3}])))
        expected[name] = "ok"
    return expected | _special(folder, outside)


def _special(folder: Path, outside: Path) -> dict[str, str]:
    """Links, folders, pipes and sparse files that are named like meshes."""
    made: dict[str, tuple[Callable[[Path], None], str]] = {
        "link_out.obj": (lambda path: path.symlink_to(outside / "good.obj"), "external-uri"),
        "link_in.obj": (lambda path: path.symlink_to(folder / "good.obj"), "ok"),
        "dangling.obj": (lambda path: path.symlink_to(folder / "gone.obj"), "missing-file"),
        "circle.obj": (lambda path: path.symlink_to(path), "unreadable"),
        "folder.glb": (Path.mkdir, "missing-file"),
        "pipe.glb": (os.mkfifo, "missing-file"),
        "terabyte.stl": (lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 10**12), "too-large"),
    }
    for name, (make, _) in made.items():
        make(folder / name)
    (folder / "link_out.bin").symlink_to(outside / "secret.bin")
    (folder / "folder_out").symlink_to(outside, target_is_directory=True)
    (folder / "circle.bin").symlink_to(folder / "circle.bin")
    return {name: reason for name, (_, reason) in made.items()} | {
        "folder_out/good.obj": "external-uri",
        "../outside/good.obj": "external-uri",
    }
