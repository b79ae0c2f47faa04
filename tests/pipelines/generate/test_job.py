import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from g3pt.geometry import isosurface
from g3pt.models.car import G3PT
from g3pt.models.encoding import encode_mesh
from pipelines.cli.errors import UsageError
from pipelines.cluster import storage
from pipelines.generate import job, sample_records, source
from pipelines.generate.config import GenerateConfig
from pipelines.generate.job import generate
from pipelines.generate.prompts import plan
from pipelines.generate.sample_maker import SampleMaker, write_sample
from pipelines.generate.sample_records import identity
from pipelines.generate.source import Sources
from pipelines.preprocess import sandbox
from pipelines.tracking import tracked
from tests.pipelines.quick_conversion import convert_here
from tests.pipelines.toy_generator import write_toy_generator


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_generator(tmp_path_factory.mktemp("model") / "export")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Without renderer and MLflow, which take seconds to start."""
    monkeypatch.setattr(job, "_picture", lambda output, ok: None)
    if "mlflow" not in request.node.name:
        monkeypatch.setattr(tracked, "tell", lambda *arguments: None)


def settings(model: Path, folder: Path, **changes: Any) -> GenerateConfig:
    values = {"model": str(model), "output": str(folder / "out"), "resolution": 32, "cfg": 1.0}
    return GenerateConfig(**(values | changes))


def manifest(folder: Path) -> list[dict]:
    return pq.read_table(folder / "out" / "manifest.parquet").to_pylist()


def write_prompts(folder: Path, rows: list) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder / "prompts.jsonl")


def png(path: Path) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA", (20, 20), (200, 30, 30, 255)).save(path)


def test_text_to_meshes_with_a_manifest(model: Path, tmp_path: Path) -> None:
    import trimesh

    assert generate(settings(model, tmp_path, text="a chair", num=3, seed=5), use_ray=False) == str(tmp_path / "out")
    rows = manifest(tmp_path)
    assert [(r["text"], r["seed"], r["status"]) for r in rows] == [("a chair", s, "ok") for s in (5, 6, 7)]
    assert len({r["sha256"] for r in rows}) == 3
    for row in rows:
        file = tmp_path / "out" / row["file"]
        assert hashlib.sha256(file.read_bytes()).hexdigest() == row["sha256"]
        mesh = trimesh.load(file, force="mesh", process=False)
        assert len(mesh.faces) == row["faces"] > 0
        assert row["watertight"] == trimesh.load(file, force="mesh").is_watertight
        assert row["seconds"] == pytest.approx(
            row["seconds_sampling"] + row["seconds_decoding"] + row["seconds_writing"]
        )
        assert min(row["seconds_sampling"], row["seconds_writing"], row["tokens_per_s"]) > 0 and row["cfg"] == 1.0


@pytest.mark.parametrize("format", ["obj", "ply", "stl"])
def test_other_formats_open(model: Path, tmp_path: Path, format: str) -> None:
    import trimesh

    generate(settings(model, tmp_path, text="a chair", format=format), use_ray=False)
    assert len(trimesh.load(tmp_path / "out" / f"sample-s0.{format}", force="mesh").faces) > 0


def test_the_same_prompt_and_seed_give_the_same_mesh_whatever_the_batch(model: Path, tmp_path: Path) -> None:
    prompts = write_prompts(
        tmp_path, [{"id": f"p{i}", "text": t} for i, t in enumerate(["a boat", "a chair", "a tall car"])]
    )
    generate(settings(model, tmp_path, prompts=prompts), use_ray=False)
    together = {r["text"]: r["sha256"] for r in manifest(tmp_path)}
    generate(settings(model, tmp_path, text="a chair"), use_ray=False)
    assert manifest(tmp_path)[0]["sha256"] == together["a chair"]


def test_a_run_started_again_makes_only_what_is_missing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(model, tmp_path, text="a chair", num=3)
    generate(config, use_ray=False)
    before, made = manifest(tmp_path), []
    original = SampleMaker.run
    monkeypatch.setattr(
        SampleMaker, "run", lambda self, batch: made.extend(s.name for s in batch) or original(self, batch)
    )
    generate(config, use_ray=False)
    assert made == []
    (tmp_path / "out" / before[1]["file"]).write_bytes(b"torn")
    (tmp_path / "out" / "samples" / "sample-s2.json").unlink()
    generate(config, use_ray=False)
    assert made == ["sample-s1", "sample-s2"]
    assert [r["sha256"] for r in manifest(tmp_path)] == [r["sha256"] for r in before]
    made.clear()
    generate(dataclasses.replace(config, temperature=0.5, replace=True), use_ray=False)
    assert len(made) == 3


def test_a_start_reads_no_finished_mesh_unless_its_stamp_changed_or_it_is_asked_to(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, read = settings(model, tmp_path, text="a chair", num=3), []
    generate(config, use_ray=False)
    before = [tmp_path / "out" / row["file"] for row in manifest(tmp_path)]
    contents = [file.read_bytes() for file in before]
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda file: read.append(file) or read_bytes(file))
    meshes = lambda: [file.name for file in read if file.suffix == ".glb"]  # noqa: E731
    generate(config, use_ray=False)
    assert meshes() == []
    os.utime(before[0])  # copied by a program that keeps no times
    generate(config, use_ray=False)
    assert meshes() == [before[0].name]
    times = before[1].stat().st_atime_ns, before[1].stat().st_mtime_ns
    before[1].write_bytes(bytes([contents[1][0] ^ 1]) + contents[1][1:])
    os.utime(before[1], ns=times)
    read.clear()
    generate(config, use_ray=False)
    assert meshes() == [before[0].name] and read_bytes(before[1]) != contents[1]
    generate(dataclasses.replace(config, verify=True), use_ray=False)
    assert [read_bytes(file) for file in before] == contents


def test_bad_rows_become_failed_rows(model: Path, tmp_path: Path) -> None:
    png(tmp_path / "outside.png")
    folder = tmp_path / "prompts"
    png(folder / "images" / "good.png")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "broken.png").write_bytes(b"no picture")
    rows = [
        {"id": "good", "text": "a chair", "n": 2, "seed": 3, "cfg": 0},
        {"id": "picture", "image": "images/good.png"},
        {"id": "outside", "image": "../outside.png"},
        {"id": "absolute", "image": str(tmp_path / "outside.png")},
        {"id": "link", "image": "link.png"},
        {"id": "missing", "image": "nowhere.png"},
        {"id": "broken", "image": "broken.png"},
        {"id": "nothing"},
        {"id": "guidance", "text": "a chair", "cfg": -1},
        {"id": "count", "text": "a chair", "n": 0},
        {"id": "long", "text": "x" * 300},
        "{not json",
        {"id": "a/b c", "text": "a boat"},
    ]
    generate(settings(model, tmp_path, prompts=write_prompts(folder, rows)), use_ray=False)
    found = {(r["id"], r["seed"]): r for r in manifest(tmp_path)}
    status = {key: r["status"] for key, r in found.items()}
    good = {("good", 3), ("good", 4), ("picture", 0), ("a/b c", 0)}
    assert {key for key, value in status.items() if value == "ok"} == good
    assert found["good", 3]["cfg"] == 0
    for name, reason in [("outside", "leaves the folder"), ("absolute", "leaves the folder"),
                         ("link", "leaves the folder"),
                         ("missing", "is missing"), ("broken", "image 'broken.png' is none of PNG, JPEG"),
                         ("nothing", "neither text nor image nor mesh"),
                         ("guidance", "cfg must be"), ("count", "n must be"), ("long", "does not fit"),
                         ("prompt-00011", "not JSON")]:  # fmt: skip
        assert reason in found[name, 0]["error"] and found[name, 0]["error"].startswith("bad-prompt: "), name
    file = found["a/b c", 0]["file"]
    assert "/" not in file and (tmp_path / "out" / file).is_file()


def test_ids_that_differ_in_case_only_have_files_that_differ_in_more(model: Path, tmp_path: Path) -> None:
    """Some file systems take Chair-s0.glb and chair-s0.glb for one file."""
    rows = [{"id": name, "text": "a chair", "n": 2} for name in ("Chair", "chair", "Other", "\u00c9", "\u00e9")]
    samples = plan(settings(model, tmp_path, text=None, prompts=write_prompts(tmp_path, rows)))
    names = [sample.name for sample in samples]
    assert len({name.lower() for name in names}) == 10 == len(set(names)), names
    assert names[4:6] == ["Other-s0", "Other-s1"]  # alone, it needs no hash


def test_rows_that_no_table_could_hold_are_failed_rows(model: Path, tmp_path: Path) -> None:
    png(tmp_path / "bomb.png")
    bomb = bytearray((tmp_path / "bomb.png").read_bytes())
    bomb[16:24] = struct.pack(">II", 20_000, 10_000)  # 200 million pixels, as the header says
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    (tmp_path / "bomb.png").write_bytes(bomb)
    rows = [
        {"id": "good", "text": "a chair\u2028of two lines"},
        '{"id": "surrogate", "text": "a \\ud800 chair"}',
        '{"id": "id \\ud800", "text": "a chair"}',
        '{"id": "path", "image": "\\udcff.png"}',
        {"id": "big", "text": "a chair", "seed": 10**30},
        {"id": "true", "text": "a chair", "seed": True},
        '{"id": "infinite", "text": "a chair", "cfg": Infinity}',
        '{"id": "nan", "text": "a chair", "cfg": NaN}',
        '{"id": "overflow", "text": "a chair", "cfg": 1' + "0" * 400 + "}",
        {"id": "bomb", "image": "bomb.png"},
        "[" * 100_000,
        {"id": "good", "text": "a chair", "n": -1},
    ]
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    generate(settings(model, tmp_path, prompts=write_prompts(tmp_path, lines)), use_ray=False)
    found = manifest(tmp_path)
    assert [r["status"] for r in found] == ["ok"] + ["failed"] * 11
    for row, reason in zip(found[1:], ["text is not valid Unicode", "id is not valid Unicode",
                                       "image is not valid Unicode", "seed must be",
                                       "seed must be", *["cfg must be a number from 0 (no guidance) to 1000"] * 3,
                                       "image 'bomb.png' cannot be read",
                                       "not JSON", "n must be"], strict=True):  # fmt: skip
        assert row["error"].startswith("bad-prompt: ") and reason in row["error"], row
    assert found[2]["id"] == "id \\ud800"


def test_guidance_of_text_and_image_and_lists_for_a_row(model: Path, tmp_path: Path) -> None:
    rows = [
        {"id": "plain", "text": "a chair"},
        {"id": "apart", "text": "a chair", "cfg": 3, "cfg_text": 0.5},
        {"id": "listed", "text": "a chair", "cfg": [0, 1, 2, 2.5]},
        {"id": "typed", "text": "a chair", "cfg_image": "0,1,2,3"},
        {"id": "short", "text": "a chair", "cfg": [1, 2]},
        {"id": "words", "text": "a chair", "cfg_text": "much"},
    ]
    generate(
        settings(model, tmp_path, prompts=write_prompts(tmp_path, rows), cfg_image="1.5", top_k="0,4,4,4"),
        use_ray=False,
    )
    found = {r["id"]: r for r in manifest(tmp_path)}
    assert [(found[k]["cfg"], found[k]["cfg_text"], found[k]["cfg_image"]) for k in ("plain", "apart", "listed",
                                                                                     "typed")] == [
        (1.0, 1.0, 1.5), (3.0, 0.5, 3.0), (None, None, None), (1.0, 1.0, None)]  # fmt: skip
    assert json.loads(found["listed"]["sampling"])["cfg"] == [0, 1, 2, 2.5] and found["listed"]["top_k"] is None
    assert "cfg has 2 numbers, but the model has 4 scales" in found["short"]["error"]
    assert (
        "cfg_text must be a number, or a comma-separated list with one per scale, got 'much'" in found["words"]["error"]
    )
    assert len({r["sha256"] for r in found.values() if r["status"] == "ok"}) > 1
    with pytest.raises(UsageError, match="^--top-p has 3 numbers, but the model has 4 scales"):
        generate(settings(model, tmp_path, text="a chair", top_p="1,1,1"), use_ray=False)


def test_pictures_inside_a_parquet_file(model: Path, tmp_path: Path) -> None:
    png(tmp_path / "red.png")
    content = (tmp_path / "red.png").read_bytes()
    rows = [{"id": "bytes", "image": content}, {"id": "broken", "image": b"no picture"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "prompts.parquet")
    generate(settings(model, tmp_path, prompts=str(tmp_path / "prompts.parquet")), use_ray=False)
    inside, broken = manifest(tmp_path)
    assert (tmp_path / "out" / inside["image"]).read_bytes() == content and inside["image"].endswith(".png")
    assert broken["error"].startswith("bad-prompt: image is none of PNG")
    (tmp_path / "out" / inside["image"]).unlink()
    rows = [
        {"id": "hub", "image": {"bytes": content, "path": "x.png"}},
        {"id": "file", "image": {"bytes": None, "path": "red.png"}},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "prompts.parquet")
    generate(settings(model, tmp_path, prompts=str(tmp_path / "prompts.parquet")), use_ray=False)
    assert [r["sha256"] for r in manifest(tmp_path)] == [inside["sha256"]] * 2, (
        "one picture, one mesh, wherever it lies"
    )
    assert [r["image"] for r in manifest(tmp_path)] == [inside["image"], "red.png"]


def test_a_picture_that_changed_meanwhile_is_not_used(model: Path, tmp_path: Path) -> None:
    png(tmp_path / "red.png")
    config = settings(model, tmp_path, image=str(tmp_path / "red.png"))
    generate(config, use_ray=False)
    (sample,) = plan(config)
    other = dataclasses.replace(sample, image_sha256="0")
    maker = SampleMaker(dataclasses.asdict(config), "0")
    (drawn,) = maker.run([other])
    assert (
        write_sample(config, "0", drawn)["failed"] and "changed while the job ran" in maker.folder.read(other)["error"]
    )


def test_a_picture_used_whole_is_said(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    Image.effect_noise((40, 40), 90).save(tmp_path / "noise.png")
    generate(settings(model, tmp_path, image=str(tmp_path / "noise.png"), num=2), use_ray=False)
    assert [r["note"] for r in manifest(tmp_path)] == [
        "image has no background that is transparent or of one colour: used whole"
    ] * 2
    assert (
        "generate: image has no background that is transparent or of one colour: used whole (2 of 2, the first "
        "sample-s0)" in capsys.readouterr().err
    )


def test_other_settings_of_finished_samples_need_replace(model: Path, tmp_path: Path) -> None:
    config = settings(model, tmp_path, text="a chair", num=2)
    generate(config, use_ray=False)
    out = tmp_path / "out"
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    for change, said in (
        ({"resolution": 64}, "--resolution 32, not 64"),
        ({"cfg_text": "2", "format": "ply"}, "--cfg-text none, not 2.0; --format glb, not ply"),
    ):
        with pytest.raises(UsageError, match=f"out: sample-s0 was made with {said}: choose another --output"):
            generate(dataclasses.replace(config, **change), use_ray=False)
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == files
    other = shutil.copytree(model, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({name: tensor * 0.5 for name, tensor in weights.items()}, other / "model.safetensors")
    with pytest.raises(UsageError, match=f"--model {model}, not {other}: choose another"):
        generate(dataclasses.replace(config, model=str(other)), use_ray=False)
    generate(dataclasses.replace(config, text="a boat"), use_ray=False)
    assert manifest(tmp_path)[0]["text"] == "a boat", "another prompt is another input"
    generate(dataclasses.replace(config, format="ply", replace=True), use_ray=False)
    assert {path.suffix for path in out.glob("sample-*")} == {".ply"}, "the old meshes are gone"


def test_a_sample_that_does_not_arrive_ends_the_job(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker on another machine wrote it into a folder of its own."""
    monkeypatch.setattr(storage, "SEEN_WITHIN_S", 0.1)

    def elsewhere(*arguments: Any) -> dict:
        made = write_sample(*arguments)
        (tmp_path / "out" / "sample-s0.glb").unlink()
        return made | {"node": "10.0.0.2"}

    monkeypatch.setattr(job, "write_sample", elsewhere)
    with pytest.raises(
        storage.NotShared, match="sample-s0.glb: worker 10.0.0.2 wrote it, this machine does not see it"
    ):
        generate(settings(model, tmp_path, text="a chair"), use_ray=False)


def test_a_second_start_is_refused_and_changes_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = settings(model, tmp_path, text="a chair"), SampleMaker.run

    def while_another_starts(self: SampleMaker, samples: list) -> dict:
        before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
        with pytest.raises(UsageError, match=rf"out: another command is working there \(process {os.getpid()} on "):
            generate(dataclasses.replace(config, num=3), use_ray=False)
        assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
        return run(self, samples)

    monkeypatch.setattr(SampleMaker, "run", while_another_starts)
    generate(config, use_ray=False)
    assert [row["status"] for row in manifest(tmp_path)] == ["ok"]


def test_a_large_job_has_subfolders_and_keeps_them(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_records, "FLAT", 2)
    config = settings(model, tmp_path, text="a chair", num=3)
    generate(config, use_ray=False)
    out, rows = tmp_path / "out", manifest(tmp_path)
    assert all(
        Path(r["file"]).parts[0] == "meshes" and len(Path(r["file"]).parts) == 3 and (out / r["file"]).is_file()
        for r in rows
    )
    assert len(list((out / "samples").glob("??/*.json"))) == 3 and not list(out.glob("*.glb"))
    made = []
    monkeypatch.setattr(SampleMaker, "run", lambda self, batch: made.extend(batch))
    generate(dataclasses.replace(config, num=1), use_ray=False)
    assert made == [] and manifest(tmp_path) == rows[:1], "a small job finds them there"


def test_a_folder_that_began_flat_stays_so(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate(settings(model, tmp_path, text="a chair", num=2), use_ray=False)
    monkeypatch.setattr(sample_records, "FLAT", 2)
    generate(settings(model, tmp_path, text="a chair", num=3), use_ray=False)
    assert [r["file"] for r in manifest(tmp_path)] == [f"sample-s{k}.glb" for k in range(3)]


def test_actors_ask_for_the_gpus_that_the_cluster_has(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each actor asks for one GPU if there are any: actors that ask for CPUs would all share the first GPU
    of their node.
    """
    import ray

    from pipelines.cluster import pool as pools
    from pipelines.cluster import session

    asked = {}

    def drive(pieces: Any, num_actors: int, crew: Any, backlog: int) -> Iterator[Any]:
        asked.update(crew.options, size=num_actors, backlog=backlog, second=crew.second)
        yield from ()
        return 0

    monkeypatch.setattr(session, "connect", lambda address: None)
    monkeypatch.setattr(session, "autoscaler_max", lambda: [])
    monkeypatch.setattr(session, "node_resources", lambda: [{"CPU": 16.0, "GPU": 2.0, "memory": 64e9}])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0, "GPU": 2.0})
    monkeypatch.setattr(pools, "drive", drive)
    monkeypatch.setattr(pools, "asked", lambda stage, need: contextlib.nullcontext("key"))
    monkeypatch.setattr(ray, "put", lambda value: value)  # it would start Ray
    todo = plan(settings(model, tmp_path, text="a chair", num=40))
    job._make(settings(model, tmp_path, text="a chair"), tmp_path, todo, "0", use_ray=True)
    weights = (model / "model.safetensors").stat().st_size
    assert asked["num_gpus"] == 1 and asked["num_cpus"] == 0 and asked["size"] == 2
    assert asked["memory"] == 2 * weights + 2**30
    assert asked["second"] and asked["backlog"] == 2 * 16, "meshes are made on CPUs"
    monkeypatch.setattr(session, "node_resources", lambda: [{"CPU": 3.0, "memory": 64e9}])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 3.0})
    asked.clear()
    job._make(settings(model, tmp_path, text="a chair"), tmp_path, todo, "0", use_ray=True)
    assert asked["num_cpus"] == 1 and "num_gpus" not in asked and asked["size"] == 3
    assert not asked["second"] and not asked["backlog"], "the actors hold the CPUs"


def test_a_sample_at_which_the_worker_fails_is_a_failed_row_and_tried_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample_encoded = G3PT.sample_encoded

    def fails(self: G3PT, text: Any, image: Any, seeds: list[int], *rest: Any) -> Any:
        if 5 in seeds:
            raise RuntimeError("CUDA error: device-side assert triggered")
        return sample_encoded(self, text, image, seeds, *rest)

    with monkeypatch.context() as broken:
        broken.setattr(G3PT, "sample_encoded", fails)
        generate(settings(model, tmp_path, text="a chair", num=9), use_ray=False)
    rows = manifest(tmp_path)
    assert [row["status"] for row in rows] == ["ok"] * 5 + ["failed"] + ["ok"] * 3
    assert rows[5]["error"] == "not-made: RuntimeError: CUDA error: device-side assert triggered"
    made = {row["sample"]: (tmp_path / "out" / row["file"]).stat().st_mtime_ns for row in rows if row["file"]}
    generate(settings(model, tmp_path, text="a chair", num=9), use_ray=False)
    rows = manifest(tmp_path)
    assert {row["status"] for row in rows} == {"ok"}
    assert made == {
        row["sample"]: (tmp_path / "out" / row["file"]).stat().st_mtime_ns for row in rows if row["sample"] in made
    }


def test_prompts_from_parquet(model: Path, tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"id": ["a", "b"], "text": ["a chair", None], "seed": [1, None]}), tmp_path / "prompts.parquet"
    )
    generate(settings(model, tmp_path, prompts=str(tmp_path / "prompts.parquet")), use_ray=False)
    assert [(r["id"], r["seed"], r["status"]) for r in manifest(tmp_path)] == [("a", 1, "ok"), ("b", 0, "failed")]


def test_an_empty_solid_is_a_failed_row(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from g3pt.geometry.isosurface import EmptyField

    original, calls = G3PT.decode_field, []

    def decode(self, *arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            return EmptyField("nothing inside")
        return original(self, *arguments)

    monkeypatch.setattr(G3PT, "decode_field", decode)
    for _ in range(2):  # the second time nothing is made: it would be empty again
        generate(settings(model, tmp_path, text="a chair", num=2), use_ray=False)
        assert [r["error"] for r in manifest(tmp_path)] == ["empty-field: nothing inside", ""] and len(calls) == 2


def test_fewer_faces_are_another_sample_and_no_flag_is_the_old_one(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import trimesh

    ring = trimesh.creation.torus(0.6, 0.2)
    monkeypatch.setattr(isosurface, "cleaned_mesh", lambda field: (ring.vertices.astype("f4"), ring.faces))
    generate(settings(model, tmp_path, text="a chair"), use_ray=False)
    (whole,) = manifest(tmp_path)
    assert whole["faces"] == len(ring.faces) and whole["max_faces"] == 0
    generate(settings(model, tmp_path, text="a chair", max_faces=500, replace=True), use_ray=False)
    (row,) = manifest(tmp_path)
    assert row["max_faces"] == 500 and row["note"] == "" and 300 < row["faces"] <= 500, "made anew"
    assert trimesh.load(tmp_path / "out" / row["file"], force="mesh").is_watertight
    plain = settings(model, tmp_path, text="a chair")
    (sample,) = plan(plain)
    known = {
        "prompt": ["a chair", None],
        "seed": 0,
        "model": "0",
        "resolution": 32,
        "format": "glb",
        "sampling": plain.sampling.as_dict(),
    }
    assert identity(plain, sample, "0") == hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest(), (
        "as before there was a flag"
    )


def test_a_mesh_that_would_not_close_is_kept_and_said(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "g3pt.geometry.cleanup.simplify", lambda vertices, faces, wanted: (vertices, faces, f"not simplified: {wanted}")
    )
    generate(settings(model, tmp_path, text="a chair", max_faces=20), use_ray=False)
    (row,) = manifest(tmp_path)
    assert row["status"] == "ok" and row["note"] == "not simplified: 20" and row["faces"] > 20
    assert "generate: not simplified: 20 (1 of 1, the first sample-s0)" in capsys.readouterr().err


ALONE = """
import sys
from pipelines.generate import job
from pipelines.tracking import tracked
from pipelines.generate.config import GenerateConfig
tracked.tell, job._picture = (lambda *_: None), (lambda *_: None)
flags = {"text": "a chair", "num": 40, "resolution": 32, "cfg": "1"}
job.generate(GenerateConfig(model=sys.argv[1], output=sys.argv[2], **flags), use_ray=False)
"""


@pytest.mark.slow
def test_killed_anywhere_it_ends_with_the_files_of_an_uninterrupted_job(model: Path, tmp_path: Path) -> None:
    """SIGKILL after some samples have their record."""
    out, records = (
        tmp_path / "out",
        lambda: {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "samples").glob("[!.]*.json")},
    )
    process = subprocess.Popen([sys.executable, "-c", ALONE, str(model), str(out)])
    while len(records()) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    before = records()
    assert 5 <= len(before) < 40
    config = settings(model, tmp_path, text="a chair", num=40, cfg="1")
    generate(config, use_ray=False)
    assert {file: when for file, when in records().items() if file in before} == before, "made twice"
    generate(dataclasses.replace(config, output=str(tmp_path / "whole" / "out")), use_ray=False)
    assert [(r["sample"], r["sha256"], r["status"]) for r in manifest(tmp_path)] == [
        (r["sample"], r["sha256"], r["status"]) for r in manifest(tmp_path / "whole")
    ]
    for row in manifest(tmp_path):
        assert hashlib.sha256((out / row["file"]).read_bytes()).hexdigest() == row["sha256"]


@pytest.mark.slow
def test_mlflow_holds_the_run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    generate(settings(model, tmp_path, text="a chair", num=2), use_ray=False)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("g3pt/generate")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.data.metrics["samples_ok"] == 2
    assert run.data.params["prompts"] == "a chair" and run.data.metrics["tokens_per_s"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "one of --text"),
        ({"text": "a", "prompts": "p.jsonl"}, "cannot be combined"),
        ({"prompts": "p.csv"}, "must be a .jsonl"),
        ({"text": " "}, "--text is blank"),
        ({"text": "a", "num": 0}, "--num must be"),
        ({"text": "a", "resolution": 100}, "--resolution must be 32 times a power of two, got 100"),
        ({"text": "a", "max_faces": 3}, "--max-faces must be 0"),
        ({"text": "a", "top_p": "0"}, "--top-p must be above 0 and at most 1 (keep all), got 0.0"),
        ({"text": "a", "top_p": "1.5"}, "--top-p must be above 0 and at most 1"),
        ({"text": "a", "top_p": "0.9,nan"}, "--top-p must be above 0 and at most 1 (keep all), got (0.9, nan)"),
        ({"text": "a", "cfg": "inf"}, "--cfg must be a number from 0 (no guidance) to 1000, got inf"),
        ({"text": "a", "cfg_image": "-1"}, "--cfg-image must be a number from 0"),
        (
            {"text": "a", "cfg_text": "x"},
            "--cfg-text must be a number, or a comma-separated list with one per scale, got 'x'",
        ),
        ({"text": "a", "cfg": ""}, "--cfg must be a number, or a comma-separated list"),
        ({"text": "a", "top_k": "1.5"}, "--top-k must be a whole number, or a comma-separated list"),
        ({"text": "a", "top_k": "9" * 30}, "--top-k must be a whole number from 0 (keep all) to 2^31"),
        (
            {"text": "a", "temperature": "0"},
            "--temperature must be a number of at least 0.001 (top_k 1 takes the likeliest), got 0.0",
        ),
    ],
)
def test_impossible_flags_are_refused(tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        settings(tmp_path / "none", tmp_path, **changes)


def test_bad_input_is_one_clear_line(model: Path, tmp_path: Path) -> None:
    from tests.pipelines.toy_data import write_toy_tokenizer

    with pytest.raises(UsageError, match="neither a finished run nor"):
        (tmp_path / "empty").mkdir()
        generate(settings(tmp_path / "empty", tmp_path, text="a chair"), use_ray=False)
    with pytest.raises(UsageError, match="not a generator"):
        generate(settings(write_toy_tokenizer(tmp_path / "cvq"), tmp_path, text="a chair"), use_ray=False)
    with pytest.raises(UsageError, match="no such file"):
        generate(settings(model, tmp_path, prompts=str(tmp_path / "none.jsonl")), use_ray=False)
    with pytest.raises(UsageError, match="more than once"):
        generate(
            settings(model, tmp_path, prompts=write_prompts(tmp_path, [{"id": "a", "text": "x"}] * 2)), use_ray=False
        )
    with pytest.raises(UsageError, match="no usable prompt: bad-prompt"):
        generate(settings(model, tmp_path, prompts=write_prompts(tmp_path, [{"id": "a"}])), use_ray=False)
    with pytest.raises(UsageError, match="text is not valid Unicode"):
        generate(settings(model, tmp_path, text="a \udcff chair"), use_ray=False)
    with pytest.raises(UsageError, match="neither a finished run nor"):
        generate(settings("owner/name", tmp_path, text="a chair"), use_ray=False)
    with pytest.raises(UsageError, match="nowhere.png"):
        generate(settings(model, tmp_path, image=str(tmp_path / "nowhere.png")), use_ray=False)


def test_dry_run_needs_no_model_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = settings(tmp_path / "later", tmp_path, text="a chair", num=4, dry_run=True)
    assert generate(config, use_ray=False) is None
    assert "4 samples" in capsys.readouterr().out and not (tmp_path / "out").exists()


def test_marks_blanks_and_line_ends_of_a_prompts_file(tmp_path: Path) -> None:
    """Rows as editors on Windows and old Macs, spreadsheets and `cat` leave them."""
    lines = [
        '\ufeff{"id": "\ufefffirst", "text": "\ufeffa chair"}',
        '{"\ufeffid": "key", "text": "a\u2028boat"}',
        '\ufeff{"id": "appended", "text": "a table", "seed": " 7", "n": "2"}',
        "\ufeff  ",
        '{"id": " \u200b", "text": "a lamp"}',
        *(f'{{"id": "blank{number}", "text": {json.dumps(blank)}}}' for number, blank in enumerate(BLANKS)),
        '{"id": "seed", "text": "a chair", "seed": "1.5"}',
    ]
    for number, end in enumerate(["\n", "\r\n", "\r"]):
        (tmp_path / f"{number}.jsonl").write_text(end.join(lines), encoding="utf-8", newline="")
        found = plan(settings(tmp_path, tmp_path, prompts=str(tmp_path / f"{number}.jsonl")))
        assert [(s.name, s.text) for s in found if s.error is None] == [
            ("first-s0", "a chair"),
            ("key-s0", "a\u2028boat"),
            ("appended-s7", "a table"),
            ("appended-s8", "a table"),
            ("prompt-00003-s0", "a lamp"),
        ]
        wrong = {s.id: s.error for s in found if s.error is not None}
        assert wrong.pop("seed").startswith("bad-prompt: seed must be a whole number")
        assert wrong == {f"blank{number}": "bad-prompt: text is blank" for number in range(len(BLANKS))}
    table = pa.table({"\ufeffid": ["\ufeffa"], "text": ["\ufeffa chair"]})
    pq.write_table(table, tmp_path / "p.parquet")
    (sample,) = plan(settings(tmp_path, tmp_path, prompts=str(tmp_path / "p.parquet")))
    assert (sample.name, sample.text) == ("a-s0", "a chair")
    (tmp_path / "wide.jsonl").write_text(lines[1], encoding="utf-16")
    with pytest.raises(UsageError, match="not UTF-8 text: it begins like UTF-16; save it as UTF-8"):
        plan(settings(tmp_path, tmp_path, prompts=str(tmp_path / "wide.jsonl")))


BLANKS = (" ", "\t\n", "\u00a0\u3000", "\u200b", "\ufeff", "\0")


def test_a_picture_that_cannot_be_used_is_named_before_any_model_is_loaded(tmp_path: Path) -> None:
    """The same words for a flag, a row and a second start: `identity` and `is_done` do not see them."""
    png(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    pictures = {
        "heic.png": b"\0\0\0\x18ftypheic" + bytes(100),
        "empty.png": b"",
        "text.jpg": b"<html>not found</html>",
        "vector.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    }
    for name, content in pictures.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.png").mkdir()
    rows = [{"id": name, "image": name} for name in [*pictures, "folder.png"]] + [{"id": "good", "image": "good.png"}]
    found = plan(settings(tmp_path, tmp_path, prompts=write_prompts(tmp_path, rows)))
    formats = "PNG, JPEG, WEBP, BMP, TIFF, GIF"
    assert [s.error for s in found] == [
        *(f"bad-prompt: image {name!r} is none of {formats}" for name in pictures),
        "bad-prompt: image 'folder.png' is not a file",
        None,
    ]
    for name in pictures:
        with pytest.raises(UsageError, match=f"image '.*/{name}' is none of {formats}"):
            plan(settings(tmp_path, tmp_path, image=str(tmp_path / name)))
    with pytest.raises(UsageError, match=r"image '.*/folder.png' is not a file"):
        plan(settings(tmp_path, tmp_path, image=str(tmp_path / "folder.png")))
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) - 40])
    with pytest.raises(UsageError, match=r"image '.*/cut.png' cannot be read: "):
        plan(settings(tmp_path, tmp_path, image=str(tmp_path / "cut.png")))


def test_a_row_s_broken_picture_is_named_by_each_start(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    png(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:-40])
    rows = [{"id": "cut", "image": "cut.png"}, {"id": "blank", "text": " "}, {"id": "good", "text": "a chair"}]
    config, said = settings(model, tmp_path, prompts=write_prompts(tmp_path, rows)), []
    for _ in range(2):
        generate(config, use_ray=False)
        said.append([row["error"] for row in manifest(tmp_path)])
        assert "  blank: bad-prompt: text is blank\n" in capsys.readouterr().err
    assert said[0] == said[1]
    assert said[0][0].startswith("bad-prompt: image 'cut.png' cannot be read: ") and said[0][2] == ""
    generate(dataclasses.replace(config, dry_run=True), use_ray=False)
    assert "(1 bad rows)\n" in (told := capsys.readouterr().out) and "blank: bad-prompt: text is blank" in told


@pytest.mark.slow
def test_ray_makes_what_the_plain_function_makes(model: Path, tmp_path: Path, ray_cluster: None) -> None:
    generate(settings(model, tmp_path / "alone", text="a chair", num=3), use_ray=False)
    generate(settings(model, tmp_path, text="a chair", num=3, num_workers=2))
    assert [r["sha256"] for r in manifest(tmp_path)] == [r["sha256"] for r in manifest(tmp_path / "alone")]


def test_weights_that_are_no_numbers_are_bad_input(model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["car.start"][0, 0] = float("nan")
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(UsageError, match="broken/model.safetensors: tensor car.start has values that are not finite"):
        generate(settings(broken, tmp_path, text="a chair"), use_ray=False)
    assert not (tmp_path / "out" / "manifest.parquet").exists()


# ---------------------------------------------------------------------------------------------------------- variations


def write_mug(path: Path, shape_id: str = "shapes/mug-00007") -> Path:
    from g3pt.geometry.files import write_mesh
    from g3pt.shapes import make_shape

    shape = make_shape(shape_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mesh(path, shape.vertices, shape.faces)
    return path


@pytest.fixture
def quick_conversion(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return convert_here(monkeypatch)


def test_variations_keep_the_scales_of_a_mesh(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_conversion: list[str]
) -> None:
    mug, drawn = write_mug(tmp_path / "mug.obj"), []
    original = G3PT.decode_field
    monkeypatch.setattr(
        G3PT,
        "decode_field",
        lambda self, codes_S, resolution: drawn.append(codes_S) or original(self, codes_S, resolution),
    )
    for keep in range(5):
        folder = tmp_path / f"keep{keep}"
        generate(settings(model, folder, from_mesh=str(mug), keep_scales=keep, text="a mug", num=2), use_ray=False)
        assert [(r["mesh"], r["keep_scales"], r["status"]) for r in manifest(folder)] == [(str(mug), keep, "ok")] * 2
    generator = G3PT.from_pretrained(str(model))
    whole = encode_mesh(generator.tokenizer, mug)
    for keep, codes in enumerate(zip(drawn[::2], drawn[1::2], strict=True)):
        length = sum(generator.scales[:keep])
        assert all(torch.equal(codes_S[:length], whole[:length]) for codes_S in codes)
    assert torch.equal(drawn[-1], whole), "all scales kept: the tokenizer's reconstruction"
    generate(settings(model, tmp_path, text="a mug", num=2), use_ray=False)
    assert [r["sha256"] for r in manifest(tmp_path)] == [r["sha256"] for r in manifest(tmp_path / "keep0")]


def test_a_mesh_is_converted_once_and_a_changed_one_again(
    model: Path, tmp_path: Path, quick_conversion: list[str]
) -> None:
    mug = write_mug(tmp_path / "mug.obj")
    config = settings(model, tmp_path, from_mesh=str(mug), keep_scales=2, num=2)
    generate(config, use_ray=False)
    generate(config, use_ray=False)
    generate(dataclasses.replace(config, num=3, keep_scales=4), use_ray=False)
    assert quick_conversion == [str(mug)]
    before = [row["sha256"] for row in manifest(tmp_path)]
    write_mug(mug, "shapes/chair-00003")
    generate(dataclasses.replace(config, num=3, keep_scales=4), use_ray=False)
    assert len(quick_conversion) == 2 and [row["sha256"] for row in manifest(tmp_path)] != before


def test_rows_with_a_mesh(model: Path, tmp_path: Path, quick_conversion: list[str]) -> None:
    write_mug(tmp_path / "prompts" / "meshes" / "mug.obj")
    write_mug(tmp_path / "outside.obj")
    (tmp_path / "prompts" / "empty.obj").write_text("# nothing\n")
    (tmp_path / "prompts" / "notes.txt").write_text("not a mesh")
    rows = [
        {"id": "default", "mesh": "meshes/mug.obj"},
        {"id": "own", "mesh": "meshes/mug.obj", "keep_scales": 1, "text": "a mug", "n": 2},
        {"id": "plain", "text": "a mug"},
        {"id": "outside", "mesh": "../outside.obj"},
        {"id": "missing", "mesh": "nowhere.obj"},
        {"id": "ending", "mesh": "notes.txt"},
        {"id": "empty", "mesh": "empty.obj"},
        {"id": "too-many", "mesh": "meshes/mug.obj", "keep_scales": 5},
        {"id": "fraction", "mesh": "meshes/mug.obj", "keep_scales": 1.5},
    ]
    prompts = write_prompts(tmp_path / "prompts", rows)
    generate(settings(model, tmp_path, prompts=prompts, keep_scales=3), use_ray=False)
    found = {(row["id"], row["seed"]): row for row in manifest(tmp_path)}
    assert [found[key]["keep_scales"] for key in (("default", 0), ("own", 1), ("plain", 0))] == [3, 1, None]
    assert {key for key, row in found.items() if row["status"] == "ok"} == {
        ("default", 0), ("own", 0), ("own", 1), ("plain", 0)
    }  # fmt: skip
    reasons = {
        "outside": "mesh '../outside.obj' leaves the folder",
        "missing": "is missing",
        "ending": "is none of .glb",
        "empty": "mesh 'empty.obj': no-faces",
        "too-many": "keep_scales must be 0 to 4",
        "fraction": "keep_scales must be a whole",
    }
    for name, reason in reasons.items():
        assert reason in found[name, 0]["error"] and found[name, 0]["error"].startswith("bad-prompt: "), name


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"keep_scales": 5}, "--keep-scales must be 0 to 4, the model's number of scales, got 5"),
        ({"keep_scales": -1}, "--keep-scales must not be negative"),
        ({"keep_scales": None}, "--from-mesh needs --keep-scales"),
        ({"from_mesh": None, "text": "a mug"}, "--keep-scales needs --from-mesh"),
        ({"prompts": "some.jsonl"}, "--prompts cannot be combined with --from-mesh"),
        ({"from_mesh": "nowhere.obj"}, "--from-mesh nowhere.obj: no such file"),
        ({"from_mesh": "words.txt"}, "--from-mesh 'words.txt' is none of .glb"),
        ({"image": "nowhere.png"}, "--image nowhere.png: no such file"),
        ({"from_mesh": "flat.obj"}, "flat.obj: zero-extent"),
        ({"from_mesh": "words.txt"}, "words.txt' is none of .glb"),
        ({"from_mesh": "broken.glb"}, "broken.glb: "),
    ],
)
def test_what_cannot_be_varied_is_refused_in_one_line(
    model: Path, tmp_path: Path, changes: dict[str, Any], said: str, quick_conversion: list[str],
    monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write_mug(tmp_path / "mug.obj")
    Path("flat.obj").write_text("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n")
    Path("broken.glb").write_bytes(b"glTF" + bytes(20))
    Path("words.txt").write_text("words")
    with pytest.raises((UsageError, ValueError), match=re.escape(said)) as caught:
        generate(settings(model, tmp_path, **({"from_mesh": "mug.obj", "keep_scales": 2} | changes)), use_ray=False)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_mesh_of_a_variation_is_converted_in_a_child(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mug = write_mug(tmp_path / "mug.obj")
    box = Sources(folder=tmp_path, tokenizer=G3PT.from_pretrained(str(model)).tokenizer.config)
    box.sandbox = sandbox.Sandbox(timeout_s=0.01)
    with pytest.raises(ValueError, match="timeout: over 0.01 s"):
        box.points(str(mug), "0" * 64)
    box.sandbox = sandbox.Sandbox()
    try:
        surface = box.points(str(mug), "0" * 64)["surface"]
    finally:
        box.close()
    assert surface.shape == (16384, 6) and box.sandbox.pid is None
    (kept,) = (tmp_path / "sources").iterdir()
    assert re.fullmatch("0{64}-[0-9a-f]{8}[.]parquet", kept.name)
    monkeypatch.setattr(source, "CODE_VERSION", -1)
    box.sandbox = sandbox.Sandbox(timeout_s=0.01)
    with pytest.raises(ValueError, match="timeout"):  # points of another conversion are not taken for these
        box.points(str(mug), "0" * 64)
