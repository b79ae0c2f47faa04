"""Preprocessing of difficult files (G3PT_MESHES/hostile): each ends as its manifest says and none changes another."""

import csv
import os
import re
import shutil
from pathlib import Path

import pytest

from g3pt.data import reading
from pipelines.preprocess.config import PreprocessConfig
from pipelines.preprocess.job import preprocess
from pipelines.preprocess.shards import map_here
from pipelines.tracking import tracked

HOSTILE = Path(os.environ.get("G3PT_MESHES", "")) / "hostile"
CUBE = "v 0 0 0\nv 0 0 1\nv 0 1 0\nv 0 1 1\nv 1 0 0\nv 1 0 1\nv 1 1 0\nv 1 1 1\n" + "".join(
    f"f {face}\n" for face in ("1 2 4 3", "5 7 8 6", "1 5 6 2", "3 4 8 7", "1 3 7 5", "2 6 8 4")
)
REASONS = (  # what the manifest calls difficult -> the reason that fits; the first that matches
    ("point|lines|wireframe|empty scene|no mesh|without faces|no geometry", "no-faces|corrupt"),
    ("NaN|infinite", "non-finite"),
    ("zero-area", "zero-extent"),
    ("missing", "missing-file"),
    ("zero-byte", "empty"),
    ("1.0", "unsupported"),
    ("", "corrupt"),
)
TIMEOUT_S = 60.0


@pytest.mark.slow
@pytest.mark.skipif(not HOSTILE.is_dir(), reason="G3PT_MESHES names no folder of difficult meshes")
def test_difficult_files_end_as_their_manifest_says_and_leave_neighbours_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracked, "tell", lambda *_: None)
    shutil.copytree(HOSTILE, tmp_path / "all")
    (tmp_path / "all" / "cube.obj").write_text(CUBE)
    with open(tmp_path / "all" / "manifest.csv", newline="") as file:
        reader = csv.DictReader(file)
        manifest, columns = list(reader), reader.fieldnames
    with open(tmp_path / "all" / "manifest.csv", "a", newline="") as file:
        csv.DictWriter(file, columns, restval="").writerow({"id": "cube.obj", "path": "cube.obj"})
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "cube.obj").write_text(CUBE)

    rows = converted(tmp_path, "all")
    for item in manifest:
        row = rows[item["id"]]
        shown = f"{item['id']} ({item['difficulty']}): {row['status']} {row['error']}"
        if item["expected"] == "load":
            assert row["status"] == "ok", shown
        elif item["expected"] == "reject":
            fitting = next(reason for words, reason in REASONS if re.search(words, item["difficulty"]))
            assert row["status"] in ("failed", "rejected") and re.match(fitting, row["error"]), shown
        assert row["status"] in ("ok", "failed", "rejected"), shown  # neither a timeout nor out of memory
    (alone,) = converted(tmp_path, "alone").values()
    for name in ("surface", "near_points", "near_occupancy"):
        assert rows["cube.obj"][name].tobytes() == alone[name].tobytes()


def converted(folder: Path, name: str) -> dict[str, dict]:
    """Rows by id of a folder of meshes, converted in this process into one shard."""
    small = {
        "resolution": 32,
        "num_surface": 64,
        "num_sharp": 32,
        "num_queries": 256,
        "num_shards": 1,
        "timeout_s": TIMEOUT_S,
    }
    preprocess(
        PreprocessConfig(source="dir", input=str(folder / name), output=str(folder / f"{name}-data"), **small), map_here
    )
    columns = ["id", "status", "error", "surface", "near_points", "near_occupancy"]
    return {row["id"]: row for row in reading.read_rows(folder / f"{name}-data", columns, status=None)}
