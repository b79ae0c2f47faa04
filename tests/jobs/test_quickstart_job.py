"""The whole demo at its smallest: every stage runs, its files open, and a second start changes nothing."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.runs.ledger import Ledger
from pipelines.status import inventory
from pipelines.tracking.client import Tracking
from tests.jobs import kills
from tests.pipelines.report_numbers import check_numbers

EXPERIMENTS = {f"g3pt/{name}" for name in ("preprocess", "cvq", "car", "scaling", "generate", "evaluate")}
SIZES = ("5k", "20k", "80k", "150k")
KEPT = (
    "*.parquet",
    "*.safetensors",
    "*.glb",
    "metrics.jsonl",
    "dataset.json",
    "points.csv",
    "tokenizer.json",
    "generator.json",
)


def command(output: Path) -> list[str]:
    small = {
        "num_shapes": 48,
        "cvq_steps": 80,
        "car_steps": 10,
        "sweep_steps": 4,
        "num_samples": 8,
        "num_image_samples": 4,
        "sizes": ",".join(SIZES),
    }
    return kills.command("quickstart", output=output, **small)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a first start leaves."""
    folder = tmp_path_factory.mktemp("quickstart")
    assert kills.finish(command(folder / "demo"), folder, timeout_s=600) == str(folder / "demo")
    return folder / "demo"


def pictures(demo: Path) -> list[Path]:
    rendered = [demo / "tokenizer.png", demo / "generator.png"]
    return [demo / "study" / "curve.png", *rendered]


@pytest.mark.slow
def test_it_leaves_a_summary_and_pictures(demo: Path) -> None:
    from PIL import Image

    summary = (demo / "summary.md").read_text()
    for words in (
        "volume IoU",
        "samples of the prompted family",
        "nearest training object",
        "demonstration, not an estimate",
        "| all |",
    ):
        assert words in summary, words
    for file in pictures(demo):
        with Image.open(file) as picture:
            assert np.asarray(picture.convert("L")).std() > 5, file
        assert file.name in summary


@pytest.mark.slow
def test_its_meshes_open(demo: Path) -> None:
    import trimesh

    released = pq.read_table(demo / "released" / "manifest.parquet").to_pylist()
    assert [row["status"] for row in released] == ["ok"] * 8
    rows = pq.read_table(demo / "meshes" / "manifest.parquet").to_pylist()
    assert len(rows) == 8 and any(row["status"] == "ok" for row in rows)
    for folder, row in [(folder, row) for folder, part in (("meshes", rows), ("released", released)) for row in part]:
        if row["status"] == "ok":
            file = demo / folder / row["file"]
            assert hashlib.sha256(file.read_bytes()).hexdigest() == row["sha256"]
            assert len(trimesh.load(file, force="mesh").faces) == row["faces"] > 0
        else:  # so little training may well give an empty or a full box
            assert row["error"].partition(":")[0] in ("empty-field", "full-field"), row


@pytest.mark.slow
def test_every_stage_is_in_mlflow(demo: Path) -> None:
    client = Tracking(f"sqlite:///{demo}/mlflow.db").client
    experiments = {e.name: e.experiment_id for e in client.search_experiments() if e.name != "Default"}
    assert set(experiments) == EXPERIMENTS
    runs = {name: client.search_runs([number]) for name, number in experiments.items()}
    assert all(run.info.status == "FINISHED" for found in runs.values() for run in found)
    assert {name: len(found) for name, found in runs.items()} == dict.fromkeys(EXPERIMENTS, 1) | {
        "g3pt/generate": 2,
        "g3pt/evaluate": 2,
        "g3pt/scaling": 1 + len(SIZES),
    }
    for name, steps in (("g3pt/cvq", "80"), ("g3pt/car", "10")):
        (run,) = runs[name]
        ledger = Ledger(Path(run.data.tags["g3pt.path"]) / "metrics.jsonl").read()
        assert [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")] == [r["step"] for r in ledger]
        assert run.data.params["steps"] == steps and 500_000 < int(run.data.params["parameters"]) < 700_000
    everything = [run for found in runs.values() for run in found]
    assert len({run.info.run_name for run in everything}) == len(everything)
    assert all(len(run.data.params) <= 18 for run in everything)
    assert {run.data.tags["g3pt.group"] for run in everything} == {str(demo)}
    assert all(
        run.data.tags[name]
        for run in everything
        for name in ("g3pt.command", "g3pt.hardware", "g3pt.versions", "mlflow.source.git.commit")
    )
    for run in everything:
        files = [
            Path(client.download_artifacts(run.info.run_id, found.path))
            for found in client.list_artifacts(run.info.run_id)
        ]
        assert "report.html" in {file.name for file in files}, run.info.run_name
        for file in files:
            opens(file)


@pytest.mark.slow
def test_runs_in_mlflow_lead_to_what_they_were_made_from(demo: Path) -> None:
    client = Tracking(f"sqlite:///{demo}/mlflow.db").client
    runs = {
        e.name: client.search_runs([e.experiment_id], order_by=["attributes.start_time"])
        for e in client.search_experiments()
    }
    (shapes,), (cvq,), (car,), (released, meshes) = (
        runs[f"g3pt/{name}"] for name in ("preprocess", "cvq", "car", "generate")
    )
    of_cvq, of_car = runs["g3pt/evaluate"]
    for used, by in ((cvq, of_cvq), (car, of_car), (car, meshes)):
        assert by.data.tags["g3pt.model_run_id"] == used.info.run_id and by.data.params["model"] == used.info.run_name
        assert by.data.tags["g3pt.model_hash"] == used.data.tags["g3pt.export_hash"]
        assert f"/runs/{used.info.run_id}?" in by.data.tags["mlflow.note.content"]
    assert (
        car.data.tags["g3pt.tokenizer_run_id"] == cvq.info.run_id
        and car.data.tags["g3pt.tokenizer_hash"] == cvq.data.tags["g3pt.export_hash"]
    )
    given = [run.inputs.dataset_inputs[0] for run in (shapes, cvq, car, of_cvq, of_car)]
    assert {(g.dataset.name, g.dataset.digest) for g in given} == {("shapes", shapes.data.params["fingerprint"][:8])}
    assert [g.tags[0].value for g in given] == ["made here", "training", "training", "test", "test"]
    assert {run.inputs.dataset_inputs[0].dataset.name for run in (meshes, released)} == {"prompts.jsonl"}
    assert "g3pt.model_run_id" not in released.data.tags  # its run is not in this store
    assert shapes.info.end_time - shapes.info.start_time > 1000, "the work's duration, not that of logging"


@pytest.mark.slow
def test_its_report_tells_all_of_it(demo: Path) -> None:
    page = (demo / "report.html").read_text()
    for title in (
        "Generated meshes",
        "Evaluation of the generator",
        "Reconstructions",
        "Scaling study",
        "Training the tokenizer",
        "Training the generator",
        "Dataset",
        "Time",
        "Versions and hardware",
        "Credits",
    ):
        assert f'-title">{title}</h2>' in page, title
    assert check_numbers(page, demo) > 300
    assert page.count("data-object=") > 30 and len(page) < 6e6
    assert "the stages were made by an older version" not in page and "kept no meshes" not in page


def opens(file: Path) -> None:
    """Check that an artefact is not empty and has the format that its name says."""
    from PIL import Image

    if file.suffix == ".json":
        assert json.loads(file.read_text())
    elif file.is_dir():
        for part in file.iterdir():
            opens(part)
    elif file.suffix == ".parquet":
        assert pq.read_table(file).num_rows
    elif file.suffix == ".png":
        with Image.open(file) as picture:
            picture.load()
    else:
        assert file.read_bytes(), file


@pytest.mark.slow
def test_the_study_is_a_parent_with_a_child_for_each_size(demo: Path) -> None:
    client = Tracking(f"sqlite:///{demo}/mlflow.db").client
    runs = client.search_runs([client.get_experiment_by_name("g3pt/scaling").experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert sorted(run.data.params["preset"] for run in children) == sorted(SIZES)
    assert all("test/ce" in run.data.metrics for run in children)
    assert {f"pure_power_law/exponent{end}" for end in ("", "_low", "_high")} <= set(
        parent.data.metrics
    ) and parent.data.tags["g3pt.sizes"] == ",".join(SIZES)
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {
        "study.json",
        "points.csv",
        "points.parquet",
        "plan.csv",
        "fit.json",
        "curve.png",
        "report.html",
    }
    points = (demo / "study" / "points.csv").read_text().splitlines()
    columns = points[0].split(",")
    assert columns[:5] == ["size", "params_no_embed", "params_no_adaln", "params_total", "flops"]
    assert {"seed", "samples", "epochs", "lr", "schedule", "test_ce", "test_ce_scale_1"} <= set(columns)
    assert [line.split(",")[0] for line in points[1:]] == list(SIZES)


@pytest.mark.slow
def test_status_names_what_there_is(demo: Path) -> None:
    found = inventory.find(demo)
    kinds = [item.kind for item in found]
    assert (kinds.count("dataset"), kinds.count("run"), kinds.count("study"), kinds.count("evaluation")) == (
        1,
        2 + len(SIZES),
        1,
        2,
    )
    assert {item.state for item in found} == {"done"}
    seconds = json.loads((demo / "seconds.json").read_text())
    assert seconds.pop("all") == pytest.approx(sum(seconds.values())) and len(seconds) == 9


@pytest.mark.slow
def test_a_second_start_changes_nothing(demo: Path) -> None:
    before = {file: hashlib.sha256(file.read_bytes()).hexdigest() for kind in KEPT for file in demo.rglob(kind)}
    heavy = {file: file.stat().st_mtime_ns for file in before if file.suffix in (".parquet", ".safetensors", ".glb")}
    assert len(heavy) > 20
    kills.finish(command(demo), demo.parent, timeout_s=600, RAY_TMPDIR=str(demo.parent / "temporary"))
    assert not (demo.parent / "temporary").exists() and "Ray's sockets" not in kills.printed(demo.parent)[1], "no Ray"
    assert {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in before} == before
    again = {file.name for file, when in heavy.items() if file.stat().st_mtime_ns != when}
    assert again <= {"manifest.parquet"}, "a table of what is there may be written again, nothing else"
    client = Tracking(f"sqlite:///{demo}/mlflow.db").client
    trained = [
        client.get_experiment_by_name(name).experiment_id
        for name in ("g3pt/preprocess", "g3pt/cvq", "g3pt/car", "g3pt/scaling")
    ]
    assert len(client.search_runs(trained)) == 3 + 1 + len(SIZES)
