"""Figures that tell a bad solid from a good one, and the bounds that refuse it: solids made wrong by hand."""

import numpy as np
import pytest
import trimesh

from g3pt.geometry.quality import chamfer_to_input, quality_faults, solid_figures
from g3pt.geometry.watertight import Solid

GOOD = {"solid_watertight": True, "num_inner_shells": 0, "volume": 0.8, "volume_share": 0.1, "chamfer_to_input": 0.03}


def solid_of(*meshes: trimesh.Trimesh) -> Solid:
    mesh = trimesh.util.concatenate(list(meshes))
    return Solid(vertices=np.asarray(mesh.vertices), faces=np.asarray(mesh.faces), scale=1.0, offset=np.zeros(3))


def ball(radius: float, x: float = 0.0, inverted: bool = False) -> trimesh.Trimesh:
    made = trimesh.creation.icosphere(2, radius=radius)
    made.apply_translation((x, 0, 0))
    if inverted:
        made.invert()
    return made


@pytest.mark.parametrize(
    ("meshes", "components", "inner"),
    [
        ([ball(0.5)], 1, 0),
        ([ball(0.3, -0.4), ball(0.2, 0.4)], 2, 0),
        ([trimesh.creation.torus(0.6, 0.2), ball(0.2)], 2, 0),  # in the hole of a ring is not inside it
        ([ball(0.5), ball(0.3, inverted=True)], 2, 1),  # a cavity
        ([ball(0.5), ball(0.3)], 2, 1),  # a solid in a solid
        (
            [ball(0.5), ball(0.4, inverted=True), ball(0.3)],
            3,
            1,
        ),  # a solid in a cavity: only the cavity's wall is wrong
        ([ball(0.5, inverted=True)], 1, 1),
    ],
)
def test_shells_inside_others_or_facing_inward_are_counted(meshes: list, components: int, inner: int) -> None:
    figures = solid_figures(solid_of(*meshes))
    assert figures["num_components"] == components and figures["num_inner_shells"] == inner
    assert figures["solid_watertight"]


@pytest.mark.parametrize(
    ("meshes", "share"),
    [
        ([ball(0.5)], 1.0),
        ([ball(0.5), ball(0.01, x=9.49)], 0.1),  # a speck far away: the ball has 1 of 10
        ([ball(0.5), ball(0.3, inverted=True)], 1.0),
        (
            [trimesh.creation.box((2.0, 0.02, 0.02)), ball(0.3, x=2.7)],
            0.15,
        ),  # the ball has more area than the longer rod
    ],
)
def test_share_of_the_box_that_the_largest_component_fills(meshes: list, share: float) -> None:
    assert solid_figures(solid_of(*meshes))["largest_component_share"] == pytest.approx(share, rel=0.02)


def test_volume_area_and_thickness_of_a_slab() -> None:
    figures = solid_figures(solid_of(trimesh.creation.box((1.5, 1.5, 0.01))))
    assert figures["volume"] == pytest.approx(0.0225) and figures["surface_area"] == pytest.approx(4.56)
    assert figures["thickness"] == pytest.approx(0.01, rel=0.02)


def test_a_solid_with_a_hole_is_not_watertight() -> None:
    mesh = ball(0.5)
    mesh.update_faces(np.arange(len(mesh.faces)) != 7)
    assert not solid_figures(solid_of(mesh))["solid_watertight"]


def test_chamfer_grows_with_what_is_missing() -> None:
    rng, body, wheel = np.random.default_rng(0), ball(0.3, -0.6), ball(0.3, 0.6)
    both = trimesh.util.concatenate([body, wheel])
    whole = chamfer_to_input(solid_of(body, wheel), both.vertices, both.faces, rng)
    assert whole < 0.02  # two samplings of one surface
    assert chamfer_to_input(solid_of(body), both.vertices, both.faces, rng) > 0.2


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ({}, []),
        ({"solid_watertight": False}, ["not-watertight"]),
        ({"num_inner_shells": 2}, ["inner-shell"]),
        ({"volume": 1e-6, "volume_share": 0.0}, ["too-thin"]),
        ({"volume": -0.8}, ["too-thin", "labels-disagree"]),
        ({"volume": float("nan")}, ["too-thin", "labels-disagree"]),
        ({"chamfer_to_input": 0.3}, ["far-from-input"]),
        ({"chamfer_to_input": float("nan")}, ["far-from-input"]),
        ({"volume_share": 0.12}, ["labels-disagree"]),  # 12 standard deviations off
        ({"volume_share": 0.105}, []),
    ],
)
def test_each_bound_names_its_reason(change: dict, reasons: list[str]) -> None:
    faults = quality_faults(GOOD | change, 32768)
    assert [reason for reason, _ in faults] == reasons
    assert all(text and "\n" not in text for _, text in faults)
