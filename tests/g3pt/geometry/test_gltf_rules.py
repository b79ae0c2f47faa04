"""One rule per thing that a glTF file may leave open or get wrong: versions, extensions, scenes,
transforms, accessors.
"""

import json
from typing import Any

import numpy as np
import pytest

from g3pt.geometry.gltf import read_gltf
from g3pt.geometry.reading import MeshError
from tests.g3pt.geometry.test_gltf import QUAD, Asset, skinned_asset

TURN = np.array([[0, 0, 0], [0, 1, 0], [-1, 1, 0], [-1, 0, 0]], dtype=float)  # QUAD turned by 90 degrees about z
HALF = 0.5**0.5


@pytest.mark.parametrize(
    ("asset", "problem"),
    [
        ({"version": "2.0"}, None),
        ({"version": "2"}, None),
        ({"version": "2.7"}, None),  # later minor versions must stay readable
        ({"version": "2.1", "minVersion": "2.0"}, None),
        ({"version": "3.0", "minVersion": "2.0"}, None),
        ({"version": "2.1", "minVersion": "2.1"}, "minVersion is 2.1"),
        ({"version": "3.0", "minVersion": "3.0"}, "minVersion is 3.0"),
        ({"version": "3.0"}, "version 3.0, only 2.x"),
        ({"version": "1.0"}, "version 1.0, only 2.x"),
        ({"version": "20.0"}, "version 20.0, only 2.x"),
        ({}, "without asset.version"),
        ({"version": "two"}, "'two', no version"),
        ({"version": "2.0", "minVersion": None}, "minVersion is 'None'"),
    ],
)
def test_versions_above_two_are_refused_unless_two_is_enough(asset: dict[str, Any], problem: str | None) -> None:
    document = Asset()
    document.json["asset"] = asset
    if problem is None:
        np.testing.assert_allclose(document.read()[0], QUAD)
        return
    with pytest.raises(MeshError, match=problem):
        document.read()


@pytest.mark.parametrize(
    ("names", "refused"),
    [
        (["KHR_mesh_quantization", "KHR_texture_transform", "KHR_node_visibility"], ""),
        (["KHR_materials_unlit", "KHR_materials_pbrSpecularGlossiness", "EXT_texture_webp", "MSFT_texture_dds"], ""),
        (["KHR_lights_punctual", "KHR_xmp_json_ld", "EXT_structural_metadata", "EXT_lights_image_based"], ""),
        (["KHR_animation_pointer", "VRMC_vrm", "KHR_texture_basisu", "KHR_materials_variants"], ""),
        (["WEB3D_quantized_attributes"], "WEB3D_quantized_attributes"),
        (["EXT_next_best_compression", "KHR_materials_unlit"], "EXT_next_best_compression"),
        (["CESIUM_RTC", "ACME_mesh"], "ACME_mesh, CESIUM_RTC"),
        (["KHR_gaussian_splatting"], "KHR_gaussian_splatting"),
        (["khr_draco_mesh_compression"], "khr_draco_mesh_compression"),
    ],
)
def test_required_extensions_that_may_change_triangles_are_refused_by_name(names: list[str], refused: str) -> None:
    asset = Asset()
    asset.json["extensionsUsed"] = names  # being used only is no reason
    asset.read()
    asset.json["extensionsRequired"] = names
    if not refused:
        np.testing.assert_allclose(asset.read()[0], QUAD)
        return
    with pytest.raises(MeshError, match=f"requires {refused}, which is not decoded") as caught:
        asset.read()
    assert caught.value.reason == "unsupported"


def test_without_scene_the_first_is_read_and_without_scenes_every_root_node() -> None:
    asset = Asset()
    asset.json["nodes"] = [
        {"mesh": 0, "translation": [9, 0, 0]},
        {"children": [2]},
        {"mesh": 0, "translation": [0, 0, 5]},
    ]
    asset.json["scenes"] = [{"nodes": [1]}, {"nodes": [0]}]
    np.testing.assert_allclose(asset.read()[0], QUAD + [0, 0, 5])
    for scenes in ([], None):
        asset.json["scenes"] = scenes
        if scenes is None:
            del asset.json["scenes"]
        np.testing.assert_allclose(asset.read()[0], np.concatenate([QUAD + [9, 0, 0], QUAD + [0, 0, 5]]))
    asset.json["scene"] = 0
    with pytest.raises(MeshError, match="scenes has no item 0"):
        asset.read()


@pytest.mark.parametrize(
    ("rotation", "expected"),
    [
        ([0, 0, HALF, HALF], TURN),
        ([0, 0, 1, 1], TURN),
        ([0, 0, 0.001, 0.001], TURN),
        ([0, 0, -300, -300], TURN),
        ([0, 0, 0, 2], QUAD),
        ([0, 0, 0, 0], QUAD),  # turns nothing
    ],
)
def test_quaternions_of_any_length_only_turn(rotation: list[float], expected: np.ndarray) -> None:
    asset = Asset()
    asset.json["nodes"][0]["rotation"] = rotation
    np.testing.assert_allclose(asset.read()[0], expected, atol=1e-9)
    asset.json["nodes"][0] = {"mesh": 0, "extensions": {"EXT_mesh_gpu_instancing": {"attributes": {}}}}
    attributes = asset.json["nodes"][0]["extensions"]["EXT_mesh_gpu_instancing"]["attributes"]
    attributes["ROTATION"] = asset.add(np.array([rotation], dtype="<f4"))
    np.testing.assert_allclose(asset.read()[0], expected, atol=1e-6)


def test_a_matrix_wins_over_translation_rotation_and_scale() -> None:
    asset = Asset()
    matrix = np.diag([2.0, 2.0, 2.0, 1.0])
    asset.json["nodes"][0] |= {"matrix": matrix.reshape(-1).tolist(), "translation": [9, 9, 9], "scale": [0, 0, 0]}
    np.testing.assert_allclose(asset.read()[0], 2 * QUAD)


def facing(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """The z components of the faces' normals."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    return np.cross(b - a, c - a)[:, 2]


@pytest.mark.parametrize("scale", [[-1, 1, 1], [-2, -3, -4], [1, -1, 1], [-1, -1, 1]])
def test_mirrors_keep_faces_outward_wherever_they_occur(scale: list[int]) -> None:
    """Of a node, of its parent, of an instance, and of a skin's joint.

    Mirroring z itself turns the quad's outside down.
    """
    outside = np.sign(np.prod(scale)) * np.sign(scale[0] * scale[1])
    asset = Asset()
    asset.json["nodes"] = [{"children": [1]}, {"mesh": 0}]
    for node in (0, 1):
        asset.json["nodes"][1 - node].pop("scale", None)
        asset.json["nodes"][node]["scale"] = scale
        assert (np.sign(facing(*asset.read())) == outside).all()
    del asset.json["nodes"][1]["scale"]
    instances = {"attributes": {"SCALE": asset.add(np.array([scale], dtype="<f4"))}}
    asset.json["nodes"][1]["extensions"] = {"EXT_mesh_gpu_instancing": instances}
    assert (np.sign(facing(*asset.read())) == outside).all()
    skin = skinned_asset(np.zeros((4, 4), dtype="<u1"), np.tile(np.array([1, 0, 0, 0], dtype="<f4"), (4, 1)))
    skin.json["nodes"][1]["scale"] = scale
    assert (np.sign(facing(*skin.read())) == outside).all()


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        (("nodes", 0, "matrix"), [1] * 15, "matrix is .* not 16 numbers"),
        (("nodes", 0, "rotation"), [0, 0, 1], "rotation is .* not 4 numbers"),
        (("nodes", 0, "scale"), 2, "scale is 2, not 3 numbers"),
        (("nodes", 0, "translation"), [0, "1", 0], "translation is .* not 3 numbers"),
        (("nodes", 0, "translation"), [0, 1e308, 0], "translation is .* not 3 numbers"),
        (("nodes", 0, "children"), 3, "children is not a list of indices"),
        (("accessors", 0, "componentType"), 5124, "componentType 5124"),
        (("accessors", 0, "componentType"), "5126", "componentType 5126"),
        (("accessors", 0, "type"), "VEC5", "the type VEC5"),
        (("accessors", 0, "type"), "VEC2", "POSITION is not VEC3"),
        (("accessors", 0, "count"), 3.5, "count is 3.5"),
        (("accessors", 0, "count"), None, "count is None"),
        (("accessors", 0, "byteOffset"), -4, "byteOffset is -4"),
        (("accessors", 1, "componentType"), 5122, "indices are not unsigned"),
        (("bufferViews", 0, "byteStride"), 8, "byteStride of 8 for values of 12 bytes"),
        (("bufferViews", 0, "byteLength"), "48", "byteLength is 48, not a whole number"),
        (("meshes", 0, "primitives", 0, "mode"), 7, "mode 7"),
        (("meshes", 0, "primitives", 0, "mode"), "4", "mode 4"),
        (("buffers", 0, "uri"), None, "buffers.0. has neither"),
        (("scenes", 0, "nodes"), {"0": 0}, "nodes is not a list of indices"),
        (("extensionsRequired",), "KHR_materials_unlit", "not a list of names"),
    ],
)
def test_what_is_no_glTF_is_refused_in_words(place: tuple, value: Any, problem: str) -> None:  # noqa: N802
    asset = Asset()
    *above, last = place
    item: Any = asset.json
    for key in above:
        item = item[key]
    item[last] = value
    with pytest.raises(MeshError, match=problem):
        asset.read()


def test_a_second_buffer_without_uri_is_not_the_glb_chunk() -> None:
    """The chunk belongs to the first buffer; the specification leaves other buffers without URI to extensions."""
    positions, order = QUAD.tobytes(), np.array([0, 1, 2, 0, 2, 3], dtype="<u2").tobytes()
    asset = Asset()
    asset.json["buffers"] = [{"byteLength": 48 + 12}]
    asset.json["bufferViews"] = [{"buffer": 0, "byteLength": 48}, {"buffer": 0, "byteOffset": 48, "byteLength": 12}]
    np.testing.assert_allclose(read_gltf(_glb(asset.json, positions + order), _nothing)[0], QUAD)
    asset.json["buffers"].append({"byteLength": 48})
    asset.json["bufferViews"][0]["buffer"] = 1
    with pytest.raises(MeshError, match=r"buffers\[1\] has neither"):
        read_gltf(_glb(asset.json, positions + order), _nothing)


def _glb(document: dict, chunk: bytes) -> bytes:
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    parts = [len(text).to_bytes(4, "little"), b"JSON", text, len(chunk).to_bytes(4, "little"), b"BIN\0", chunk]
    body = b"".join(parts)
    return b"glTF" + (2).to_bytes(4, "little") + (12 + len(body)).to_bytes(4, "little") + body


def _nothing(uri: str) -> bytes:
    raise MeshError("missing-file", uri)


def test_strided_and_unaligned_views_and_zeros_without_a_view() -> None:
    asset = Asset()
    rows = np.zeros((4, 5), dtype="<f4")
    rows[:, 1:4] = QUAD
    view = asset.view(rows.tobytes(), byteStride=20)
    asset.primitive["attributes"]["POSITION"] = asset.add(QUAD, bufferView=view, byteOffset=4)
    np.testing.assert_allclose(asset.read()[0], QUAD)
    asset.json["accessors"][-1]["count"] = 5
    with pytest.raises(MeshError, match="reaches past"):
        asset.read()
    asset = Asset()
    del asset.json["accessors"][0]["bufferView"]  # zeros: all faces lose their area
    np.testing.assert_array_equal(asset.read()[0], np.zeros((4, 3)))
    asset.json["accessors"][0]["count"] = 2_000_000
    with pytest.raises(MeshError, match="holds none"):
        asset.read()


@pytest.mark.parametrize(("dtype", "largest"), [("<i1", 127), ("<u1", 255), ("<i2", 32767), ("<u2", 65535)])
def test_normalised_integers_of_each_type(dtype: str, largest: int) -> None:
    asset = Asset()
    values = np.zeros((4, 4), dtype=dtype)  # rows of four keep the alignment
    values[:, :3] = QUAD * largest
    if dtype[1] == "i":
        values[0, 0] = -largest - 1  # clamped to -1
    view = asset.view(values.tobytes(), byteStride=4 * values.itemsize)
    asset.primitive["attributes"]["POSITION"] = asset.add(values[:, :3], bufferView=view, normalized=True)
    expected = QUAD.astype(float)
    if dtype[1] == "i":
        expected[0, 0] = -1.0
    np.testing.assert_allclose(asset.read()[0], expected)
