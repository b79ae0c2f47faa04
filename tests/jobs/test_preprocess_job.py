"""jobs/preprocess.py as a person runs it: exit codes, the result line, real Ray, and kill -9 at a random moment."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from g3pt import records
from pipelines.preprocess import PreprocessConfig, map_here, preprocess

JOB = Path(__file__).resolve().parents[2] / "jobs" / "preprocess.py"
COUNTS = {"resolution": 32, "num_surface": 64, "num_sharp": 32, "num_queries": 256}
SHAPES = {"source": "shapes", "limit": 48, "num_shards": 12, **COUNTS}


def command(**flags: object) -> list[str]:
    pairs = [[f"--{name.replace('_', '-')}", str(value)] for name, value in flags.items()]
    return [sys.executable, str(JOB), *(part for pair in pairs for part in pair)]


def environment(tmp_path: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return {**kept, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}


def start(tmp_path: Path, *more: str, **flags: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command(**flags), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(tmp_path),
        cwd=tmp_path,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"source": "dir", "input": "missing"}, "missing does not exist"),
        ({"source": "dir", "input": "empty"}, "holds no objects"),
        ({"source": "objaverse"}, "objaverse is not built yet"),
        ({"source": "shapes", "frobnicate": 1}, "frobnicate"),
    ],
)
def test_bad_usage_is_exit_2_and_one_line(tmp_path: Path, flags: dict, message: str) -> None:
    (tmp_path / "empty").mkdir()
    code, out, err = finish(start(tmp_path, output="data", **flags))
    assert code == 2 and out == ""
    assert message in err and len(err.strip().splitlines()) == 1 and err.startswith("error: ")
    assert not (tmp_path / "data").exists()


def test_a_dry_run_prints_its_plan_on_stdout(tmp_path: Path) -> None:
    code, out, err = finish(start(tmp_path, "--dry-run", output="data", source="shapes", limit=5))
    assert (code, err) == (0, "") and "5 objects in 1 shards to convert (1 new)" in out
    assert not (tmp_path / "data").exists()


@pytest.mark.slow
def test_killed_twice_then_finished_equals_an_uninterrupted_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/whole.db")
    preprocess(PreprocessConfig(output=str(tmp_path / "whole"), **SHAPES), map_here)
    whole = records.open_dataset(tmp_path / "whole")
    rng = random.Random(time.time_ns())
    target = tmp_path / "killed"
    for least in (1, 5):  # shards that must be there before the kill: it lands in the middle of the work
        _kill_in_the_middle(start(tmp_path, output=target, **SHAPES), target, least, rng.uniform(0.0, 0.6))
        assert not (target / "dataset.json").exists()
    before = {file: file.stat().st_mtime_ns for file in target.glob("shard-*.json")}
    assert 5 <= len(before) < 12
    code, out, err = finish(start(tmp_path, output=target, **SHAPES))
    assert code == 0, err
    assert out.splitlines()[-1] == f"result: {target}"
    assert "are finished and skipped" in err and "dataset: ok 48" in err
    assert records.open_dataset(target).shards == whole.shards
    assert (target / "dataset.json").read_bytes() == (tmp_path / "whole" / "dataset.json").read_bytes()
    untouched = [file for file, when in before.items() if file.stat().st_mtime_ns == when]
    assert len(untouched) >= len(before) - 2  # each of two workers may have been between parquet and sidecar
    assert _mlflow_counts(tmp_path) == [48.0]


def _kill_in_the_middle(process: subprocess.Popen[str], folder: Path, least: int, wait_s: float) -> None:
    deadline = time.monotonic() + 200
    while len(list(folder.glob("shard-*.json"))) < least:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.02)
    time.sleep(wait_s)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def _mlflow_counts(tmp_path: Path) -> list[float]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("g3pt/preprocess")
    return [run.data.metrics["count_ok"] for run in client.search_runs([experiment.experiment_id])]
