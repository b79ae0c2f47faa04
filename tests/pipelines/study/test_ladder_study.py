"""A whole study with a ladder of samples and a forecast, on a toy dataset, in one process."""

import contextlib
import dataclasses
import json
import math
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from g3pt.config import CARConfig, from_dict
from g3pt.scaling.forecast import read_forecast, seal, write_forecast
from g3pt.scaling.learning_rate import Rule, rule_of
from g3pt.scaling.points import read_points, read_rows
from g3pt.scaling.study import law_of
from pipelines.cli.errors import UsageError
from pipelines.runs.identity import RunSpec
from pipelines.runs.ledger import Ledger
from pipelines.study import accounts, job, points, rates, trials
from pipelines.study import pause as pausing
from pipelines.study.config import SweepFlags
from pipelines.study.plan import plan
from pipelines.study.plan_file import with_plan_file
from pipelines.study.tidy import removed_before
from pipelines.train import run as train
from pipelines.train.checkpoints import checkpoints, samples_of
from pipelines.train.counts import count_car
from pipelines.train.devices import Devices
from pipelines.train.jobs import car_spec
from pipelines.train.trajectory import branched_from
from pipelines.train.worker import work, work_config
from tests.pipelines.toy_data import write_encoded_toy

SET = "text_encoder=small,image_encoder=none,log_every=20,eval_every=1000,checkpoint_every=1000"


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> SweepFlags:
    folder = tmp_path_factory.mktemp("ladder")
    return SweepFlags(
        **write_encoded_toy(folder), output=str(folder / "study"), sizes="1x8,1x16,1x24",
        samples="240,320,400", held_out="1x32:400", batch_size=4, num_workers=0, set=SET,
    )  # fmt: skip


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Trials run in this process, without Ray and MLflow; returns the runs that were trained, in order."""
    order: list[str] = []

    def ray_train(spec: Any, run_dir: Path, _workers: int, _device: str, build: str, speed: Any, *_: object) -> None:
        order.append(spec.name)
        work(work_config(spec, run_dir, build, speed))

    def tune(todo: list[dict[str, Any]], study: Path, flags: SweepFlags) -> dict[str, str]:
        groups = trials.together(todo)
        for index in range(len(groups)):
            trials.trial({"index": index}, todo=todo, groups=groups, num_workers=0, device="cpu")
        return {}

    outcome = SimpleNamespace(run_id=None, metrics={}, tags={}, artifacts=[], failure="")
    for module in (job, trials.train):
        monkeypatch.setattr(module, "is_told", lambda *_: True)
    monkeypatch.setattr(train, "tracked", lambda *_, **__: contextlib.nullcontext(outcome))
    monkeypatch.setattr(job, "followed", lambda *_, **__: contextlib.nullcontext(outcome))
    monkeypatch.setattr(train, "ray_train", ray_train)
    monkeypatch.setattr(trials, "tune", tune)
    monkeypatch.setattr(trials.session, "connect", lambda *_: None)
    monkeypatch.setattr(job, "join", lambda *_, **__: None)
    monkeypatch.setattr(job, "refuse_impossible", lambda _: None)
    monkeypatch.setattr(job, "encode", lambda *_: None)
    return order


@pytest.fixture
def quick(here: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Runs that are trained at once and leave their checkpoints; run -> the run that it started from."""
    parents: dict[str, str] = {}

    def ray_train(spec: RunSpec, run_dir: Path, _workers: int, _device: str, _build: str, speed: Any, *_: Any) -> None:
        here.append(spec.name)
        parents[spec.name] = branched_from(run_dir)
        fit = spec.config["train"]
        samples = fit["steps"] * fit["batch_size"]
        for at in {*speed.keep_samples, samples}:
            file = run_dir / "checkpoints" / f"samples-{at:012d}.dcp"
            if at <= samples and not file.exists():
                file.write_bytes(b"x" * 1000)
        Ledger.of(run_dir).append([{"step": samples, "test_ce": 5.0}])
        (run_dir / "_SUCCESS").touch()

    def fit_and_draw(points: list[dict[str, Any]], study: Path, *_: Any) -> None:
        for name in ("fit.json", "curve.png"):
            (study / name).write_text("{}")

    monkeypatch.setattr(train, "ray_train", ray_train)
    monkeypatch.setattr(accounts, "operations", lambda _, samples: 1000 * samples)
    monkeypatch.setattr(job, "collect", lambda specs, *_: [{"size": s.preset, "run": s.name} for s in specs])
    monkeypatch.setattr(job, "fit_and_draw", fit_and_draw)
    return parents


def small(flags: SweepFlags, output: Path, **changed: Any) -> SweepFlags:
    """A study of one size and two numbers of samples, with a warm-up that growing does not change."""
    few = {"sizes": "1x8", "samples": "240,320", "held_out": None, "warmup_samples": 24}
    return dataclasses.replace(flags, **{**few, "output": str(output), **changed})


def test_a_finished_study_grows_by_samples_seeds_and_sizes_and_trains_nothing_again(
    flags: SweepFlags, here: list[str], quick: dict[str, str], tmp_path: Path
) -> None:
    plans = [
        small(flags, tmp_path),
        small(flags, tmp_path, samples="240,320,400"),
        small(flags, tmp_path, samples="240,320,400", seeds="0,1"),
        small(flags, tmp_path, samples="240,320,400", seeds="0,1", sizes="1x8,1x16"),
    ]
    counts = []
    for each in plans:
        job.scaling_sweep(each)
        counts.append(len(here))
    assert counts == [2, 3, 6, 12] and len(set(here)) == 12
    assert [quick[name] for name in here[:3]] == ["", here[0], here[0]], "the longer run goes on from the shorter one"
    assert len(_rows(tmp_path / "points.csv")) == 12
    job.scaling_sweep(plans[-1])
    assert len(here) == 12


def test_a_study_keeps_the_rule_that_gave_its_learning_rates(
    flags: SweepFlags, here: list[str], quick: dict[str, str], tmp_path: Path
) -> None:
    rule = {"rule": {"c": -3.2, "a": -0.2, "b": -0.05}, "holds": False}
    (tmp_path / "elsewhere.json").write_text(json.dumps(rule))
    job.scaling_sweep(small(flags, tmp_path / "study", lr_rule=str(tmp_path / "elsewhere.json")))
    assert json.loads((tmp_path / "study" / "lr.json").read_text()) == rule
    assert points.rate_rule(tmp_path / "study") == rule and points.rate_rule(tmp_path) is None
    (tmp_path / "study" / "lr.json").write_text("its own")
    job.keep_rule(str(tmp_path / "elsewhere.json"), tmp_path / "study")
    assert (tmp_path / "study" / "lr.json").read_text() == "its own"


def test_finish_removes_branch_points_and_a_study_that_grows_says_what_it_lacks(
    flags: SweepFlags, here: list[str], quick: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="is no finished study; the command without --finish continues it"):
        job.scaling_sweep(small(flags, tmp_path, finish=True))
    job.scaling_sweep(small(flags, tmp_path))
    trunk, branch = (tmp_path / "runs" / name / "checkpoints" for name in here)
    assert [samples_of(path) for path in checkpoints(trunk)] == [120, 40], "kept until --finish"
    unfinished = tmp_path / "runs" / "car-1x8-s0-00000000" / "checkpoints"
    shutil.copytree(trunk, unfinished)
    capsys.readouterr()
    assert job.scaling_sweep(small(flags, tmp_path, finish=True)) == str(tmp_path)
    assert "2 checkpoint files of 2 runs removed, 2,000 bytes" in capsys.readouterr().out, (
        "the branch has links to them"
    )
    assert checkpoints(trunk) == checkpoints(branch) == [] and len(checkpoints(unfinished)) == 2
    shutil.rmtree(unfinished.parent)
    job.scaling_sweep(small(flags, tmp_path, samples="240,320,400"))
    shown = capsys.readouterr().err
    assert f"{here[2]}: starts at 0 samples; --finish removed a checkpoint at 120" in shown and quick[here[2]] == ""
    job.scaling_sweep(small(flags, tmp_path, finish=True))
    assert removed_before(tmp_path)[here[0]] == [40, 120], "a second --finish forgets nothing"


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, as in a command; a job in a shell's background inherits it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_study_that_is_asked_to_pause_stops_and_the_same_command_continues_it(
    flags: SweepFlags,
    here: list[str],
    quick: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    interruptible: None,
) -> None:
    monkeypatch.setattr(pausing, "POLL_S", 0.05)
    whole = train.ray_train
    other = threading.Thread(target=lambda: job.scaling_sweep(small(flags, tmp_path, pause=True)))

    def asked_meanwhile(spec: RunSpec, run_dir: Path, *rest: Any) -> None:
        if len(here) == 1:
            other.start()
            time.sleep(20)
        whole(spec, run_dir, *rest)

    monkeypatch.setattr(train, "ray_train", asked_meanwhile)
    with pytest.raises(KeyboardInterrupt):
        job.scaling_sweep(small(flags, tmp_path))
    assert len(here) == 1
    other.join(20)
    assert not other.is_alive() and not (tmp_path / pausing.PAUSE_FILE).exists()
    monkeypatch.setattr(train, "ray_train", whole)
    job.scaling_sweep(small(flags, tmp_path))
    assert len(here) == 2 and (tmp_path / "_SUCCESS").exists()


def test_a_request_to_pause_is_for_the_command_at_work(
    flags: SweepFlags, here: list[str], quick: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing stops later because of one that came too late."""
    with pytest.raises(UsageError, match="--pause: there is no study at"):
        job.scaling_sweep(small(flags, tmp_path / "none", pause=True))
    assert job.scaling_sweep(small(flags, tmp_path, pause=True)) == str(tmp_path)
    assert "no command works on it" in capsys.readouterr().out and not list(tmp_path.iterdir())
    (tmp_path / pausing.PAUSE_FILE).touch()
    job.scaling_sweep(small(flags, tmp_path))
    assert len(here) == 2 and not (tmp_path / pausing.PAUSE_FILE).exists()
    with pytest.raises(ValueError, match="give one of them"):
        small(flags, tmp_path, pause=True, finish=True)
    assert with_plan_file(["--output", "S", "--pause"]) == [
        "--data",
        "-",
        "--tokenizer",
        "-",
        "--output",
        "S",
        "--pause",
    ]


def test_a_run_that_an_older_forecast_does_not_name_is_refused(
    flags: SweepFlags, here: list[str], tmp_path: Path
) -> None:
    """It would start without a forecast, because the old one is never replaced."""
    study = tmp_path / "study"
    study.mkdir()
    body = {"version": 1, "rungs": [{"run": "car-1x32-s0-00000000"}]}
    write_forecast(body | {"sha256": seal(body)}, study / "forecast.json")
    with pytest.raises(UsageError, match="forecast.json was written for other runs and is never replaced"):
        job.scaling_sweep(dataclasses.replace(flags, output=str(study)))
    assert here == []


def test_each_size_s_placement_is_printed_and_stored_and_renames_nothing(
    flags: SweepFlags, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    specs = [car_spec(flags.data, flags.tokenizer, row.size, row.model, row.train) for row in plan(flags)]
    for workers, objects, at_once in (("auto", 4, 8), (2, 2, 4), (0, 4, 8)):
        monkeypatch.setattr(trials, "cluster_devices", lambda _: Devices(count=8, per_node=4))
        found = trials.placed(specs, dataclasses.replace(flags, num_workers=workers, device="cpu"))
        count = 1 if workers == "auto" else workers
        computed = {"micro_batch": objects, "workers": count, "parallel": "ddp"}
        assert all(spec.config["computed"] == computed for spec in found)
        assert [spec.name for spec in found] == [spec.name for spec in specs]
        assert trials.workers_of({"spec": found[0].to_dict()}, flags) == count
        said = capsys.readouterr().err.splitlines()
        assert (
            len(said) == 4
            and f"  1x24: {max(1, count)} CPU" in said[1]
            and said[1].endswith(f"; {at_once} at once on 8 CPUs")
        )


@pytest.mark.slow
def test_trunks_first_then_branches_then_the_forecast_then_what_it_is_about(
    flags: SweepFlags, here: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = plan(flags)
    specs = [car_spec(flags.data, flags.tokenizer, row.size, row.model, row.train) for row in rows]
    names = {(row.size, row.samples): spec.name for row, spec in zip(rows, specs, strict=True)}
    study = Path(job.scaling_sweep(flags) or "")
    wanted = [names[size, samples] for size in ("1x24", "1x16", "1x8") for samples in (400, 320, 240)]
    assert here == [*wanted, names["1x32", 400]], "the longest of a size first, the predicted one last"
    fitted = read_points(study / "points.csv")
    assert len(fitted) == 9 and sorted(set(fitted.samples)) == [240, 320, 400]
    rows_of = {row["run"]: row for row in _rows(study / "points.csv")}
    assert rows_of[names["1x24", 240]]["parent"] == names["1x24", 400] and rows_of[names["1x24", 400]]["parent"] == ""
    assert [row["run"] for row in rows_of.values() if row["held_out"] == "1"] == [names["1x32", 400]]
    row = rows_of[names["1x8", 320]]
    assert (row["samples"], row["batch_size"], row["schedule"], row["seed"]) == ("320", "4", "wsd", "0")
    assert (
        len(row["weights_sha256"]) == 64
        and row["command"]
        and len(row["tokenizer"]) == 64
        and row["device"]
        and float(row["seconds"]) > 0
    )
    assert 0 < int(row["params_no_adaln"]) < int(row["params_no_embed"]) < int(row["params_total"])
    assert float(row["unique_share"]) == pytest.approx(
        min(1, float(row["samples"]) / float(row["epochs"]) / 320), abs=0.01
    )
    table = pq.read_table(study / "points.parquet").to_pylist()
    assert [one["run"] for one in table] == list(rows_of)
    for one in table:
        assert len(one["objects_id"]) == one["test_objects"] and np.mean(one["objects_ce"]) == pytest.approx(
            one["test_ce"]
        )
    *costs, whole = _rows(study / "plan.csv")
    assert [cost["steps"] for cost in costs] == [cost["planned_steps"] for cost in costs] and len(costs) == 10
    assert whole["run"] == "sum" and whole["planned_seconds"] == "" == whole["ratio"], "nothing said how fast it is"
    for cost in costs:
        row = rows_of[cost["run"]]
        assert (cost["flops"] == cost["planned_flops"] == row["flops"]) == (row["parent"] == ""), "branches cost less"
    body = read_forecast(study / "forecast.json")
    assert body["points_sha256"] == fitted.sha256 and [rung["run"] for rung in body["rungs"]] == [names["1x32", 400]]
    found = json.loads((study / "fit.json").read_text())
    for name in ("points.csv", "points.parquet"):
        again = law_of(read_points(study / name), found["surface"]["law"]["form"])
        assert again.named() == found["surface"]["law"]["parameters"], f"the law again from {name} alone"
    assert found["surface"]["points"]["sha256"] == fitted.sha256
    assert list(found["scales"]) == ["1", "2", "3", "4"]
    assert read_rows(study / "points.parquet") == read_rows(study / "points.csv")
    assert found["surface"]["points"]["num"] == 9 and found["samples"] == 400 and found["num_points"] == 3
    (compared,) = found["forecast"]
    assert compared["measured"] == pytest.approx(float(rows_of[names["1x32", 400]]["test_ce"]))
    assert (study / "curve.png").read_bytes().startswith(b"\x89PNG") and (study / "_SUCCESS").exists()
    before = (study / "forecast.json").read_bytes()
    points.write_forecast(study, [])
    assert (study / "forecast.json").read_bytes() == before, "a forecast is never replaced"


def test_a_run_that_failed_does_not_stop_its_trajectory(
    flags: SweepFlags, here: list[str], quick: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train.ray_train

    def failing(spec: Any, run_dir: Path, *rest: Any) -> None:
        if spec.config["train"]["steps"] == 80:
            raise RuntimeError("the disk is slow")
        whole(spec, run_dir, *rest)

    monkeypatch.setattr(train, "ray_train", failing)
    few = {"sizes": "1x8,1x16", "held_out": None}
    with pytest.raises(RuntimeError, match="2 of 6 runs did not finish"):
        job.scaling_sweep(dataclasses.replace(flags, **few, output=str(tmp_path / "study")))
    assert len(here) == 4, "nor those of another size"


def test_a_run_that_was_trained_before_its_forecast_is_refused(
    flags: SweepFlags, here: list[str], tmp_path: Path
) -> None:
    output = str(tmp_path / "study")
    fitted = dataclasses.replace(flags, sizes="1x8", samples="240", held_out=None, output=output)
    specs = [car_spec(fitted.data, fitted.tokenizer, row.size, row.model, row.train) for row in plan(fitted)]
    checkpoints = Path(output) / "runs" / specs[0].name / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "samples-000000000200.dcp").touch()
    later = dataclasses.replace(
        flags, sizes="1x16,1x24", samples="240,320", held_out="1x8:240", output=output, warmup_samples=30
    )
    with pytest.raises(UsageError, match="was trained before there was a forecast of it"):
        job.scaling_sweep(later)


def test_a_rule_for_learning_rates_is_found_and_checked(
    flags: SweepFlags,
    here: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Runs whose loss is a parabola in log LR about a known rule."""
    true = Rule(c=-3.2, a=-0.2, b=-0.05)

    def ray_train(spec: RunSpec, run_dir: Path, *_: object) -> None:
        here.append(spec.name)
        fit, model = spec.config["train"], from_dict(CARConfig, spec.config["model"])
        samples = fit["steps"] * fit["batch_size"]
        best = true(count_car(model)["parameters_no_embed"], samples)
        loss = 5 * math.exp(0.01 * math.log(fit["learning_rate"] / best) ** 2)
        Ledger.of(run_dir).append([{"step": samples, "test_ce": loss}])
        (run_dir / "_SUCCESS").touch()

    monkeypatch.setattr(train, "ray_train", ray_train)
    tuned = dataclasses.replace(
        flags,
        sizes="1x8,1x16,1x24,1x32",
        samples="240,320",
        held_out=None,
        tune_lr=True,
        output=str(tmp_path / "study"),
    )
    study = Path(job.scaling_sweep(tuned) or "")
    assert len(here) == 3 * 5 * 2 + 3 == len(set(here))
    found = json.loads((study / "lr.json").read_text())
    rule = rule_of(found)
    assert (rule.c, rule.a, rule.b) == pytest.approx((true.c, true.a, true.b), abs=0.02), "rates have three digits"
    assert found["holds"] and len(found["gate"][0]["rates"]) == 3 and (study / "lr.png").exists()
    shown = capsys.readouterr().out
    assert "rule: log LR = -3.2" in shown and "% of the loss; holds" in shown
    with_rule = plan(dataclasses.replace(tuned, tune_lr=False, lr_rule=str(study / "lr.json")))
    rate = next(row.train.learning_rate for row in with_rule if row.size == "1x24")
    assert rate == pytest.approx(
        true(rates.params_of(next(r for r in with_rule if r.size == "1x24")), (240 * 320) ** 0.5), rel=0.02
    )
    before = len(here)
    job.scaling_sweep(tuned)
    assert len(here) == before, "finished runs are kept"


def test_a_sweep_of_rates_needs_four_sizes(flags: SweepFlags) -> None:
    with pytest.raises(UsageError, match="--tune-lr needs four sizes and --samples with two numbers, got 3 and 3"):
        job.scaling_sweep(dataclasses.replace(flags, held_out=None, tune_lr=True))


def _rows(file: Path) -> list[dict[str, str]]:
    import csv

    with open(file, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
