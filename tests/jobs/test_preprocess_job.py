"""jobs/preprocess.py as a command on a real Ray: exit codes, the result line, Ctrl-C,
and SIGKILL at a random moment.
"""

import json
import random
import time
from pathlib import Path

import pytest

from g3pt.data import datasets, reading
from pipelines.preprocess.config import PreprocessConfig
from pipelines.preprocess.job import preprocess
from pipelines.preprocess.shards import map_here
from pipelines.tracking import tracked
from pipelines.tracking.client import Tracking
from tests.empty_store import EmptyStore
from tests.hub_server import hub_server
from tests.jobs import kills
from tests.toy_objaverse import lay, mesh, uid

COUNTS = {"resolution": 32, "num_surface": 64, "num_sharp": 32, "num_queries": 256}
SHAPES = {"source": "shapes", "limit": 80, "num_shards": 20, **COUNTS}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"source": "dir", "input": "missing"}, "missing does not exist"),
        ({"source": "dir", "input": "empty"}, "contains no objects"),
        (
            {"source": "objaverse", "input": "cache"},
            "cannot be downloaded from https://huggingface.co (download-offline: ",
        ),
        ({"source": "shapes", "frobnicate": 1}, "frobnicate"),
    ],
)
def test_bad_usage_is_exit_2_and_one_line(tmp_path: Path, flags: dict, message: str) -> None:
    (tmp_path / "empty").mkdir()
    code, out, err = run(tmp_path, output="data", **flags)
    assert code == 2 and out == ""
    assert message in err and len(err.strip().splitlines()) == 1 and err.startswith("error: ")
    assert not (tmp_path / "data").exists()


def run(tmp_path: Path, *more: str, **flags: object) -> tuple[int, str, str]:
    """Run the command to its end: exit code, stdout, stderr."""
    code = kills.start(kills.command("preprocess", *more, **flags), tmp_path).wait(timeout=300)
    return code, *kills.printed(tmp_path)


def test_a_dry_run_prints_its_plan_on_stdout(tmp_path: Path) -> None:
    code, out, err = run(tmp_path, "--dry-run", output="data", source="shapes", limit=5)
    assert (code, err) == (0, "") and "5 objects in 1 shards to convert (1 new)" in out
    assert not (tmp_path / "data").exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> datasets.DatasetInfo:
    """The dataset made in this process, without Ray and without a kill."""
    folder = tmp_path_factory.mktemp("whole") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracked, "tell", lambda *_: None)
        preprocess(PreprocessConfig(output=str(folder), **SHAPES), map_here)
    return datasets.open_dataset(folder)


def is_the_same(target: Path, whole: datasets.DatasetInfo) -> None:
    """Check that two datasets are equal byte for byte, and that sidecars have the hashes of their files."""
    assert (target / "dataset.json").read_bytes() == (whole.path / "dataset.json").read_bytes()
    for index in whole.shards:
        name = whole.shard_path(index).name
        assert (target / name).read_bytes() == (whole.path / name).read_bytes(), name
    assert len(list(target.glob("*.parquet"))) == len(whole.shards)


@pytest.mark.slow
def test_interrupted_and_killed_then_finished_equals_an_uninterrupted_run(
    tmp_path: Path, whole: datasets.DatasetInfo, empty_store: EmptyStore
) -> None:
    """Ctrl-C in the middle of the work; then kill -9 at random moments, three times each, of the driver, a sandbox
    child and a Ray
    worker: the driver twice while it starts and last of all; then to the end.
    """
    empty_store.lay(tmp_path / "mlflow.db")
    target, args = tmp_path / "data", kills.command("preprocess", output=tmp_path / "data", **SHAPES)
    said = kills.interrupt_when(args, tmp_path, lambda: len(finished(target)) >= 2)
    done = len(finished(target))
    assert (
        f"  safe     {done} of {len(whole.shards)} shards are finished ({target})" in said.splitlines()
        and 2 <= done < len(whole.shards)
    )
    assert not (target / "failure.json").exists()
    rng = random.Random(time.time_ns())
    for _ in range(2):
        kills.kill_driver(kills.start(args, tmp_path), rng.uniform(0, 4))
    process = kills.start(args, tmp_path)
    for number, kind in enumerate(("child", "worker"), start=1):
        kills.wait_until(process, tmp_path, lambda number=number: len(finished(target)) >= done + number)
        for _ in range(3):
            time.sleep(rng.uniform(0, 0.3))
            kills.wait_until(process, tmp_path, lambda kind=kind: kills.kill_below(process, kind, rng))
    kills.wait_until(process, tmp_path, lambda: len(finished(target)) >= done + 3)
    kills.kill_driver(process, rng.uniform(0, 0.6))
    assert not (target / "dataset.json").exists()
    before = {file: file.stat().st_mtime_ns for file in finished(target)}
    assert done + 3 <= len(before) < len(whole.shards)
    assert kills.finish(args, tmp_path) == str(target)
    assert "are finished and skipped" in (said := kills.printed(tmp_path)[1]) and "dataset: ok 80" in said
    is_the_same(target, whole)
    untouched = [file for file, when in before.items() if file.stat().st_mtime_ns == when]
    assert len(untouched) >= len(before) - 2  # each of two workers may have been between parquet and sidecar
    reads_back_from_mlflow(tmp_path)


def finished(target: Path) -> list[Path]:
    """The sidecars that exist."""
    return list(target.glob("shard-*.json"))


def reads_back_from_mlflow(tmp_path: Path) -> None:
    """MLflow has one run for both starts, with counts, parameters and the summary of the dataset."""
    client = Tracking(f"sqlite:///{tmp_path}/mlflow.db").client
    (found,) = client.search_runs([client.get_experiment_by_name("g3pt/preprocess").experiment_id])
    assert found.data.metrics["objects_ok"] == 80 and found.info.status == "FINISHED"
    assert found.data.params["limit"] == "80"
    assert json.loads(Path(client.download_artifacts(found.info.run_id, "dataset.json")).read_text())["counts"] == {
        "ok": 80
    }


@pytest.mark.slow
def test_what_is_chosen_of_objaverse_becomes_a_dataset_with_its_card(tmp_path: Path, empty_store: EmptyStore) -> None:
    """Two Ray workers download the objects of the chosen categories and licences from a hub that fails at first."""
    empty_store.lay(tmp_path / "mlflow.db")
    (tmp_path / "cap3d.csv").write_text('uid0,"a tall box, closed"\nuid1,never used\n')
    choice = {"categories": "chair,armchair,sofa", "licenses": "open,CC-BY-SA-4.0", "limit": 2, "captions": "cap3d.csv"}
    command = kills.command(
        "preprocess",
        source="objaverse",
        input="cache",
        output="data",
        num_workers=2,
        num_shards=5,
        views=1,
        view_size=32,
        **choice,
        **COUNTS,
    )
    with hub_server() as hub:
        lay(hub)
        hub.faults = {mesh(0): ["cut"], "lvis-annotations.json.gz": ["head-500"]}
        assert kills.finish(command, tmp_path, HF_ENDPOINT=hub.address, HF_HUB_OFFLINE="0") == str(tmp_path / "data")
        asked = hub.asked()
    assert {name: count for name, count in asked.items() if name.startswith("glbs/")} == {mesh(0): 2, mesh(3): 1}
    said = kills.printed(tmp_path)[1]
    assert (
        "1 of 3 objects are left out: licence CC-BY-NC-4.0 1" in said
        and "captions of cap3d.csv for 1 of 2 objects, before --limit" in said
    )
    info = datasets.open_dataset(tmp_path / "data")
    rows = {row["id"]: row for row in reading.read_rows(info, info.columns)}
    assert sorted(rows) == [uid(0), uid(3)] and info.counts == {"ok": 2} and len(info.shards) == 2
    first = [rows[uid(0)][name] for name in ("license", "author", "name", "category", "caption", "caption_source")]
    assert first == ["CC-BY-4.0", "Author 0", "Thing 0 ?", "chair", "a tall box, closed", "cap3d"]
    card = json.loads((tmp_path / "data" / "card.json").read_text())
    assert card["category"] == {"chair": 1, "armchair": 1} and card["license"] == {"CC-BY-4.0": 1, "CC-BY-SA-4.0": 1}
    owed = (tmp_path / "data" / "contact_sheet.credits.md").read_text()
    for number in (0, 3):
        assert (
            f"| {uid(number)} | Thing {number} ? | Author {number} | [CC-BY" in owed
            and f"<https://sketchfab.com/3d-models/{uid(number)}>" in owed
        )


def args(folder: Path) -> list[str]:
    """The command that writes the dataset `whole`."""
    return kills.command("preprocess", output=folder / "data", **SHAPES)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["child", "worker"])
def test_children_and_workers_killed_twenty_times_change_nothing(
    tmp_path: Path, whole: datasets.DatasetInfo, kind: str
) -> None:
    kills.kill_below_often(
        args,
        tmp_path,
        lambda folder: is_the_same(folder / "data", whole),
        kind,
        20,
        (0.5, 4.0),
        lambda folder: len(finished(folder / "data")),
    )


@pytest.mark.soak
@kills.TWENTY
def test_killed_twenty_times(
    tmp_path: Path, whole: datasets.DatasetInfo, number: int, ray_of_commands: dict[str, str]
) -> None:
    kills.kill_often(
        args, tmp_path, lambda folder: is_the_same(folder / "data", whole), number,
        lambda folder: len(finished(folder / "data")), len(whole.shards), **ray_of_commands
    )  # fmt: skip
