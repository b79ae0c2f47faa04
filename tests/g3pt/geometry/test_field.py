"""Small files of kinds that were once read as another shape, or lost: `field/expected.csv` states what each must give.

`load` with these extents, area, signed volume and triangles (as far as stated), `refuse`, or either.
"""

import csv
from pathlib import Path

import numpy as np
import pytest

from g3pt.geometry.load import LoadedMesh, load_mesh
from g3pt.geometry.reading import MeshError

FIELD = Path(__file__).parent / "field"
ROWS = list(csv.DictReader((FIELD / "expected.csv").read_text(encoding="utf-8").splitlines()))


def measured(mesh: LoadedMesh) -> dict[str, np.ndarray]:
    corners = mesh.vertices[mesh.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return {
        "extents": np.ptp(mesh.vertices, axis=0),
        "area": np.linalg.norm(normals, axis=1).sum() / 2,
        "volume": np.einsum("fd,fd->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6,
        "faces": np.array(len(mesh.faces)),
    }


@pytest.mark.parametrize("row", ROWS, ids=[row["file"] for row in ROWS])
def test_a_file_is_read_as_what_it_says_or_refused(row: dict[str, str]) -> None:
    try:
        found = measured(load_mesh(FIELD / row["file"]))
    except MeshError:
        assert "refuse" in row["expected"]
        return
    assert "load" in row["expected"]
    for name, value in found.items():
        if row[name]:
            np.testing.assert_allclose(value, np.array(row[name].split(), dtype=float), atol=1e-4, err_msg=name)
