"""Meshes written to files open again, whole, in every format."""

from pathlib import Path

import numpy as np
import pytest
import trimesh

from g3pt.geometry.files import write_mesh
from g3pt.geometry.isosurface import extract
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
