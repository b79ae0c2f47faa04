"""What a file looks like is read from the file; what is missing or broken there leaves the plain colour and says so."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from g3pt.geometry.appearance import Appearance, decode_image
from g3pt.geometry.load import load_mesh
from g3pt.geometry.load_appearance import load_appearance
from tests.g3pt.geometry.test_gltf import Asset

CORNERS = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], dtype="<f4")  # the picture upright on the quad


def png(colour: tuple[int, ...] = (200, 100, 50), size: tuple[int, int] = (4, 4), kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA" if len(colour) == 4 else "RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


def textured(uri: str, **material: Any) -> Asset:
    asset = Asset()
    asset.primitive["attributes"]["TEXCOORD_0"] = asset.add(CORNERS)
    asset.primitive["material"] = 0
    asset.json["images"], asset.json["textures"] = [{"uri": uri}], [{"source": 0}]
    asset.json["materials"] = [
        {"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}, "baseColorFactor": [0.5, 1, 1, 0.25]}} | material
    ]
    return asset


def loaded(folder: Path, asset: Asset) -> Appearance:
    import json

    (folder / "a.gltf").write_text(json.dumps(asset.json))
    found = load_appearance(folder / "a.gltf", folder)
    assert found is not None
    return found


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_pictures_beside_and_inside_the_asset(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a picture.png").write_bytes(png(kind=kind))
    inside = "data:image/png;base64," + base64.b64encode(png(kind=kind)).decode()
    for uri in ("a%20picture.png", inside):
        found = loaded(tmp_path, textured(uri))
        assert found.kind == "texture"
        np.testing.assert_allclose(found.parts[0].material.image[0, 0].astype(int), (200, 100, 50, 255), atol=8)
        np.testing.assert_array_equal(found.parts[0].uvs, CORNERS)
        assert found.parts[0].material.colour == (0.5, 1.0, 1.0, 1.0) and not found.parts[0].material.double_sided


@pytest.mark.parametrize(
    "uri",
    [
        "absent.png",
        "broken.png",
        "../outside.png",
        "/etc/passwd",
        "https://example.org/a.png",
        "animation.gif",
        "huge.png",
    ],
)
def test_a_picture_that_cannot_be_used_leaves_the_plain_colour(tmp_path: Path, uri: str) -> None:
    folder = tmp_path / "meshes"
    folder.mkdir()
    (tmp_path / "outside.png").write_bytes(png())
    (folder / "broken.png").write_bytes(png()[:40])
    (folder / "animation.gif").write_bytes(png(kind="GIF"))
    (folder / "huge.png").write_bytes(huge_png())
    found = loaded(folder, textured(uri))
    assert found.kind == "texture-missing"
    assert found.parts[0].material.image is None and found.parts[0].material.colour == (0.5, 1.0, 1.0, 1.0)


def huge_png(side: int = 60000) -> bytes:
    """A header that claims too many pixels."""
    import struct
    import zlib

    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + png()[33:]


def test_large_and_unusual_pictures() -> None:
    assert decode_image(png(size=(2100, 1050))).shape == (350, 700, 4)
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 51400, dtype=np.uint16)).save(buffer, "PNG")
    np.testing.assert_allclose(decode_image(buffer.getvalue())[0, 0], (200, 200, 200, 255), atol=1)
    with pytest.raises(ValueError, match="3600000000 pixels"):
        decode_image(huge_png())
    with pytest.raises(ValueError, match="9000 x 9000 pixels are too many"):
        decode_image(huge_png(9000))


def test_transform_second_coordinates_and_samplers(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    asset = textured("a.png")
    asset.primitive["attributes"]["TEXCOORD_1"] = asset.add(CORNERS * np.float32(0.5))
    texture = asset.json["materials"][0]["pbrMetallicRoughness"]["baseColorTexture"]
    texture["extensions"] = {
        "KHR_texture_transform": {"offset": [0.25, 0.5], "rotation": np.pi / 2, "scale": [2, 1], "texCoord": 1}
    }
    asset.json["samplers"], asset.json["textures"][0]["sampler"] = [{"wrapS": 33071, "wrapT": 33648}], 0
    part = loaded(tmp_path, asset).parts[0]
    assert part.material.wrap == ("clamp", "mirror")
    # the extension's own formula: translation * rotation * scale, rotation [[cos, sin], [-sin, cos]]
    u, v = CORNERS.T * 0.5
    np.testing.assert_allclose(part.uvs, np.stack([0.25 + v, 0.5 - 2 * u], axis=1), atol=1e-6)


def test_alpha_sides_vertex_colours_and_extensions(tmp_path: Path) -> None:
    asset = Asset()
    asset.primitive["attributes"]["COLOR_0"] = asset.add(
        np.tile(np.array([[255, 0, 51, 127]], "u1"), (4, 1)), normalized=True
    )
    found = loaded(tmp_path, asset)
    assert found.kind == "vertex-colours"
    np.testing.assert_allclose(found.parts[0].colours, np.tile([[1.0, 0.0, 0.2, 127 / 255]], (4, 1)), atol=1e-6)
    asset.primitive["material"] = 0
    asset.json["materials"] = [
        {"alphaMode": "MASK", "alphaCutoff": 0.7, "doubleSided": True, "extensions": {"KHR_materials_unlit": {}}}
    ]
    material = loaded(tmp_path, asset).parts[0].material
    assert (material.alpha_mode, material.cutoff, material.double_sided, material.unlit) == ("mask", 0.7, True, True)
    asset.json["materials"] = [
        {
            "extensions": {"KHR_materials_pbrSpecularGlossiness": {"diffuseFactor": [0.1, 0.2, 0.3, 0.4]}},
            "alphaMode": "BLEND",
        }
    ]
    assert loaded(tmp_path, asset).parts[0].material.colour == (0.1, 0.2, 0.3, 0.4)
    asset.json["materials"] = [{"extensions": {"KHR_materials_transmission": {"transmissionFactor": 1.0}}}]
    glass = loaded(tmp_path, asset).parts[0].material
    assert glass.alpha_mode == "blend" and 0.0 < glass.colour[3] < 0.5


def test_smooth_edges_are_those_whose_normals_meet(tmp_path: Path) -> None:
    """A quad folded along its diagonal, its corners on the fold stored once: smooth with equal normals,
    flat without any.
    """
    asset = Asset()
    folded = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 1]], dtype="<f4")
    asset.primitive["attributes"]["POSITION"] = asset.add(folded)
    assert loaded(tmp_path, asset).parts[0].normals is None
    asset.primitive["attributes"]["NORMAL"] = asset.add(np.tile(np.array([[0, 0, 1]], "<f4"), (4, 1)))
    normals = loaded(tmp_path, asset).parts[0].normals
    first, second = np.array([0, 0, 1.0]), np.array([1.0, -1, 1])  # twice the areas, as cross products
    np.testing.assert_allclose(normals[1], first)
    np.testing.assert_allclose(normals[0], (first + second) / np.linalg.norm(first + second), atol=1e-6)


OBJ = (
    "mtllib a.mtl\nv 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\nusemtl one\nf 1/1 2/2 3/3\n"
    "usemtl two\nf 1/1 3/3 4/4\n"
)


def test_materials_and_pictures_of_an_obj(tmp_path: Path) -> None:
    (tmp_path / "a.obj").write_text(OBJ)
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "a.mtl").write_text("newmtl one\nKd 1 0.5 0\nd 0.5\nnewmtl two\nKd 1 1 1\nmap_Kd -s 1 1 1 a.png\n")
    found = load_appearance(tmp_path / "a.obj", tmp_path)
    plain, pictured = sorted(found.parts, key=lambda part: part.material.image is not None)
    assert found.kind == "texture" and plain.material.alpha_mode == "blend"
    np.testing.assert_allclose(plain.material.colour, (1.0, 0.214, 0.0, 0.5), atol=1e-3)  # Kd is sRGB
    assert pictured.material.image[0, 0].tolist() == [200, 100, 50, 255]
    at = {
        tuple(vertex): tuple(uv) for vertex, uv in zip(pictured.vertices.tolist(), pictured.uvs.tolist(), strict=True)
    }
    assert at[0.0, 0.0, 0.0] == (0.0, 1.0) and at[1.0, 1.0, 0.0] == (1.0, 0.0)  # the picture's origin is its upper left
    (tmp_path / "a.mtl").write_text("newmtl one\nKd 1 0 0\nTr 1\nnewmtl two\nmap_Kd ../../etc/passwd\n")
    found = load_appearance(tmp_path / "a.obj", tmp_path)
    assert found.kind == "texture-missing" and {part.material.alpha_mode for part in found.parts} == {"opaque"}
    (tmp_path / "a.mtl").unlink()
    assert load_appearance(tmp_path / "a.obj", tmp_path).kind == "none"


def test_colours_of_a_ply_and_formats_without_any(tmp_path: Path) -> None:
    import trimesh

    box = trimesh.creation.box((1, 1, 1))
    for kind, colours in (("vertex_colors", len(box.vertices)), ("face_colors", len(box.faces))):
        coloured = trimesh.Trimesh(
            box.vertices, box.faces, process=False, **{kind: np.tile([[255, 128, 0, 255]], (colours, 1))}
        )
        coloured.export(tmp_path / "a.ply")
        found = load_appearance(tmp_path / "a.ply", tmp_path)
        assert found.kind == "vertex-colours" and len(found.parts[0].faces) == 12
        np.testing.assert_allclose(found.parts[0].colours[0], (1.0, 0.216, 0.0, 1.0), atol=1e-3)
    box.export(tmp_path / "a.ply")
    assert load_appearance(tmp_path / "a.ply", tmp_path).kind == "none"
    assert load_appearance(tmp_path / "a.stl", tmp_path) is None


FIELD = Path(__file__).parent / "field"
SHOWN = sorted(file.name for file in FIELD.iterdir() if file.suffix in (".obj", ".ply", ".gltf"))


def corners_of(vertices: np.ndarray, faces: np.ndarray) -> list:
    found = vertices[faces]
    area = np.linalg.norm(np.cross(found[:, 1] - found[:, 0], found[:, 2] - found[:, 0]), axis=1)
    return sorted(map(tuple, found[area > 0].reshape(-1, 9).tolist()))


@pytest.mark.parametrize("name", [name for name in SHOWN if name != "obj_zero_index.obj"])
def test_views_show_the_triangles_of_the_row(name: str) -> None:
    """Polygons, indices and strips that other readers take for another shape."""
    mesh, found = load_mesh(FIELD / name), load_appearance(FIELD / name, FIELD)
    assert found is not None
    shown = [corners for part in found.parts for corners in corners_of(part.vertices, part.faces)]
    assert sorted(shown) == corners_of(mesh.vertices, mesh.faces)


CONCAVE = b"v 0 0 0\nv 2 0 0\nv 2 1 0\nv 1 1 0\nv 1 3 0\nv 0 3 0\n"


def test_polygons_with_pictures_colours_and_normals_of_an_obj(tmp_path: Path) -> None:
    """An L whose corners have texture coordinates by negative index, and a name with # in it."""
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "my stuff.mtl").write_text("newmtl Material__#25\nmap_Kd a.png\n# newmtl no\nnewmtl b c\nKd 1 0 0\n")
    content = b"mtllib my stuff.mtl\nvn 0 0 1\nvt 9 9\n" + CONCAVE
    content += b"".join(b"vt %d %d\n" % (k, k) for k in range(6))
    content += b"usemtl Material__#25\nf 1/-6/1 2/-5/1 3/-4/1 4/-3/1 5/-2/1 6/-1/1\nusemtl b c\nf 1 2 3\n"
    (tmp_path / "a.obj").write_bytes(content)
    found = load_appearance(tmp_path / "a.obj", tmp_path)
    pictured, red = found.parts
    assert len(pictured.faces) == 4 and pictured.material.image is not None
    assert sum(np.cross(b - a, c - a)[2] for a, b, c in pictured.vertices[pictured.faces]) == pytest.approx(8.0)
    expected = {
        tuple(vertex): (k, 1.0 - k) for k, vertex in enumerate([[0, 0], [2, 0], [2, 1], [1, 1], [1, 3], [0, 3]])
    }
    for vertex, uv in zip(pictured.vertices, pictured.uvs, strict=True):
        assert tuple(uv) == expected[tuple(vertex[:2])]
    np.testing.assert_array_equal(pictured.normals, np.tile([0, 0, 1], (6, 1)))
    assert red.material.colour == (1.0, 0.0, 0.0, 1.0) and red.uvs is None and red.normals is None


def test_colours_behind_the_coordinates_of_an_obj(tmp_path: Path) -> None:
    (tmp_path / "a.obj").write_text("v 0 0 0 1 0 0\nv 1 0 0 1 0 0\nv 0 1 0 1 0.5 0\nf 1 2 3\n")
    found = load_appearance(tmp_path / "a.obj", tmp_path)
    assert found.kind == "vertex-colours"
    np.testing.assert_allclose(found.parts[0].colours[:, 1], [0.0, 0.0, 0.214], atol=1e-3)
    (tmp_path / "a.obj").write_text("v 0 0 0 255 0 0\nv 1 0 0 255 0 0\nv 0 1 0 255 128 0\nf 1 2 3\n")
    np.testing.assert_allclose(
        load_appearance(tmp_path / "a.obj", tmp_path).parts[0].colours[:, 1], [0, 0, 0.216], atol=1e-3
    )


def test_texture_coordinates_that_cannot_be_read_cost_the_picture_not_the_shape(tmp_path: Path) -> None:
    (tmp_path / "a.mtl").write_text("newmtl one\nKd 0 1 0\n")
    for lines in ("vt a b\nf 1/1 2/1 3/1\n", "vt 0 0\nf 1/7 2/x 3/1\n", "vn 0 0 up\nf 1//1 2//1 3//1\n"):
        (tmp_path / "a.obj").write_text("mtllib a.mtl\nusemtl one\nv 0 0 0\nv 1 0 0\nv 0 1 0\n" + lines)
        part = load_appearance(tmp_path / "a.obj", tmp_path).parts[0]
        assert len(part.faces) == 1 and part.material.colour == (0.0, 1.0, 0.0, 1.0)


def ply(properties: str, vertices: str, faces: str, face_properties: str = "") -> bytes:
    head = (
        f"ply\nformat ascii 1.0\nelement vertex 5\nproperty float x\nproperty float y\nproperty float z\n{properties}"
    )
    head += (
        f"element face {len(faces.splitlines())}\nproperty list uchar int vertex_indices\n{face_properties}end_header\n"
    )
    return (head + vertices + faces).encode()


def test_colours_of_polygons_of_a_ply(tmp_path: Path) -> None:
    """Each triangle of a concave quad has its polygon's colour; types other than bytes are scaled."""
    places = [(0, 0), (2, 2), (0, 1), (-2, 2), (0, 5)]
    plain = "".join(f"{x} {y} 0\n" for x, y in places)
    colours = "".join(f"property uchar {name}\n" for name in ("red", "green", "blue"))
    (tmp_path / "a.ply").write_bytes(ply("", plain, "4 0 1 2 3 255 0 0\n3 1 4 2 0 255 0\n", colours))
    part = load_appearance(tmp_path / "a.ply", tmp_path).parts[0]
    assert part.colours[part.faces][:, 0].tolist() == [[1, 0, 0, 1], [1, 0, 0, 1], [0, 1, 0, 1]]
    for kind, scale in (("float", 1.0), ("ushort", 65535), ("double", 255)):
        coloured = "".join(f"{x} {y} 0 {0.5 * scale} {scale} 0\n" for x, y in places)
        if kind == "ushort":
            coloured = coloured.replace("32767.5", "32768")
        (tmp_path / "a.ply").write_bytes(ply(colours.replace("uchar", kind), coloured, "3 0 1 2\n"))
        part = load_appearance(tmp_path / "a.ply", tmp_path).parts[0]
        np.testing.assert_allclose(part.colours[0], [0.214, 1, 0, 1], atol=1e-3)
