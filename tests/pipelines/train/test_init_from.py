"""A run that starts from other weights: its name, its first step, its credits, and what does not fit."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from g3pt.config import CARConfig, TrainConfig
from g3pt.models.car import G3PT
from g3pt.models.tokenizer import CVQ
from g3pt.training.exports import export_hash, read_export_config, write_json
from pipelines.cli.errors import UsageError
from pipelines.release import model_card
from pipelines.runs.identity import RunSpec
from pipelines.status.inputs import Inputs
from pipelines.status.runs import changed_inputs
from pipelines.train import checkpoints, follow, trained_on
from pipelines.train import run as train
from pipelines.train.car import CARStage
from pipelines.train.init_from import initialise, started_from
from tests.g3pt.models.test_tokenizer import TINY
from tests.g3pt.tiny import tiny_tokenizer
from tests.pipelines.toy_data import write_encoded_toy, write_toy_dataset

BUILD = "tests.pipelines.tiny_cvq_stage:build_stage"
LOOP = {"steps": 4, "batch_size": 4, "learning_rate": 1e-3, "log_every": 2, "eval_every": 4, "checkpoint_every": 2}


def cvq_spec(model: Any = TINY, **paths: str) -> RunSpec:
    config = {"model": dataclasses.asdict(model), "train": LOOP}
    return RunSpec(stage="cvq", preset="tiny", seed=0, config=config, paths=paths)


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A tokenizer unlike a new one, trained on one object."""
    model = CVQ(TINY, seed=5)
    model.cqt.sigma.fill_(0.5)
    rows = [{"id": "elsewhere", "license": "CC-BY-4.0", "author": "somebody", "url": ""}]
    return model.save_pretrained(tmp_path / "old" / "export", extra={"trained_on": rows})


def test_the_export_names_the_run_and_a_run_without_one_keeps_its_name(export: Path) -> None:
    plain, started = cvq_spec(), started_from(cvq_spec(), str(export))
    assert started_from(plain, None) is plain
    assert started.name != plain.name and started.config["init_from"] == export_hash(export)
    assert started.to_dict()["paths"]["init_from"] == str(export)
    shown = follow.card(dataclasses.replace(started, config=started.config | {"dataset": "d"}), export)
    assert shown.params["init_from"] == "old" and shown.tags["g3pt.init_from_hash"] == export_hash(export)


def test_training_starts_from_its_weights_and_statistics_and_resumes_from_checkpoints(
    export: Path, tmp_path: Path
) -> None:
    spec = started_from(cvq_spec(), str(export))
    model = CVQ(TINY)
    initialise(model, spec)
    stored = CVQ.from_pretrained(export).state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())

    def trained(spec: RunSpec) -> bytes:
        run_dir = train.prepare_run(spec, tmp_path / "runs")
        train.work(train.work_config(spec, run_dir, BUILD))
        return (run_dir / "export" / "model.safetensors").read_bytes()

    weights = trained(spec)
    assert weights != trained(cvq_spec())
    shutil.rmtree(checkpoints.checkpoints(tmp_path / "runs" / spec.name / "checkpoints")[0])
    assert trained(spec) == weights, "it goes on from its checkpoint"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"width": 32},
            r"tensor cqt.base is \(8, 16\), in this run's model \(8, 32\); --init-from takes a model of the same sizes",
        ),
        ({"encoder_layers": 3}, "tensor encoder.blocks.[12].* is missing, in this run's model"),
        ({"decoder_layers": 0}, "tensor decoder.blocks.0.* is .*, in this run's model missing"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(changes: dict, says: str, export: Path) -> None:
    with pytest.raises(UsageError, match=says):
        started_from(cvq_spec(dataclasses.replace(TINY, **changes)), str(export))


def test_another_kind_and_a_changed_export_are_refused(export: Path, tmp_path: Path) -> None:
    generator = tmp_path / "car"
    shutil.copytree(export, generator)
    write_json(generator / "config.json", read_export_config(export) | {"kind": "car"})
    with pytest.raises(UsageError, match="contains a 'car' model; this run trains a 'cvq' one"):
        started_from(cvq_spec(), str(generator))
    spec = started_from(cvq_spec(), str(export))
    assert not changed_inputs(spec.to_dict(), Inputs([])).changed
    CVQ(TINY, seed=6).save_pretrained(export)
    with pytest.raises(ValueError, match="changed since this run was named"):
        initialise(CVQ(TINY), spec)
    assert "start" in changed_inputs(spec.to_dict(), Inputs([])).changed


def test_what_the_start_was_trained_on_is_credited_and_the_card_names_it(export: Path, tmp_path: Path) -> None:
    info = write_toy_dataset(tmp_path / "data")
    spec = started_from(cvq_spec(data=str(info.path)), str(export))
    ids = [row["id"] for row in trained_on.collect(spec)]
    assert "elsewhere" in ids and len(ids) > 1 and ids == sorted(set(ids))
    made = model_card.Made(
        name="m", config=read_export_config(export), run=spec.to_dict(), records=[], environment={}, trained_on=[]
    )
    assert f"from the weights of old (export {export_hash(export)[:16]})" in model_card.title(made)[-1]


def test_a_generator_keeps_the_run_s_tokenizer_and_words_must_agree(tmp_path: Path) -> None:
    paths = write_encoded_toy(tmp_path)
    model = CARConfig(depth=1, width=32, num_heads=2, image_size=28)
    train_config = TrainConfig(steps=1, batch_size=2, learning_rate=1e-3)
    config = {"model": dataclasses.asdict(model), "train": dataclasses.asdict(train_config)}
    spec = RunSpec(stage="car", preset="toy", seed=0, config=config, paths=paths)
    made = CARStage(spec).model
    with torch.no_grad():
        for p in made.parameters():
            p.add_(1.0)  # the tokenizer's too
    old = made.save_pretrained(tmp_path / "old")
    started = started_from(spec, str(old))
    fresh = CARStage(spec).model
    initialise(fresh, started)
    assert torch.equal(fresh.car.start, made.car.start)
    assert torch.equal(fresh.tokenizer.cqt.base, tiny_tokenizer().cqt.base)
    other = G3PT(made.config, tiny_tokenizer(), fresh.small | {"text": fresh.small["text"] | {"words": ["xyz"]}})
    with pytest.raises(ValueError, match="its text encoder knows other words"):
        initialise(other, started)
    with pytest.raises(UsageError, match="tensor car.blocks.1.* is missing"):
        started_from(
            dataclasses.replace(spec, config=config | {"model": dataclasses.asdict(model) | {"depth": 2}}), str(old)
        )
