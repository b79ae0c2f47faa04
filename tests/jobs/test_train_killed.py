"""jobs/train_cvq.py interrupted and killed: started again, its export, ledger and MLflow run are those
of an uninterrupted run.
"""

import json
import random
import signal
import time
from pathlib import Path

import pytest

from g3pt.training.exports import export_hash
from pipelines.preprocess.config import PreprocessConfig
from pipelines.preprocess.job import preprocess
from pipelines.preprocess.shards import map_here
from pipelines.runs.identity import RunSpec
from pipelines.runs.ledger import Ledger
from pipelines.tracking import tracked
from pipelines.tracking.client import Tracking
from pipelines.train import checkpoints
from pipelines.train import run as train
from tests.empty_store import EmptyStore
from tests.jobs import kills

STEPS, BATCH = 60, 4
INTERVAL = STEPS // 5 * BATCH  # samples between two checkpoints


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Real shapes, few and coarse, with as many points as the preset reads."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    counts = {"resolution": 32, "num_surface": 4096, "num_sharp": 16, "num_queries": 1024}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracked, "tell", lambda *_: None)
        return preprocess(
            PreprocessConfig(source="shapes", output=str(folder), limit=16, num_shards=2, **counts), map_here
        )


def command(data: str, folder: Path) -> list[str]:
    return kills.command("train_cvq", data=data, output=folder / "runs", steps=STEPS, batch_size=BATCH)


def uninterrupted(run_dir: Path, output: Path) -> Path:
    """The same run in this process, without Ray and without a kill."""
    return train.train_run(RunSpec.from_dict(json.loads((run_dir / "config.json").read_text())), output, num_workers=0)


def is_the_same(run_dir: Path, whole: Path) -> None:
    assert run_dir.name == whole.name
    assert export_hash(run_dir) == export_hash(whole)
    skip = {"time", "samples_per_second"}
    here, there = (
        [{k: v for k, v in r.items() if k not in skip} for r in Ledger(d / "metrics.jsonl").read()]
        for d in (run_dir, whole)
    )
    assert here == there


@pytest.mark.slow
@pytest.mark.parametrize("ray_of_commands", ["joined"], indirect=True)
def test_cvq_interrupted_and_killed_equals_an_uninterrupted_run(
    data: str, tmp_path: Path, empty_store: EmptyStore, ray_of_commands: dict[str, str]
) -> None:
    """Ctrl-C after the first checkpoint, SIGKILL at a random moment after the next, then an uninterrupted start.

    The last start joins a cluster; the others have one of their own.
    """
    empty_store.lay(tmp_path / "mlflow.db")
    number = random.Random(time.time_ns()).choice([signal.SIGINT, signal.SIGTERM])
    first = kills.interrupt_when(
        command(data, tmp_path), tmp_path, lambda: any(tmp_path.glob("runs/*/checkpoints/samples-*.dcp")), number
    )
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert "saving after the current step" in first
    at = checkpoints.checkpointed(run_dir)
    assert f"  safe     its checkpoint at {at} of {STEPS * BATCH} samples ({run_dir})" in first.splitlines()
    wait_s = random.Random(time.time_ns()).uniform(0, 0.7)
    killed_at = kills.kill_when(
        command(data, tmp_path), tmp_path, lambda: checkpoints.checkpointed(run_dir) > at, wait_s
    )
    # Ray's worker may outlive the driver by a moment, and even come to the run's end: then the third start only tells
    # MLflow so.
    reached = Ledger(run_dir / "metrics.jsonl").last_samples()
    assert kills.finish(command(data, tmp_path), tmp_path, **ray_of_commands) == str(run_dir)
    is_the_same(run_dir, uninterrupted(run_dir, tmp_path / "whole" / "runs"))
    kept = [r["step"] for r in Ledger(run_dir / "metrics.jsonl").read() if r["time"] < killed_at]
    assert kept[-1] >= reached - INTERVAL, "more than one checkpoint interval was done again"
    reads_back_from_mlflow(tmp_path, run_dir)


def reads_back_from_mlflow(tmp_path: Path, run_dir: Path) -> None:
    """MLflow has one run with its parameters, rising steps without repeats, and artefacts that open."""
    client = Tracking(f"sqlite:///{tmp_path}/mlflow.db").client
    experiment = client.get_experiment_by_name("g3pt/cvq")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == (run_dir.name, "FINISHED")
    assert (run.data.params["steps"], run.data.params["batch_size"], run.data.params["preset"]) == (
        str(STEPS),
        str(BATCH),
        "nano",
    )
    ledger = Ledger(run_dir / "metrics.jsonl").read()
    for key in ("train/loss", "val/iou"):
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, key)]
        assert (
            steps == [int(r["step"]) for r in ledger if key.replace("train/", "").replace("/", "_") in r]
            and len(steps) >= 4
        ), key
    assert Path(client.download_artifacts(run.info.run_id, "config.json")).read_bytes()
    assert [given.dataset.name for given in run.inputs.dataset_inputs] == ["shapes"]


@pytest.mark.soak
@kills.TWENTY
def test_cvq_killed_twenty_times(data: str, tmp_path: Path, number: int, ray_of_commands: dict[str, str]) -> None:
    def reached(folder: Path) -> int:
        return max((int(Ledger(file).last_samples() or 0) for file in folder.glob("runs/*/metrics.jsonl")), default=0)

    def check(folder: Path) -> None:
        (run_dir,) = (folder / "runs").iterdir()
        is_the_same(
            run_dir, uninterrupted(run_dir, tmp_path / "whole" / "runs")
        )  # trained for the first folder, there for the others

    kills.kill_often(
        lambda folder: command(data, folder), tmp_path, check, number, reached, STEPS * BATCH, **ray_of_commands
    )
