"""Labels against an oracle that shares nothing with them: the generalised winding number
of the mesh as given (point-cloud-utils).

For closed meshes without inner cavities, on points further than the offset from the mesh. Where they may differ:
marching cubes rounds concave corners outward by a fraction of a voxel, and a gap narrower than two voxels closes.
Source: Barill et al., Fast Winding Numbers for Soups and Clouds, 2018.
"""

import csv
import os
from pathlib import Path

import numpy as np
import point_cloud_utils as pcu
import pytest

from g3pt.geometry.convert import ConvertConfig, convert_mesh
from g3pt.geometry.load import load_mesh
from g3pt.geometry.quality import is_watertight
from g3pt.geometry.watertight import OFFSET_VOXELS
from g3pt.shapes import make_shape, shape_ids


def agreement(vertices: np.ndarray, faces: np.ndarray, resolution: int, kind: str) -> tuple[float, int]:
    """Share of a row's stored points beyond the offset whose label equals the oracle's, and their number."""
    row = convert_mesh(vertices, faces, ConvertConfig(resolution=resolution, num_surface=8, num_sharp=8), 0)
    placed = np.ascontiguousarray(vertices * row["scale"] + row["offset"])
    faces = np.ascontiguousarray(faces)
    points = row[f"{kind}_points"].astype(np.float64)
    distance, _, _ = pcu.closest_points_on_mesh(points, placed, faces)
    beyond = np.abs(distance) > OFFSET_VOXELS * 2 / resolution
    expected = np.abs(pcu.triangle_soup_fast_winding_number(placed, faces, points)) > 0.5
    found = np.unpackbits(row[f"{kind}_occupancy"], bitorder="little").astype(bool)
    assert 0.01 < expected[beyond].mean() < 0.99
    return float((found == expected)[beyond].mean()), int(beyond.sum())


@pytest.mark.parametrize("name", ["mug", "chair", "car"])
def test_labels_of_shapes_equal_the_winding_number(name: str) -> None:
    """Unions of closed parts: the winding number of a part inside another is 2, still inside."""
    shape = make_shape(next(i for i in shape_ids() if name in i), 0)
    for kind, least in (("volume", 0.999), ("near", 0.98)):
        share, number = agreement(shape.vertices, shape.faces, 128, kind)
        assert share >= least and number > 1000


@pytest.mark.slow
@pytest.mark.skipif("G3PT_MESHES" not in os.environ, reason="G3PT_MESHES names no folder of real meshes")
def test_labels_of_real_closed_meshes_equal_the_winding_number() -> None:
    """The first eight real meshes that are closed as given: 99.9 % of all their points together."""
    root = Path(os.environ["G3PT_MESHES"]) / "meshes"
    with open(root / "manifest.csv", newline="", encoding="utf-8") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    shares = []
    for path in paths:
        mesh = load_mesh(root / path, root)
        if len(mesh.faces) < 20_000 and is_watertight(mesh.vertices, mesh.faces):
            shares.append(agreement(mesh.vertices, mesh.faces, 128, "volume"))
        if len(shares) == 8:
            break
    assert sum(share * number for share, number in shares) / sum(number for _, number in shares) >= 0.999, shares
