"""SIGKILL in and between the phases of a tokenizer's training: weights and ledger are bitwise those
of an uninterrupted run.
"""

import dataclasses
import multiprocessing
import signal
from pathlib import Path
from typing import Any

import pytest

from pipelines.runs.identity import RunSpec
from pipelines.runs.ledger import Ledger
from pipelines.train import checkpoints
from pipelines.train import run as train
from tests.g3pt.models.test_tokenizer import TINY

BUILD = "tests.pipelines.tiny_cvq_stage:build_stage"
BATCH = 4
LOOP = {"steps": 15, "batch_size": BATCH, "learning_rate": 2e-3, "log_every": 3, "eval_every": 6, "checkpoint_every": 3}
SHARES = {
    "continuous_share": 0.34,
    "pyramid_share": 0.27,
}  # steps 0 to 4 continuous, 5 to 8 with the pyramid, 9 to 14 joint
KILLED = {
    "before a checkpoint": 1,
    "continuous": 4,
    "switch to the pyramid": 5,
    "pyramid": 7,
    "switch to the joint phase": 9,
    "joint": 13,
}


def run(run_dir: Path, **paths: str) -> int:
    """Start the run in its own process; returns the exit code, negative for a signal."""
    model = dataclasses.asdict(dataclasses.replace(TINY, **SHARES))
    spec = RunSpec(stage="cvq", preset="tiny", seed=0, config={"model": model, "train": LOOP}, paths=paths)
    config: dict[str, Any] = train.work_config(spec, run_dir, BUILD)
    (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    process = multiprocessing.get_context("fork").Process(target=train.work, args=(config,))
    process.start()
    process.join(300)
    assert process.exitcode is not None
    return process.exitcode


def records(run_dir: Path) -> list[dict[str, float]]:
    return [
        {k: v for k, v in r.items() if k not in ("time", "samples_per_second")}
        for r in Ledger(run_dir / "metrics.jsonl").read()
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder) == 0
    return folder


def test_killed_in_every_phase_and_at_both_switches_equals_uninterrupted(whole: Path, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    samples = [step * BATCH for step in KILLED.values()]
    kill_at = ",".join(map(str, samples))
    codes = [run(tmp_path / "run", marks=str(marks), kill_at=kill_at) for _ in range(len(samples) + 1)]
    assert codes == [-signal.SIGKILL] * len(samples) + [0]
    assert sorted(int(mark.name) for mark in marks.iterdir()) == samples
    for export in ("export", "export-best"):
        weights = [(folder / export / "model.safetensors").read_bytes() for folder in (whole, tmp_path / "run")]
        assert weights[0] == weights[1]
    assert records(tmp_path / "run") == records(whole)


def test_as_many_checkpoints_are_kept_as_asked(tmp_path: Path) -> None:
    for step in range(4):
        checkpoints.save_checkpoint(tmp_path, {"samples": step, "held": None}, num_to_keep=3)
    assert [path.name for path in checkpoints.checkpoints(tmp_path)] == [
        f"samples-{step:012d}.dcp" for step in (3, 2, 1)
    ]
    (tmp_path / "samples-000000000003.dcp" / "state.json").write_bytes(b"torn")
    assert checkpoints.newest_checkpoint(tmp_path)[0] == "samples-000000000002.dcp"
