"""MLflow read back through its own client."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest

from pipelines.cli.paths import REPOSITORY
from pipelines.cli.plain_text import without_login
from pipelines.runs.ledger import Ledger
from pipelines.tracking import client as tracking
from pipelines.tracking import moved_store
from pipelines.tracking.client import Mirror, Tracking


def test_store_lies_beside_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking.tracking_uri(tmp_path / "out" / "runs") == f"sqlite:///{tmp_path}/out/mlflow.db"
    monkeypatch.chdir(tmp_path)
    assert tracking.tracking_uri("s3://bucket/runs") == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking.tracking_uri(tmp_path) == "http://127.0.0.1:5000"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    return Tracking(f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db")


def test_steps_do_not_repeat_after_kill_and_resume(store: Tracking, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "metrics.jsonl")
    first = store.open_run("g3pt/cvq", "run", {"width": 8}, {"preset": "nano"})
    ledger.append([{"step": s, "loss": float(s), "time": 1.0} for s in (10, 20, 30)])
    Mirror(store, first, ledger).copy()
    # killed after 30; the checkpoint is at 20: the ledger goes back, the records come again, and two more
    ledger.truncate_after(20)
    again = store.open_run("g3pt/cvq", "run", {"width": 8}, {"command": "second"}, resume_id=first)
    assert again == first
    with Mirror(store, again, ledger, interval_s=0.01):
        ledger.append([{"step": s, "loss": float(s), "iou": 0.5} for s in (30, 40)])
    steps = [m.step for m in store.client.get_metric_history(first, "train/loss")]
    assert steps == [10, 20, 30, 40]
    run = store.client.get_run(first)
    assert run.data.params == {"width": "8"}
    assert (run.data.tags["preset"], run.data.tags["command"]) == ("nano", "second")


def test_the_last_step_takes_one_request_however_many_metrics(store: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server with a login takes a while for each; a run has more than a hundred metrics."""
    run_id = store.open_run("g3pt/cvq", "many", {})
    assert store.last_step(run_id) == -1
    store.log_records(run_id, [{"step": step, f"a{step}": 1.0, "b": -float(step)} for step in (3.0, 9.0, 6.0)])
    asked: list[str] = []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            asked.append(name)
            return getattr(client, name)

    client = store.client
    monkeypatch.setattr(store, "client", Counting())
    assert store.last_step(run_id) == 9 and asked == ["get_run"]


def test_a_run_of_a_lost_store_is_made_anew(store: Tracking) -> None:
    run_id = store.open_run("g3pt/cvq", "run", {}, resume_id="0" * 32)
    assert run_id != "0" * 32 and store.has_run(run_id)


def test_a_login_is_cut_from_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise OSError("API request to http://user:secret@host:5000/api failed, ask admin@host")

    assert tracking.best_effort("calling a server behind a login", fail) is None
    said = capsys.readouterr().err
    assert "http://host:5000/api failed, ask admin@host" in said and "secret" not in said
    assert without_login("sqlite:////home/a@b/mlflow.db") == "sqlite:////home/a@b/mlflow.db"


IN_FORKS = """
import os, sys
import alembic.command, mlflow.store.tracking.sqlalchemy_store  # what a first store imports
from pipelines.tracking.client import Tracking

for number in range(4):
    if os.fork() == 0:
        print(Tracking(sys.argv[1]).open_run("g3pt/car", f"p{number}", {}), flush=True)
        os._exit(0)
for _ in range(4):
    os.wait()
"""


@pytest.mark.slow
def test_four_processes_open_a_fresh_store_at_once(tmp_path: Path) -> None:
    """Forks of a process that has imported MLflow and opened no store."""
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    uri = tracking.tracking_uri(tmp_path / "runs")
    done = subprocess.run([sys.executable, "-c", IN_FORKS, uri], env=env, capture_output=True, text=True, timeout=120)
    ids = set(done.stdout.split())
    client = Tracking(uri).client
    experiment = client.get_experiment_by_name("g3pt/car")
    assert experiment is not None and experiment.experiment_id != "0", done.stderr[-2000:]
    assert {r.info.run_id for r in client.search_runs([experiment.experiment_id])} == ids
    assert len(ids) == 4


def test_artifacts_of_a_moved_store_are_found_and_new_ones_stay_with_it(tmp_path: Path) -> None:
    made, moved = tmp_path / "made here", tmp_path / "moved"
    old = Tracking(tracking.tracking_uri(made / "x"))
    run_id = old.open_run("g3pt/car", "run", {})
    kept = Path(unquote(urlparse(old.client.get_run(run_id).info.artifact_uri).path)) / "a.txt"
    kept.parent.mkdir(parents=True)
    kept.write_text("kept")  # by hand: a client remembers for its process where a run's artifacts go
    elsewhere = old.client.create_experiment("mine", artifact_location=(tmp_path / "elsewhere").as_uri())
    made.rename(moved)
    new = Tracking(tracking.tracking_uri(moved / "x"))
    new.client.log_text(run_id, "added", "b.txt")
    another = new.open_run("g3pt/car", "another", {})
    new.client.log_text(another, "added", "c.txt")
    assert [f.path for f in new.client.list_artifacts(run_id)] == ["a.txt", "b.txt"]
    assert Path(new.client.download_artifacts(run_id, "a.txt")).read_text() == "kept"
    assert not made.exists(), "nothing is written to the old place"
    assert new.client.get_experiment(elsewhere).artifact_location == (tmp_path / "elsewhere").as_uri()
    assert moved_store.follow_move(moved / "mlflow.db") == 0, "once is enough"
