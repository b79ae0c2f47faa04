"""Files of every format load to the same shape; broken, hostile and foreign ones are refused with a reason."""

import base64
import csv
import json
import os
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
import trimesh

from g3pt.geometry.gltf import read_gltf
from g3pt.geometry.load import load_mesh
from g3pt.geometry.quality import is_watertight
from g3pt.geometry.reading import MeshError, sibling_reader

DATA = os.environ.get("G3PT_MESHES")
needs_data = pytest.mark.skipif(not DATA, reason="G3PT_MESHES is not set")
QUAD = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], dtype="<f4")


def reason_of(path: Path, root: Path | None = None) -> str:
    with pytest.raises(MeshError) as caught:
        load_mesh(path, root or path.parent)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(caught.value.reason)
    return caught.value.reason


def quad_gltf(order: list[int], **changes: object) -> dict:
    """glTF document of one primitive over QUAD; changes replace top-level entries."""
    content = QUAD.tobytes() + np.array(order, dtype="<u2").tobytes()
    document = {
        "asset": {"version": "2.0"},
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "buffers": [{"byteLength": len(content), "uri": "data:;base64," + base64.b64encode(content).decode()}],
        "bufferViews": [{"buffer": 0, "byteLength": 48}, {"buffer": 0, "byteOffset": 48, "byteLength": 2 * len(order)}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 4, "type": "VEC3"},
            {"bufferView": 1, "componentType": 5123, "count": len(order), "type": "SCALAR"},
        ],
    }
    return document | changes


def saved(tmp_path: Path, document: dict) -> Path:
    path = tmp_path / "asset.gltf"
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize("suffix", ["glb", "obj", "ply", "stl", "off", "gltf"])
def test_every_format_loads_the_same_shape(tmp_path: Path, suffix: str) -> None:
    box = trimesh.creation.box((1, 2, 3))
    path = tmp_path / f"box.{suffix}"
    if suffix == "gltf":
        for name, content in trimesh.exchange.gltf.export_gltf(trimesh.Scene(box)).items():
            (tmp_path / name.replace("model.gltf", path.name)).write_bytes(content)
    else:
        box.export(path)
    mesh = load_mesh(path, tmp_path)
    assert len(mesh.faces) == 12 and mesh.vertices.dtype == np.float64 and mesh.faces.dtype == np.int64
    np.testing.assert_allclose(np.ptp(mesh.vertices, axis=0), [1, 2, 3], atol=1e-6)
    assert mesh.up_axis == ("y" if suffix in ("glb", "gltf") else "unspecified")


def test_node_transforms_are_applied_along_the_hierarchy_and_meshes_reused(tmp_path: Path) -> None:
    nodes = [
        {"children": [1, 2], "translation": [10, 0, 0], "scale": [2, 2, 2]},
        {"mesh": 0, "rotation": [0, 0, 2**-0.5, 2**-0.5]},  # a quarter turn about z
        {"mesh": 0, "matrix": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 5, 1]},
    ]
    mesh = load_mesh(saved(tmp_path, quad_gltf([0, 1, 2, 0, 2, 3], nodes=nodes)), tmp_path)
    np.testing.assert_allclose(mesh.vertices[:4], [[10, 0, 0], [10, 2, 0], [8, 2, 0], [8, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(mesh.vertices[4:], QUAD * 2 + [10, 0, 10], atol=1e-6)


@pytest.mark.parametrize(("mode", "order"), [(5, [0, 1, 3, 2]), (6, [0, 1, 2, 3])])
def test_strips_and_fans_keep_their_faces_and_winding(tmp_path: Path, mode: int, order: list[int]) -> None:
    meshes = [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1, "mode": mode}]}]
    mesh = load_mesh(saved(tmp_path, quad_gltf(order, meshes=meshes)), tmp_path)
    flat = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    np.testing.assert_allclose(flat.face_normals, [[0, 0, 1]] * 2)
    assert flat.area == pytest.approx(1.0)


def test_skinned_vertices_follow_their_joints(tmp_path: Path) -> None:
    document = quad_gltf([0, 1, 2, 0, 2, 3])
    extra = np.zeros((4, 4), dtype="<u1").tobytes() + np.tile(np.array([1, 0, 0, 0], dtype="<f4"), (4, 1)).tobytes()
    document["buffers"].append({"byteLength": 80, "uri": "data:;base64," + base64.b64encode(extra).decode()})
    document["bufferViews"] += [{"buffer": 1, "byteLength": 16}, {"buffer": 1, "byteOffset": 16, "byteLength": 64}]
    document["accessors"] += [
        {"bufferView": 2, "componentType": 5121, "count": 4, "type": "VEC4"},
        {"bufferView": 3, "componentType": 5126, "count": 4, "type": "VEC4"},
    ]
    document["meshes"][0]["primitives"][0]["attributes"] |= {"JOINTS_0": 2, "WEIGHTS_0": 3}
    document["nodes"] = [{"mesh": 0, "skin": 0, "scale": [100, 100, 100]}, {"translation": [0, 3, 0]}]
    document["scenes"], document["skins"] = [{"nodes": [0, 1]}], [{"joints": [1]}]
    mesh = load_mesh(saved(tmp_path, document), tmp_path)
    np.testing.assert_allclose(mesh.vertices, QUAD + [0, 3, 0])


@pytest.mark.parametrize("kind", ["base64", "percent", "escaped", "capitals"])
def test_data_uris_are_read_as_they_are_written(tmp_path: Path, kind: str) -> None:
    content = QUAD.tobytes() + np.array([0, 1, 2, 0, 2, 3], dtype="<u2").tobytes()
    text = base64.b64encode(content).decode()
    uri = {
        "base64": "data:application/octet-stream;base64," + text,
        "percent": "data:," + urllib.parse.quote(content),
        "escaped": "data:;base64," + urllib.parse.quote(text, safe=""),
        "capitals": "DATA:;BASE64," + text,
    }[kind]
    mesh = load_mesh(saved(tmp_path, quad_gltf([0, 1, 2, 0, 2, 3], buffers=[{"byteLength": 60, "uri": uri}])), tmp_path)
    np.testing.assert_array_equal(mesh.vertices, QUAD)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("../secret.bin", "external-uri"),
        ("%2e%2e/secret.bin", "external-uri"),
        ("/etc/hostname", "external-uri"),
        ("http://example.org/a.bin", "external-uri"),
        ("file:///etc/hostname", "external-uri"),
        ("..\\secret.bin", "external-uri"),
        ("link.bin", "external-uri"),
        ("absent.bin", "missing-file"),
        ("data:;base64,!", "corrupt"),
        ("data:;base64,AAA", "corrupt"),
        ("data:;base64," + "A" * 40 + "\n" + "A" * 40, "corrupt"),
        ("data:;base64", "corrupt"),
    ],
)
def test_files_named_by_an_asset_never_leave_the_root(tmp_path: Path, uri: str, reason: str) -> None:
    root = tmp_path / "in"
    root.mkdir()
    (tmp_path / "secret.bin").write_bytes(QUAD.tobytes() + bytes(64))
    (root / "link.bin").symlink_to(tmp_path / "secret.bin")
    path = saved(root, quad_gltf([0, 1, 2], buffers=[{"byteLength": 54, "uri": uri}]))
    assert reason_of(path, root) == reason


def test_a_buffer_in_a_folder_above_but_below_the_root_is_read(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "quad data.bin").write_bytes(QUAD.tobytes() + np.array([0, 1, 2], dtype="<u2").tobytes())
    document = quad_gltf([0, 1, 2], buffers=[{"byteLength": 54, "uri": "../quad%20data.bin"}])
    assert len(load_mesh(saved(tmp_path / "deep", document), tmp_path).faces) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"asset": {"version": "1.0"}}, "unsupported"),
        ({"extensionsRequired": ["WEB3D_quantized_attributes"]}, "unsupported"),
        ({"nodes": [{"mesh": 0, "children": [0]}]}, "corrupt"),
        ({"nodes": [{"children": [k + 1, k + 1]} for k in range(60)] + [{"mesh": 0}]}, "too-large"),  # 2^60 placements
        ({"nodes": [{"mesh": 7}]}, "corrupt"),
        ({"nodes": "many"}, "corrupt"),
        ({"meshes": [{"primitives": [{"attributes": {}}]}]}, "corrupt"),
        ({"meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "mode": 1}]}]}, "no-faces"),
        ({"bufferViews": [{"buffer": 0, "byteLength": 10**9}, {"buffer": 0, "byteLength": 6}]}, "corrupt"),
        ({"accessors": [{"bufferView": 0, "componentType": 5126, "count": 10**12, "type": "VEC3"}] * 2}, "too-large"),
        ({"accessors": [{"bufferView": 0, "componentType": 5126, "count": 5, "type": "VEC3"}] * 2}, "corrupt"),
        ({"scenes": [{}]}, "no-faces"),
    ],
)
def test_broken_documents_are_refused(tmp_path: Path, changes: dict, reason: str) -> None:
    assert reason_of(saved(tmp_path, quad_gltf([0, 1, 2], **changes))) == reason


def test_index_out_of_range_is_refused(tmp_path: Path) -> None:
    assert reason_of(saved(tmp_path, quad_gltf([0, 1, 9]))) == "corrupt"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.glb", b"", "empty"),
        ("a.glb", b"not a glb at all", "corrupt"),
        ("a.glb", b"glTF\x02\x00\x00\x00\x00\x10\x00\x00", "corrupt"),
        ("a.glb", b"version https://git-lfs.github.com/spec/v1\n", "corrupt"),
        ("a.gltf", b"{", "corrupt"),
        ("a.gltf", b"[]", "corrupt"),
        ("a.stl", b"\0" * 80 + b"\xff\xff\xff\x00" + b"\0" * 50, "corrupt"),
        ("a.off", b"OFF\n353535235358 1 0\n0 0 0\n", "corrupt"),
        ("a.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n", "corrupt"),
        ("a.obj", b"v 0 0 0\nv nan 0 0\nv 0 1 0\nf 1 2 3\n", "non-finite"),
        ("a.obj", b"v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n", "zero-extent"),
        ("a.obj", b"v 0 0 0\nv 1 0 0\nl 1 2\n", "no-faces"),
        ("a.fbx", b"Kaydara", "unsupported"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert reason_of(tmp_path / name) == reason


@pytest.mark.parametrize("size", [1e-200, 1.0, 1e90])
def test_faces_without_area_and_vertices_without_faces_are_left_out(tmp_path: Path, size: float) -> None:
    rows = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 5, 5], [6, 7, 8], [7, 9, 11], [-9, 0, 0]]) * size
    text = "".join(f"v {x!r} {y!r} {z!r}\n" for x, y, z in rows.tolist())
    (tmp_path / "a.obj").write_text(text + "f 4 4 4\nf 1 2 3\nf 4 5 6\nf 1 2 1\n")
    mesh = load_mesh(tmp_path / "a.obj")
    np.testing.assert_array_equal(mesh.vertices, rows[:3])
    assert mesh.faces.tolist() == [[0, 1, 2]]


def test_a_face_without_area_stays_where_it_closes_a_seam(tmp_path: Path) -> None:
    """A tetrahedron with a corner in the middle of one face's side: that face's own side doesn't have it."""
    rows = "v 0 0 0\nv 2 0 0\nv 0 2 0\nv 0 0 2\nv 1 0 0\n"
    faces = "f 1 3 5\nf 5 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"
    (tmp_path / "open.obj").write_text(rows + faces)
    (tmp_path / "closed.obj").write_text(rows + faces + "f 1 5 2\nv 4 0 0\nv 3 0 0\nf 2 7 6\nf 1 5 1\n")
    assert not is_watertight(*found(tmp_path / "open.obj"))
    vertices, kept = found(tmp_path / "closed.obj")
    assert is_watertight(vertices, kept) and len(kept) == 6 and len(vertices) == 5


def found(path: Path) -> tuple[np.ndarray, np.ndarray]:
    mesh = load_mesh(path)
    return mesh.vertices, mesh.faces


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\n\nf 1 2 9\n", "line 5: face index 9 is out of range"),
        ("a.obj", b"v 0 0 0\nv 1 zero 0\n", "line 2: 'zero' is no finite number"),
        ("a.off", b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 x\n", "line 6: 'x' is no finite number"),
        ("a.off", b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\nnan 0 1 2\n", "line 6: nan is no number of corners"),
        ("a.off", b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n-3 0 1 2\n", "line 6: -3 is no number of corners"),
        ("a.off", b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n1e300 0 1 2\n", "line 6: 4 of 1e+300 numbers"),
        ("a.stl",
         b"solid a\nfacet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 a\nvertex 0 1 0\nendloop\nendfacet\n"
         b"endsolid\n", "line 5: 'a' is no"),
        ("a.stl", bytes(80) + b"\x05\0\0\0" + bytes(50), "STL says 5 faces but contains 1"),
        ("a.ply",
         b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\n"
         b"element face 1\nproperty list uchar int vertex_indices\nend_header\n0 0 0\n3 0 0 1\n",
         "face 0 has the index 1 for 1 vertices"),
        ("a.gltf", b'{"asset": {"version": "4.0"}}', "glTF version 4.0"),
        ("a.glb", b"glTF\x02\0\0\0\x40\0\0\0", "GLB says 64 bytes but has 12"),
        ("a.obj", b"", "is empty"),
        ("a.obj", b"v 0 0 0\nv nan 0 0\nv 0 1 0\nf 1 2 3\n", "line 2: 'nan' is no finite number"),
        ("a.stl", bytes(80) + b"\x01\0\0\0" + bytes(50), "no face has an area"),
        ("a.stl", bytes(80) + b"\x01\0\0\0" + bytes(12) + b"\0\0\xc0\x7f" * 9 + b"\0\0",
         "vertex 0 is at (nan, nan, nan)"),
    ],
)  # fmt: skip
def test_every_refusal_names_the_file_and_the_fault(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / name).write_bytes(content)
    for root in (tmp_path, None):
        with pytest.raises(MeshError) as caught:
            load_mesh(tmp_path / "sub" / name, root)
        assert f"{name}" in str(caught.value) and problem in str(caught.value)
        assert root is None or not content or f"{caught.value.reason}: sub/{name}: {problem}" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["obj_tabs.obj", "off_concave_quads.off", "ply_text_concave.ply", "stl_text_end_solid.stl"]
)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_text_may_begin_with_any_byte_order_mark(tmp_path: Path, name: str, encoding: str) -> None:
    """Windows editors write such files."""
    plain = (Path(__file__).parent / "field" / name).read_text(encoding="utf-8")
    marked = ("\ufeff" if encoding == "utf-16-be" else "") + plain
    (tmp_path / name).write_bytes(marked.encode(encoding))
    found, expected = load_mesh(tmp_path / name), load_mesh(Path(__file__).parent / "field" / name)
    np.testing.assert_array_equal(found.vertices[found.faces], expected.vertices[expected.faces])


def test_a_missing_part_is_named_with_the_file_that_needs_it(tmp_path: Path) -> None:
    path = saved(tmp_path, quad_gltf([0, 1, 2], buffers=[{"byteLength": 54, "uri": "absent.bin"}]))
    with pytest.raises(MeshError, match=r"missing-file: asset.gltf: absent.bin does not exist"):
        load_mesh(path)


def test_missing_file_and_path_outside_the_root(tmp_path: Path) -> None:
    assert reason_of(tmp_path / "none.obj") == "missing-file"
    (tmp_path / "in").mkdir()
    assert reason_of(tmp_path / "in" / ".." / "none.obj", tmp_path / "in") == "external-uri"


def rows(path: Path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@needs_data
def test_all_draco_objects_have_their_extents() -> None:
    root = Path(DATA) / "meshes"
    known = {row["path"]: row for row in rows(root / "load_stats.csv")}
    draco = [row for row in rows(root / "manifest.csv") if "draco" in row["extensions_required"].lower()]
    assert len(draco) >= 70
    for row in draco:
        mesh = load_mesh(root / row["path"], root)
        assert np.ptp(mesh.vertices, axis=0).max() > 0, row["path"]
        content = (root / row["path"]).read_bytes()
        vertices, faces = read_gltf(content, sibling_reader(root / row["path"], root))
        assert len(faces) == int(known[row["path"]]["faces"]), row["path"]
        sides = vertices[faces[:, 1:]] - vertices[faces[:, :1]]
        size, area = np.abs(vertices).max(), np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1) / 2
        assert (area > 1e-12 * size**2).sum() <= len(mesh.faces) <= len(faces), "only faces without an area go"


@needs_data
def test_hostile_files_load_or_are_refused_as_expected() -> None:
    root = Path(DATA) / "hostile"
    wrong = []
    for row in rows(root / "manifest.csv"):
        try:
            load_mesh(root / row["path"], root)
            outcome = "load"
        except MeshError:
            outcome = "reject"
        if row["expected"] not in (outcome, "either"):
            wrong.append((row["path"], outcome))
    assert not wrong
