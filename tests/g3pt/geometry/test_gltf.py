"""glTF as found in the wild: instances, scenes, morphs, skins, sparse and quantised data, compression,
buffers elsewhere.
"""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from g3pt.geometry.gltf import read_gltf, read_parts
from g3pt.geometry.reading import MeshError

QUAD = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], dtype="<f4")
TWO_FACES = np.array([0, 1, 2, 0, 2, 3], dtype="<u2")
COMPONENTS = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}
WIDTHS = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}


class Asset:
    """A glTF document that grows: each `add` is one accessor in a buffer of its own."""

    def __init__(self) -> None:
        self.json: dict[str, Any] = {"asset": {"version": "2.0"}, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}]}
        self.json |= {"buffers": [], "bufferViews": [], "accessors": []}
        primitive = {"attributes": {"POSITION": self.add(QUAD)}, "indices": self.add(TWO_FACES)}
        self.json["meshes"] = [{"primitives": [primitive]}]

    @property
    def primitive(self) -> dict[str, Any]:
        return self.json["meshes"][0]["primitives"][0]

    def buffer(self, content: bytes) -> int:
        uri = "data:application/octet-stream;base64," + base64.b64encode(content).decode()
        self.json["buffers"].append({"byteLength": len(content), "uri": uri})
        return len(self.json["buffers"]) - 1

    def view(self, content: bytes, **changes: Any) -> int:
        self.json["bufferViews"].append({"buffer": self.buffer(content), "byteLength": len(content)} | changes)
        return len(self.json["bufferViews"]) - 1

    def add(self, values: np.ndarray, **changes: Any) -> int:
        accessor = {"bufferView": self.view(values.tobytes())} if "bufferView" not in changes else {}
        values = values.reshape(len(values), -1)
        kind = {
            "componentType": COMPONENTS[values.dtype.str[1:]],
            "count": len(values),
            "type": WIDTHS[values.shape[1]],
        }
        self.json["accessors"].append(accessor | kind | changes)
        return len(self.json["accessors"]) - 1

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        return read_gltf(json.dumps(self.json).encode(), _no_files)


def _no_files(uri: str) -> bytes:
    raise MeshError("missing-file", uri)


def test_instances_stand_where_their_attributes_say() -> None:
    asset = Asset()
    turns = np.array([[0, 0, 0, 1], [0, 0, 2**-0.5, 2**-0.5]], dtype="<f4")
    attributes = {
        "TRANSLATION": asset.add(np.array([[0, 0, 0], [0, 0, 7]], dtype="<f4")),
        "ROTATION": asset.add(np.round(turns * 32767).astype("<i2"), normalized=True),
        "SCALE": asset.add(np.array([[1, 1, 1], [3, 1, 1]], dtype="<f4")),
    }
    asset.json["nodes"][0] |= {
        "extensions": {"EXT_mesh_gpu_instancing": {"attributes": attributes}},
        "translation": [10, 0, 0],
    }
    vertices, faces = asset.read()
    np.testing.assert_allclose(vertices[:4], QUAD + [10, 0, 0])
    turned = np.stack([-QUAD[:, 1], 3 * QUAD[:, 0], QUAD[:, 2]], axis=1)
    np.testing.assert_allclose(vertices[4:], turned + [10, 0, 7], atol=1e-3)
    assert len(faces) == 4 and faces[2:].min() == 4


@pytest.mark.parametrize(("counts", "reason"), [((2, 3), "corrupt"), ((100_001, 100_001), "too-large")])
def test_instances_of_unequal_or_absurd_count_are_refused(counts: tuple[int, int], reason: str) -> None:
    asset = Asset()
    attributes = {name: asset.add(np.zeros((1, 3), "<f4"), bufferView=None) for name in ("TRANSLATION", "SCALE")}
    for accessor, count in zip(asset.json["accessors"][-2:], counts, strict=True):
        del accessor["bufferView"]
        accessor["count"] = count
    asset.json["nodes"][0]["extensions"] = {"EXT_mesh_gpu_instancing": {"attributes": attributes}}
    with pytest.raises(MeshError) as caught:
        asset.read()
    assert caught.value.reason == reason


def test_only_the_default_scene_is_read_and_hidden_nodes_are_not() -> None:
    asset = Asset()
    hidden = {"extensions": {"KHR_node_visibility": {"visible": False}}, "children": [0]}
    asset.json["nodes"] = [{"mesh": 0, "translation": [k, 0, 0]} for k in (0, 5)] + [hidden]
    asset.json["scenes"] = [{"nodes": [0]}, {"nodes": [1, 2]}]
    np.testing.assert_allclose(asset.read()[0], QUAD)
    asset.json["scene"] = 1
    np.testing.assert_allclose(asset.read()[0], QUAD + [5, 0, 0])
    asset.json["scene"] = 2
    with pytest.raises(MeshError, match="scenes has no item 2"):
        asset.read()


def test_a_mirrored_node_turns_its_faces_round() -> None:
    asset = Asset()
    asset.json["nodes"][0]["scale"] = [-1, 1, 1]
    vertices, faces = asset.read()
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    assert (np.cross(b - a, c - a)[:, 2] > 0).all()


@pytest.mark.parametrize("owner", ["meshes", "nodes"])
def test_morph_targets_are_applied_by_their_default_weights(owner: str) -> None:
    asset = Asset()
    moves = np.zeros((4, 3), dtype="<f4")
    moves[2] = [0, 0, 4]
    asset.primitive["targets"] = [{"POSITION": asset.add(moves)}, {"POSITION": asset.add(moves + 100)}, {"NORMAL": 0}]
    asset.json["meshes"][0]["weights"] = [1, 0, 0]
    asset.json[owner][0]["weights"] = [0.5, 0, 1]
    np.testing.assert_allclose(asset.read()[0][:, 2], [0, 0, 2, 0])
    asset.json[owner][0]["weights"] = [0, 0, 0]
    np.testing.assert_allclose(asset.read()[0], QUAD)


def skinned_asset(joints: np.ndarray, weights: np.ndarray) -> Asset:
    """The quad bound to two joints, one three up and one five to the right."""
    asset = Asset()
    for k in range(joints.shape[1] // 4):
        asset.primitive["attributes"][f"JOINTS_{k}"] = asset.add(np.ascontiguousarray(joints[:, 4 * k : 4 * k + 4]))
        asset.primitive["attributes"][f"WEIGHTS_{k}"] = asset.add(np.ascontiguousarray(weights[:, 4 * k : 4 * k + 4]))
    asset.json["nodes"] = [
        {"mesh": 0, "skin": 0, "scale": [9, 9, 9]},
        {"translation": [0, 3, 0]},
        {"translation": [5, 0, 0]},
    ]
    asset.json |= {"scenes": [{"nodes": [0, 1, 2]}], "skins": [{"joints": [1, 2]}]}
    return asset


def test_skins_blend_all_influences_in_the_rest_pose() -> None:
    joints, weights = np.zeros((4, 8), dtype="<u1"), np.zeros((4, 8), dtype="<f4")
    joints[:, 5], weights[:, 0], weights[:, 5] = 1, 0.25, 0.75
    np.testing.assert_allclose(skinned_asset(joints, weights).read()[0], QUAD + [3.75, 0.75, 0], atol=1e-6)


def test_inverse_bind_matrices_come_first() -> None:
    asset = skinned_asset(np.zeros((4, 4), dtype="<u1"), np.tile(np.array([1, 0, 0, 0], dtype="<f4"), (4, 1)))
    double = np.diag([2, 2, 2, 1]).astype("<f4").reshape(1, 16)
    asset.json["skins"][0]["inverseBindMatrices"] = asset.add(np.tile(double, (2, 1)))
    np.testing.assert_allclose(asset.read()[0], 2 * QUAD + [0, 3, 0])
    asset.json["accessors"][-1]["count"] = 1
    with pytest.raises(MeshError, match="2 joints and 1 bind"):
        asset.read()


def test_a_joint_out_of_range_is_refused() -> None:
    asset = skinned_asset(np.full((4, 4), 2, dtype="<u1"), np.ones((4, 4), dtype="<f4"))
    with pytest.raises(MeshError, match="joint that the skin lacks"):
        asset.read()


def test_quantised_positions_are_read_as_they_stand_and_normalised_ones_in_units() -> None:
    asset = Asset()
    raw = (QUAD * 200).astype("<u1")
    padded = np.concatenate([raw, np.zeros((4, 1), "u1")], axis=1)
    view = asset.view(padded.tobytes(), byteStride=4)
    asset.primitive["attributes"]["POSITION"] = asset.add(raw, bufferView=view)
    np.testing.assert_allclose(asset.read()[0], QUAD * 200)
    asset.json["accessors"][-1]["normalized"] = True
    np.testing.assert_allclose(asset.read()[0], QUAD * 200 / 255)


def test_sparse_accessors_replace_some_values_of_a_view_or_of_zeros() -> None:
    asset = Asset()
    where = asset.view(np.array([1, 3], dtype="<u2").tobytes())
    what = asset.view(np.array([[8, 0, 0], [0, 8, 0]], dtype="<f4").tobytes())
    sparse = {"count": 2, "indices": {"bufferView": where, "componentType": 5123}, "values": {"bufferView": what}}
    position = asset.json["accessors"][asset.primitive["attributes"]["POSITION"]]
    position["sparse"] = sparse
    np.testing.assert_allclose(asset.read()[0], [[0, 0, 0], [8, 0, 0], [1, 1, 0], [0, 8, 0]])
    del position["bufferView"]
    np.testing.assert_allclose(asset.read()[0], [[0, 0, 0], [8, 0, 0], [0, 0, 0], [0, 8, 0]])
    sparse["count"] = 5
    with pytest.raises(MeshError, match="replaces 5 of 4"):
        asset.read()


def test_points_and_lines_beside_triangles_are_left_out() -> None:
    asset = Asset()
    asset.json["meshes"][0]["primitives"] += [{"attributes": {"POSITION": 0}, "mode": mode} for mode in (0, 1, 2, 3)]
    assert len(asset.read()[1]) == 2


def test_buffers_may_lie_in_files_and_textures_need_not_exist() -> None:
    asset = Asset()
    asset.json["buffers"][0] = {"byteLength": 48, "uri": "a%20b.bin"}
    asset.json |= {"images": [{"uri": "absent.png"}], "textures": [{"source": 0}], "materials": [{}]}
    asked = []

    def read_file(uri: str) -> bytes:
        asked.append(uri)
        return QUAD.tobytes()

    np.testing.assert_allclose(read_gltf(json.dumps(asset.json).encode(), read_file)[0], QUAD)
    assert asked == ["a b.bin"]


def test_a_mesh_placed_often_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from g3pt.geometry import gltf

    calls = []
    monkeypatch.setattr(gltf, "read_primitive", lambda *given: calls.append(1) or read_primitive(*given))
    from g3pt.geometry.gltf_mesh import read_primitive

    asset = Asset()
    asset.json |= {"nodes": [{"mesh": 0}] * 5, "scenes": [{"nodes": [0, 1, 2, 3, 4]}]}
    assert len(asset.read()[1]) == 10
    assert len(calls) == 1


def test_placed_faces_are_limited_before_they_fill_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from g3pt.geometry import gltf

    monkeypatch.setattr(gltf, "MAX_FACES", 9)
    asset = Asset()
    asset.json |= {"nodes": [{"mesh": 0}] * 5, "scenes": [{"nodes": [0, 1, 2, 3, 4]}]}
    with pytest.raises(MeshError) as caught:
        asset.read()
    assert caught.value.reason == "too-large"


def test_parts_carry_their_material_and_attributes() -> None:
    asset = Asset()
    asset.primitive["material"] = 3
    asset.primitive["attributes"]["TEXCOORD_0"] = asset.add(
        np.array([[0, 0], [255, 0], [255, 255], [0, 255]], "<u1"), normalized=True
    )
    document, parts = read_parts(json.dumps(asset.json).encode(), _no_files)
    assert len(parts) == 1 and parts[0].primitive.material == 3 and document.root["asset"]["version"] == "2.0"
    np.testing.assert_allclose(parts[0].primitive.attribute("TEXCOORD_0"), QUAD[:, :2])
    assert parts[0].primitive.attribute("COLOR_0") is None


def draco_asset() -> Asset:
    import DracoPy

    data = DracoPy.encode(QUAD, TWO_FACES.reshape(-1, 3).astype(np.uint32), quantization_bits=14)
    asset = Asset()
    for index in (asset.primitive["attributes"]["POSITION"], asset.primitive["indices"]):
        del asset.json["accessors"][index]["bufferView"]
    extension = {"bufferView": asset.view(data), "attributes": {"POSITION": 0}}
    asset.primitive["extensions"] = {"KHR_draco_mesh_compression": extension}
    return asset


def test_draco_is_decoded_and_broken_draco_is_corrupt() -> None:
    asset = draco_asset()
    vertices, faces = asset.read()
    corners = {tuple(map(float, np.round(v, 2))) for v in vertices}
    assert corners == {tuple(map(float, v)) for v in QUAD} and len(faces) == 2
    view = asset.json["bufferViews"][-1]
    view["byteLength"] //= 2
    with pytest.raises(MeshError, match="Draco"):
        asset.read()


@pytest.mark.parametrize("extension", ["EXT_meshopt_compression", "KHR_meshopt_compression"])
def test_meshopt_is_refused_by_name_and_its_plain_copy_is_read(extension: str) -> None:
    asset = Asset()
    view = asset.json["bufferViews"][0]
    view["extensions"] = {extension: {"buffer": 1, "byteLength": 4, "byteStride": 12, "count": 4, "mode": "ATTRIBUTES"}}
    np.testing.assert_allclose(asset.read()[0], QUAD)  # an optional extension: the view's own buffer is a plain copy
    del asset.json["buffers"][0]["uri"]
    with pytest.raises(MeshError, match=extension) as caught:
        asset.read()
    assert caught.value.reason == "unsupported"


def test_real_animated_assets_stand_at_rest(real_meshes: Path) -> None:
    """A skinned astronaut and morphing bars: as tall and as many as published viewers show them."""
    from g3pt.geometry.load import load_mesh

    hostile = real_meshes / "hostile"
    astronaut = load_mesh(hostile / "quaternius/ultimate_space_pack/Astronaut_BarbaraTheBee-transformed.glb", hostile)
    extent = np.ptp(astronaut.vertices, axis=0)
    assert (
        extent.argmin() == 2 and 2.5 < extent[1] < 3.5
    )  # y up, arms spread along x; its bones' own units are far smaller
    bars = load_mesh(hostile / "bevy/animated/MorphStressTest.gltf", hostile)
    assert len(bars.faces) == 2412
