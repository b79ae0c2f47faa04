"""A study around its runs: errors are told, a finished one is left alone, its numbers are those of the runs."""

import contextlib
import dataclasses
import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from g3pt.training.fit import AskedToStop
from pipelines.cli import interrupt
from pipelines.cli.errors import UsageError
from pipelines.cli.failures import Failure
from pipelines.cluster import stopping
from pipelines.cluster.waiting import NodeType
from pipelines.runs.identity import RunSpec
from pipelines.runs.ledger import Ledger
from pipelines.runs.locks import alone_in
from pipelines.runs.notes import FAILURE_FILE, read_note
from pipelines.study import job, points, trials
from pipelines.tracking import client as tracking
from pipelines.tracking.client import Tracking
from pipelines.tracking.tracked import Outcome
from pipelines.train import run as train
from pipelines.train.devices import Devices
from tests.g3pt.tiny import tiny_g3pt

FLAGS = job.SweepFlags(data="data", tokenizer="tokenizer", output="study", num_workers=0)


def spec(size: str, seed: int = 0) -> RunSpec:
    return RunSpec(stage="car", preset=size, seed=seed, config={"model": {"size": size}}, paths={})


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that are finished as soon as they start."""

    def train_all(specs: list[RunSpec], study: Path, *_: object, **__: object) -> None:
        for item in specs:
            (study / "runs" / item.name).mkdir(parents=True, exist_ok=True)
            (study / "runs" / item.name / "_SUCCESS").touch()

    def fit_and_draw(points: list[dict], study: Path, *_: object) -> None:
        law = {
            "irreducible": 0.0,
            "coefficient": 1.0,
            "exponent": len(points) / 10,
            "interval_95": {"exponent": [0.0, 1.0]},
        }
        found = {"num_sizes": len(points), "num_points": len(points), "status": "demonstration, not an estimate"}
        (study / "fit.json").write_text(json.dumps({"power_law_with_floor": None, "pure_power_law": law, **found}))
        (study / "curve.png").touch()

    monkeypatch.setattr(job, "fit_and_draw", fit_and_draw)
    monkeypatch.setattr(job, "train_all", train_all)
    monkeypatch.setattr(job, "write_plan", lambda *_: None)
    monkeypatch.setattr(job, "encode", lambda *_: None)
    monkeypatch.setattr(job, "join", lambda *_, **__: None)
    monkeypatch.setattr(job, "refuse_impossible", lambda _: None)
    monkeypatch.setattr(job, "placed", lambda specs, _: specs)
    monkeypatch.setattr(job, "collect", lambda specs, *_: [{"size": s.preset, "run": s.name} for s in specs])


def test_a_finished_study_is_left_alone_and_one_that_grew_is_fitted_again(
    instant: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, three = tmp_path / "study", [spec(size) for size in "abc"]
    job.run_study(three, study, FLAGS)
    before = {p: p.stat().st_mtime_ns for p in study.rglob("*") if p.is_file()}
    job.run_study(three, study, FLAGS)
    assert {p: p.stat().st_mtime_ns for p in study.rglob("*") if p.is_file()} == before
    assert "finished already" in capsys.readouterr().out
    assert logged_steps(study) == [0]
    job.run_study([*three, spec("d")], study, dataclasses.replace(FLAGS, set="head=bits"))
    assert logged_steps(study) == [0, 1]
    assert json.loads((study / "study.json").read_text())["flags"]["set"] == "head=bits"
    assert (study / "points.csv").read_text().count("\n") == 5


def test_a_finished_study_loses_no_run_without_replace(instant: None, tmp_path: Path) -> None:
    study, three = tmp_path / "study", [spec(size) for size in "abc"]
    flags = dataclasses.replace(FLAGS, sizes="a,b,c")
    job.run_study(three, study, flags)
    before = {p: p.stat().st_mtime_ns for p in study.rglob("*") if p.is_file()}
    fewer = dataclasses.replace(FLAGS, sizes="a,b", steps=7)
    with pytest.raises(UsageError, match=r"was made with --sizes a,b,c, not a,b; --steps none, not 7: choose another"):
        job.run_study(three[:2], study, fewer)
    assert {p: p.stat().st_mtime_ns for p in study.rglob("*") if p.is_file()} == before
    job.run_study(three[:2], study, dataclasses.replace(fewer, replace=True))
    assert (study / "points.csv").read_text().count("\n") == 3


def test_a_second_start_of_a_study_or_one_of_its_runs_is_refused(
    instant: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, one = tmp_path / "study", [spec("a")]
    train_all = job.train_all

    def while_another_starts(*arguments: object, **named: object) -> None:
        before = {p: p.read_bytes() for p in study.rglob("*") if p.is_file()}
        with pytest.raises(UsageError, match=rf"{study}: another command is working there \(process {os.getpid()} on "):
            job.run_study([*one, spec("b")], study, FLAGS)
        assert {p: p.read_bytes() for p in study.rglob("*") if p.is_file()} == before
        train_all(*arguments, **named)

    monkeypatch.setattr(job, "train_all", while_another_starts)
    job.run_study(one, study, FLAGS)
    assert (study / "_SUCCESS").exists()
    monkeypatch.undo()
    monkeypatch.setattr(trials, "tune", lambda *_: pytest.fail("a trial started"))
    run_dir = train.run_folder(spec("c"), study / "runs")
    with alone_in(run_dir), pytest.raises(UsageError, match=f"{run_dir}: another command is working there"):
        job.train_all([spec("c")], study, FLAGS)


def logged_steps(study: Path) -> list[int]:
    client = Tracking(tracking.tracking_uri(study)).client
    (run,) = client.search_runs([client.get_experiment_by_name("g3pt/scaling").experiment_id])
    assert run.info.status == "FINISHED" and run.data.metrics["pure_power_law/exponent_high"] == 1.0
    sizes = run.data.tags["g3pt.sizes"].split(",")
    assert (
        run.info.run_name == f"study-{len(sizes)}-sizes-{sizes[0]}-to-{sizes[-1]}"
        and len(sizes) == run.data.metrics["num_sizes"]
    )
    assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {
        "study.json",
        "points.csv",
        "fit.json",
        "curve.png",
    }
    return [metric.step for metric in client.get_metric_history(run.info.run_id, "pure_power_law/exponent")]


def test_mlflow_has_the_law_and_its_forecast_under_the_same_names_in_every_study(tmp_path: Path) -> None:
    law = {
        "form": "additive",
        "parameters": {"E": 4.0, "alpha": 0.3},
        "interval_95": {"alpha": [0.2, 0.4]},
        "rms": 0.01,
    }
    rungs = [
        {"size": "a", "measured": 5.0, "miss": 0.01, "inside": True},
        {"size": "b", "measured": 5.0, "miss": -0.03, "inside": False},
        {"size": "c"},
    ]
    found = {
        "num_sizes": 4, "num_points": 9, "status": "estimate", "power_law_with_floor": None, "pure_power_law": None,
        "surface": {"law": law, "misses": True}, "forecast": rungs, "learning_rate": {"holds": False},
    }  # fmt: skip
    (tmp_path / "fit.json").write_text(json.dumps(found))
    outcome = Outcome()
    job.describe_study(tmp_path, outcome)
    assert outcome.metrics == {
        "num_sizes": 4, "num_points": 9, "law/E": 4.0, "law/alpha": 0.3, "law/alpha_low": 0.2, "law/alpha_high": 0.4,
        "law/rms": 0.01, "forecast/miss": -0.03, "forecast/inside": 0.5,
    }  # fmt: skip
    assert outcome.tags == {
        "g3pt.fit": "estimate", "g3pt.form": "additive", "g3pt.law_misses": "true", "g3pt.lr_rule_holds": "false",
    }  # fmt: skip
    assert {"points.parquet", "forecast.json", "plan.csv", "lr.json"} <= {path.name for path in outcome.artifacts}


@pytest.mark.parametrize("fails", [True, False])
def test_what_a_trial_died_of_is_told_and_its_files_are_kept(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray import tune

    class Tuner:
        """Runs nothing: one trial came through, the other's process died or did not."""

        def __init__(self, *_: object, run_config: tune.RunConfig, **__: object) -> None:
            Path(run_config.storage_path).mkdir()

        def fit(self) -> list[SimpleNamespace]:
            error = RuntimeError("the actor\ndied") if fails else None
            return [
                SimpleNamespace(error=None, config={"index": 0}, metrics={"finished": 1.0, "node_ip": "10.0.0.2"}),
                SimpleNamespace(error=error, config={"index": 1}, metrics=None),
            ]

    monkeypatch.setattr(tune, "Tuner", Tuner)
    monkeypatch.setattr(tune, "with_parameters", lambda trial, **_: trial)
    monkeypatch.setattr(tune, "with_resources", lambda trial, _: trial)
    monkeypatch.setattr(trials, "trial_resources", lambda *_: ([{"CPU": 1}] * 2, 1))
    monkeypatch.setattr(trials, "asked", lambda *_: contextlib.nullcontext("key"))
    specs = [spec("20k"), spec("80k")]
    folders = [train.prepare_run(each, tmp_path / "runs") for each in specs]
    (folders[0] / "_SUCCESS").touch()
    failures = trials.tune(
        [{"spec": each.to_dict(), "run_dir": str(folder)} for each, folder in zip(specs, folders, strict=True)],
        tmp_path,
        FLAGS,
    )
    assert failures == ({specs[1].name: "RuntimeError: the actor died"} if fails else {})
    assert (tmp_path / "ray").exists() == fails
    with pytest.raises(RuntimeError, match="1 of 2 runs did not finish") as raised:
        job.check_finished(specs, tmp_path)
    reason = "RuntimeError: the actor died" if fails else "reason unknown"
    assert Failure.of(raised.value).doing == (f"training {specs[1].name}: {reason}",)


def test_a_signal_to_the_driver_asks_the_runs_of_its_trials_to_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune ends its trials as soon as its own thread is interrupted."""
    from ray import tune

    saved: list[str] = []
    one = spec("20k")
    run_dir = train.prepare_run(one, tmp_path / "runs")

    class Tuner:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def fit(self) -> list[SimpleNamespace]:
            with stopping.stoppable(run_dir, rank=0) as stop:
                os.kill(os.getpid(), signal.SIGINT)
                while not stop():
                    time.sleep(0.01)
                saved.append(one.name)
            raise AskedToStop(3)

    monkeypatch.setattr(interrupt, "GRACE_S", 1e6)  # what would cut this process off
    monkeypatch.setattr(tune, "Tuner", Tuner)
    monkeypatch.setattr(tune, "with_parameters", lambda trial, **_: trial)
    monkeypatch.setattr(tune, "with_resources", lambda trial, _: trial)
    monkeypatch.setattr(trials, "trial_resources", lambda *_: ({"CPU": 1}, 1))
    monkeypatch.setattr(trials, "asked", lambda *_: contextlib.nullcontext("key"))
    with pytest.raises(interrupt.Stopped), interrupt.stoppable():
        trials.tune([{"spec": one.to_dict(), "run_dir": str(run_dir)}], tmp_path, FLAGS)
    assert saved == [one.name]


@pytest.mark.parametrize(
    ("slots", "of_16", "of_1"),
    [
        ((8.0, 8.0), {"CPU": 0, "memory": trials.NO_CPU_TRIAL_BYTES}, {"CPU": 0, "sweep_slot": 1}),
        ((8.0, 16.0), {"CPU": 0, "sweep_slot": 16}, {"CPU": 0, "sweep_slot": 1}),
        ((0.0,), {"CPU": 0, "memory": trials.NO_CPU_TRIAL_BYTES}, {"CPU": 0, "memory": trials.NO_CPU_TRIAL_BYTES}),
    ],
)
def test_each_trial_asks_for_slots_that_one_node_has(
    slots: tuple[float, ...], of_16: dict, of_1: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes of eight slots never place a trial of sixteen, although the cluster has them."""
    a_cluster(monkeypatch, [{"sweep_slot": count} for count in slots], CPU=64.0)
    assert trials.trial_resources([16, 1, 0], "cpu") == ([of_16, of_1, {"CPU": 1}], 3)
    assert trials.trial_resources([16] * 9, "cpu")[1] == 4 and trials.trial_resources([128], "cpu")[1] == 1


def a_cluster(monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, float]], **totals: float) -> None:
    import ray

    for node in nodes:
        for name, amount in node.items():
            totals[name] = totals.get(name, 0.0) + amount
    monkeypatch.setattr(ray, "cluster_resources", lambda: totals)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
    monkeypatch.setattr(trials, "autoscaler_max", lambda: [])


def test_the_devices_of_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = dataclasses.replace(FLAGS, num_workers="auto", gpu_memory=80.0)
    a_cluster(monkeypatch, [{"CPU": 4.0}, {"CPU": 96.0, "GPU": 8.0}, {"CPU": 96.0, "GPU": 4.0}])
    assert trials.cluster_devices(flags) == Devices(count=12, per_node=4, memory=80 * 2**30)
    assert trials.cluster_devices(dataclasses.replace(flags, device="cpu")) == Devices(count=196, per_node=4)
    grows = [NodeType(resources={"CPU": 96.0, "GPU": 8.0}, most=8), NodeType(resources={"CPU": 32.0}, most=None)]
    monkeypatch.setattr(trials, "autoscaler_max", lambda: grows)
    assert trials.cluster_devices(flags).count == 64, "with the nodes that an autoscaler may start"


def test_a_run_that_failed_after_its_retries_is_not_tried_again_by_tune(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("NCCL: the peer is gone")  # another try may pass, but `ray_train` has made them all

    monkeypatch.setattr(train, "ray_train", fail)
    todo = [{"spec": spec("20k").to_dict(), "run_dir": str(tmp_path), "build": "x"}]
    assert trials.trial({"index": 0}, todo=todo, num_workers=1, device="cpu") == {"finished": 0.0}
    assert read_note(tmp_path, FAILURE_FILE)["error"] == "RuntimeError: NCCL: the peer is gone"


@pytest.mark.slow
def test_a_worker_s_own_error_comes_through_train_and_tune_and_is_not_tried_again(
    tmp_path: Path, ray_cluster: None
) -> None:
    fit = {"steps": 20, "batch_size": 4, "learning_rate": 0.01, "log_every": 2, "checkpoint_every": 6}
    paths = {"failures": str(tmp_path / "failures.txt")}
    bad = RunSpec(
        stage="cvq", preset="toy", seed=0, config={"toy": {"width": 8, "fail_at": 40}, "train": fit}, paths=paths
    )
    job.train_all(
        [bad],
        tmp_path / "study",
        dataclasses.replace(FLAGS, num_workers=1),
        None,
        "tests.pipelines.toy_stage:build_stage",
    )
    run_dir = tmp_path / "study" / "runs" / bad.name
    found = read_note(run_dir, FAILURE_FILE)
    assert (found["error"], found["step"], found["doing"]) == (
        "ValueError: sample 40 is bad",
        10,
        [f"training {bad.name}"],
    )
    assert found["where"][-1].startswith("tests/pipelines/toy_stage.py:") and any(
        "g3pt/training/fit.py" in frame for frame in found["where"]
    )
    assert found["rank"] == 0 and found["ip"] and len(found["node"]) == 56
    assert Path(paths["failures"]).read_text() == "failed\n"
    assert train.safe_state(bad, run_dir) == f"its checkpoint at 24 of 80 samples ({run_dir})"
    with pytest.raises(RuntimeError) as raised:
        job.check_finished([bad], tmp_path / "study")
    (told,) = Failure.of(raised.value).doing
    assert told.startswith(f"training {bad.name}: ValueError: sample 40 is bad, in tests/pipelines/toy_stage.py:")


def test_a_point_counts_the_parameters_of_the_trained_model_three_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_g3pt(image_encoder="none")
    model.save_pretrained(tmp_path / "export", extra={"flops_per_object": 1000, "tokenizer_hash": "t"})
    Ledger.of(tmp_path).append([{"step": 40, "test_ce": 2.0, "test_ce_scale_1": 1.5}])
    (tmp_path / "_SUCCESS").touch()
    monkeypatch.setattr(points, "open_data", lambda _: SimpleNamespace(splits={"train": 20}))
    train = {"batch_size": 4, "learning_rate": 0.1, "schedule": "cosine"}
    spec = RunSpec(stage="car", preset="tiny", seed=3, config={"train": train}, paths={"data": "d"})
    row = points.point(spec, tmp_path)
    sizes = {name: p.numel() for name, p in model.car.named_parameters()}
    bare = {name: count for name, count in sizes.items() if name.startswith(("blocks.", "modulation."))}
    assert (row["params_no_embed"], row["params_total"]) == (sum(bare.values()), sum(sizes.values()))
    assert row["params_no_adaln"] == sum(count for name, count in bare.items() if "modulation" not in name)
    assert (row["flops"], row["epochs"], row["seed"], row["test_ce_scale_1"]) == (3 * 1000 * 40, 2.0, 3, 1.5)
