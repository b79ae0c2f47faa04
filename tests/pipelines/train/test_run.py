"""Runs that stop and resume have one ledger and one export. Killed commands: tests/jobs/test_train_killed.py."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pipelines.cli import interrupt
from pipelines.cli.errors import UsageError
from pipelines.cli.failures import safe_on_disk
from pipelines.cli.interrupt import Stopped
from pipelines.cli.paths import REPOSITORY
from pipelines.cluster.stopping import STOP_FILE
from pipelines.runs.identity import RunSpec
from pipelines.runs.ledger import Ledger
from pipelines.tracking import client as tracking
from pipelines.tracking import tracked
from pipelines.tracking.client import Tracking
from pipelines.train import checkpoints, follow
from pipelines.train import run as train
from pipelines.train import worker as train_worker

TOY = "tests.pipelines.toy_stage:build_stage"


def toy_spec(steps: int = 20, *, paths: dict[str, str] | None = None, **toy: object) -> RunSpec:
    fit = {
        "steps": steps,
        "batch_size": 4,
        "learning_rate": 0.01,
        "log_every": 2,
        "eval_every": 4,
        "checkpoint_every": 6,
    }
    return RunSpec(
        stage="cvq", preset="toy", seed=0, config={"toy": {"width": 8, **toy}, "train": fit}, paths=paths or {}
    )


def weights_hash(run_dir: Path) -> str:
    return hashlib.sha256((run_dir / "export" / "model.safetensors").read_bytes()).hexdigest()


def records_of(run_dir: Path) -> list[dict[str, float]]:
    """Records without the fields that differ between runs."""
    return [
        {k: v for k, v in row.items() if k not in ("time", "samples_per_second")}
        for row in Ledger(run_dir / "metrics.jsonl").read()
    ]


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
    assert not list((whole / "checkpoints").iterdir()), "a finished run needs its exports alone"


def test_a_finished_run_is_left_alone(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()}
    again = train.train_run(toy_spec(paths={"data": "moved"}), whole.parent, num_workers=0, build=TOY)
    assert again == whole
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert "finished already" in capsys.readouterr().out


def test_a_run_of_another_format_is_not_resumed(tmp_path: Path) -> None:
    run_dir = train.prepare_run(toy_spec(), tmp_path)
    file = run_dir / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": 99}))
    with pytest.raises(
        UsageError, match=r"config.json has format version 99; this g3pt reads version \d+: use the g3pt"
    ):
        train.prepare_run(toy_spec(), tmp_path)


def test_a_run_made_under_other_defaults_is_not_resumed(tmp_path: Path) -> None:
    """Names leave out fields at their default, so a changed default gives a new run the name of an old one."""
    spec = toy_spec()
    run_dir = train.prepare_run(spec, tmp_path)
    stored = json.loads((run_dir / "config.json").read_text())
    stored["config"]["train"]["learning_rate"] = 0.5
    (run_dir / "config.json").write_text(json.dumps(stored))
    with pytest.raises(
        UsageError, match=r"was made with train.learning_rate 0.5, not 0.01, .* choose another --output"
    ):
        train.prepare_run(spec, tmp_path)
    del stored["config"]["train"]["learning_rate"]  # a field that was added since
    (run_dir / "config.json").write_text(json.dumps(stored))
    assert train.prepare_run(spec, tmp_path) == run_dir


def test_replace_makes_a_run_of_other_defaults_anew(tmp_path: Path) -> None:
    spec = toy_spec()
    run_dir = train.train_run(spec, tmp_path, num_workers=0, build=TOY)
    stored = json.loads((run_dir / "config.json").read_text())
    stored["config"]["train"]["learning_rate"] = 0.5
    (run_dir / "config.json").write_text(json.dumps(stored))
    (run_dir / "export" / "model.safetensors").write_text("old")
    with pytest.raises(UsageError, match=r"was made with train.learning_rate 0.5, not 0.01, .* or give --replace"):
        train.train_run(spec, tmp_path, num_workers=0, build=TOY)
    assert (run_dir / "export" / "model.safetensors").read_text() == "old"
    train.train_run(spec, tmp_path, num_workers=0, build=TOY, replace=True)
    assert json.loads((run_dir / "config.json").read_text()) == spec.to_dict()
    assert ledger_steps(run_dir) == [8 * i for i in range(1, 11)] and weights_hash(run_dir)
    before = {p: p.stat().st_mtime_ns for p in run_dir.rglob("*") if p.is_file()}
    train.train_run(spec, tmp_path, num_workers=0, build=TOY, replace=True)
    assert {p: p.stat().st_mtime_ns for p in before} == before, "a run of these settings is finished"


def test_a_second_start_is_refused_before_it_touches_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the driver: not after it has taken a worker, and the living run stays RUNNING in MLflow."""
    spec, seen = toy_spec(), []

    def work_while_another_starts(config: dict) -> None:
        run_dir = Path(config["run_dir"])
        before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
        status = run_status(run_dir)
        with pytest.raises(UsageError, match=rf"another command is working there \(process {os.getpid()} on "):
            train.train_run(spec, tmp_path / "runs", num_workers=0, build=TOY, ready=lambda _: pytest.fail("it works"))
        assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before
        seen.append((status, run_status(run_dir)))
        train_worker.work(config)

    monkeypatch.setattr(train, "work", work_while_another_starts)
    run_dir = train.train_run(spec, tmp_path / "runs", num_workers=0, build=TOY)
    assert seen == [("RUNNING", "RUNNING")] and run_status(run_dir) == "FINISHED"


def run_status(run_dir: Path) -> str:
    note = json.loads((run_dir / "mlflow.json").read_text())
    return Tracking(note["tracking_uri"]).client.get_run(note["run_id"]).info.status


def test_mlflow_is_told_of_a_run_that_a_worker_ended_after_its_driver_was_killed(tmp_path: Path) -> None:
    run_dir = train.train_run(toy_spec(), tmp_path / "runs", num_workers=0, build=TOY)
    note = json.loads((run_dir / "mlflow.json").read_text())
    assert note["closed"] is True
    client = Tracking(f"sqlite:///{tmp_path}/mlflow.db").client
    client.update_run(note["run_id"], status="RUNNING")
    (run_dir / "mlflow.json").write_text(json.dumps({**note, "closed": False}))
    train.train_run(toy_spec(), tmp_path / "runs", num_workers=0, build=TOY)
    assert client.get_run(note["run_id"]).info.status == "FINISHED"
    assert json.loads((run_dir / "mlflow.json").read_text()) == note


IN_FORKS = """
import os, sys
import torch._dynamo, g3pt.training.parallel, g3pt.training.fit, tests.pipelines.toy_stage  # five CPU s
from tests.pipelines.train.test_run import TOY, toy_spec, train

for kill_at in (4, 40):
    for _ in range(2):
        if (pid := os.fork()) == 0:
            spec = toy_spec(kill_at=kill_at, paths={"mark": f"{sys.argv[1]}/mark-{kill_at}"})
            run_dir = train.prepare_run(spec, f"{sys.argv[1]}/{kill_at}")
            train.work({"spec": spec.to_dict(), "run_dir": str(run_dir), "build": TOY})
            os._exit(0)
        print("killed at", kill_at, "exit", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(whole: Path, tmp_path: Path) -> None:
    """Each start is its own process, forked from one that has imported everything."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", IN_FORKS, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=120
    )
    codes = [line for line in done.stdout.splitlines() if line.startswith("killed at")]
    assert codes == [f"killed at {kill_at} exit {code}" for kill_at in (4, 40) for code in (-int(signal.SIGKILL), 0)], (
        done.stderr[-2000:]
    )
    for kill_at in (4, 40):
        (run_dir,) = (tmp_path / str(kill_at)).iterdir()
        assert weights_hash(run_dir) == weights_hash(whole)
        assert records_of(run_dir) == records_of(whole)


def test_a_signal_to_the_driver_saves_the_step_at_hand(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The signal comes between two records and two checkpoints; the next start resumes there, with the ledger and
    weights of an uninterrupted run.
    """
    monkeypatch.setattr(interrupt, "GRACE_S", 1e6)  # what would cut this process off
    spec = toy_spec(term_at=16, paths={"mark": str(tmp_path / "mark")})
    run_dir = tmp_path / "runs" / spec.name
    with pytest.raises(Stopped) as stopped, interrupt.stoppable():
        train.train_run(spec, tmp_path / "runs", num_workers=0, build=TOY)
    assert stopped.value.exit_code == 143 and safe_on_disk(stopped.value) == [
        f"its checkpoint at 20 of 80 samples ({run_dir})"
    ]
    assert "saving after the current step" in capsys.readouterr().err
    assert not (run_dir / STOP_FILE).exists() and not (run_dir / "failure.json").exists()
    assert train.train_run(spec, tmp_path / "runs", num_workers=0, build=TOY) == run_dir
    assert "resumes at 20 samples (0 later ledger records dropped)" in capsys.readouterr().out
    assert weights_hash(run_dir) == weights_hash(whole)
    assert records_of(run_dir) == records_of(whole)


def test_resume_when_only_the_export_is_missing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The worker was killed before `_SUCCESS`; until then the last checkpoint is there."""
    monkeypatch.setattr(train, "remove_finished", lambda *_: None)
    run_dir = train.train_run(toy_spec(), tmp_path / "runs", num_workers=0, build=TOY)
    (run_dir / "_SUCCESS").unlink()
    (run_dir / "export" / "model.safetensors").unlink()
    monkeypatch.undo()
    train.train_run(toy_spec(), tmp_path / "runs", num_workers=0, build=TOY)
    assert "resumes at 80 samples" in capsys.readouterr().out
    assert weights_hash(run_dir) == weights_hash(whole)
    assert ledger_steps(run_dir) == ledger_steps(whole)
    client = Tracking(tracking.tracking_uri(tmp_path / "runs")).client
    (run,) = client.search_runs([client.get_experiment_by_name("g3pt/cvq").experiment_id])
    history = [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")]
    assert history == [int(s) for s in ledger_steps(run_dir)], (
        "the second start went on in the same MLflow run, no step twice"
    )
    assert run.info.status == "FINISHED"
    assert Path(client.download_artifacts(run.info.run_id, "config.json")).exists()


def without_its_end(output: Path) -> Path:
    """The toy run, whose worker was killed before it wrote `_SUCCESS`."""
    run_dir = train.prepare_run(toy_spec(), output)
    train_worker.work(train_worker.work_config(toy_spec(), run_dir, TOY))
    (run_dir / "_SUCCESS").unlink()
    assert [path.name for path in checkpoints.checkpoints(run_dir / "checkpoints")] == [
        "samples-000000000080.dcp",
        "samples-000000000072.dcp",
    ]
    return run_dir


def test_an_unreadable_newest_checkpoint_is_passed_over(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = without_its_end(tmp_path / "runs")
    newest = checkpoints.checkpoints(run_dir / "checkpoints")[0]
    (newest / "model.safetensors").write_bytes((newest / "model.safetensors").read_bytes()[:100])
    train.train_run(toy_spec(), tmp_path / "runs", num_workers=0, build=TOY)
    assert "unreadable checkpoint samples-000000000080.dcp" in capsys.readouterr().err
    assert weights_hash(run_dir) == weights_hash(whole)


def test_a_run_goes_on_from_a_file_of_before(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One process and DDP wrote `.pt`, with tuples and numbers as keys."""
    run_dir = without_its_end(tmp_path / "runs")
    newest, older = checkpoints.checkpoints(run_dir / "checkpoints")
    state = checkpoints.read_checkpoint(older)
    state["fit"] = state["fit"]()
    state["fit"]["optimizer"]["state"] = {int(i): kept for i, kept in state["fit"]["optimizer"]["state"].items()}
    torch.save(state, older.with_suffix(".pt"))
    for folder in (newest, older):
        shutil.rmtree(folder)
    assert checkpoints.checkpointed(run_dir) == 72
    train.train_run(toy_spec(), tmp_path / "runs", num_workers=0, build=TOY)
    assert "resumes at 72 samples" in capsys.readouterr().out
    assert weights_hash(run_dir) == weights_hash(whole) and records_of(run_dir) == records_of(whole)
    assert not list((run_dir / "checkpoints").iterdir()), "files of before are removed, too"


@pytest.mark.slow
def test_workers_go_on_from_the_checkpoint_that_rank_0_chose(tmp_path: Path) -> None:
    """A worker of the killed start still has the run and writes a checkpoint after the new start's second worker has
    begun.
    """
    program = (
        "import datetime, sys; from pathlib import Path; import torch.distributed as dist; import g3pt.training.fit\n"
        "from tests.pipelines.train.test_run import *\n"
        f"folder, rank = Path({str(tmp_path)!r}), int(sys.argv[1])\n"
        "g3pt.training.fit.fit = lambda **given: (folder / "
        "f'rank-{rank}').write_text(str(given['resume'](None)['steps_done'])) and sys.exit()\n"
        "dist.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=2, "
        "timeout=datetime.timedelta(seconds=300))\n(folder / f'there-{rank}').touch()\n"
        "config = {'spec': toy_spec().to_dict(), 'run_dir': str(folder / 'run'), 'build': TOY}\ntry:\n"
        "    train.work(config, rank=rank, world_size=2)\n"
        "finally:\n"
        "    dist.barrier(); dist.destroy_process_group()  # gloo's threads abort an interpreter that ends with them "
        "running\n"
    )
    newest, older = checkpoints.checkpoints(without_its_end(tmp_path / "runs") / "checkpoints")
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    older.rename(folder / older.name)
    with train_worker.worker_lock(tmp_path / "run"):
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        workers = [subprocess.Popen([sys.executable, "-c", program, str(rank)], env=environment) for rank in range(2)]
        deadline = time.monotonic() + 300
        while not all((tmp_path / f"there-{rank}").exists() for rank in range(2)):
            assert time.monotonic() < deadline and not any(worker.poll() for worker in workers)
            time.sleep(0.1)
        time.sleep(2)
        newest.rename(folder / newest.name)
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    assert [(tmp_path / f"rank-{rank}").read_text() for rank in range(2)] == ["20", "20"]


def test_a_tracking_server_s_password_is_not_written_down(tmp_path: Path) -> None:
    class Server:
        """A tracking server behind a login."""

        uri = "https://user:p@ss:word@mlflow.example:5000/team"

        def open_run(self, *_: object) -> str:
            return "1234"

    assert tracked._open(Server(), follow.card(toy_spec(), tmp_path), tmp_path, None) == "1234"
    assert json.loads((tmp_path / "mlflow.json").read_text()) == {
        "run_id": "1234",
        "tracking_uri": "https://mlflow.example:5000/team",
        "status": "RUNNING",
        "closed": False,
    }


@pytest.mark.parametrize(
    ("checkpoints_at", "max_failures", "tries"),
    [
        ([0] * 9, 3, 4),
        ([0] * 9, 0, 1),
        ([24, 48, 72, 72, 72, 72, 72, 72, 72], 3, 7),  # three with progress, which do not count, and four without
        ([0, 0, 0, 24, 24, 24, 24, 24, 24], 3, 8),
    ],
)
def test_failures_count_since_the_newest_checkpoint(
    checkpoints_at: list[int], max_failures: int, tries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.train import TrainingFailedError

    class Lost(TrainingFailedError):
        """A worker's node went away."""

    reached = [0]

    def fit_once(*_: object) -> None:
        reached.append(checkpoints_at[len(reached) - 1])
        raise Lost("lost")

    monkeypatch.setattr(train, "_fit_once", fit_once)
    monkeypatch.setattr(train, "checkpointed", lambda _: reached[-1])
    with pytest.raises(Lost):
        train.ray_train(toy_spec(), tmp_path, 1, max_failures=max_failures, key="somebody watches")
    assert len(reached) - 1 == tries


def test_each_start_takes_as_many_workers_as_the_cluster_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of four nodes are lost, then one comes back: the workers are divisors of the batch of 4."""
    from ray.train import TrainingFailedError

    class Lost(TrainingFailedError):
        """A worker's node went away."""

    there, started = iter([4, 2, 3, 9]), list[int]()

    def fit_once(_: dict, count: int, device: str) -> None:
        started.append(count)
        if len(started) < 4:
            raise Lost("lost")

    monkeypatch.setattr(train, "_fit_once", fit_once)
    monkeypatch.setattr(train, "units_there", lambda _: next(there))
    train.ray_train(toy_spec(), tmp_path, 4, key="somebody watches", min_workers=1)
    assert started == [4, 2, 2, 4]
    assert capsys.readouterr().err.count("2 of 4 workers, as the cluster has no more now") == 2


def test_the_number_of_workers_is_the_largest_divisor_that_there_is() -> None:
    assert [train.workers_now(12, 12, 2, there) for there in (0, 1, 2, 5, 7, 11, 99)] == [2, 2, 2, 4, 6, 6, 12]
    assert train.workers_now(8, 4, 4, 2) == 4, "a run without fewer waits"
    assert [train_worker.at_once(share, 4) for share in (2, 3, 4, 6, 7, 16)] == [2, 3, 4, 3, 1, 4]


def test_a_lack_of_gpu_memory_is_one_try_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from pipelines.runs.notes import FAILURE_FILE, read_note

    tried = []

    def out_of_memory(**_: object) -> None:
        tried.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("g3pt.training.fit.fit", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        train.train_run(toy_spec(), tmp_path / "runs", num_workers=0, build=TOY)
    (note,) = (read_note(folder, FAILURE_FILE) for folder in (tmp_path / "runs").iterdir())
    assert tried == [1] and note["remedy"].startswith("--micro-batch 2: a worker computed 4 objects at once")
    assert "rank" not in note, "this process is no worker of Ray"


@pytest.mark.parametrize(
    ("share", "micro_batch", "flag"),
    [(16, 16, "--micro-batch 8:"), (12, 12, "--micro-batch 6:"), (12, 6, "--micro-batch 4:"),
     (7, 7, "--micro-batch 1:"), (16, 1, "--parallel fsdp"), (1, 1, "--parallel fsdp")],
)  # fmt: skip
def test_the_remedy_is_the_next_smaller_micro_batch(share: int, micro_batch: int, flag: str) -> None:
    from g3pt.training.fit import count_parts

    remedy = train_worker.remedy(share, micro_batch)
    assert remedy.startswith(flag)
    if "micro" in flag:
        count_parts(share, int(flag.split()[1].rstrip(":")))


def test_object_store_is_refused_clearly() -> None:
    with pytest.raises(UsageError, match="not supported yet"):
        train.train_run(toy_spec(), "s3://bucket/runs", num_workers=0, build=TOY)


@pytest.mark.slow
def test_under_ray_a_lost_worker_costs_nothing(
    whole: Path, tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """After SIGTERM the worker saves the current step, between two records and two checkpoints, and the run ends with
    the signal's code. Started again, the worker kills itself and Train restarts it; the export is that of an
    uninterrupted run without Ray.
    """
    spec = toy_spec(term_at=16, kill_at=40, paths={"mark": str(tmp_path / "mark")})
    with pytest.raises(Stopped) as stopped:
        train.train_run(spec, tmp_path / "runs", num_workers=1, build=TOY)
    assert stopped.value.exit_code == 143
    assert "a worker got SIGTERM; saved after step 5" in capsys.readouterr().err
    run_dir = tmp_path / "runs" / spec.name
    assert checkpoints.checkpointed(run_dir) == 20 and not (run_dir / STOP_FILE).exists()
    assert train.train_run(spec, tmp_path / "runs", num_workers=1, build=TOY) == run_dir
    assert (tmp_path / "mark.kill_at").exists()
    assert weights_hash(run_dir) == weights_hash(whole)
    assert records_of(run_dir) == records_of(whole)


@pytest.mark.slow
def test_two_workers_see_each_sample_once(whole: Path, tmp_path: Path, ray_cluster: None) -> None:
    """Fully sharded, with micro-batches of one, which are no part of a run's name.

    Equal curves: tests/g3pt/training/test_parallel.py.
    """
    with pytest.raises(
        UsageError, match="the cluster can never provide 3xCPU: it has 2 CPU on 1 node.*lower --num-workers"
    ):
        train.train_run(toy_spec(), tmp_path / "runs", num_workers=3, build=TOY)
    assert not (tmp_path / "mlflow.db").exists(), "refused before anything is made of it"
    speed, spec = train.Speed(parallel="fsdp", num_to_keep=1, keep_samples=(48,)), toy_spec()
    spec.config["computed"] = {"micro_batch": 1}
    run_dir = train.train_run(spec, tmp_path / "runs", num_workers=2, build=TOY, speed=speed)
    assert run_dir.name == whole.name
    assert [path.name for path in checkpoints.checkpoints(run_dir / "checkpoints")] == ["samples-000000000048.dcp"]
    (node,) = (run_dir / "system").iterdir()
    sampled = Ledger(node).read()
    assert [record["step"] for record in sampled] == [*range(len(sampled))] and sampled[-1]["disk_usage_megabytes"] > 0
    assert ledger_steps(run_dir) == ledger_steps(whole)
    assert {record["micro_batch"] for record in train_worker.Ledger.of(run_dir).read()} == {1}
    assert (run_dir / "_SUCCESS").exists()
