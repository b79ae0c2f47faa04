"""Every real object of the folders that G3PT_MESHES names is read: a few minutes, by hand through `make real`."""

from pathlib import Path

import numpy as np
import pytest

from g3pt.geometry.load import load_mesh
from g3pt.geometry.reading import MESH_ENDINGS


@pytest.mark.real
@pytest.mark.parametrize("folder", ["meshes", "meshes2"])
def test_every_object_is_read_with_an_extent_and_an_area(folder: str, real_meshes: Path) -> None:
    if not (real_meshes / folder).is_dir():
        pytest.skip(f"G3PT_MESHES has no {folder}")
    files = sorted(file for file in (real_meshes / folder).rglob("*") if file.suffix.lower() in MESH_ENDINGS)
    wrong = {
        str(file.relative_to(real_meshes)): reason
        for file in files
        if (reason := what_is_wrong(file, real_meshes / folder))
    }
    assert files and wrong == {}, f"{len(wrong)} of {len(files)} files"


def what_is_wrong(file: Path, root: Path) -> str | None:
    """Why a file gives no usable mesh, or None."""
    try:
        mesh = load_mesh(file, root)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    corners = mesh.vertices[mesh.faces]
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    if not np.isfinite(corners).all():
        return "coordinates are not finite"
    return None if areas.sum() > 0 and np.ptp(corners.reshape(-1, 3), axis=0).max() > 0 else "no area"
