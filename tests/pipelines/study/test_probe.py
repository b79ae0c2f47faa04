"""Seconds of a sample are measured on this device, and plans use them while they are of the same run."""

import dataclasses
import json
from pathlib import Path

import pytest

from g3pt.config import CARConfig, CVQConfig, TrainConfig
from pipelines.cli.errors import UsageError
from pipelines.derive import tokens
from pipelines.runs.identity import RunSpec
from pipelines.study import probe
from pipelines.study.config import SweepFlags
from pipelines.study.cost import planned_devices, probed
from pipelines.study.job import measure
from pipelines.study.plan import plan
from tests.pipelines.toy_data import write_toy_dataset, write_toy_tokenizer

FIELDS = "text_encoder=small,image_encoder=none"


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "STEPS", 6)
    monkeypatch.setattr(probe, "RECORD", 2)


def flags_of(folder: Path, data: str = "d", tokenizer: str = "t") -> SweepFlags:
    return SweepFlags(
        data=data, tokenizer=tokenizer, output=str(folder / "study"), sizes="1x8,1x16", samples="240,320",
        batch_size=4, set=FIELDS, device="cpu",
    )  # fmt: skip


def test_batches_of_an_encoded_dataset_are_timed_and_planned_with(tmp_path: Path) -> None:
    info, tokenizer = write_toy_dataset(tmp_path / "data", count=40), write_toy_tokenizer(tmp_path / "tokenizer")
    flags = flags_of(tmp_path, str(info.path), str(tokenizer))
    assert not probe.is_encoded(flags.data, flags.tokenizer)
    tokens.encode_dataset(info.path, tokenizer, use_ray=False)
    rows = plan(flags)
    assert measure(rows, flags) == tmp_path / "study"
    found = json.loads((tmp_path / "study" / "probe.json").read_text())
    assert found["batches"] == "the dataset" and found["device"].startswith("one core of ")
    assert {size: one["steps"] for size, one in found["sizes"].items()} == {"1x8": 6, "1x16": 6}
    seconds = {size: one["seconds_per_sample"] for size, one in found["sizes"].items()}
    assert all(0 < one < 10 for one in seconds.values())
    speed = probed(planned_devices(flags)[1], rows, flags)
    assert speed.measured == seconds and "; 2 of 2 sizes as measured on one core of " in speed.said
    changed = dataclasses.replace(flags, batch_size=8, samples=None)
    assert probed(planned_devices(flags)[1], plan(changed), changed).measured == {}, "another batch was not measured"


def test_without_data_random_codes_are_timed(tmp_path: Path) -> None:
    flags, codec = flags_of(tmp_path), CVQConfig(
        scales=(1, 4), width=8, num_heads=1, encoder_layers=1, decoder_layers=1
    )  # fmt: skip
    found = json.loads(probe.probe(plan(flags), None, codec, flags).read_text())
    assert found["batches"] == "random codes" and found["sizes"]["1x16"]["micro_batch"] == 4


def test_planned_seconds_of_a_run_are_those_of_its_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, train = CARConfig(depth=1, width=8, num_heads=1), TrainConfig(steps=100, batch_size=4, learning_rate=0.1)
    config = {"model": dataclasses.asdict(model), "train": dataclasses.asdict(train), "computed": {"workers": 2}}
    spec = RunSpec(stage="car", preset="x", seed=0, config=config)
    monkeypatch.setattr(probe, "stated_rate", lambda flops_per_s: lambda spec: flops_per_s and 100 / flops_per_s)
    assert (
        probe.planned_rate(str(tmp_path), 50.0)(spec) == 1.0 and probe.planned_rate(str(tmp_path), None)(spec) is None
    )
    size = {"key": probe.key_of(model, train), "seconds_per_sample": 3.0}
    (tmp_path / "probe.json").write_text(json.dumps({"device": "x", "sizes": {"x": size}}))
    assert probe.planned_rate(str(tmp_path), 50.0)(spec) == 1.5
    pinned = dataclasses.replace(model, text_revision="abc", checkpoint_layers=True)
    assert probe.key_of(pinned, train) == size["key"]
    assert probe.key_of(model, dataclasses.replace(train, precision="bf16")) != size["key"]


def test_a_size_that_does_not_fit_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def place(*_: object, **__: object) -> None:
        raise UsageError("too large")

    monkeypatch.setattr(probe, "place", place)
    with pytest.raises(UsageError, match="--probe: no size fits this device"):
        probe.probe(plan(flags_of(tmp_path)), None, None, flags_of(tmp_path))
