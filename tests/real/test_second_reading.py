"""Every real object read again by another library (assimp): the same extents, area and number of triangles.

What may differ, by rule: assimp's wheel decodes no Draco, and it places skinned meshes by their nodes instead of their
joints, so that only their triangles are counted. A few minutes, by hand through `make real`.
"""

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from g3pt.geometry.load import parsed
from g3pt.geometry.reading import MESH_ENDINGS, sibling_reader

NOT_READ = ("pins.glb",)  # assimp recognises no format in it
TOLERANCE = 1e-4  # of the longest side, and of the area: assimp's coordinates are float32
MOST_DRACO, MOST_SKINNED = 300, 100  # if more files fall under a rule, the rule hides something


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Extents (3,) and area of the faces that have an area, and the number of all."""

    extents: np.ndarray
    area: float
    faces: int


def measured(vertices: np.ndarray, faces: np.ndarray) -> Measured:
    corners = vertices[faces]
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    extents = np.ptp(corners[areas > 0].reshape(-1, 3), axis=0)
    return Measured(extents=extents, area=float(areas.sum()), faces=len(faces))


def second_reading(file: Path) -> Measured:
    """The file by assimp: polygons triangulated, node transforms applied."""
    assimp = pytest.importorskip("assimp_py")
    scene = assimp.import_file(str(file), assimp.Process_Triangulate | assimp.Process_PreTransformVertices)
    vertices, faces, count = [], [], 0
    for mesh in scene.meshes:
        triangles = np.asarray(mesh.indices, dtype=np.int64)
        vertices.append(np.asarray(mesh.vertices, dtype=np.float64).reshape(-1, 3))
        if triangles.size % 3 == 0:  # else points or lines
            faces.append(triangles.reshape(-1, 3) + count)
        count += len(vertices[-1])
    return measured(np.concatenate(vertices), np.concatenate(faces))


def rule_of(file: Path) -> str:
    """Which rule covers the file: "draco", "skinned" or none."""
    if file.suffix.lower() not in (".glb", ".gltf"):
        return ""
    content = file.read_bytes()
    if content[:4] == b"glTF":
        content = content[20 : 20 + struct.unpack_from("<I", content, 12)[0]]
    document = json.loads(content.decode("utf-8-sig"))
    if "KHR_draco_mesh_compression" in document.get("extensionsUsed", []):
        return "draco"
    return "skinned" if document.get("skins") else ""


def difference(ours: Measured, theirs: Measured, rule: str) -> str:
    """What differs between two readings; empty if nothing does."""
    if ours.faces != theirs.faces:
        return f"{ours.faces} triangles, not {theirs.faces}"
    if rule == "skinned":
        return ""
    if np.abs(ours.extents - theirs.extents).max() > TOLERANCE * ours.extents.max():
        return f"extents {ours.extents}, not {theirs.extents}"
    return f"area {ours.area}, not {theirs.area}" if abs(ours.area - theirs.area) > TOLERANCE * ours.area else ""


@pytest.mark.real
def test_another_library_reads_the_same_shapes(real_meshes: Path) -> None:
    pytest.importorskip("assimp_py")
    rules = {"": 0, "draco": 0, "skinned": 0}
    wrong = {}
    for folder in filter(Path.is_dir, ((real_meshes / name).resolve() for name in ("meshes", "meshes2"))):
        for file in sorted(file for file in folder.rglob("*") if file.suffix.lower() in MESH_ENDINGS):
            rule = rule_of(file)
            rules[rule] += 1
            if rule == "draco" or file.name in NOT_READ:
                continue
            mine = measured(*parsed(file.read_bytes(), file.suffix.lower(), sibling_reader(file, folder)))
            try:
                found = difference(mine, second_reading(file), rule)
            except RuntimeError as error:
                found = f"assimp: {error}"
            if found:
                wrong[f"{folder.name}/{file.relative_to(folder)}"] = found
    print(rules)
    assert wrong == {} and rules["draco"] <= MOST_DRACO and rules["skinned"] <= MOST_SKINNED and rules[""] > 0, rules
