"""Preprocessing without Ray: stale shards are redone, finished ones kept; bad input is one clear line or one row."""

import csv
import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import trimesh

from g3pt import shapes
from g3pt.data import datasets, reading, records
from g3pt.data.inspection import Inspection
from pipelines.cli.errors import UsageError
from pipelines.cluster.turns import Turn
from pipelines.evaluate.car import solid_of
from pipelines.preprocess import config as preprocess_config
from pipelines.preprocess import shards as stage
from pipelines.preprocess.config import PreprocessConfig
from pipelines.preprocess.job import preprocess
from pipelines.preprocess.plan import ShardTask, default_num_shards, make_plan
from pipelines.preprocess.plan_store import PlanStore
from pipelines.preprocess.sources import Listing, SourceObject
from pipelines.preprocess.sources.content import Content, read_content
from pipelines.preprocess.sources.folder import list_folder
from pipelines.preprocess.sources.shapes import shape_object

FIELD = Path(__file__).parents[2] / "g3pt" / "geometry" / "field"
SMALL = {"resolution": 32, "num_surface": 64, "num_sharp": 32, "num_queries": 256}
MADE_BESIDE = [
    "dataset.json",
    "card.json",
    "contact_sheet.png",
    "contact_sheet.credits.md",
]  # logged to MLflow, with the page
CUBE_FACES = [(1, 2, 3, 4), (8, 7, 6, 5), (1, 5, 6, 2), (2, 6, 7, 3), (3, 7, 8, 4), (4, 8, 5, 1)]


def run_kept(tasks: Sequence[ShardTask], config: PreprocessConfig) -> Iterator[dict]:
    """Like map_here, but keeps the child for the next test."""
    for task in tasks:
        yield stage.process_shard(task, config)


@pytest.fixture(scope="module", autouse=True)
def one_child() -> Iterator[None]:
    yield
    stage.close_sandboxes()


@pytest.fixture(autouse=True)
def logged(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Collects what would be logged to MLflow."""
    from pipelines.tracking import tracked

    calls: list[dict] = []
    monkeypatch.setattr(
        tracked,
        "tell",
        lambda card, output, outcome, started, page: calls.append(
            {"experiment": card.experiment_name, **vars(outcome)}
        ),
    )
    return calls


def write_box(path: Path, size: float = 1.0, height: float = 1.0) -> None:
    corners = [(x, y, z) for z in (0, height) for x, y in ((0, 0), (0, size), (size, size), (size, 0))]
    lines = [f"v {x} {y} {z}" for x, y, z in corners] + ["f " + " ".join(map(str, face)) for face in CUBE_FACES]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def meshes(tmp_path: Path) -> Path:
    folder = tmp_path / "meshes"
    for number in range(6):
        write_box(folder / f"box{number}.obj", height=1.0 + number / 4)
    return folder


def config(tmp_path: Path, **change: object) -> PreprocessConfig:
    known = {
        "source": "dir",
        "input": str(tmp_path / "meshes"),
        "output": str(tmp_path / "data"),
        "num_shards": 3,
        **SMALL,
    }
    return PreprocessConfig(**known | change)


def run(settings: PreprocessConfig) -> datasets.DatasetInfo:
    assert preprocess(settings, run_kept) == settings.output
    return datasets.open_dataset(settings.output)


def hashes(info: datasets.DatasetInfo) -> dict[int, str]:
    return info.shards


def written(info: datasets.DatasetInfo) -> dict[int, int]:
    return {index: info.shard_path(index).stat().st_mtime_ns for index in info.shards}


def redone(before: dict[int, int], after: dict[int, int]) -> set[int]:
    return {index for index in after if before.get(index) != after[index]}


def test_shapes_become_rows_with_everything_the_contract_names(tmp_path: Path, logged: list[dict]) -> None:
    info = run(config(tmp_path, source="shapes", input=None, limit=6, keep_solid=True))
    assert info.counts == {"ok": 6} and sum(info.splits.values()) == 6
    for row in reading.read_rows(info, info.columns):
        assert row["source"] == "shapes" and row["caption"] and row["caption_source"] == "template"
        assert row["category"] in row["id"] and row["license"] and len(row["content_sha256"]) == 64
        assert row["split"] == records.split_of(row["id"]) and row["error"] == "" and row["up_axis"] == "y"
        assert np.abs(row["surface"][:, :3]).max() <= 0.951 and np.abs(row["volume_points"]).max() <= 1.0
        inside = records.unpack_occupancy(row["near_occupancy"])
        assert inside.shape == (256,) and 0.2 < inside.mean() < 0.8
        vertices, _ = records.decode_solid(row["solid"])
        extent = vertices.max(axis=0) - vertices.min(axis=0)
        assert abs(extent.max() - 1.9) < 1e-3 and row["volume"] > 0 and row["scale"] > 0
    assert [call["experiment"] for call in logged] == ["g3pt/preprocess"]
    assert logged[0]["metrics"]["objects_ok"] == 6 and [file.name for file in logged[0]["artifacts"]] == MADE_BESIDE


def test_shapes_of_several_seeds_join_those_of_seed_0_which_keep_their_bytes(tmp_path: Path) -> None:
    names = ["shapes/lamp-00007", "shapes/car-00001", "s1/shapes/lamp-00007", "s12/shapes/car-00001"]
    (tmp_path / "ids").write_text("\n".join(names))
    shared = {"source": "shapes", "input": None, "ids": str(tmp_path / "ids"), "num_shards": 1}
    plain = run(config(tmp_path, **shared, output=str(tmp_path / "plain")))
    zero = run(config(tmp_path, **shared, output=str(tmp_path / "zero"), seeds="0"))
    assert plain.shards == zero.shards and plain.fingerprint == zero.fingerprint and plain.counts == {"ok": 2}
    several = run(config(tmp_path, **shared, seeds="12, 1,0"))
    assert several.counts == {"ok": 4} and several.settings == plain.settings
    rows = {row["id"]: row for row in reading.read_rows(several, several.columns)}
    assert set(rows) == set(names) and len({row["content_sha256"] for row in rows.values()}) == 4
    for before in reading.read_rows(plain, plain.columns):
        assert all(np.array_equal(value, rows[before["id"]][name]) for name, value in before.items())
    for name, seed in (("lamp-00007", 1), ("car-00001", 12)):
        made, row = shapes.make_shape(f"shapes/{name}", seed), rows[f"s{seed}/shapes/{name}"]
        assert (row["caption"], row["category"], row["split"]) == (
            made.caption,
            made.family,
            records.split_of(row["id"]),
        )
        assert solid_of(row, several)["family"] == made.family, "an evaluation makes it again from its id"


def test_a_dataset_for_generators_alone_has_no_query_points(tmp_path: Path, logged: list[dict]) -> None:
    shared = {"source": "shapes", "input": None, "limit": 4, "num_shards": 1, "keep_solid": True}
    whole = run(config(tmp_path, **shared, output=str(tmp_path / "whole")))
    info = run(config(tmp_path, **shared, num_sharp=0, num_queries=0))
    assert info.counts == {"ok": 4} and info.shard_path(0).stat().st_size < whole.shard_path(0).stat().st_size
    for few, row in zip(reading.read_rows(info, info.columns), reading.read_rows(whole, info.columns), strict=True):
        assert np.isnan(few.pop("volume_share")) and 0 < row.pop("volume_share") < 1
        assert all(np.array_equal(value, row[name]) for name, value in few.items())
    looked = Inspection(info.path, verify=True)
    assert list(looked.run()) == [1] and not looked.faults and "near_points" not in "".join(looked.lines())
    assert (info.path / "card.json").is_file() and logged[-1]["metrics"]["objects_ok"] == 4


def test_a_limit_chooses_among_the_shapes_of_all_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "NUM_SHAPES", 32)
    few = config(tmp_path, source="shapes", input=None, limit=12, seeds="0,1,2", num_shards=1)
    all_ids = [shapes.seeded_id(name, seed) for seed in (0, 1, 2) for name in shapes.shape_ids()]
    (task,) = make_plan(few, Listing(few)).tasks
    assert [item.id for item in task.objects] == smallest_hashes(all_ids, 12)
    assert {item.content_sha256 for item in task.objects} == {
        shape_object(*shapes.without_seed(item.id)).content_sha256 for item in task.objects
    }
    known = shape_object("shapes/lamp-00007", 0).content_sha256
    assert known == "142bf89af043007dc999cdf7483b7229b49d2cb64499ea0def62d3f6c5de0867", (
        "as before there were several seeds"
    )


def test_finished_shards_are_skipped_and_nothing_is_logged_twice(
    tmp_path: Path, meshes: Path, logged: list[dict], capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(config(tmp_path))
    before, summary = written(first), (first.path / "dataset.json").read_bytes()
    second = run(config(tmp_path, timeout_s=30.0, num_workers=1))  # neither changes a byte
    assert redone(before, written(second)) == set() and (first.path / "dataset.json").read_bytes() == summary
    assert "6 objects in 3 shards are finished and skipped" in capsys.readouterr().out
    assert len(logged) == 1


def test_other_settings_of_a_finished_dataset_need_replace(
    tmp_path: Path, meshes: Path, capsys: pytest.CaptureFixture[str], logged: list[dict]
) -> None:
    first = run(config(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in first.path.rglob("*")}
    for change, said in (
        ({"seed": 1}, "--seed 0, not 1"),
        ({"resolution": 48, "keep_solid": True}, "--resolution 32, not 48; --keep-solid false, not true"),
        ({"views": 2}, "--views 0, not 2"),
        ({"num_shards": 2}, "--num-shards 3, not 2"),
        ({"seed": 1, "dry_run": True}, "--seed 0, not 1"),
    ):
        with pytest.raises(UsageError, match=f"data was made with {said}: choose another --output, or give --replace"):
            preprocess(config(tmp_path, **change), run_kept)
        assert {path: path.stat().st_mtime_ns for path in first.path.rglob("*")} == before, change
    assert len(logged) == 1
    second = run(config(tmp_path, seed=1, replace=True))
    assert "6 objects in 3 shards to convert (3 stale: settings changed)" in capsys.readouterr().out
    assert not set(hashes(first).values()) & set(hashes(second).values())
    assert first.fingerprint != second.fingerprint
    assert run(config(tmp_path, replace=True)).fingerprint == first.fingerprint


def test_finished_shards_of_an_older_version_need_replace_before_the_dataset_is_finished(
    tmp_path: Path, meshes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(config(tmp_path))
    (first.path / "dataset.json").unlink()
    first.shard_path(max(first.shards)).unlink()
    before = {path: path.stat().st_mtime_ns for path in first.path.iterdir()}
    monkeypatch.setattr(preprocess_config, "CODE_VERSION", 99)
    with pytest.raises(UsageError, match=r"was made with the conversion's version \d+, not 99: choose another"):
        run(config(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in first.path.iterdir()} == before
    monkeypatch.undo()
    assert run(config(tmp_path)).fingerprint == first.fingerprint, "the same settings go on"


def test_a_changed_input_makes_only_its_shard_stale(
    tmp_path: Path, meshes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(config(tmp_path))
    before = written(first)
    write_box(meshes / "box2.obj", height=9.0)
    second = run(config(tmp_path))
    assert redone(before, written(second)) == {records.shard_index("box2.obj", 3)}
    assert "(1 stale: inputs changed)" in capsys.readouterr().out
    assert first.fingerprint != second.fingerprint


def test_a_changed_limit_redoes_only_touched_shards_and_removes_empty_ones(
    tmp_path: Path, meshes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = run(config(tmp_path))
    kept = smallest_hashes([f"box{number}.obj" for number in range(6)], 2)
    less = run(config(tmp_path, limit=2, num_shards=None))  # the dataset's number of shards is kept
    assert sorted(reading.load_arrays(less, None, ["id"])["id"]) == kept
    assert set(less.shards) == {records.shard_index(name, 3) for name in kept}
    if len(less.shards) < 3:
        assert "to remove: no objects belong to them any more" in capsys.readouterr().out
    assert sorted(less.path.glob("shard-*.parquet")) == [less.shard_path(index) for index in sorted(less.shards)]
    again = run(config(tmp_path))
    assert hashes(again) == hashes(full) and again.fingerprint == full.fingerprint


def test_bytes_do_not_depend_on_the_order_of_work(tmp_path: Path, meshes: Path) -> None:
    def backwards(tasks: Sequence[ShardTask], settings: PreprocessConfig) -> Iterable[dict]:
        turned = [dataclasses.replace(task, objects=task.objects[::-1]) for task in reversed(tasks)]
        return run_kept(turned, settings)

    first = run(config(tmp_path))
    preprocess(config(tmp_path, output=str(tmp_path / "other")), backwards)
    other = datasets.open_dataset(tmp_path / "other")
    assert hashes(first) == hashes(other)
    assert (first.path / "dataset.json").read_bytes() == (other.path / "dataset.json").read_bytes()


def test_a_shard_asks_for_its_limit_of_memory_or_for_the_share_of_a_cpu() -> None:
    lean, rich, head = {"CPU": 16.0, "memory": 32 * 2.0**30}, {"CPU": 4.0, "memory": 64 * 2.0**30}, {"memory": 2.0**30}
    assert stage.memory_request(1.5, [lean, rich, head]) == 1.5 * 2**30
    assert stage.memory_request(8, [rich, head]) == 8 * 2**30
    assert stage.memory_request(8, [lean, rich, head]) == 2 * 2**30, "all 16 CPUs of the lean node convert"
    assert stage.memory_request(8, []) == 8 * 2**30


@pytest.mark.slow
def test_four_workers_and_files_in_another_order_give_the_bytes_of_one(
    tmp_path: Path, meshes: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Ray, with all four workers converting at the same time and the folder listed backwards."""
    for number in range(6, 24):
        write_box(meshes / f"box{number}.obj", size=1 + number / 9)
    one = run(config(tmp_path, num_shards=12))
    marks, convert, listed = tmp_path / "marks", stage._convert, [item.id for item in list_folder(meshes)]
    marks.mkdir()

    def together(batch: dict[str, Any], config: str, key: str, turn: Turn) -> dict[str, Any]:
        (marks / str(os.getpid())).touch()
        deadline = time.monotonic() + 100
        while len(os.listdir(marks)) < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
        return convert(batch, config, key, turn)

    walk = os.walk
    monkeypatch.setattr(stage, "_convert", together)
    half = dataclasses.replace(stage.ONE_TASK, each={"CPU": 0.5})  # four on the two CPUs of tests
    monkeypatch.setattr(stage, "ONE_TASK", half)
    monkeypatch.setattr(
        os, "walk", lambda root: [(parent, folders, names[::-1]) for parent, folders, names in walk(root)]
    )
    assert [item.id for item in list_folder(meshes)] == listed[::-1]
    preprocess(config(tmp_path, num_shards=12, output=str(tmp_path / "other")), stage.map_on_ray)
    assert len(list(marks.iterdir())) == 4
    other = datasets.open_dataset(tmp_path / "other")
    assert hashes(one) == hashes(other) and len(one.shards) >= 8
    for name in ["dataset.json", *(one.shard_path(index).name for index in one.shards)]:
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes(), name


def test_a_run_that_dies_keeps_what_is_finished_and_is_no_dataset_until_it_is(
    tmp_path: Path, meshes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def dies(tasks: Sequence[ShardTask], settings: PreprocessConfig) -> Iterator[dict]:
        yield stage.process_shard(tasks[0], settings)
        raise RuntimeError("the power went out")

    whole = run(config(tmp_path, output=str(tmp_path / "whole")))
    with pytest.raises(RuntimeError, match="power"):
        preprocess(config(tmp_path), dies)
    folder = tmp_path / "data"
    with pytest.raises(ValueError, match="did not finish"):
        datasets.open_dataset(folder)
    (folder / ".shard-00001.parquet.99.tmp").write_bytes(b"half")
    (folder / "shard-00002.parquet").write_bytes(b"written, but its sidecar was not")
    assert hashes(run(config(tmp_path))) == hashes(whole)
    assert "(1 new, 1 unfinished)" in capsys.readouterr().out
    assert not list(folder.glob(".*"))


def test_a_start_that_only_finishes_the_dataset_tells_of_it_once(
    tmp_path: Path, meshes: Path, logged: list[dict]
) -> None:
    """After a kill between the last shard and dataset.json nothing is left to convert, but there is no card
    and no MLflow run yet.
    """
    first = run(config(tmp_path))
    whole = (first.path / "dataset.json").read_bytes()
    for name in MADE_BESIDE:
        (first.path / name).unlink()
    logged.clear()
    assert (run(config(tmp_path)).path / "dataset.json").read_bytes() == whole
    assert [file.name for file in logged[0]["artifacts"]] == MADE_BESIDE and logged[0]["metrics"]["objects_done"] == 0
    assert all((first.path / name).exists() for name in MADE_BESIDE)
    run(config(tmp_path))
    assert len(logged) == 1


def test_a_damaged_parquet_is_redone(tmp_path: Path, meshes: Path) -> None:
    first = run(config(tmp_path))
    first.shard_path(0).write_bytes(b"")
    assert hashes(run(config(tmp_path))) == hashes(first)


def test_timeouts_are_rows_and_only_retry_failed_tries_them_again(tmp_path: Path, meshes: Path) -> None:
    settings = config(tmp_path, timeout_s=1e-4, limit=2)
    with pytest.raises(RuntimeError, match="no object is ok: timeout 2"):
        preprocess(settings, run_kept)
    rows = list(reading.read_rows(settings.output, ["status", "error", "surface"], status=None))
    assert {row["status"] for row in rows} == {"timeout"} and rows[0]["error"] == "timeout: over 0.0001 s"
    assert not np.any(rows[0]["surface"])
    with pytest.raises(RuntimeError, match="no object is ok"):
        preprocess(config(tmp_path, limit=2), run_kept)
    assert run(config(tmp_path, limit=2, retry_failed=True)).counts == {"ok": 2}
    before = written(datasets.open_dataset(settings.output))
    assert redone(before, written(run(config(tmp_path, limit=2, retry_failed=True)))) == set()


def test_bad_meshes_are_rows_with_a_reason_and_the_others_go_on(tmp_path: Path, meshes: Path) -> None:
    (meshes / "corrupt.glb").write_bytes(b"glTF\x02\x00\x00\x00\xff\x00\x00\x00garbage")
    (meshes / "empty.stl").write_bytes(b"")
    (meshes / "flat.obj").write_text("v 0 0 0\nv 0 0 0\nv 0 0 0\nf 1 2 3\n")
    (meshes / "points.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n")
    info = run(config(tmp_path))
    rows = {row["id"]: row for row in reading.read_rows(info, ["id", "status", "error"], status=None)}
    assert info.counts["ok"] == 6
    assert {rows[name]["status"] for name in ("corrupt.glb", "empty.stl")} == {"failed"}
    assert {rows[name]["status"] for name in ("flat.obj", "points.obj")} == {"rejected"}
    for name in ("corrupt.glb", "empty.stl", "flat.obj", "points.obj"):
        assert ": " in rows[name]["error"] and "\n" not in rows[name]["error"], rows[name]
    assert sum(info.failures.values()) == 4


def test_a_row_whose_solid_breaks_a_bound_is_rejected_with_its_figures_and_without_tensors(tmp_path: Path) -> None:
    (tmp_path / "needle.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1e-6 0\nf 1 2 3\n")
    settings = config(tmp_path, input=str(tmp_path), resolution=200, keep_solid=True)
    (item,) = list_folder(tmp_path)
    (needle,) = stage.convert_object(dataclasses.asdict(item), dataclasses.asdict(settings)).to_pylist()
    assert needle["status"] == "rejected" and needle["error"].startswith("too-thin: volume ")
    assert records.failure_reason(needle) == "rejected/too-thin"
    assert 0 < needle["volume"] < 8e-4 and needle["solid_watertight"] and needle["num_faces"] == 1
    assert not any(needle["surface"]) and not any(needle["near_points"]) and needle["solid"] == b""


def test_a_manifest_names_the_objects(tmp_path: Path, meshes: Path) -> None:
    (meshes / "manifest.csv").write_text(
        "path,id,caption,license,author,category,source_repo,source_commit,source_path\n"
        'box1.obj,one,"a box, small",MIT,Ann,boxes,ann/boxes,abc,b 1.obj\n'
        "box3.obj,,,CC0-1.0,,,,,\n"
        "gone.obj,gone,,,,,,,\n"
        "../outside.obj,outside,,,,,,,\n"
    )
    write_box(tmp_path / "outside.obj")
    info = run(config(tmp_path))
    columns = [
        "id",
        "path",
        "caption",
        "caption_source",
        "license",
        "author",
        "category",
        "source_url",
        "status",
        "error",
    ]
    rows = {row["id"]: row for row in reading.read_rows(info, columns, status=None)}
    assert set(rows) == {"one", "box3.obj", "gone", "outside"}
    assert rows["one"]["caption"] == "a box, small" and rows["one"]["caption_source"] == "manifest"
    assert rows["one"]["license"] == "MIT" and rows["one"]["author"] == "Ann" and rows["one"]["category"] == "boxes"
    assert rows["one"]["source_url"] == "https://github.com/ann/boxes/blob/abc/b%201.obj"
    assert rows["box3.obj"]["status"] == "ok" and rows["box3.obj"]["caption_source"] == ""
    assert rows["gone"]["status"] == "failed" and rows["gone"]["error"].startswith("missing-file: ")
    assert rows["outside"]["status"] == "rejected" and rows["outside"]["error"].startswith("external-uri: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": "missing"}, "missing does not exist"),
        ({"input": "empty"}, "contains no objects: no .glb .gltf"),
        ({"input": "file.txt"}, "is not a folder"),
        ({"input": None}, "needs --input"),
        ({"input": "s3://bucket/meshes"}, "not supported yet"),
        ({"output": "file.txt"}, "is not a folder"),
        ({"input": "twice"}, "1 ids appear more than once, the first is 'a'"),
        ({"input": "no-path"}, "has no column 'path'; it has id, file"),
        ({"input": "no-rows"}, "contains no objects: manifest.csv has no rows"),
    ],
)
def test_bad_usage_is_one_line_and_writes_nothing(tmp_path: Path, meshes: Path, change: dict, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("")
    for name, text in (
        ("twice", "path,id\nx.obj,a\ny.obj,a\n"),
        ("no-path", "id,file\na,x.obj\n"),
        ("no-rows", "path,id\n"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.csv").write_text(text)
    absolute = {
        key: str(tmp_path / value) if value and key != "source" and ":" not in value else value
        for key, value in change.items()
    }
    with pytest.raises(UsageError) as raised:
        preprocess(config(tmp_path, **absolute), run_kept)
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "data").exists()


def test_a_file_name_that_is_no_text_is_one_line(meshes: Path) -> None:
    os.rename(meshes / "box3.obj", os.fsencode(meshes) + b"/caf\xe9.obj")
    with pytest.raises(UsageError, match="the file name .*caf.*dce9.obj' is not UTF-8") as caught:
        list(list_folder(meshes))
    str(caught.value).encode("utf-8")


@pytest.mark.parametrize("with_manifest", [False, True])
def test_names_that_the_locale_has_no_letters_for_are_one_line(
    meshes: Path, monkeypatch: pytest.MonkeyPatch, with_manifest: bool
) -> None:
    """Under such a locale the same file would have another id, or would not be found."""
    os.rename(meshes / "box3.obj", meshes / "caf\u00e9.obj")
    if with_manifest:
        (meshes / "manifest.csv").write_text("path\ncaf\u00e9.obj\n", encoding="utf-8")
    assert any(one.id == "caf\u00e9.obj" for one in list_folder(meshes))
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "iso8859-1")
    with pytest.raises(
        UsageError, match="caf.*obj' is not ASCII, and this locale's file names are iso8859-1: set PYTHONUTF8=1"
    ):
        list(list_folder(meshes))


def test_small_files_of_reported_kinds_become_rows_as_stated(tmp_path: Path) -> None:
    """Each file of the readers' `expected.csv`: ok with its area, or failed with a reason that names it."""
    shutil.copytree(FIELD, tmp_path / "meshes")
    info = run(config(tmp_path))
    rows = {row["id"]: row for row in reading.read_rows(info, ["id", "status", "error", "num_faces"], status=None)}
    expected = list(csv.DictReader((FIELD / "expected.csv").read_text(encoding="utf-8").splitlines()))
    assert len(expected) == 34 == len(rows)
    for wanted in expected:
        row = rows[wanted["file"]]
        if row["status"] == "ok":
            assert "load" in wanted["expected"] and row["num_faces"] == int(wanted["faces"] or row["num_faces"]), row
        else:
            assert "refuse" in wanted["expected"] and row["status"] == "failed", row
            assert row["error"].startswith(f"corrupt: {wanted['file']}: line "), row


def test_a_far_speck_is_told_by_the_largest_component_s_share(tmp_path: Path, meshes: Path) -> None:
    """The same box alone, and with a speck that makes the whole ten times as long."""
    box = trimesh.creation.box((1, 1, 1))
    speck = trimesh.creation.box((0.05, 0.05, 0.05))
    speck.apply_translation((9.475, 0, 0))
    box.export(meshes / "alone.obj")
    trimesh.util.concatenate([box, speck]).export(meshes / "speck.obj")
    info = run(config(tmp_path))
    rows = {row["id"]: row for row in reading.read_rows(info, ["id", "num_components", "largest_component_share"])}
    assert rows["alone.obj"]["largest_component_share"] == 1.0
    assert rows["speck.obj"]["num_components"] == 2 and 0.08 < rows["speck.obj"]["largest_component_share"] < 0.25
    card = json.loads((info.path / "card.json").read_text(encoding="utf-8"))
    assert card["small_largest_component"] == 1


@pytest.fixture
def one_open(tmp_path: Path) -> Path:
    """A closed box, and one without its floor."""
    write_box(tmp_path / "meshes" / "closed.obj")
    write_box(tmp_path / "meshes" / "open.obj", height=1.5)
    lines = (tmp_path / "meshes" / "open.obj").read_text().splitlines()
    (tmp_path / "meshes" / "open.obj").write_text("\n".join(line for line in lines if line != "f 1 2 3 4") + "\n")
    return tmp_path / "meshes"


def test_open_surfaces_are_filled_and_each_row_says_so(tmp_path: Path, one_open: Path) -> None:
    info = run(config(tmp_path))
    rows = {row["id"]: row for row in reading.read_rows(info, ["id", "volume", "filled_by", "filled_share"])}
    assert (rows["closed.obj"]["filled_by"], rows["closed.obj"]["filled_share"]) == ("", 0.0)
    assert rows["open.obj"]["filled_by"] == "winding" and rows["open.obj"]["filled_share"] > 0.5
    assert json.loads((info.path / "card.json").read_text(encoding="utf-8"))["filled"] == 1
    walls = run(config(tmp_path, output=str(tmp_path / "walls"), open_surfaces="wall"))
    thin = {row["id"]: row["volume"] for row in reading.read_rows(walls, ["id", "volume"])}
    assert thin["closed.obj"] == rows["closed.obj"]["volume"] and thin["open.obj"] < 0.6 * rows["open.obj"]["volume"]
    tensors = [name for name in info.columns if name in info.config.tensors]
    closed = [
        next(row for row in reading.read_rows(made, [*tensors, "id"]) if row["id"] == "closed.obj")
        for made in (info, walls)
    ]
    for name in tensors:
        np.testing.assert_array_equal(closed[0][name], closed[1][name])


def test_the_warm_up_compiles_what_open_meshes_need(monkeypatch: pytest.MonkeyPatch) -> None:
    from g3pt.geometry import _fill_kernels

    enclosure, calls = _fill_kernels.enclosure, []
    monkeypatch.setattr(_fill_kernels, "enclosure", lambda *given: calls.append(given) or enclosure(*given))
    stage.warm_up()
    assert calls


@pytest.mark.skipif(pyarrow.__version__ != "25.0.1", reason="another pyarrow writes other bytes")
def test_walls_have_the_settings_and_bytes_that_they_had_before_filling(tmp_path: Path, one_open: Path) -> None:
    info = run(config(tmp_path, num_shards=1, open_surfaces="wall"))
    assert info.shards[0] == "00a10d59d2ecf511b90fa2349159a99ebe78dba99e4fd7e32857a733483236d6"
    assert info.fingerprint == "2430db5431ce73d013a829af68dfdeafda2d55841f27d68c0b87d20d1f389006"


def test_a_dataset_of_walls_is_finished_by_its_own_flag_and_filled_only_with_replace(
    tmp_path: Path, one_open: Path
) -> None:
    walls = run(config(tmp_path, open_surfaces="wall"))
    before = written(walls)
    with pytest.raises(UsageError, match="was made with --open-surfaces wall, not fill: choose another --output"):
        run(config(tmp_path))
    assert written(run(config(tmp_path, open_surfaces="wall"))) == before
    filled = run(config(tmp_path, replace=True))
    assert filled.config.filled and filled.fingerprint != walls.fingerprint
    with pytest.raises(UsageError, match="was made with --open-surfaces fill, not wall"):
        run(config(tmp_path, open_surfaces="wall"))


def test_ids_that_differ_in_case_only_are_two_objects(tmp_path: Path, meshes: Path) -> None:
    (meshes / "BOX3.obj").write_bytes((meshes / "box3.obj").read_bytes())
    info = run(config(tmp_path))
    rows = list(reading.read_rows(info, ["id", "content_sha256"], status=None))
    assert {"BOX3.obj", "box3.obj"} <= {row["id"] for row in rows} and len({row["id"] for row in rows}) == len(rows)


def test_a_dataset_of_another_schema_is_refused_and_left_alone(tmp_path: Path, meshes: Path) -> None:
    info = run(config(tmp_path))
    file = info.path / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema_version": 0}))
    before = written(info)
    with pytest.raises(UsageError, match=f"has schema version 0; this program reads version {records.SCHEMA_VERSION}"):
        preprocess(config(tmp_path, seed=5), run_kept)
    assert written(info) == before


def test_numbers_are_checked_when_flags_are_parsed(tmp_path: Path) -> None:
    for change in (
        {"limit": 0},
        {"num_shards": -1},
        {"num_queries": 12},
        {"num_queries": -8},
        {"num_sharp": -1},
        {"resolution": 4},
        {"views": -1},
        {"seed": -1},
        {"timeout_s": 0},
        {"source": "shapes", "seeds": "0,-1"},
        {"source": "shapes", "seeds": ","},
        {"source": "shapes", "seeds": "1,2", "seed": 5},
        {"seeds": "1", "source": "dir"},
    ):
        with pytest.raises(ValueError, match=str(list(change.values())[-1])):
            config(tmp_path, **change)


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    tmp_path: Path, meshes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert preprocess(config(tmp_path, dry_run=True), run_kept) is None
    assert "6 objects in 3 shards to convert (3 new)" in capsys.readouterr().out
    assert preprocess(config(tmp_path, input=str(tmp_path / "later"), dry_run=True), run_kept) is None
    assert "later does not exist yet" in capsys.readouterr().out
    assert not (tmp_path / "data").exists()


def chosen(ids: list[str], limit: int) -> list[str]:
    store = PlanStore()
    store.add(SourceObject(id=name, source="dir") for name in ids)
    store.limit(limit, "here")
    store.group(1, "here")
    return [item.id for item in store.objects(0)]


def smallest_hashes(ids: list[str], count: int) -> list[str]:
    return sorted(sorted(ids, key=lambda name: hashlib.sha256(name.encode()).digest())[:count])


def test_limit_takes_the_smallest_hashes_whatever_else_is_there() -> None:
    ids = [f"x{number}" for number in range(50)]
    few = chosen(ids, 5)
    assert few == smallest_hashes(ids, 5) and set(few) <= set(chosen(ids[::-1], 9)) and chosen(ids, 50) == sorted(ids)


def test_the_content_of_a_gltf_includes_its_buffers_but_never_files_outside(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.bin").write_bytes(b"secret")
    (root / "a b.bin").write_bytes(b"1")
    uris = ["a%20b.bin", "../secret.bin", "data:application/octet-stream;base64,AAAA"]
    (root / "x.gltf").write_text(json.dumps({"asset": {"version": "2.0"}, "buffers": [{"uri": uri} for uri in uris]}))
    first = read_content(root, "x.gltf")
    (tmp_path / "secret.bin").write_bytes(b"other")
    assert read_content(root, "x.gltf") == first and first.size == 1 + (root / "x.gltf").stat().st_size
    (root / "a b.bin").write_bytes(b"2")
    assert read_content(root, "x.gltf").sha256 != first.sha256
    assert read_content(root, "../secret.bin") == read_content(root, "gone.gltf") == Content()


def test_sizes_of_shards_follow_the_number_of_objects() -> None:
    assert [default_num_shards(number) for number in (1, 16, 17, 584, 10**5, 10**6, 10**7, 10**8)] == [
        1,
        1,
        2,
        37,
        1024,
        7813,
        78125,
        100_000,
    ]


@pytest.mark.slow
def test_views_are_pictures_of_the_object_with_their_cameras(tmp_path: Path) -> None:
    import io

    from PIL import Image

    info = run(config(tmp_path, source="shapes", input=None, limit=2, views=2, view_size=32))
    assert json.loads((tmp_path / "data" / "shard-00000.json").read_text())["view_seconds"] > 0
    for row in reading.read_rows(info, ["views", "view_cameras", "appearance"]):
        assert row["appearance"] == "none"
        assert row["view_cameras"].shape == (2, 4, 4) and not np.array_equal(*row["view_cameras"])
        for data in row["views"]:
            picture = np.asarray(Image.open(io.BytesIO(data)))
            assert picture.shape == (32, 32, 4)
            assert 0.02 < (picture[..., 3] > 0).mean() < 0.9


@pytest.mark.slow
def test_mesh2sdf_is_the_other_way_to_a_solid(tmp_path: Path, meshes: Path) -> None:
    settings = config(tmp_path, limit=1, watertight="mesh2sdf")
    assert settings.time_limit_s == 900.0 and config(tmp_path).time_limit_s == 60.0
    row = next(reading.read_rows(run(settings), ["volume", "chamfer_to_input"]))
    assert row["volume"] > 1.0 and row["chamfer_to_input"] < 0.2
