"""Damaged files of every format: each gives a sound mesh or a MeshError of ours, never another exception
or much memory.

The same seeds damage the same bytes. More by hand: python tests/g3pt/geometry/test_fuzz.py 20000
"""

import base64
import copy
import json
import random
import re
import resource
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from g3pt.geometry.appearance_obj import obj_parts
from g3pt.geometry.appearance_ply import ply_parts
from g3pt.geometry.load import LoadedMesh, checked, parsed
from g3pt.geometry.reading import MeshError
from tests.g3pt.geometry.hostile_files import good_files

FIELD = Path(__file__).parent / "field"
CASES = 60  # per file
NUMBERS = (
    "-1", "0", "1", "7", "255", "65535", "65536", "4294967295", "-2147483648", "9007199254740993", "1e30", "-1e-30",
    "1e400",
    "nan", "-inf", "0x10", "1.5", "99999999999999999999999", "1e", "+", "1_0", "\u0661", "", "1,5", "1/2/3", "-1//2",
    "#", "\\", "'", "null",
)  # fmt: skip
VALUES = (
    None, True, False, 0, 1, 2, -1, 3, 7, 255, 5120, 5121, 5122, 5123, 5125, 5126, 2**31, 2**63, 10**400, 0.5, -1e30,
    float("nan"), float("inf"), "", "0",
    "SCALAR", "VEC4", "MAT4", "a.bin", "data:,x", "data:;base64,AAAA", [], [0], [[]], [1, 2, 3], {}, {"0": 0},
    {"bufferView": 0},
)  # fmt: skip


def _files() -> dict[str, bytes]:
    field = {
        file.name: file.read_bytes()
        for file in sorted(FIELD.iterdir())
        if file.suffix in (".obj", ".off", ".ply", ".stl")
    }
    return field | good_files() | {"rules.gltf": json.dumps(_gltf()).encode()}


def _gltf() -> dict:
    """A small asset with a skin, a morph target, a sparse accessor, instances and a normalised attribute."""
    quad = struct.pack("<12f", 0, 0, 0, 1, 0, 0, 1, 1, 0, 0, 1, 0)
    order, moves = struct.pack("<6H", 0, 1, 2, 0, 2, 3), struct.pack("<12f", *[0.0] * 11, 1.0)
    joints, weights = bytes(16), b"\xff\0\0\0" * 4
    sparse = struct.pack("<2H", 1, 2) + struct.pack("<6f", 2, 0, 0, 2, 2, 0)
    shifts = struct.pack("<6f", 0, 0, 0, 5, 0, 0)
    blocks = [quad, order, moves, joints, weights, sparse, shifts]
    starts = [sum(map(len, blocks[:k])) for k in range(len(blocks))]
    content = b"".join(blocks)
    views = [
        {"buffer": 0, "byteOffset": start, "byteLength": len(block)}
        for start, block in zip(starts, blocks, strict=True)
    ]
    views += [{"buffer": 0, "byteOffset": starts[5] + 4, "byteLength": 24}]
    positions = {
        "bufferView": 0, "componentType": 5126, "count": 4, "type": "VEC3",
        "sparse": {"count": 2, "indices": {"bufferView": 5, "componentType": 5123}, "values": {"bufferView": 7}},
    }  # fmt: skip
    accessors = [
        positions,
        {"bufferView": 1, "componentType": 5123, "count": 6, "type": "SCALAR"},
        {"bufferView": 2, "componentType": 5126, "count": 4, "type": "VEC3"},
        {"bufferView": 3, "componentType": 5121, "count": 4, "type": "VEC4"},
        {"bufferView": 4, "componentType": 5121, "count": 4, "type": "VEC4", "normalized": True},
        {"bufferView": 6, "componentType": 5126, "count": 2, "type": "VEC3"},
    ]
    skinned = {"attributes": {"POSITION": 0, "JOINTS_0": 3, "WEIGHTS_0": 4}, "indices": 1, "targets": [{"POSITION": 2}]}
    plain = {"attributes": {"POSITION": 0}, "indices": 1, "mode": 5}
    instances = {"EXT_mesh_gpu_instancing": {"attributes": {"TRANSLATION": 5}}}
    return {
        "asset": {"version": "2.0", "minVersion": "2.0"}, "scene": 0, "scenes": [{"nodes": [0, 2]}],
        "extensionsRequired": ["KHR_node_visibility"],
        "nodes": [
            {"mesh": 0, "skin": 0, "children": [1]},
            {"translation": [1, 0, 0], "rotation": [0, 0, 0.6, 0.8], "scale": [1, 2, 1]},
            {"mesh": 1, "matrix": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 3, 1], "extensions": instances},
        ],
        "meshes": [{"primitives": [skinned], "weights": [0.5]}, {"primitives": [plain]}], "skins": [{"joints": [1]}],
        "buffers": [{"byteLength": len(content), "uri": "data:;base64," + base64.b64encode(content).decode()}],
        "bufferViews": views, "accessors": accessors,
    }  # fmt: skip


FILES = _files()


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The content with one to three damages: a token replaced, doubled or dropped, bytes changed, swapped
    or cut off.
    """
    if content.startswith(b"{") and rng.random() < 0.8:
        return _json(content, rng)
    for _ in range(rng.randint(1, 3)):
        content = rng.choice((_token, _token, _token, _bytes, _swap, _cut, _repeat))(content, rng)
    return content


def _json(content: bytes, rng: random.Random) -> bytes:
    """One or two values of a document replaced, dropped or exchanged."""
    document = json.loads(content)
    for _ in range(rng.randint(1, 2)):
        places: list[tuple[Any, Any]] = []
        _collect(document, places)
        (above, key), (other, other_key) = rng.choice(places), rng.choice(places)
        kind = rng.randrange(4)
        if kind == 0:
            del above[key]
        elif kind == 1:
            above[key] = json.loads(json.dumps(other[other_key]))
        else:
            above[key] = copy.deepcopy(rng.choice(VALUES))
    return json.dumps(document).encode()


def _collect(item: Any, places: list[tuple[Any, Any]]) -> None:
    for key in list(item) if isinstance(item, dict) else range(len(item)):
        places.append((item, key))
        if isinstance(item[key], (dict, list)):
            _collect(item[key], places)


def _token(content: bytes, rng: random.Random) -> bytes:
    tokens = list(re.finditer(rb"[^\s,:\[\]{}]+", content[:20000]))
    if not tokens:
        return content
    chosen, other = rng.choice(tokens), rng.choice(tokens)
    new = rng.choice(
        [rng.choice(NUMBERS).encode(), rng.choice(NUMBERS).encode(), other[0], b"", b"[1]", b"{}", b'"x"', b"true"]
    )
    return content[: chosen.start()] + new + content[chosen.end() :]


def _bytes(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        if data:
            data[rng.randrange(len(data))] = rng.choice((0, 255, 127, 128, 10, 13, 32, rng.randrange(256)))
    return bytes(data)


def _swap(content: bytes, rng: random.Random) -> bytes:
    a, b = sorted((rng.randrange(len(content) + 1), rng.randrange(len(content) + 1)))
    middle = rng.randint(a, b)
    return content[:a] + content[middle:b] + content[a:middle] + content[b:]


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _repeat(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + content[at : at + 40] * rng.randint(2, 30) + content[at:]


def outcome(content: bytes, suffix: str) -> str:
    """What a file gives: "ok" for a sound mesh, else the reason of its refusal. Other exceptions pass through."""
    try:
        mesh = checked(*parsed(content, suffix, _no_files), "unspecified")
    except MeshError as error:
        assert str(error).isprintable() and error.message.strip(), repr(str(error))
        return error.reason
    _must_be_sound(mesh)
    return "ok"


def _no_files(uri: str) -> bytes:
    raise MeshError("missing-file", f"no file {uri!r}")


def _must_be_sound(mesh: LoadedMesh) -> None:
    assert len(mesh.faces) and 0 <= mesh.faces.min() <= mesh.faces.max() < len(mesh.vertices)
    assert np.isfinite(mesh.vertices).all() and np.abs(mesh.vertices).max() <= 1e100
    assert np.unique(mesh.faces).size == len(mesh.vertices), "every vertex belongs to a face"


def run(name: str, cases: int, first: int = 0) -> set[str]:
    """The outcomes of a file's damaged copies; an assertion names the case that fails."""
    outcomes, suffix = set(), Path(name).suffix
    for case in range(first, first + cases):
        content = damaged(FILES[name], random.Random(f"{name}:{case}"))
        try:
            outcomes.add(outcome(content, suffix))
            if suffix in (".obj", ".ply"):
                _views_show_what_is_read(content, suffix)
        except Exception as error:
            raise AssertionError(
                f"case {case} of {name}: {type(error).__name__}: {error}; {content[:300]!r}"
            ) from error
    return outcomes


def _views_show_what_is_read(content: bytes, suffix: str) -> None:
    """The parts of an appearance have the faces of the reader, or both refuse the file."""
    try:
        vertices, faces = parsed(content, suffix, _no_files)
    except MeshError:
        return
    parts = obj_parts(content, _no_files)[0] if suffix == ".obj" else ply_parts(content)
    shown = np.concatenate([part.vertices[part.faces].reshape(-1, 9) for part in parts] or [np.zeros((0, 9))])
    with np.errstate(all="ignore"):
        assert len(shown) == len(faces) and (
            np.isnan(shown).any() or _sorted(shown) == _sorted(vertices[faces].reshape(-1, 9))
        )


def _sorted(corners: np.ndarray) -> list:
    return sorted(map(tuple, corners.tolist()))


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_give_a_mesh_or_a_reason(name: str) -> None:
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert outcome(FILES[name], Path(name).suffix) == "ok" or name == "obj_zero_index.obj"
    assert run(name, CASES) - {"ok"}, "no damage was noticed"
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / 1024 < 512, "a false count took memory"


if __name__ == "__main__":
    import collections
    import sys

    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    for file in FILES:
        print(file, dict(collections.Counter(run(file, int(sys.argv[1]) // len(FILES), CASES))), flush=True)
