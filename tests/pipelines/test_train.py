"""Runs that stop and start again: one ledger, one export, whatever happened between. A killed command: tests/jobs/test_train_killed.py."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import runs, train
from pipelines.errors import UsageError
from pipelines.runs import Ledger, RunSpec, Tracking

TOY = "tests.pipelines.toy_stage:build_stage"


def toy_spec(steps: int = 20, *, paths: dict[str, str] | None = None, **toy: object) -> RunSpec:
    fit = {"steps": steps, "batch_size": 4, "learning_rate": 0.01, "log_every": 2, "eval_every": 4, "checkpoint_every": 6}
    return RunSpec(stage="cvq", preset="toy", seed=0, config={"toy": {"width": 8, **toy}, "train": fit}, paths=paths or {})


def weights_hash(run_dir: Path) -> str:
    return hashlib.sha256((run_dir / "export" / "model.safetensors").read_bytes()).hexdigest()


def ledger_steps(run_dir: Path) -> list[float]:
    return [r["step"] for r in Ledger(run_dir / "metrics.jsonl").read()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    return train.train_run(toy_spec(), tmp_path_factory.mktemp("whole") / "runs", num_workers=0, build=TOY)


def test_a_run_leaves_what_the_contract_says(whole: Path) -> None:
    spec = toy_spec()
    assert whole.name == spec.name
    assert {p.name for p in whole.iterdir()} >= {"config.json", "metrics.jsonl", "checkpoints", "export", "_SUCCESS"}
    assert ledger_steps(whole) == [8 * i for i in range(1, 11)]
    assert "test_ce" in Ledger(whole / "metrics.jsonl").read()[-1]
    assert [p.name for p in train.checkpoints(whole / "checkpoints")] == ["step-000000000080.pt", "step-000000000072.pt"]


def test_a_finished_run_is_left_alone(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file() and p.name != "config.json"}
    again = train.train_run(toy_spec(), whole.parent, num_workers=0, build=TOY)
    assert again == whole
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert "finished already" in capsys.readouterr().out


@pytest.mark.parametrize("kill_at", [pytest.param(4, marks=pytest.mark.slow), 40])
def test_killed_and_resumed_equals_uninterrupted(whole: Path, tmp_path: Path, kill_at: int) -> None:
    mark = tmp_path / "mark"
    program = (
        "from tests.pipelines.test_train import *\n"
        f"spec = toy_spec(kill_at={kill_at}, paths={{'mark': {str(mark)!r}}})\n"
        f"train.work({{'spec': spec.to_dict(), 'run_dir': str(train.prepare_run(spec, {str(tmp_path / 'runs')!r})), 'build': TOY}})\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(runs.REPOSITORY)}
    codes = [subprocess.run([sys.executable, "-c", program], env=environment, timeout=60).returncode for _ in range(2)]
    assert codes == [-signal.SIGKILL, 0]
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert weights_hash(run_dir) == weights_hash(whole)
    assert ledger_steps(run_dir) == ledger_steps(whole)
    skip = {"time", "samples_per_second"}
    strip = lambda folder: [{k: v for k, v in r.items() if k not in skip} for r in Ledger(folder / "metrics.jsonl").read()]  # noqa: E731
    assert strip(run_dir) == strip(whole)


def test_resume_when_only_the_export_is_missing(whole: Path, tmp_path: Path) -> None:
    run_dir = train.train_run(toy_spec(), tmp_path / "runs", num_workers=0, build=TOY)
    (run_dir / "_SUCCESS").unlink()
    (run_dir / "export" / "model.safetensors").unlink()
    train.train_run(toy_spec(), tmp_path / "runs", num_workers=0, build=TOY)
    assert weights_hash(run_dir) == weights_hash(whole)
    assert ledger_steps(run_dir) == ledger_steps(whole)
    client = Tracking(runs.tracking_uri(tmp_path / "runs")).client
    (run,) = client.search_runs([client.get_experiment_by_name("g3pt/cvq").experiment_id])
    history = [m.step for m in client.get_metric_history(run.info.run_id, "loss")]
    assert history == [int(s) for s in ledger_steps(run_dir)], "the second start went on in the same MLflow run, no step twice"
    assert run.info.status == "FINISHED"
    assert Path(client.download_artifacts(run.info.run_id, "config.json")).exists()


def test_an_unreadable_newest_checkpoint_is_passed_over(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = train.train_run(toy_spec(), tmp_path / "runs", num_workers=0, build=TOY)
    (run_dir / "_SUCCESS").unlink()
    newest = train.checkpoints(run_dir / "checkpoints")[0]
    newest.write_bytes(newest.read_bytes()[:100])
    train.train_run(toy_spec(), tmp_path / "runs", num_workers=0, build=TOY)
    assert "unreadable checkpoint step-000000000080.pt" in capsys.readouterr().err
    assert weights_hash(run_dir) == weights_hash(whole)


def test_object_store_is_refused_clearly() -> None:
    with pytest.raises(UsageError, match="not built yet"):
        train.train_run(toy_spec(), "s3://bucket/runs", num_workers=0, build=TOY)


@pytest.mark.slow
def test_under_ray_a_lost_worker_costs_nothing(whole: Path, tmp_path: Path, ray_cluster: None) -> None:
    """The worker kills itself once; Train restarts it; the export is that of an uninterrupted run without Ray."""
    spec = toy_spec(kill_at=40, paths={"mark": str(tmp_path / "mark")})
    run_dir = train.train_run(spec, tmp_path / "runs", num_workers=1, build=TOY)
    assert (tmp_path / "mark").exists()
    assert weights_hash(run_dir) == weights_hash(whole)
    assert ledger_steps(run_dir) == ledger_steps(whole)


@pytest.mark.slow
def test_two_workers_see_each_sample_once(whole: Path, tmp_path: Path, ray_cluster: None) -> None:
    run_dir = train.train_run(toy_spec(), tmp_path / "runs", num_workers=2, build=TOY)
    assert ledger_steps(run_dir) == ledger_steps(whole)
    assert (run_dir / "_SUCCESS").exists()
