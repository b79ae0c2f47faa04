"""Runs of commands that were killed do not stay RUNNING, and a run whose command lives is left alone."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.runs.locks import LOCK_FILE, locked
from pipelines.runs.notes import COMMAND_FILE, RUN_FILE, driver_is_gone
from pipelines.tracking import client as tracking
from pipelines.tracking import killed
from pipelines.tracking.client import ExperimentDeleted, Tracking
from pipelines.tracking.killed import close_killed
from pipelines.tracking.tracked import followed, is_told
from tests.pipelines.tracking.test_tracked import card


@pytest.fixture
def ended_pid() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def killed_run(folder: Path, name: str, pid: int, host: str = "") -> Path:
    """The folder of a run whose command had this process id: its MLflow run is still open."""
    ours = card(folder, name, stage="cvq")
    ours.folder.mkdir(parents=True)
    work = followed(ours, folder / "x", finished=lambda: False)
    work.__enter__()
    killed_run.kept.append(work)  # the garbage collector would close it
    (ours.folder / COMMAND_FILE).write_text(json.dumps({"host": host or socket.gethostname(), "pid": pid}))
    return ours.folder


killed_run.kept = []


@pytest.fixture(autouse=True)
def end_of_the_killed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test is a command of its own."""
    monkeypatch.setattr(killed, "_looked_at", set())
    monkeypatch.setattr(tracking, "_warned", set())
    yield
    while killed_run.kept:
        killed_run.kept.pop().gen.close()


def state(folder: Path) -> str:
    note = json.loads((folder / RUN_FILE).read_text())
    status = Tracking(tracking.tracking_uri(folder.parent / "x")).status_of(note["run_id"])
    assert note["status"] == status
    return status


def test_only_the_runs_of_ended_commands_are_closed(tmp_path: Path, ended_pid: int) -> None:
    dead = killed_run(tmp_path, "dead", ended_pid)
    alive = killed_run(tmp_path, "alive", os.getpid())
    elsewhere = killed_run(tmp_path, "elsewhere", ended_pid, host="another-machine")
    done = killed_run(tmp_path, "done", ended_pid)
    (done / "_SUCCESS").touch()
    held = killed_run(tmp_path, "held", ended_pid)
    everything = [dead, alive, elsewhere, done, held, tmp_path / "nothing"]
    with locked(held / LOCK_FILE):
        assert close_killed(everything) == [dead, done]
    assert [state(f) for f in everything[:-1]] == ["KILLED", "RUNNING", "RUNNING", "FINISHED", "RUNNING"]
    assert not is_told(done), "its next start still describes it"
    assert close_killed([dead, done]) == [], "once is enough"
    assert driver_is_gone(held) and close_killed([held]) == [held]


def test_a_run_of_a_study_has_its_study_s_command(tmp_path: Path, ended_pid: int) -> None:
    study = killed_run(tmp_path, "study", ended_pid)
    run = study / "runs" / "car-20k"
    run.mkdir(parents=True)
    assert driver_is_gone(run)
    (study / COMMAND_FILE).write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
    assert not driver_is_gone(run)


def test_the_next_command_beside_it_closes_it(tmp_path: Path, ended_pid: int) -> None:
    dead = killed_run(tmp_path, "dead", ended_pid)
    (tmp_path / "next").mkdir()
    killed._looked_at.clear()
    with followed(card(tmp_path, "next", stage="cvq"), tmp_path / "x", finished=lambda: True):
        assert state(dead) == "KILLED"


def test_status_closes_it_and_says_so(tmp_path: Path, ended_pid: int, capsys: pytest.CaptureFixture[str]) -> None:
    from pipelines.cli.errors import NotWell
    from pipelines.status import job
    from tests.pipelines.tracking.test_alarm import run_folder

    spec, run_dir = run_folder(tmp_path, {})
    run_dir.rename(tmp_path / "kept")
    dead = killed_run(tmp_path, spec.name, ended_pid)
    for file in (tmp_path / "kept").iterdir():
        file.rename(dead / file.name)
    (tmp_path / "kept").rmdir()
    for said in (f"MLflow: closed the run of {dead}, whose command was killed\n", ""):
        with pytest.raises(NotWell):
            job.status(job.StatusFlags(dir=str(tmp_path)))
        assert capsys.readouterr().err == said
    assert state(dead) == "KILLED"


def test_a_store_that_is_gone_is_not_made_anew(tmp_path: Path, ended_pid: int) -> None:
    dead = killed_run(tmp_path / "before", "dead", ended_pid)
    (tmp_path / "before").rename(tmp_path / "after")
    assert close_killed([tmp_path / "after" / "dead"]) == [] and not (tmp_path / "before").exists()
    assert dead.name == "dead"


def test_a_deleted_experiment_is_named_with_its_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Tracking(tracking.tracking_uri(tmp_path / "x"))
    number = store.experiment("g3pt/car")
    store.client.delete_experiment(number)
    with pytest.raises(ExperimentDeleted, match=f"g3pt/car was deleted .* restore --experiment-id {number}$"):
        store.open_run("g3pt/car", "run", {})
    ours = card(tmp_path, "lost", stage="car")
    with followed(ours, tmp_path / "x", finished=lambda: True) as outcome:
        assert outcome.run_id is None, "the work goes on"
    said = capsys.readouterr().err
    assert f"MLFLOW_TRACKING_URI={store.uri} mlflow experiments restore --experiment-id {number}\n" in said
