"""What is part of a run's identity."""

import dataclasses
import json

import pytest

from g3pt.config import CAR_PRESETS, FORMAT_VERSION, CARConfig
from pipelines.runs import identity
from pipelines.runs.identity import RunSpec


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
