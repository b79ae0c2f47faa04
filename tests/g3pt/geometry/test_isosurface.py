"""Fields of known shape: right radius and place, coarse-to-fine equals dense, cleaning, files."""

from pathlib import Path

import numpy as np
import pytest
import trimesh

from g3pt.geometry.isosurface import EmptyField, FullField, clean, default_coarse, extract, write_mesh


def sphere(points: np.ndarray) -> np.ndarray:
    return 0.6 - np.linalg.norm(points - np.array([0.1, 0.0, -0.2]), axis=1)


def torus(points: np.ndarray) -> np.ndarray:
    ring = np.hypot(points[:, 0], points[:, 2]) - 0.6
    return 0.15 - np.hypot(ring, points[:, 1])


def thin_plate_with_wire(points: np.ndarray) -> np.ndarray:
    plate = np.minimum(0.7 - np.abs(points[:, 0]), np.minimum(0.04 - np.abs(points[:, 1]), 0.7 - np.abs(points[:, 2])))
    wire = np.minimum(0.05 - np.hypot(points[:, 0] - 0.33, points[:, 2]), 0.8 - np.abs(points[:, 1]))
    return np.maximum(plate, wire)


def euler_number(vertices: np.ndarray, faces: np.ndarray) -> int:
    return trimesh.Trimesh(vertices, faces, process=False).euler_number


def test_sphere_has_its_radius_and_place() -> None:
    vertices, faces = extract(sphere, resolution=64, coarse=16)
    assert vertices.dtype == np.float32 and faces.dtype == np.int64
    radii = np.linalg.norm(vertices - [0.1, 0.0, -0.2], axis=1)
    assert np.abs(radii - 0.6).max() < 0.5 * 2 / 64
    middle = (vertices.min(axis=0) + vertices.max(axis=0)) / 2
    np.testing.assert_allclose(middle, [0.1, 0.0, -0.2], atol=0.1 * 2 / 64)
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert mesh.is_watertight and mesh.volume > 0 and mesh.euler_number == 2


@pytest.mark.parametrize("field", [sphere, torus, thin_plate_with_wire])
def test_coarse_to_fine_equals_dense_with_fewer_points(field) -> None:
    counts = {16: 0, 64: 0}
    meshes = {}
    for coarse in counts:
        def counted(points: np.ndarray, coarse: int = coarse) -> np.ndarray:
            counts[coarse] += len(points)
            return field(points)

        meshes[coarse] = extract(counted, resolution=64, coarse=coarse, chunk=5000)
    np.testing.assert_array_equal(meshes[16][0], meshes[64][0])
    np.testing.assert_array_equal(meshes[16][1], meshes[64][1])
    assert counts[64] == 65**3 and counts[16] < 0.5 * counts[64]


@pytest.mark.parametrize(("resolution", "coarse"), [(128, 32), (256, 32), (96, 48), (100, 50), (31, 31), (63, 63)])
def test_any_resolution_has_a_first_grid(resolution: int, coarse: int) -> None:
    assert default_coarse(resolution) == coarse


def test_torus_keeps_its_hole_and_level_moves_the_surface() -> None:
    vertices, faces = extract(torus, resolution=64, coarse=16)
    assert euler_number(vertices, faces) == 0
    smaller, _ = extract(sphere, resolution=64, coarse=16, level=0.1)
    np.testing.assert_allclose(np.linalg.norm(smaller - [0.1, 0.0, -0.2], axis=1), 0.5, atol=0.02)


def test_surface_found_late_is_followed_out_of_the_active_cells() -> None:
    def needle(points: np.ndarray) -> np.ndarray:  # a ball seen by the coarse grid, a needle that it doesn't see
        spike = np.minimum(0.03 - np.hypot(points[:, 1] - 0.03, points[:, 2] - 0.03), 0.9 - np.abs(points[:, 0]))
        return np.maximum(0.4 - np.linalg.norm(points, axis=1), spike)

    coarse, dense = extract(needle, resolution=64, coarse=8), extract(needle, resolution=64, coarse=64)
    assert coarse[0][:, 0].max() > 0.85
    np.testing.assert_array_equal(coarse[0], dense[0])


def test_solid_that_touches_the_box_is_closed_there() -> None:
    vertices, faces = extract(lambda points: 0.5 - points[:, 0], resolution=16, coarse=16)
    assert np.abs(vertices).max() <= 1.0
    mesh = trimesh.Trimesh(*clean(vertices, faces), process=False)
    assert mesh.is_watertight
    np.testing.assert_allclose(mesh.volume, 1.5 * 4, rtol=0.01)


def test_empty_full_and_non_finite_fields_are_named() -> None:
    with pytest.raises(EmptyField) as empty:
        extract(lambda points: np.full(len(points), -1.0), resolution=16, coarse=16)
    with pytest.raises(FullField) as full:
        extract(lambda points: np.full(len(points), 1.0), resolution=16, coarse=16)
    assert (empty.value.status, full.value.status) == ("empty-field", "full-field")
    with pytest.raises(ValueError, match="non-finite"):
        extract(lambda points: np.full(len(points), np.nan), resolution=16, coarse=16)
    with pytest.raises(ValueError, match="48"):
        extract(sphere, resolution=48, coarse=32)


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


@pytest.mark.parametrize("suffix", ["glb", "obj", "ply", "stl"])
def test_written_meshes_open_again(tmp_path: Path, suffix: str) -> None:
    vertices, faces = extract(torus, resolution=32, coarse=32)
    path = tmp_path / f"torus.{suffix}"
    write_mesh(path, vertices, faces)
    first = path.read_bytes()
    mesh = trimesh.load(path, force="mesh")
    assert len(mesh.faces) == len(faces)
    np.testing.assert_allclose(mesh.bounds, [vertices.min(axis=0), vertices.max(axis=0)], atol=1e-6)
    write_mesh(path, vertices, faces)
    assert path.read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fbx"):
        write_mesh(tmp_path / "a.fbx", np.zeros((3, 3)), np.array([[0, 1, 2]]))
    assert not list(tmp_path.iterdir())
