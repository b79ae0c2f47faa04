"""A folder of generated meshes as one picture: all samples in order, failed ones blank."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from g3pt.geometry.files import write_mesh
from pipelines.cli.errors import UsageError
from pipelines.generate.sample_sheet import SampleSheetFlags, sample_sheet

BOX = (
    np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float32),
    np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]]),
)


def generated(folder: Path, statuses: list[str]) -> Path:
    """The parts of a generation's folder that the picture reads."""
    rows = [
        {"id": f"p{k}", "text": f"prompt {k}", "image": None, "seed": k, "file": f"p{k}.glb", "status": s}
        for k, s in enumerate(statuses)
    ]
    for row in rows:
        if row["status"] == "ok":
            write_mesh(folder / row["file"], *BOX)
    pq.write_table(pa.Table.from_pylist(rows), folder / "manifest.parquet")
    return folder


def test_every_sample_has_its_place_and_a_failed_one_is_blank(tmp_path: Path) -> None:
    folder = generated(tmp_path, ["ok", "empty-field", "ok"])
    path = sample_sheet(SampleSheetFlags(folder=str(folder), output=str(tmp_path / "sheet.png"), columns=2, size=64))
    pixels = np.asarray(Image.open(path).convert("L"))
    width, height = 64, pixels.shape[0] // 2
    drawn = [
        (pixels[r * height + height - 60 : (r + 1) * height, c * width : (c + 1) * width] < 250).mean()
        for r in (0, 1)
        for c in (0, 1)
    ]
    assert pixels.shape[1] == 2 * width
    assert drawn[0] > 0.05 and drawn[2] > 0.05 and drawn[1] == drawn[3] == 0


def test_a_missing_mesh_or_manifest_is_one_line(tmp_path: Path) -> None:
    flags = SampleSheetFlags(folder=str(tmp_path), output=str(tmp_path / "sheet.png"))
    with pytest.raises(UsageError, match="manifest.parquet is missing"):
        sample_sheet(flags)
    (generated(tmp_path, ["ok"]) / "p0.glb").unlink()
    with pytest.raises(UsageError, match="p0.glb: listed in manifest.parquet but missing"):
        sample_sheet(flags)
    assert not (tmp_path / "sheet.png").exists()
