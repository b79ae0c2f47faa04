"""Every state of every kind of output, from hand-made folders."""

import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.status import datasets as inventory_data
from pipelines.status import inputs
from pipelines.status.inventory import Item, find
from tests.pipelines import toy_folders as toy
from tests.pipelines.toy_data import write_toy_tokenizer

CVQ, CAR = "runs/cvq-toy-s0-11111111", "runs/car-toy-s0-22222222"
LONG_AGO_S = 3 * 3600


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_tokenizer(tmp_path_factory.mktemp("export") / "export")


@pytest.fixture
def root(tmp_path: Path, export: Path) -> Path:
    return toy.write_everything(tmp_path / "out", export)


def look(root: Path, verify: bool = False) -> dict[str, Item]:
    """Path below the root -> item."""
    return {item.path.relative_to(root).as_posix(): item for item in find(root, verify=verify)}


def states(root: Path) -> dict[str, str]:
    """Path -> state of every output that is not done."""
    return {path: item.state for path, item in look(root).items() if item.state != "done"}


def age(*files: Path) -> None:
    then = time.time() - LONG_AGO_S
    for file in files:
        os.utime(file, (then, then))


def tokens(root: Path) -> str:
    return next((root / "data" / "derived").iterdir()).relative_to(root).as_posix()


def test_everything_finished_is_done_and_needs_no_command(root: Path) -> None:
    found = look(root)
    runs = {path for path, item in found.items() if item.kind == "run"}
    assert {path: item.kind for path, item in found.items() if path not in runs} == {
        "data": "dataset", tokens(root): "derived", "study": "study", "meshes": "generation", "car.json": "evaluation",
    }  # fmt: skip
    assert runs == {CVQ, CAR, "study/runs/car-5k-s0-33333333", "study/runs/car-20k-s0-44444444"}
    assert {item.state for item in found.values()} == {"done"} and {item.next for item in found.values()} == {None}
    assert (found["data"].done, dict(found["data"].failures)) == (14, {"failed/corrupt": 2}), (
        "failed rows leave a dataset done"
    )
    assert (found["meshes"].done, dict(found["meshes"].failures)) == (4, {"empty": 1})
    assert (
        found["study/runs/car-5k-s0-33333333"].parent == root / "study" and found[tokens(root)].parent == root / "data"
    )


# --------------------------------------------------------------------------------------------------------------- runs


def unfinish(run: Path, steps: int = 30) -> Path:
    (run / "_SUCCESS").unlink()
    toy.write_ledger(run, steps)
    return run


def test_a_run_under_way_tells_how_far_and_how_long(root: Path) -> None:
    unfinish(root / CAR)
    item = look(root)[CAR]
    assert (item.state, item.done, item.total, item.working, item.next) == ("partial", 120, 200, True, None)
    assert item.seconds_left == pytest.approx(80 / 40)


def test_a_run_that_stands_still_names_its_command(root: Path) -> None:
    run = unfinish(root / CAR)
    age(run / "metrics.jsonl", run / "command.json", run / "checkpoints", run)
    item = look(root)[CAR]
    assert item.working is False and LONG_AGO_S - 1 < item.idle_seconds < LONG_AGO_S + 60
    assert item.next == f"python jobs/train_car.py --output {root}/runs"


def test_a_held_lock_is_somebody_at_work(root: Path) -> None:
    run = unfinish(root / CAR)
    with open(run / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        age(run / "metrics.jsonl", run / "command.json", run / "checkpoints", run)
        assert look(root)[CAR].working is True
    assert look(root)[CAR].working is False


@pytest.mark.parametrize("alive", [True, False])
def test_the_process_that_was_noted_decides_on_this_machine(root: Path, alive: bool) -> None:
    run, child = unfinish(root / CAR), subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    age(run / "metrics.jsonl", run / "checkpoints")
    toy.note(run, "python jobs/train_car.py", host=socket.gethostname(), pid=os.getpid() if alive else child.pid)
    assert look(root)[CAR].working is alive


def test_a_torn_ledger_counts_its_whole_records(root: Path) -> None:
    run = unfinish(root / CAR)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 1')
    assert look(root)[CAR].done == 120
    (run / "metrics.jsonl").unlink()
    assert (look(root)[CAR].done, look(root)[CAR].seconds_left) == (0, None)


def test_a_failed_run_says_why(root: Path) -> None:
    toy.write(unfinish(root / CAR) / "failure.json", {"error": "ValueError: loss is nan at step 31", "time": 0})
    item = look(root)[CAR]
    assert (item.state, item.reason) == ("failed", "ValueError: loss is nan at step 31") and item.next.startswith(
        "python jobs/train_car.py"
    )


def test_a_finished_run_without_its_export_failed(root: Path) -> None:
    (root / CVQ / "export" / "model.safetensors").unlink()
    assert look(root)[CVQ].state == "failed"


def test_another_dataset_makes_runs_and_evaluations_stale(root: Path) -> None:
    toy.another_dataset(root / "data")
    found = look(root)
    assert {path for path, item in found.items() if item.state == "stale"} >= {CVQ, CAR, "car.json", "study"}
    assert found[CVQ].reason == f"dataset {root}/data changed: other objects or settings"
    assert found[CVQ].next.startswith("python jobs/train_cvq.py") and found["meshes"].state == "done"
    assert "--num-samples 16" in found["car.json"].next and "--limit" not in found["car.json"].next


def test_the_same_objects_in_other_bytes_are_told_apart(root: Path) -> None:
    toy.other_bytes(root / "data")
    found = look(root)
    assert "other bytes" in found[CVQ].reason and found[tokens(root)].state == "stale"
    assert found[tokens(root)].reason == "shard-00000.parquet was made from another shard-00000.parquet"
    assert found[tokens(root)].next.startswith("python jobs/train_car.py")


def test_another_tokenizer_makes_what_was_trained_on_it_stale(root: Path) -> None:
    toy.change_export(root / CVQ)
    found = look(root)
    assert found[CAR].reason == f"tokenizer {root}/{CVQ} changed: another export"
    assert (found["study"].state, found[tokens(root)].state, found["meshes"].state) == ("stale", "stale", "done")
    assert found[tokens(root)].reason.startswith("no tokenizer here has this export")


def test_another_generator_makes_meshes_and_evaluation_stale(root: Path) -> None:
    toy.change_export(root / CAR)
    found = states(root)
    assert found == {"meshes": "stale", "car.json": "stale"}


def test_a_large_export_is_compared_with_verify_only(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.change_export(root / CAR)
    monkeypatch.setattr(inputs, "HASHED_BYTES", 10)
    assert "too large to compare without --verify" in " ".join(look(root)["meshes"].notes)
    assert look(root, verify=True)["meshes"].state == "stale"


def test_what_moved_as_a_whole_is_found_again(root: Path) -> None:
    moved = root.rename(root.parent / "moved")
    assert states(moved) == {}
    assert all(not item.notes for item in find(moved))


def test_an_input_that_is_gone_is_a_note(root: Path) -> None:
    (root / "data").rename(root.parent / "data")
    item = look(root)[CVQ]
    assert item.state == "done" and item.notes == (f"its dataset {root}/data is missing or unfinished",)


# -------------------------------------------------------------------------------------------------------------- study


def test_a_study_under_way_counts_its_runs(root: Path) -> None:
    unfinish(root / "study/runs/car-20k-s0-44444444")
    (root / "study/fit.json").unlink()
    found = look(root)
    assert (found["study"].state, found["study"].done, found["study"].total, found["study"].working) == (
        "partial",
        1,
        2,
        True,
    )
    assert found["study"].seconds_left == pytest.approx(2.0)
    run = root / "study/runs/car-20k-s0-44444444"
    age(run / "metrics.jsonl", run / "checkpoints", run, root / "study/command.json", root / "study")
    found = look(root)
    assert (
        found["study"].next
        == found["study/runs/car-20k-s0-44444444"].next
        == f"python jobs/scaling_sweep.py --output {root}/study"
    )


def test_a_study_fails_with_its_run(root: Path) -> None:
    toy.write(unfinish(root / "study/runs/car-5k-s0-33333333") / "failure.json", {"error": "RuntimeError: killed"})
    assert look(root)["study"].reason == "car-5k-s0-33333333: RuntimeError: killed"


def test_a_study_whose_fit_is_missing_is_not_done(root: Path) -> None:
    (root / "study/curve.png").unlink()
    item = look(root)["study"]
    assert (item.state, item.done) == ("partial", 2) and item.notes == ("lacks curve.png",)


def test_a_stale_run_that_its_command_has_made_again_is_replaced(root: Path, export: Path) -> None:
    info = toy.another_dataset(root / "data")
    assert look(root)[CVQ].next is not None
    toy.write_run(root / "runs" / "cvq-toy-s0-55555555", info, export)
    item = look(root)[CVQ]
    assert (
        item.state == "stale"
        and item.notes == ("cvq-toy-s0-55555555 replaces it: delete it if nobody needs it",)
        and item.next is None
    )


def test_a_demo_counts_its_stages(root: Path) -> None:
    titles = ["make shapes", "train", "draw"]
    toy.write(root / "stages.json", {"stages": titles})
    toy.write(root / "seconds.json", dict.fromkeys(titles[:2], 1.0))
    item = look(root)["."]
    assert (item.kind, item.state, item.done, item.total, item.working) == ("demo", "partial", 2, len(titles), True)
    age(root, root / "data/command.json")
    toy.note(root / "data", "python jobs/quickstart.py")
    age(root)
    item = look(root)["."]
    assert (item.working, item.next, item.notes) == (False, "python jobs/quickstart.py", (f"next stage: {titles[2]}",))
    toy.write(root / "meshes/failure.json", {"error": "RuntimeError: no sample came out"})
    assert (look(root)["."].state, look(root)["."].reason) == ("failed", "meshes: RuntimeError: no sample came out")
    toy.write(root / "seconds.json", dict.fromkeys([*titles, "all"], 1.0))
    assert look(root)["."].state == "done"
    (root / "stages.json").unlink()  # of an older version
    assert (look(root)["."].state, look(root)["."].total) == ("done", 3)
    (root / "seconds.json").write_text("{")
    assert look(root)["."].state == "failed"


# ------------------------------------------------------------------------------------------------------------ dataset


def test_an_unfinished_dataset_counts_the_rows_of_finished_shards(root: Path) -> None:
    data = root / "data"
    (data / "dataset.json").unlink()
    (data / "shard-00001.parquet").unlink()
    rows = json.loads((data / "shard-00000.json").read_text())["rows"]
    item = look(root)["data"]
    assert (item.state, item.done, item.total, item.unit) == ("partial", rows, 14, "objects")
    assert item.seconds_left is not None and item.working is True and item.next is None
    age(data / "command.json", data)
    assert look(root)["data"].next.startswith("python jobs/preprocess.py")
    (data / "command.json").unlink()
    assert (look(root)["data"].done, look(root)["data"].total, look(root)["data"].unit) == (1, 2, "shards")


def test_a_dataset_that_has_just_begun_is_known_by_its_command(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    toy.note(tmp_path / "data", "python jobs/preprocess.py", total=100, unit="objects", flags={"source": "shapes"})
    item = look(tmp_path)["data"]
    assert (item.kind, item.state, item.done, item.total) == ("dataset", "partial", 0, 100)


def test_a_failed_dataset(root: Path) -> None:
    (root / "data/dataset.json").unlink()
    toy.write(root / "data/failure.json", {"error": "OSError: disk full"})
    assert (look(root)["data"].state, look(root)["data"].reason) == ("failed", "OSError: disk full")


def test_a_lost_shard_is_named(root: Path) -> None:
    (root / "data/shard-00001.parquet").unlink()
    item = look(root)["data"]
    assert (item.state, item.reason) == ("failed", "1 of 2 shards are missing, the first is shard-00001.parquet")


def mesh_dataset(root: Path, monkeypatch: pytest.MonkeyPatch, open_surfaces: str = "fill") -> Path:
    """A dataset of the two meshes in root/in, planned and written without conversion; returns the folder of meshes."""
    from g3pt.data import datasets, records
    from pipelines.preprocess import job
    from pipelines.preprocess.sources import inputs_hash
    from pipelines.preprocess.sources.fetch import fetched
    from pipelines.tracking import tracked

    def write_shards(tasks: list, config: job.PreprocessConfig) -> Iterator[dict]:
        for task in tasks:
            objects = [found.item for found in fetched(task.objects, config)]
            rows = [records.empty_row(item.id, config.record) | item.columns() | {"status": "ok"} for item in objects]
            hashes = {"config_sha256": records.config_hash(config.settings), "inputs_sha256": inputs_hash(objects)}
            yield {
                "index": task.index,
                "sidecar": datasets.write_shard(Path(config.output), task.index, rows, config.record, **hashes),
            }

    (root / "in").mkdir(parents=True)
    for name in ("a", "b"):
        (root / "in" / f"{name}.off").write_text("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n")
        age(root / "in" / f"{name}.off")
    monkeypatch.setattr(tracked, "tell", lambda *_: None)
    small = {"resolution": 16, "num_surface": 8, "num_sharp": 8, "num_queries": 8, "num_shards": 1}
    small |= {"open_surfaces": open_surfaces}
    job.preprocess(
        job.PreprocessConfig(source="dir", input=str(root / "in"), output=str(root / "data"), **small),
        write_shards,
    )
    return root / "in"


def test_meshes_that_changed_make_their_dataset_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meshes = mesh_dataset(tmp_path, monkeypatch)
    assert look(tmp_path)["data"].state == look(tmp_path, verify=True)["data"].state == "done"
    text = (meshes / "a.off").read_text()
    (meshes / "a.off").write_text(text.replace("1 0 0", "2 0 0"))
    os.utime(meshes / "a.off", (time.time() + 5, time.time() + 5))
    assert look(tmp_path)["data"].reason == f"input {meshes}/a.off is newer"
    age(meshes / "a.off")
    assert look(tmp_path)["data"].state == "done", "the default looks at times"
    assert look(tmp_path, verify=True)["data"].reason == "2 objects in 1 shards to convert (1 stale: inputs changed)"
    (meshes / "a.off").unlink()
    assert look(tmp_path)["data"].reason == f"input {meshes} has 1 meshes, it had 2"
    monkeypatch.setattr(inventory_data, "SCAN_SECONDS", -1)
    assert look(tmp_path)["data"].notes == ("input checked in part (0 files): --verify reads all",)


def test_shapes_of_another_generator_are_stale(tmp_path: Path) -> None:
    from g3pt.data import datasets, records
    from pipelines.preprocess.sources.shapes import list_shapes
    from tests.pipelines.toy_data import TOY

    shape = next(list_shapes(0))
    row = records.empty_row(shape.id, TOY) | shape.columns() | {"status": "ok"}
    row["views"] = []
    sidecar = datasets.write_shard(tmp_path, 0, [row], TOY)
    datasets.write_dataset(tmp_path, TOY, {}, 1, {0: sidecar})
    toy.note(tmp_path, "python jobs/preprocess.py", total=1, unit="objects", flags={"source": "shapes", "seed": 0})
    assert states(tmp_path) == {}
    found = json.loads((tmp_path / "shard-00000.json").read_text())
    toy.write(tmp_path / "shard-00000.json", found | {"content": {shape.id: "0" * 64}})
    assert look(tmp_path)["."].reason == "the generator of shapes (g3pt/shapes) changed"


def test_a_dataset_of_an_older_version_names_the_command_with_replace(root: Path) -> None:
    found = json.loads((root / "data" / "dataset.json").read_text())
    found["config"] = {**found["config"], "code_version": 1}
    toy.write(root / "data" / "dataset.json", found)
    item = look(root)["data"]
    assert item.state == "stale" and item.reason.startswith("the conversion changed from version 1 to ")
    assert item.next.startswith("python jobs/preprocess.py ") and item.next.endswith(" --replace")


def test_recorded_flags_from_before_filling_mean_walls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from g3pt.data.datasets import open_dataset
    from g3pt.data.records import config_hash

    mesh_dataset(tmp_path, monkeypatch, open_surfaces="wall")
    note = json.loads((tmp_path / "data" / "command.json").read_text())
    assert note["flags"].pop("open_surfaces") == "wall"
    toy.write(tmp_path / "data" / "command.json", note)
    assert look(tmp_path, verify=True)["data"].state == "done"
    assert inventory_data.expected_config(note) == config_hash(open_dataset(tmp_path / "data").settings)


def test_a_dataset_filled_by_an_older_version_names_the_command_with_replace(root: Path) -> None:
    found = json.loads((root / "data" / "dataset.json").read_text())
    found["config"] = {**found["config"], "filling": 0}
    toy.write(root / "data" / "dataset.json", found)
    item = look(root)["data"]
    assert item.state == "stale" and item.reason == "the filling changed from version 0 to 2"


def test_derived_tables_are_partial_until_all_shards_are_there(root: Path) -> None:
    kind = tokens(root)
    (root / kind / "shard-00001.parquet").unlink()
    age(root / kind)
    item = look(root)[kind]
    assert (item.state, item.done, item.total) == ("partial", 1, 2) and item.next.startswith("python jobs/train_car.py")
    (root / "data/dataset.json").unlink()
    assert look(root)[kind].reason == "its dataset is not finished"


# ------------------------------------------------------------------------------------------- generations, evaluations


def test_a_generation_under_way(root: Path) -> None:
    folder = root / "meshes"
    (folder / "manifest.parquet").unlink()
    (folder / "samples/s3.json").unlink()
    item = look(root)["meshes"]
    assert (item.state, item.done, item.total, dict(item.failures)) == ("partial", 3, 4, {"empty": 1})
    assert item.seconds_left is not None and item.working is True
    age(folder / "samples", folder / "command.json", folder)
    assert look(root)["meshes"].next == f"python jobs/generate.py --output {folder}"


def test_a_large_generation_lies_in_subfolders(root: Path) -> None:
    folder = root / "meshes"
    rows = pq.read_table(folder / "manifest.parquet").to_pylist()
    for number, row in enumerate(rows):
        for file, place in (
            (folder / f"s{number}.glb", folder / "meshes/3f"),
            (folder / f"samples/s{number}.json", folder / "samples/3f"),
        ):
            place.mkdir(parents=True, exist_ok=True)
            if file.exists():
                file.rename(place / file.name)
        row["file"] = row["file"] and f"meshes/3f/{row['file']}"
    pq.write_table(pa.Table.from_pylist(rows), folder / "manifest.parquet")
    assert look(root)["meshes"].state == "done"
    (folder / "meshes/3f/s3.glb").unlink()
    assert look(root)["meshes"].reason == "1 of 3 meshes missing, the first is meshes/3f/s3.glb"
    (folder / "manifest.parquet").unlink()
    age(folder / "samples", folder / "command.json", folder)
    item = look(root)["meshes"]
    assert (item.state, item.done, dict(item.failures), item.working) == ("partial", 4, {"empty": 1}, True), (
        "records are still coming"
    )


def test_a_generation_that_was_started_again_is_not_done(root: Path) -> None:
    age(root / "meshes/manifest.parquet")
    assert look(root)["meshes"].state == "partial"


def test_generations_fail_with_no_sample_or_a_lost_mesh(root: Path) -> None:
    (root / "meshes/s3.glb").unlink()
    assert look(root)["meshes"].reason == "1 of 3 meshes missing, the first is s3.glb"
    toy.write_generation(root / "none", root / CAR, failed=4)
    assert (look(root)["none"].state, dict(look(root)["none"].failures)) == ("failed", {"empty": 4})
    toy.write(root / "none/failure.json", {"error": "RuntimeError: no sample came out"})
    assert look(root)["none"].reason == "RuntimeError: no sample came out"


# ------------------------------------------------------------------------------------------------------------- damage


GARBAGE = (
    b"",
    b"{",
    b"[]",
    b"\xff\xfe",
    b'{"counts": 7, "config": [], "runs": 3, "host": {}, "started": "x", "flags": 3}\n',
    b"[" * 100_000,
)


@pytest.mark.parametrize(
    "name", ["data/dataset.json", f"{CVQ}/config.json", "study/study.json", "meshes/manifest.parquet"]
)
def test_a_damaged_file_is_a_failed_thing(root: Path, name: str) -> None:
    for garbage in GARBAGE:
        (root / name).write_bytes(garbage)
        found = look(root)
        item = found[Path(name).parent.as_posix()]
        assert item.state == "failed" and item.reason, garbage
        assert len(found) >= 8, "the others are shown all the same"


@pytest.mark.parametrize(
    "name", ["data/command.json", "data/shard-00000.json", f"{CAR}/metrics.jsonl", f"{CAR}/command.json"]
)
def test_damaged_notes_are_passed_over(root: Path, name: str) -> None:
    (root / "data/dataset.json").unlink()
    unfinish(root / CAR)
    for garbage in GARBAGE:
        (root / name).write_bytes(garbage)
        assert {look(root)[path].state for path in ("data", CAR)} == {"partial"}, garbage


def test_a_cut_off_evaluation_is_failed_and_other_json_is_not_ours(root: Path) -> None:
    text = (root / "car.json").read_text()
    (root / "car.json").write_text(text[:-20])
    for name, other in {"mine.json": '{"kind": "mine"}', "broken.json": "{", "list.json": "[]"}.items():
        (root / name).write_text(other)
    assert states(root) == {"car.json": "failed"}
    assert not {"mine.json", "broken.json", "list.json"} & look(root).keys()


def test_a_derived_shard_that_is_no_parquet(root: Path) -> None:
    (root / tokens(root) / "shard-00000.parquet").write_bytes(b"PAR1")
    assert states(root) == {tokens(root): "failed"}


def test_scratch_and_hidden_folders_are_not_entered(root: Path) -> None:
    for name in ("mlartifacts", ".trash", "ray", "checkpoints", f"{CAR}/ray", "loop"):
        if name != "loop":
            (root / name).mkdir(exist_ok=True)
            (root / name / "dataset.json").write_text("{")
    (root / "loop").symlink_to(root)
    assert states(root) == {}


def test_a_folder_that_may_not_be_read_is_passed_over(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refusing(folder: str) -> object:
        if Path(folder).name == "secret":
            raise PermissionError(folder)
        return scandir(folder)

    (root / "secret").mkdir()
    monkeypatch.setattr(os, "scandir", refusing)
    assert states(root) == {}


def test_of_many_shards_a_part_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.status import items

    opened = []
    original = inventory_data.read_object
    monkeypatch.setattr(inventory_data, "read_object", lambda file: opened.append(file) or original(file))
    sidecar = json.dumps({"rows": 16, "failures": {"timeout": 1}, "seconds": {"a": 1.0}, "num_shards": 4000})
    for number in range(2000):
        (tmp_path / f"shard-{number:05d}.json").write_text(sidecar)
        (tmp_path / f"shard-{number:05d}.parquet").touch()
    toy.note(tmp_path, "python jobs/preprocess.py", total=64000, unit="objects", flags={"source": "dir"})
    item = look(tmp_path)["."]
    assert (item.done, item.total) == (32000, 64000) and len(opened) == items.SAMPLED
    assert item.notes == ("failures were counted in 200 of 2000 shards",)


def test_a_derived_table_reads_footers_only_for_so_long(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory_data, "SCAN_SECONDS", -1)
    assert look(root)[tokens(root)].notes == ("0 of 2 shards compared: --verify compares all",)
    pq.write_table(pa.table({"id": ["x"]}), root / tokens(root) / "shard-00001.parquet")
    assert look(root, verify=True)[tokens(root)].state == "stale"
