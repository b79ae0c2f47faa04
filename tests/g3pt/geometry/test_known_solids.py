"""Meshes whose solid is known exactly, at 64, 128 and 256 cells: surfaces, genus, volume by Steiner's formula,
what stays.

The offset, exactly: the mesh is scaled until its largest extent leaves OFFSET_VOXELS voxels to the box on either side,
and the solid is everything within that distance of the mesh or enclosed by it. For a closed convex body of volume V,
area A and mean curvature M that is V + A d + M d^2 + 4/3 pi d^3 (Steiner), d = OFFSET_VOXELS * 2 / resolution in the
box's units. Marching cubes cuts what is round between grid points short: by less than 5 % of a voxel's share of the
thickness.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import trimesh

from g3pt.geometry.labels import inside
from g3pt.geometry.quality import solid_figures
from g3pt.geometry.watertight import BOX, OFFSET_VOXELS, Solid, watertight

PI = np.pi
BALL = 4 / 3 * PI


@dataclass(frozen=True, kw_only=True)
class Known:
    """A mesh and its solid: how many surfaces, their Euler number, and the volume for a scale s and an offset d."""

    mesh: trimesh.Trimesh
    parts: int
    euler: int
    volume: Callable[[float, float], float]


def soup(*meshes: trimesh.Trimesh) -> trimesh.Trimesh:
    return trimesh.util.concatenate(list(meshes))


def box(*size: float, at: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> trimesh.Trimesh:
    made = trimesh.creation.box(size)
    made.apply_translation(at)
    return made


def box_volume(size: tuple[float, float, float], s: float, d: float) -> float:
    a, b, c = (side * s for side in size)
    return a * b * c + 2 * (a * b + b * c + c * a) * d + PI * (a + b + c) * d**2 + BALL * d**3


def cube() -> Known:
    return Known(mesh=box(1, 1, 1), parts=1, euler=2, volume=partial(box_volume, (1, 1, 1)))


def inside_out_cube() -> Known:
    known = cube()
    known.mesh.invert()
    return known


def nested_shells() -> Known:
    shells = soup(box(1, 1, 1), box(0.8, 0.8, 0.8), trimesh.creation.icosphere(3, radius=0.25))
    return Known(mesh=shells, parts=1, euler=2, volume=cube().volume)


def sphere() -> Known:
    return Known(mesh=trimesh.creation.icosphere(5), parts=1, euler=2, volume=lambda s, d: BALL * (s + d) ** 3)


def torus() -> Known:
    mesh = trimesh.creation.torus(1.0, 0.3, major_sections=256, minor_sections=128)
    return Known(mesh=mesh, parts=1, euler=0, volume=lambda s, d: 2 * PI**2 * s * (0.3 * s + d) ** 2)


def open_cylinder() -> Known:
    """A pipe without thickness: with open_surfaces "wall" it stays open at both ends."""
    closed = trimesh.creation.cylinder(radius=0.5, height=2.0, sections=256)
    mesh = trimesh.Trimesh(closed.vertices, closed.faces[np.abs(closed.face_normals[:, 2]) < 0.5])
    return Known(mesh=mesh, parts=1, euler=0, volume=lambda s, d: 2 * PI * 0.5 * s * (2 * s * 2 * d + PI * d**2))


def sheet_volume(a: float, b: float, s: float, d: float) -> float:
    return 2 * a * b * s**2 * d + PI * (a + b) * s * d**2 + BALL * d**3


def sheet() -> Known:
    vertices = np.array([[-1, -0.5, 0], [1, -0.5, 0], [1, 0.5, 0], [-1, 0.5, 0]])
    mesh = trimesh.Trimesh(vertices, [[0, 1, 2], [0, 2, 3]], process=False)
    return Known(mesh=mesh, parts=1, euler=2, volume=partial(sheet_volume, 2.0, 1.0))


def double_sided_sheet() -> Known:
    known = sheet()
    back = known.mesh.copy()
    back.invert()
    return Known(mesh=soup(known.mesh, back), parts=1, euler=2, volume=known.volume)


def one_face() -> Known:
    mesh = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]], process=False)
    rim = 2 + 2**0.5
    return Known(mesh=mesh, parts=1, euler=2, volume=lambda s, d: s**2 * d + PI / 2 * rim * s * d**2 + BALL * d**3)


def two_parts() -> Known:
    mesh = soup(box(0.3, 1, 1), box(0.3, 0.5, 0.5, at=(1, 0, 0)))

    def volume(s: float, d: float) -> float:
        return box_volume((0.3, 1, 1), s, d) + box_volume((0.3, 0.5, 0.5), s, d)

    return Known(mesh=mesh, parts=2, euler=4, volume=volume)


def car_with_wheels() -> Known:
    """A body and four wheels beside it, each a body of its own."""
    wheels = [box(0.3, 0.2, 0.3, at=(x, y, -0.3)) for x in (-0.6, 0.6) for y in (-0.6, 0.6)]
    mesh = soup(box(2, 0.8, 0.5), *wheels)

    def volume(s: float, d: float) -> float:
        return box_volume((2, 0.8, 0.5), s, d) + 4 * box_volume((0.3, 0.2, 0.3), s, d)

    return Known(mesh=mesh, parts=5, euler=10, volume=volume)


def messy_cube() -> Known:
    """Duplicated, flipped and degenerate faces, and a vertex that no face uses."""
    known = cube()
    faces = np.asarray(known.mesh.faces)
    messy = np.concatenate([faces, faces[:3], faces[:, ::-1][4:7], [[0, 0, 1], [2, 2, 2]]])
    vertices = np.concatenate([known.mesh.vertices, [[50.0, 0.0, 0.0]]])
    mesh = trimesh.Trimesh(vertices, messy, process=False)
    return Known(mesh=mesh, parts=1, euler=2, volume=known.volume)


def hair() -> Known:
    """A rod far thinner than any voxel stays; on a grid line marching cubes makes it a square prism, 64 %
    of the round one.
    """
    return Known(mesh=box(1e-4, 1e-4, 1), parts=1, euler=2, volume=lambda s, d: 2 * s * d**2 + 4 / 3 * d**3)


KNOWN = (
    cube, inside_out_cube, nested_shells, sphere, torus, open_cylinder, sheet, double_sided_sheet, one_face, two_parts,
    car_with_wheels, messy_cube, hair,
)  # fmt: skip
FINER = [(made, 128) for made in (cube, nested_shells, torus, open_cylinder, double_sided_sheet, car_with_wheels)]
FINER += [pytest.param(made, 256, marks=pytest.mark.slow) for made in (cube, torus, double_sided_sheet)]


def euler_number(solid: Solid) -> int:
    return len(np.unique(solid.faces)) - len(solid.faces) // 2  # a closed surface has three edges for two faces


@pytest.mark.parametrize(
    ("made", "resolution"),
    [(made, 64) for made in KNOWN] + FINER,
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_the_solid_is_the_known_one(made: Callable[[], Known], resolution: int) -> None:
    known, voxel = made(), 2 / resolution
    open_surfaces = "wall" if made is open_cylinder else "fill"
    solid = watertight(known.mesh.vertices, known.mesh.faces, resolution, open_surfaces=open_surfaces)
    figures = solid_figures(solid)
    assert figures["solid_watertight"] and figures["num_inner_shells"] == 0
    assert figures["num_components"] == known.parts and euler_number(solid) == known.euler
    expected = known.volume(solid.scale, OFFSET_VOXELS * voxel)
    assert abs(figures["volume"] / expected - 1) < 0.05 * voxel / figures["thickness"], (figures["volume"], expected)
    assert abs(np.abs(solid.vertices).max() - BOX) < 1e-12
    if resolution == 64:  # trimesh agrees; it is slow on a million faces
        mesh = trimesh.Trimesh(solid.vertices, solid.faces, process=False)
        assert mesh.is_watertight and mesh.is_winding_consistent and mesh.body_count == known.parts
        assert all(part.volume > 0 for part in mesh.split(only_watertight=False))


@pytest.mark.parametrize("gap_voxels", [0.5, 6.0])
def test_a_part_thinner_than_a_voxel_stays_whether_near_the_body_or_far(gap_voxels: float) -> None:
    voxel = 2 / 64
    fin = box(1e-3, 0.6, 0.6, at=(0.5 + gap_voxels * voxel, 0, 0))
    mesh = soup(box(1, 1, 1), fin)
    solid = watertight(mesh.vertices, mesh.faces, 64)
    assert inside(solid.vertices, solid.faces, fin.vertices * solid.scale + solid.offset).all()
    assert solid_figures(solid)["num_components"] == (1 if gap_voxels < 2 else 2)
