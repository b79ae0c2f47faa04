"""Views of one object: the mesh in its colours, at the place of its solid; clay without colours."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from g3pt.geometry.appearance import clay
from g3pt.geometry.render import render_views
from pipelines.preprocess.config import PreprocessConfig
from pipelines.preprocess.sources import SourceObject
from pipelines.preprocess.views import VIEW_SECONDS, rendered, view_seconds_of

CORNERS = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=float)
FACES = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
PLACEMENT = {"scale": 0.5, "offset": np.array([-5.0, -5.0, -5.0])}  # of an object that stands at (10, 10, 10)


def settings(folder: Path, **changes: object) -> PreprocessConfig:
    return PreprocessConfig(source="dir", output="unused", input=str(folder), views=2, view_size=32, **changes)


def source(path: str, kind: str = "dir") -> SourceObject:
    return SourceObject(id=path, source=kind, content_sha256="", size=0, path=path)


def write_obj(folder: Path, mtl: str) -> None:
    lines = (
        [f"v {x} {y} {z}" for x, y, z in CORNERS + 10] + ["usemtl one"] + [f"f {a} {b} {c}" for a, b, c in FACES + 1]
    )
    (folder / "a.obj").write_text("\n".join(["mtllib a.mtl", *lines]))
    (folder / "a.mtl").write_text(mtl)


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)


def test_the_source_is_drawn_where_the_solid_is(tmp_path: Path) -> None:
    write_obj(tmp_path, "newmtl one\nKd 1 0 0\n")
    solid = (CORNERS * 0.5, FACES)
    row = rendered(source("a.obj"), settings(tmp_path), solid, PLACEMENT, seed=1)
    assert row["appearance"] == "material" and row[VIEW_SECONDS] > 0
    grey, cameras = render_views(clay(*solid), 2, 32, 1)
    np.testing.assert_array_equal(row["view_cameras"], cameras)
    for red, bare in zip(row["views"], grey, strict=True):
        np.testing.assert_array_equal(pixels(red)[..., 3], pixels(bare)[..., 3])
        assert pixels(red)[..., 1].max() < 10 < pixels(red)[..., 0].max() and pixels(bare)[..., 1].max() > 100


def test_shapes_and_what_has_no_look_are_clay(tmp_path: Path) -> None:
    write_obj(tmp_path, "")
    solid = (CORNERS * 0.5, FACES)
    expected = render_views(clay(*solid), 2, 32, 1, "ring")[0]
    (tmp_path / "a.glb").write_bytes(b"glTF")  # became unreadable after its geometry was read
    for item in (source("shape", "shapes"), source("a.glb")):
        row = rendered(item, settings(tmp_path, cameras="ring"), solid, PLACEMENT, seed=1)
        assert row["appearance"] == "none" and row["views"] == expected


def test_settings_of_views_make_shards_stale_only_where_there_are_views(tmp_path: Path) -> None:
    assert settings(tmp_path).settings != settings(tmp_path, cameras="axes").settings
    none = [
        PreprocessConfig(source="shapes", output="unused", cameras=cameras).settings for cameras in ("random", "ring")
    ]
    assert none[0] == none[1]


def test_seconds_travel_beside_the_row() -> None:
    table = pa.table({"a": [1]})
    assert view_seconds_of(table) == view_seconds_of(None) == 0.0
    assert view_seconds_of(table.replace_schema_metadata({VIEW_SECONDS: "0.25"})) == 0.25
