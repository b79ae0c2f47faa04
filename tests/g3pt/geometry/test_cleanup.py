"""Cleaning and simplifying: what goes, what stays, and that a closed mesh stays closed."""

import numpy as np
import pytest
import pyvista
import trimesh

from g3pt.geometry.cleanup import clean, is_closed, simplify
from g3pt.geometry.isosurface import extract
from tests.g3pt.geometry.test_isosurface import torus


def test_clean_drops_floaters_inner_shells_and_degenerate_faces_and_keeps_parts() -> None:
    body, part = trimesh.creation.box((1, 1, 1)), trimesh.creation.box((0.4, 0.4, 0.4))
    part.apply_translation((1.5, 0, 0))
    floater = trimesh.creation.box((0.05, 0.05, 0.05))
    floater.apply_translation((0, 2, 0))
    cavity = trimesh.creation.box((0.6, 0.6, 0.6))
    cavity.invert()
    mesh = trimesh.util.concatenate([body, part, floater, cavity])
    faces = np.concatenate([mesh.faces, [[0, 0, 1], [3, 4, 4]]])
    vertices, kept = clean(mesh.vertices, faces)
    result = trimesh.Trimesh(vertices, kept, process=False)
    assert len(kept) == 24 and len(vertices) == 16 and result.is_watertight
    np.testing.assert_allclose(result.volume, 1.0 + 0.4**3)
    flipped = trimesh.Trimesh(*clean(body.vertices, body.faces[:, ::-1]), process=False)
    np.testing.assert_allclose(flipped.volume, 1.0)
    assert len(clean(np.zeros((3, 3)), np.array([[0, 0, 1]]))[1]) == 0


def test_simplified_meshes_are_closed_and_keep_their_shape() -> None:
    vertices, faces = clean(*extract(torus, resolution=64))
    before = trimesh.Trimesh(vertices, faces, process=False)
    for wanted in (2000, 301):
        fewer_vertices, fewer, note = simplify(vertices, faces, wanted)
        mesh = trimesh.Trimesh(fewer_vertices, fewer, process=False)
        assert (
            note == ""
            and len(fewer) <= wanted < len(faces)
            and fewer_vertices.dtype == np.float32
            and fewer.dtype == np.int64
        )
        assert mesh.is_watertight and mesh.is_winding_consistent and mesh.euler_number == 0
        assert mesh.volume == pytest.approx(before.volume, rel=0.03)
    same = simplify(vertices, faces, len(faces))
    assert same[0] is vertices and same[1] is faces and same[2] == ""


def test_a_mesh_that_would_not_close_stays_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    vertices, faces = clean(*extract(torus, resolution=32))
    torn = pyvista.PolyData.from_regular_faces(vertices, faces[:90])
    monkeypatch.setattr(pyvista.PolyData, "decimate", lambda self, share, **options: torn)
    kept = simplify(vertices, faces, 100)
    assert kept[0] is vertices and kept[1] is faces and kept[2] == "not simplified: 100 faces would not close"


def test_closed_means_every_edge_twice_and_outward() -> None:
    box = trimesh.creation.box((1, 1, 1))
    vertices, faces = np.asarray(box.vertices), np.asarray(box.faces)
    assert is_closed(vertices, faces)
    assert not is_closed(vertices, faces[1:]), "a hole"
    assert not is_closed(vertices, faces[:, ::-1]), "inside out"
    assert not is_closed(vertices, np.concatenate([faces[:1, ::-1], faces[1:]])), "one face turned"
    assert not is_closed(vertices, np.concatenate([faces, faces])), "every face twice"
    assert not is_closed(vertices, faces[:0])
