"""MLflow after work that succeeded, failed, or was killed and resumed, read through its client."""

import json
import os
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pipelines.cli.endings import endings
from pipelines.cli.errors import UsageError
from pipelines.runs.ledger import Ledger
from pipelines.tracking import cards, experiments
from pipelines.tracking import client as tracking
from pipelines.tracking.cards import Card, DatasetInput
from pipelines.tracking.tracked import followed, logged


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for the tests of this file; a new one takes a second."""
    return tmp_path_factory.mktemp("tracked")


def card(folder: Path, name: str, **changes: object) -> Card:
    values = {
        "stage": "evaluate",
        "name": name,
        "title": "**Samples** of `x`",
        "folder": folder / name,
        "params": {"preset": "nano"},
    }
    return Card(**{**values, **changes})


def client(folder: Path) -> MlflowClient:
    return MlflowClient(tracking.tracking_uri(folder / "x"))


def find(folder: Path, name: str) -> list[Run]:
    store = client(folder)
    return store.search_runs([e.experiment_id for e in store.search_experiments()], f"attributes.run_name = '{name}'")


def test_finished_work_shows_what_it_is(folder: Path) -> None:
    picture = folder / "curve.svg"
    picture.write_text("<svg/>")
    data = DatasetInput(name="shapes", fingerprint="f" * 64, path="/data/shapes", context="test")
    began = time.time()
    with logged(card(folder, "shown", dataset=data, tags={"g3pt.model_hash": "abc"}), folder / "x") as outcome:
        outcome.metrics |= {"chamfer": 0.25, "chamfer_low": 0.125, "chamfer_high": 0.5, "other": 1.0}
        outcome.records += [{"step": 1.0, "by scale/iou": 0.5}, {"step": 2.0, "by scale/iou": 0.75}]
        outcome.artifacts += [picture, folder / "missing.png"]
        outcome.params["late"] = 7
        time.sleep(0.3)
        worked = time.time()
    (run,) = find(folder, "shown")
    assert client(folder).get_experiment(run.info.experiment_id).name == "g3pt/evaluate"
    assert run.info.status == "FINISHED"
    assert began <= run.info.start_time / 1000 + 0.001 and run.info.end_time / 1000 >= worked - 0.001
    assert run.info.end_time / 1000 < worked + 0.3, "the time of logging is not the work's"
    assert run.data.params == {"preset": "nano", "late": "7"}
    assert run.data.metrics["chamfer"] == 0.25
    assert [(m.step, m.value) for m in client(folder).get_metric_history(run.info.run_id, "by scale/iou")] == [
        (1, 0.5),
        (2, 0.75),
    ]
    (given,) = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest, given.tags[0].value) == ("shapes", "ffffffff", "test")
    assert [f.path for f in client(folder).list_artifacts(run.info.run_id)] == ["curve.svg"]
    assert str(folder) in run.info.artifact_uri, "artifacts lie beside the store, not in the working directory"
    tags = run.data.tags
    assert (tags["g3pt.stage"], tags["g3pt.group"], tags["g3pt.path"], tags["g3pt.model_hash"]) == (
        "evaluate",
        str(folder),
        str(folder / "shown"),
        "abc",
    )
    assert (
        tags["g3pt.command"].startswith("python ")
        and "torch 2" in tags["g3pt.versions"]
        and "GiB" in tags["g3pt.hardware"]
    )
    assert tags["mlflow.source.git.commit"].endswith("-dirty") == (tags["g3pt.dirty"] == "true")
    note = tags["mlflow.note.content"]
    assert note.startswith("**Samples** of `x`") and "chamfer **0.25 (0.125 to 0.5)**." in note and "other" not in note
    assert tags["g3pt.command"] in note and str(folder / "shown") in note


def test_failed_work_says_why(folder: Path) -> None:
    with pytest.raises(RuntimeError), logged(card(folder, "failed"), folder / "x"):
        raise RuntimeError("no object is ok:\n  all `rejected`")
    (run,) = find(folder, "failed")
    assert run.info.status == "FAILED"
    assert run.data.tags["g3pt.failure"] == "RuntimeError: no object is ok: all `rejected`"
    assert "**Failed:** `RuntimeError: no object is ok: all 'rejected'`" in run.data.tags["mlflow.note.content"]


@pytest.mark.parametrize("error", [UsageError("bad flag"), KeyboardInterrupt()])
def test_refused_and_interrupted_work_leaves_no_run(folder: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), logged(card(folder, "refused"), folder / "x"):
        raise error
    assert find(folder, "refused") == []


def test_a_killed_run_goes_on_as_the_same_run(folder: Path) -> None:
    ours = card(folder, "resumed", stage="cvq")
    ours.folder.mkdir()
    ledger = Ledger(ours.folder / "metrics.jsonl")
    killed = followed(ours, folder / "x", finished=lambda: False, ledger=ledger)
    first = killed.__enter__()
    (run,) = find(folder, "resumed")
    assert (run.info.run_id, run.info.status) == (first.run_id, "RUNNING"), "as kill -9 leaves it"
    with pytest.raises(OSError), followed(ours, folder / "x", finished=lambda: False, ledger=ledger) as second:
        ledger.append([{"step": 16.0, "loss": 2.0, "val_iou": 0.25, "val_iou_scale_1": 0.125, "val_objects": 9.0}])
        raise OSError("disk is full")
    (run,) = find(folder, "resumed")
    assert (run.info.run_id, run.info.status, run.data.tags["g3pt.failure"]) == (
        first.run_id,
        "FAILED",
        "OSError: disk is full",
    )
    with followed(ours, folder / "x", finished=lambda: True, ledger=ledger) as third:
        ledger.append([{"step": 32.0, "loss": 1.0, "test_iou": 0.5, "test_utilisation_scale_1": 1.0}])
        (ours.folder / "_SUCCESS").touch()
        os.utime(
            ours.folder / "_SUCCESS", (run.info.start_time / 1000 + 0.01,) * 2
        )  # and the rest of its study took longer
    assert first.run_id == second.run_id == third.run_id
    (run,) = find(folder, "resumed")
    assert run.info.status == "FINISHED" and "g3pt.failure" not in run.data.tags
    assert run.info.end_time - run.info.start_time == pytest.approx(10, abs=2)
    assert set(run.data.metrics) == {
        "train/loss",
        "val/iou",
        "val by scale/iou_scale_1",
        "test/iou",
        "within test/utilisation_scale_1",
    }
    assert [m.step for m in client(folder).get_metric_history(run.info.run_id, "train/loss")] == [16, 32]
    note = run.data.tags["mlflow.note.content"]
    assert "test/iou **0.5**, val/iou **0.25**, train/loss **1**." in note and "failed" not in note
    killed.gen.close()


def test_a_model_s_run_is_linked_by_what_used_it(folder: Path) -> None:
    model, elsewhere = card(folder, "model", stage="cvq"), folder / "elsewhere"
    (model.folder / "export").mkdir(parents=True)
    with followed(model, folder / "x", finished=lambda: True) as made:
        pass
    with logged(card(folder, "user", models={"model": model.folder / "export", "tokenizer": elsewhere}), folder / "x"):
        pass
    (run,) = find(folder, "user")
    assert run.data.tags["g3pt.model_run_id"] == made.run_id and "g3pt.tokenizer_run_id" not in run.data.tags
    number = client(folder).get_run(made.run_id).info.experiment_id
    assert f"Model: [model](#/experiments/{number}/runs/{made.run_id}?" in run.data.tags["mlflow.note.content"]
    assert f"Tokenizer: `{elsewhere}`." in run.data.tags["mlflow.note.content"]


def test_a_child_stands_below_its_study(folder: Path) -> None:
    study = card(folder, "parent", stage="scaling")
    study.folder.mkdir()
    with followed(study, folder / "x", finished=lambda: True) as parent:
        child = card(folder, "child", stage="car", experiment="scaling")
        child.folder.mkdir()
        with followed(child, folder / "x", finished=lambda: True, parent=parent.run_id):
            pass
    (above,), (below,) = find(folder, "parent"), find(folder, "child")
    assert (
        below.data.tags["mlflow.parentRunId"] == above.info.run_id
        and below.info.experiment_id == above.info.experiment_id
    )
    assert (below.data.tags["g3pt.stage"], above.data.tags["g3pt.stage"]) == ("car", "scaling")


def test_experiments_introduce_themselves_with_a_table_of_results(folder: Path) -> None:
    """The format of the view is what MLflow 3.17's own page saves."""
    import base64
    import zlib

    tracking.Tracking(tracking.tracking_uri(folder / "x")).experiment("g3pt/car")
    found = client(folder).get_experiment_by_name("g3pt/car")
    assert (
        f"#/experiments/{found.experiment_id}/runs?" in found.tags["mlflow.note.content"]
        and "viewStateShareKey=g3pt" in found.tags["mlflow.note.content"]
    )
    view = json.loads(found.tags["mlflow.sharedViewState.g3pt"])
    state = json.loads(zlib.decompress(base64.b64decode(view["state"].removeprefix("deflate;"))))
    assert {"params.`preset`", "params.`tokenizer`", "metrics.`test/ce`"} <= set(state["selectedColumns"])
    assert set(experiments.EXPERIMENTS) == {
        f"g3pt/{name}" for name in ("preprocess", "cvq", "car", "scaling", "generate", "evaluate")
    }


def test_a_broken_store_warns_once_and_the_work_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database, and long enough to be read as a broken header" * 20)
    done = []
    for _ in range(2):
        with logged(card(tmp_path, "lost"), tmp_path / "x"):
            done.append("logged")
        with followed(card(tmp_path, "lost", stage="cvq"), tmp_path / "x", finished=lambda: True) as outcome:
            done.append("followed")
        assert outcome.run_id is None
    assert len(done) == 4
    assert capsys.readouterr().err.count("warning: logging lost to MLflow failed") == 1


@pytest.mark.parametrize(
    ("uri", "told"),
    [("sqlite:////a folder/mlflow.db", "ui --backend-store-uri 'sqlite:////a folder/mlflow.db'\n"),
     ("https://user:secret@host:5000/", "https://host:5000/#/experiments?workflowType=machine_learning")],
)  # fmt: skip
def test_how_to_look_is_told_without_a_login(uri: str, told: str) -> None:
    said = tracking.how_to_open(uri)
    assert told in said and "secret" not in said


def test_a_command_says_once_where_to_look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with endings() as ends:
        for name in ("one", "two"):
            with logged(card(tmp_path, name), tmp_path / "x"):
                pass
        ends.say()
    said = capsys.readouterr().err
    assert said.count("MLflow: ") == 1 and f"sqlite:///{tmp_path}/mlflow.db" in said


def test_text_from_data_stays_text() -> None:
    assert cards.code("a `b` | <img src=x>\n## c") == "`a 'b' / <img src=x> ## c`"


@pytest.mark.parametrize(
    ("ledger", "shown"),
    [("loss", "train/loss"), ("ce_scale_12", "train by scale/ce_scale_12"),
     ("val_ce_unconditional", "val/ce_unconditional"),
     ("test_iou_scale_1", "within test/iou_scale_1"),
     ("val_entropy_pooled_scale_2", "val codes/entropy_pooled_scale_2")],
)  # fmt: skip
def test_a_ledger_s_name_gets_its_section(ledger: str, shown: str) -> None:
    assert cards.metric_name(ledger) == shown


def test_an_evaluation_s_intervals_and_scales_become_numbers() -> None:
    found = {"iou_volume": 0.5, "iou_volume_interval_95": [0.25, 0.75], "labels": ["a"], "none_interval_95": None,
             "iou_first_1_scales": 0.1, "iou_drop_shuffled_scale_1": 0.01, "iou_first_2_scales": 0.2,
             "iou_drop_shuffled_scale_2": 0.02}  # fmt: skip
    numbers = cards.intervals(found)
    assert (numbers["iou_volume"], numbers["iou_volume_low"], numbers["iou_volume_high"]) == (
        0.5,
        0.25,
        0.75,
    ) and "labels" not in numbers
    assert [list(record.values()) for record in cards.by_scale(found)] == [[1.0, 0.1, 0.01], [2.0, 0.2, 0.02]]


def test_the_report_is_in_mlflow_and_its_failure_stops_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(path: Path) -> Path:
        if path.name == "unreadable":
            raise UsageError("nothing to report on")
        page = path.with_suffix(".html")
        page.write_text("<p>ümlaut</p>", encoding="utf-8")
        return page

    for name in ("reported", "unreadable", "written"):
        with logged(card(folder, name), folder / "x", write) as outcome:
            if name == "written":  # by the work itself: not once more
                outcome.page = folder / "own.html"
                outcome.page.write_text("own")
    files = [
        [f.path for f in client(folder).list_artifacts(find(folder, name)[0].info.run_id)]
        for name in ("reported", "unreadable", "written")
    ]
    assert files == [["report.html"], [], ["report.html"]]
    assert (folder / "reported.html").exists() and not (folder / "written.html").exists()
    assert "the report about unreadable failed; continuing without it: UsageError" in capsys.readouterr().err


def test_a_run_s_curves_are_drawn(tmp_path: Path) -> None:
    from PIL import Image

    from pipelines.train.curves import draw_run

    for name, key in (("cvq", "val_iou_scale_1"), ("car", "val_ce")):
        run_dir = tmp_path / name
        run_dir.mkdir()
        Ledger(run_dir / "metrics.jsonl").append(
            [{"step": s, key: s / 9, **({"val_iou_continuous": s / 5} if name == "cvq" else {})} for s in (1.0, 2.0)]
        )
        with Image.open(draw_run(run_dir, run_dir / "curves.png")) as picture:
            blue = [color for count, color in picture.convert("RGB").getcolors(1 << 20) if color[2] > color[0] + 80]
        assert blue, "a line, not only axes"
