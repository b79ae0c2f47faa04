"""Fields of known shape: right radius and place, coarse-to-fine equals dense, batches, memory."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
import trimesh
from scipy.spatial import cKDTree

from g3pt.geometry import isosurface, search
from g3pt.geometry.cleanup import clean
from g3pt.geometry.isosurface import EmptyField, FullField, TooComplexField, default_coarse, extract, extract_many


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
def test_coarse_to_fine_equals_dense_with_fewer_points(field: Any) -> None:
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


def test_half_a_voxel_off_would_be_seen_at_every_resolution() -> None:
    centre, radius = np.array([0.17, -0.23, 0.31]), 0.37  # on no grid point, symmetric about none
    for resolution in (64, 100, 128, 256):
        vertices, _ = extract(lambda points: radius - np.linalg.norm(points - centre, axis=1), resolution)
        voxel = 2 / resolution
        assert np.abs(np.linalg.norm(vertices - centre, axis=1) - radius).max() < 0.05 * voxel + 0.3 * voxel**2
        for axis in range(3):
            ends = vertices[:, axis].min(), vertices[:, axis].max()
            assert (
                abs(ends[0] - (centre[axis] - radius)) < 0.5 * voxel
                and abs(ends[1] - (centre[axis] + radius)) < 0.5 * voxel
            )
        np.testing.assert_allclose(vertices.mean(axis=0), centre, atol=0.02 * voxel + 1e-3)


def test_blocks_of_marching_cubes_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = extract(torus, resolution=64, coarse=32)
    monkeypatch.setattr(isosurface, "BLOCK", 10)
    vertices, faces = extract(torus, resolution=64, coarse=32)
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert (
        mesh.is_watertight and mesh.euler_number == 0 and len(vertices) == len(whole[0]) and len(faces) == len(whole[1])
    )
    assert cKDTree(vertices).query(whole[0])[0].max() < 1e-6
    np.testing.assert_allclose(mesh.volume, trimesh.Trimesh(*whole, process=False).volume, rtol=1e-6)


def test_a_batch_of_different_fields_gives_what_each_gives_alone() -> None:
    fields = [
        sphere,
        torus,
        lambda points: np.full(len(points), -1.0),
        thin_plate_with_wire,
        lambda points: np.ones(len(points)),
    ]
    rounds: list[set[int]] = []

    def answer(wanted: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        rounds.append(set(wanted))
        return {number: fields[number](points) for number, points in wanted.items()}

    found = extract_many(answer, len(fields), resolution=64, coarse=16)
    assert [type(surface) for surface in found] == [tuple, tuple, EmptyField, tuple, FullField]
    for number in (0, 1, 3):
        alone = extract(fields[number], resolution=64, coarse=16)
        assert np.array_equal(found[number][0], alone[0]) and np.array_equal(found[number][1], alone[1])
    assert rounds[0] == set(range(5)) and {2, 4}.isdisjoint(rounds[1]), (
        "asked together; what has no surface asks no more"
    )
    assert extract_many(answer, 0) == []


def test_memory_and_evaluations_stay_near_the_surface() -> None:
    """The bound of g3pt/geometry/search.py, at 256 cells: the old dense grids took 100 MB and more."""
    counted = [0]

    def field(points: np.ndarray) -> np.ndarray:
        counted[0] += len(points)
        return sphere(points)

    tracemalloc.start()
    try:
        vertices, _ = extract(field, resolution=256, coarse=32)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    expected_cells = 1.5 * 4 * np.pi * 0.6**2 / (4 / 256) ** 2
    first_grid_and_a_slab = 35**3 * 8 + 2**18 * 60
    assert peak < search.BYTES_PER_CELL * expected_cells + first_grid_and_a_slab
    assert counted[0] < 0.03 * 257**3 and len(vertices) == pytest.approx(4 * expected_cells, rel=0.1)


def test_noise_is_refused_by_name_before_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MAX_CELLS", 20_000)
    random = np.random.default_rng(0)
    with pytest.raises(TooComplexField, match="cells touch the surface, more than 20000") as refused:
        extract(lambda points: random.normal(size=len(points)), resolution=64, coarse=32)
    assert refused.value.status == "too-complex-field"
    assert len(extract(sphere, resolution=64, coarse=32)[1])
