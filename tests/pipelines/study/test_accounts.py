"""Planned beside actual cost: shared steps count once, what was planned first stays, the sums are those of the runs."""

import csv
import dataclasses
import json
from pathlib import Path

import pytest

from g3pt.config import TrainConfig
from pipelines.runs.identity import RunSpec
from pipelines.runs.ledger import Ledger
from pipelines.study import accounts
from pipelines.study.accounts import planned_starts, stated_rate, write_plan
from pipelines.study.ladder import ladder, steps_taken
from pipelines.train.trajectory import BRANCH_FILE

BASE = TrainConfig(steps=100, batch_size=4, learning_rate=0.01)
SAMPLES = (400, 800, 1600)


def specs(seed: int = 0) -> list[RunSpec]:
    configs = [dataclasses.asdict(one) for one in ladder(dataclasses.replace(BASE, seed=seed), SAMPLES, 40)]
    return [RunSpec(stage="car", preset="1x8", seed=seed, config={"train": one}, paths={}) for one in configs]


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample costs 1000 operations."""
    monkeypatch.setattr(accounts, "operations_per_sample", lambda _: 1000)
    monkeypatch.setattr(accounts, "operations", lambda _, samples: 1000 * samples)


def finish(spec: RunSpec, study: Path, start: int, rate: float) -> None:
    """A finished run that began at `start` samples, of whose records the first half is another's."""
    run_dir, samples = study / "runs" / spec.name, spec.config["train"]["steps"] * 4
    run_dir.mkdir(parents=True)
    if start:
        (run_dir / BRANCH_FILE).write_text(json.dumps({"from": "trunk", "samples": start}))
    records = [{"step": at, "samples_per_second": rate} for at in sorted({start, samples} - {0})]
    Ledger.of(run_dir).append(records)
    (run_dir / "_SUCCESS").touch()


def rows_of(study: Path) -> dict[str, dict[str, str]]:
    with open(study / "plan.csv", newline="", encoding="utf-8") as file:
        return {row["run"]: row for row in csv.DictReader(file)}


def test_each_run_is_planned_to_start_where_one_before_it_has_a_checkpoint() -> None:
    short, middle, trunk = specs()
    starts = planned_starts([trunk, middle, short, *specs(seed=1)])
    assert [starts[spec.name] for spec in (trunk, middle, short)] == [0, 600, 200]
    taken = sum(spec.config["train"]["steps"] * 4 - starts[spec.name] for spec in (trunk, middle, short))
    assert taken == 4 * steps_taken(ladder(BASE, SAMPLES, 40))
    upwards = planned_starts([short, middle, trunk])
    assert [upwards[spec.name] for spec in (short, middle, trunk)] == [0, 200, 600], "a held-out run comes last"


def test_the_plan_is_written_first_and_the_cost_beside_it_later(tmp_path: Path) -> None:
    short, middle, trunk = specs()
    write_plan(specs(), tmp_path, stated_rate(1e5), {trunk.name})
    planned = rows_of(tmp_path)
    assert planned[short.name]["planned_seconds"] == "2.0" and planned[short.name]["seconds"] == ""
    assert (planned[trunk.name]["held_out"], planned[trunk.name]["planned_steps"]) == ("1", "250")
    assert float(planned["sum"]["planned_flops"]) == 1000 * (200 + 800 + 1000) and planned["sum"]["ratio"] == ""
    finish(short, tmp_path, start=200, rate=50.0)
    finish(middle, tmp_path, start=0, rate=200.0)
    write_plan(specs(), tmp_path, stated_rate(7.0), {trunk.name})
    found = rows_of(tmp_path)
    assert found[short.name]["planned_seconds"] == "2.0", "what was planned first stays"
    assert (found[short.name]["seconds"], found[short.name]["ratio"]) == ("4.0", "2.0"), "without the steps of another"
    assert (found[short.name]["steps"], found[short.name]["flops"]) == ("50", "200000")
    assert (found[middle.name]["seconds"], found[middle.name]["ratio"]) == ("4.0", "0.5")
    assert found[trunk.name]["ratio"] == "" and found["sum"]["seconds"] == "8.0"
    assert float(found["sum"]["ratio"]) == pytest.approx(8 / 10)


def test_without_a_stated_speed_no_seconds_are_planned_until_there_is_one(tmp_path: Path) -> None:
    write_plan(specs(), tmp_path, stated_rate(None))
    assert {row["planned_seconds"] for row in rows_of(tmp_path).values()} == {""}
    write_plan(specs(), tmp_path, stated_rate(1e5))
    assert float(rows_of(tmp_path)["sum"]["planned_seconds"]) == pytest.approx(20)
