"""MLflow's Models page: an entry per finished run, evaluations of it, registered versions. A real store."""

import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModel

from pipelines.runs.ledger import Ledger
from pipelines.tracking import client as tracking
from pipelines.tracking import experiments, models
from pipelines.tracking.models import Model
from pipelines.tracking.tracked import followed, logged
from tests.pipelines.tracking.test_tracked import card, client, find


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one finished run, made as a training makes it."""
    found = tmp_path_factory.mktemp("models")
    ours = card(found, "model", stage="cvq", params={"preset": "nano"})
    (ours.folder / "export").mkdir(parents=True)
    ledger = Ledger(ours.folder / "metrics.jsonl")
    with followed(ours, found / "x", finished=lambda: (ours.folder / "_SUCCESS").exists(), ledger=ledger) as outcome:
        ledger.append([{"step": 16.0, "loss": 2.0, "val_iou": 0.25}, {"step": 32.0, "test_iou": 0.5}])
        outcome.model = Model(kind="cvq", export=ours.folder / "export", export_sha256="abc")
        outcome.params["parameters"] = 7
        (ours.folder / "_SUCCESS").touch()
    return found


def the_model(folder: Path, name: str = "model") -> LoggedModel:
    store = client(folder)
    (run,) = find(folder, name)
    (made,) = store.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    return store.get_logged_model(made.model_id)


def test_a_finished_run_is_a_logged_model_with_its_test_metrics(folder: Path) -> None:
    model = the_model(folder)
    assert (model.name, model.model_type, model.status) == ("model", "cvq", "READY")
    assert model.params == {"preset": "nano", "parameters": "7"}
    assert {"test/iou": 0.5}.items() <= {metric.key: metric.value for metric in model.metrics}.items()
    assert "val/iou" not in {metric.key for metric in model.metrics}
    pointer = Path(tracking.location(folder / "mlflow.db", "g3pt/cvq").removeprefix("file://"))
    (file,) = pointer.rglob(models.POINTER)
    assert json.loads(file.read_text()) == {
        "kind": "cvq",
        "path": str(folder / "model" / "export"),
        "export_sha256": "abc",
    }


def test_an_evaluation_adds_its_numbers_to_the_model(folder: Path) -> None:
    exported = folder / "model" / "export"
    with logged(card(folder, "evaluated", models={"model": exported}), folder / "x") as outcome:
        outcome.metrics["chamfer"] = 0.125
    found = {metric.key: metric.value for metric in the_model(folder).metrics}
    assert found["chamfer"] == 0.125 and found["test/iou"] == 0.5
    (run,) = find(folder, "evaluated")
    read = client(folder).get_run(run.info.run_id).inputs.model_inputs
    assert [one.model_id for one in read] == [the_model(folder).model_id]


def test_a_second_start_makes_no_second_model(folder: Path) -> None:
    ours = card(folder, "model", stage="cvq")
    with followed(ours, folder / "x", finished=lambda: True) as outcome:
        outcome.model = Model(kind="cvq", export=ours.folder / "export", export_sha256="abc")
    assert the_model(folder).model_id, "the one"


def test_register_makes_one_version_per_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [models.register(folder / "x", folder / "model", "chairs") for _ in range(2)] == ["1", "1"]
    assert "model is version 1 of the registered model chairs" in capsys.readouterr().err
    version = client(folder).get_model_version("chairs", "1")
    assert version.source == f"models:/{the_model(folder).model_id}" and version.status == "READY"


def test_a_model_lists_its_versions(folder: Path) -> None:
    models.register(folder / "x", folder / "model", "chairs")
    assert json.loads(the_model(folder).tags[models.VERSIONS_TAG]) == [{"name": "chairs", "version": "1"}]


def test_a_run_without_a_model_is_not_registered(folder: Path) -> None:
    (folder / "other").mkdir()
    with pytest.raises(ValueError, match="no logged model"):
        models.register(folder / "x", folder / "other", "chairs")


def test_a_store_that_was_moved_keeps_its_models(folder: Path, tmp_path: Path) -> None:
    models.register(folder / "x", folder / "model", "chairs")
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    store = tracking.Tracking(tracking.tracking_uri(moved / "x")).client
    model = store.get_logged_model(store.get_model_version("chairs", "1").source.removeprefix("models:/"))
    assert str(moved) in model.artifact_location
    assert Path(model.artifact_location.removeprefix("file://"), models.POINTER).is_file()


def test_a_command_leads_to_the_table_with_its_columns(folder: Path) -> None:
    """One experiment: the address is that of its saved view. Several: the list of experiments."""
    uri = tracking.tracking_uri(folder / "x")
    number = MlflowClient(uri).get_experiment_by_name("g3pt/cvq").experiment_id
    assert tracking.how_to_open(uri, [number]).endswith(f"/{experiments.table_page(number)}")
    assert "viewStateShareKey=g3pt" in tracking.how_to_open(uri, [number])
    assert tracking.how_to_open(uri, [number, "2"]).endswith("/#/experiments?workflowType=machine_learning")
