"""A store written anew from the files of runs and studies, and nothing twice."""

import json
import os
from pathlib import Path

import pytest
from mlflow.entities import Run

from pipelines.cli.errors import NotWell
from pipelines.runs.notes import COMMAND_FILE, RUN_FILE, working_in
from pipelines.status.relog import RelogFlags, relog_all
from pipelines.study import job as study
from pipelines.tracking.client import Tracking
from pipelines.train import run as train
from tests.pipelines.study.test_job import FLAGS, instant, spec  # noqa: F401
from tests.pipelines.train.test_run import TOY, ledger_steps, toy_spec


def runs_of(store: Path) -> dict[str, Run]:
    client = Tracking(f"sqlite:///{store}").client
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert len({run.info.run_name for run in found}) == len(found), "no run twice"
    return {run.info.run_name: run for run in found}


def shown(run: Run) -> tuple:
    """What a person sees of a run, without what a relog cannot know."""
    unknown = ("mlflow.user", "mlflow.log-model.history", "g3pt.model_run_id")
    tags = {name: value for name, value in run.data.tags.items() if name not in unknown}
    inputs = [(each.dataset.name, each.dataset.digest) for each in run.inputs.dataset_inputs]
    return run.info.status, run.info.end_time // 1000, run.data.params, run.data.metrics, tags, inputs


def files_of(store: Path, run: Run) -> set[str]:
    return {file.path for file in Tracking(f"sqlite:///{store}").client.list_artifacts(run.info.run_id)}


def page(folder: Path) -> Path:
    (folder / "report.html").write_text("<p>report</p>")
    return folder / "report.html"


def test_a_run_s_store_is_written_anew_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, store = tmp_path / "runs", tmp_path / "mlflow.db"
    run_dir = train.train_run(toy_spec(), runs, num_workers=0, build=TOY, page=page)
    before, files = runs_of(store)[run_dir.name], files_of(store, runs_of(store)[run_dir.name])
    assert files >= {"config.json", "curves.png", "report.html"}
    flags = RelogFlags(dir=str(tmp_path))
    relog_all(flags)
    assert "relog: 0 runs logged, 1 were complete in MLflow, 0 cannot be read" in capsys.readouterr().out
    anew = tmp_path / "anew" / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{anew}")
    for said in ("1 runs logged, 0 were complete", "0 runs logged, 1 were complete"):
        relog_all(flags)
        assert f"relog: {said} in MLflow, 0 cannot be read" in capsys.readouterr().out
        after = runs_of(anew)[run_dir.name]
        assert shown(after) == shown(before) and files_of(anew, after) == files
        client = Tracking(f"sqlite:///{anew}").client
        steps = [m.step for m in client.get_metric_history(after.info.run_id, "train/loss")]
        assert steps == [int(step) for step in ledger_steps(run_dir)]
    (run_dir / RUN_FILE).unlink()  # as after a training whose server never answered
    relog_all(flags)
    assert len(runs_of(anew)) == 1 and json.loads((run_dir / RUN_FILE).read_text())["run_id"] == after.info.run_id
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    relog_all(flags)
    assert len(runs_of(store)) == 1, "back in the first store nothing is added"


def test_a_store_that_missed_the_end_gets_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The server answered at the start of the training only."""
    runs, store = tmp_path / "runs", tmp_path / "mlflow.db"
    run_dir = train.train_run(toy_spec(), runs, num_workers=0, build=TOY)
    before = runs_of(store)[run_dir.name]
    client = Tracking(f"sqlite:///{store}").client
    client.delete_run(before.info.run_id)
    half = client.create_run(before.info.experiment_id, tags={"g3pt.path": str(run_dir)}, run_name=run_dir.name)
    client.log_metric(half.info.run_id, "train/loss", 9.0, step=8)
    (run_dir / RUN_FILE).unlink()
    relog_all(RelogFlags(dir=str(runs)))
    after = runs_of(store)[run_dir.name]
    assert after.info.run_id == half.info.run_id and after.info.status == "FINISHED"
    steps = sorted(m.step for m in client.get_metric_history(after.info.run_id, "train/loss"))
    assert steps == [int(step) for step in ledger_steps(run_dir)]


def test_a_study_is_written_with_its_children(
    instant: None,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, store = tmp_path / "study", tmp_path / "anew" / "mlflow.db"
    specs = [spec(size) for size in ("20k", "80k", "150k")]
    for each in specs:
        each.config["train"] = {"steps": 4, "batch_size": 2}
    study.run_study(specs, folder, FLAGS)
    for each in specs:
        train.prepare_run(each, folder / "runs")
        (folder / "runs" / each.name / "metrics.jsonl").write_text('{"step": 8, "test_ce": 2.0, "time": 1e9}\n')
    monkeypatch.setattr("pipelines.train.follow.describe_finished", lambda *_: None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    for said in ("4 runs logged, 0 were complete", "0 runs logged, 4 were complete"):
        relog_all(RelogFlags(dir=str(tmp_path)))
        assert f"relog: {said}" in capsys.readouterr().out
        found = runs_of(store)
        parent = next(run for run in found.values() if "mlflow.parentRunId" not in run.data.tags)
        children = [found[f"{each.preset}-8-s0"] for each in specs]
        assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
        assert {run.info.experiment_id for run in children} == {parent.info.experiment_id}
        assert [run.data.metrics for run in children] == [{"test/ce": 2.0}] * 3
        assert files_of(store, parent) >= {"study.json", "points.csv", "fit.json", "curve.png"}


def test_work_in_progress_is_left_to_its_own_command_and_what_is_broken_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = train.prepare_run(toy_spec(), tmp_path / "runs")
    broken = tmp_path / "runs" / "broken"
    (broken / "checkpoints").mkdir(parents=True)
    (broken / "config.json").write_text("{}")
    for host in ("", "another-machine"):
        with working_in(run_dir), pytest.raises(NotWell):
            if host:
                note = json.loads((run_dir / COMMAND_FILE).read_text())
                (run_dir / COMMAND_FILE).write_text(json.dumps(note | {"host": host}))
                (run_dir / "metrics.jsonl").touch()
            relog_all(RelogFlags(dir=str(tmp_path)))
        said = capsys.readouterr().out
        assert f"{run_dir}: at work, its own command logs it" in said
    os.utime(run_dir / "metrics.jsonl", (1e9, 1e9))
    with pytest.raises(NotWell):
        relog_all(RelogFlags(dir=str(tmp_path)))
    assert "relog: 1 runs logged, 0 were complete in MLflow, 1 cannot be read" in capsys.readouterr().out
    assert runs_of(tmp_path / "mlflow.db")[run_dir.name].info.status == "KILLED"
    assert f"{run_dir}: at work, its own command logs it" in said and f"{broken}: cannot be logged: " in said
    assert "relog: 0 runs logged, 0 were complete in MLflow, 1 cannot be read" in said
