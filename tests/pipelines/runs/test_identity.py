"""Identity and ledger."""

import dataclasses
import json
from pathlib import Path

import pytest

from g3pt.config import CAR_PRESETS, FORMAT_VERSION, CARConfig
from pipelines.runs import identity
from pipelines.runs.identity import Ledger, RunSpec


def spec(**changes: object) -> RunSpec:
    values = {
        "stage": "cvq",
        "preset": "nano",
        "seed": 0,
        "config": {"model": {"width": 8}, "train": {"steps": 10, "log_every": 5}},
        "paths": {"data": "/a"},
    }
    return RunSpec(**{**values, **changes})


def test_hash_covers_weights_and_nothing_else() -> None:
    base = spec()
    assert base.name == f"cvq-nano-s0-{base.hash8}"
    assert spec(paths={"data": "/b"}).hash8 == base.hash8
    assert spec(config={"model": {"width": 8}, "train": {"steps": 10, "log_every": 7}}).hash8 == base.hash8
    assert spec(config={"model": {"width": 9}, "train": {"steps": 10}}).hash8 != base.hash8
    assert spec(seed=1).hash8 != base.hash8
    assert spec(stage="car").hash8 != base.hash8
    assert RunSpec.from_dict(json.loads(json.dumps(base.to_dict()))).name == base.name


def test_a_new_field_with_a_default_renames_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {
        "model": dataclasses.asdict(CAR_PRESETS["nano"][0]),
        "train": dataclasses.asdict(CAR_PRESETS["nano"][1]),
    }
    before = spec(stage="car", config=config).name
    new = dataclasses.make_dataclass("New", [("twist", float, 0.5)], bases=(CARConfig,), frozen=True, kw_only=True)
    monkeypatch.setitem(identity.MODEL_CONFIGS, "car", new)
    assert spec(stage="car", config=config | {"model": config["model"] | {"twist": 0.5}}).name == before
    assert spec(stage="car", config=config | {"model": config["model"] | {"twist": 0.6}}).name != before


def test_the_format_version_is_written_and_renames_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    before = spec()
    assert before.to_dict()["format_version"] == FORMAT_VERSION
    monkeypatch.setattr(identity, "FORMAT_VERSION", 99)
    assert spec().to_dict()["format_version"] == 99 and spec().name == before.name


def test_ledger_keeps_each_step_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "metrics.jsonl")
    assert ledger.read() == [] and ledger.last_samples() is None
    ledger.append([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}])
    with pytest.raises(AssertionError):
        ledger.append([{"step": 2, "loss": 0.5}])
    assert [r["step"] for r in ledger.read()] == [1, 2]


def test_ledger_survives_a_torn_line(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "metrics.jsonl")
    ledger.append([{"step": s, "loss": 0.0} for s in (1, 2, 3)])
    with open(ledger.path, "a") as file:
        file.write('{"step": 4, "lo')
    assert [r["step"] for r in ledger.read()] == [1, 2, 3]
    assert ledger.truncate_after(2) == 1
    ledger.append([{"step": 3, "loss": 1.0}])
    assert [json.loads(line)["step"] for line in ledger.path.read_text().splitlines()] == [1, 2, 3]


def test_the_tail_of_a_ledger_holds_whole_records_only(tmp_path: Path) -> None:
    ledger = Ledger.of(tmp_path)
    assert ledger.tail(1000) == []
    ledger.append({"step": float(step), "loss": 1.0} for step in range(1, 101))
    with open(ledger.path, "ab") as file:
        file.write(b'not JSON\n[1]\n{"step": 101, "lo')
    tail = ledger.tail(200)
    assert 2 <= len(tail) < 10 and tail == [{"step": float(step), "loss": 1.0} for step in range(101 - len(tail), 101)]
    assert len(ledger.tail(10**6)) == 100
