"""Meshes written to files open again, whole, in every format."""

from pathlib import Path

import numpy as np
import pytest
import trimesh

from g3pt.geometry.files import AXES, write_mesh
from g3pt.geometry.isosurface import extract
from g3pt.geometry.load import load_mesh
from tests.g3pt.geometry.test_isosurface import torus


@pytest.mark.parametrize("suffix", ["glb", "obj", "ply", "stl"])
def test_written_meshes_open_again(tmp_path: Path, suffix: str) -> None:
    vertices, faces = extract(torus, resolution=32, coarse=32)
    path = tmp_path / f"torus.{suffix}"
    write_mesh(path, vertices, faces)
    first = path.read_bytes()
    mesh = trimesh.load(path, force="mesh")
    assert len(mesh.faces) == len(faces)
    mesh.merge_vertices(merge_norm=True)  # STL holds each face's own corners
    assert mesh.is_watertight and mesh.is_winding_consistent
    assert mesh.volume == pytest.approx(trimesh.Trimesh(vertices, faces, process=False).volume, rel=1e-5)
    np.testing.assert_allclose(mesh.bounds, [vertices.min(axis=0), vertices.max(axis=0)], atol=1e-6)
    write_mesh(path, vertices, faces)
    assert path.read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fbx"):
        write_mesh(tmp_path / "a.fbx", np.zeros((3, 3)), np.array([[0, 1, 2]]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["obj", "ply", "stl"])
def test_files_say_their_axes_and_keep_them(tmp_path: Path, suffix: str) -> None:
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 3, 0], [0, 0, 2]], dtype=float)
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    path = tmp_path / f"a.{suffix}"
    write_mesh(path, vertices, faces)
    start = path.read_bytes()[:400]
    assert AXES.encode() in start.split(b"end_header")[0] and len(AXES) < 80
    assert suffix != "stl" or start.startswith(AXES.encode()) and not start.startswith(b"solid")
    found = load_mesh(path)
    np.testing.assert_allclose(found.vertices.max(axis=0), [1, 3, 2], atol=1e-6)
    assert found.up_axis == "unspecified" and len(found.faces) == 4
