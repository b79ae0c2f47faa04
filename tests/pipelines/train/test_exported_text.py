"""A generator may take the frozen text encoder of another one's export: it names the run by its weights, trains nothing
of it, and travels on.
"""

import dataclasses
import itertools
import shutil
from pathlib import Path

import pytest
import torch

from g3pt.config import CARConfig, TrainConfig, from_dict
from g3pt.models import features
from g3pt.models.car import G3PT
from g3pt.models.encoders import EXPORTED, TextEncoder, exported_text
from g3pt.training.exports import export_hash, read_export_config
from g3pt.training.fit import fit
from pipelines.cli.errors import UsageError
from pipelines.cluster.pool import Pool
from pipelines.derive.features import store_features
from pipelines.runs.identity import RunSpec
from pipelines.train import counts, jobs, trained_on
from pipelines.train.car import CARStage
from pipelines.train.init_from import initialise, started_from
from tests.pipelines.toy_data import write_encoded_toy

MODEL = CARConfig(depth=1, width=32, num_heads=2, image_encoder="none")
TRAIN = TrainConfig(steps=4, batch_size=8, learning_rate=3e-3, warmup_samples=16, ema_decay=0.5, log_every=2)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_encoded_toy(tmp_path_factory.mktemp("text"), count=40)


@pytest.fixture(scope="module")
def source(paths: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a generator with a text encoder that is not the one that a seed gives."""
    run = CARStage(spec_of(paths, MODEL))
    with torch.no_grad():
        for p in run.model.text.parameters():
            p.add_(0.1)
    run.export(run.model, tmp_path_factory.mktemp("source"))
    return Path(run.model.save_pretrained(tmp_path_factory.mktemp("source") / "export", extra=extra()))


def extra() -> dict:
    return {"trained_on": [{"id": "elsewhere", "license": "cc0", "author": "somebody", "url": ""}]}


def spec_of(paths: dict[str, str], model: CARConfig) -> RunSpec:
    return jobs.car_spec(paths["data"], paths["tokenizer"], "toy", model, TRAIN)


def taking(source: Path) -> CARConfig:
    return dataclasses.replace(MODEL, text_encoder=str(source))


def test_the_weights_name_the_run_and_their_place_does_not(paths: dict[str, str], source: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(source, tmp_path / "moved"))
    here, there, own = (spec_of(paths, model) for model in (taking(source), taking(moved), MODEL))
    assert here.name == there.name != own.name
    assert (here.config["model"]["text_encoder"], here.config["model"]["text_revision"]) == (
        EXPORTED,
        export_hash(source),
    )
    assert here.paths["text_encoder"] == str(source)
    with pytest.raises(UsageError, match="contains no text encoder"):
        spec_of(paths, dataclasses.replace(MODEL, text_encoder=paths["tokenizer"]))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    with pytest.raises(UsageError, match="broken/config.json: not JSON"):
        spec_of(paths, dataclasses.replace(MODEL, text_encoder=str(tmp_path / "broken")))
    with pytest.raises(UsageError, match="text_encoder=exported needs the folder of a generator's export"):
        spec_of(paths, dataclasses.replace(MODEL, text_encoder=EXPORTED))


def test_it_is_the_source_s_learns_nothing_and_travels_on(paths: dict[str, str], source: Path, tmp_path: Path) -> None:
    run = CARStage(spec_of(paths, taking(source)))
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    assert all(torch.equal(before[f"text_encoder.{name}"], tensor) for name, tensor in exported_text(source)[1].items())
    fit(model=run.model, batches=run.batches, config=TRAIN, report=lambda _: None)
    moved = {name for name, tensor in run.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert "car.start" in moved and not [name for name in moved if name.startswith("text_encoder.")]
    run.export(run.model, tmp_path / "export")
    again = G3PT.from_pretrained(tmp_path / "export")
    assert (
        read_export_config(tmp_path / "export")["small_encoders"]["text"]
        == read_export_config(source)["small_encoders"]["text"]
    )
    ids_BM, mask_BM = again.text.tokenizer(["a red chair"])
    assert torch.equal(again.text(ids_BM, mask_BM), TextEncoder.of_export(source)(ids_BM, mask_BM))
    assert not any(p.requires_grad for p in again.text.parameters())
    assert "elsewhere" in {row["id"] for row in trained_on.read(tmp_path / "export")}


def test_its_stored_vectors_train_the_same_run(paths: dict[str, str], source: Path, tmp_path: Path) -> None:
    spec = spec_of(paths, taking(source))
    store_features(
        paths["data"], features.encodings(from_dict(CARConfig, spec.config["model"]), str(source)), Pool(num_workers=0)
    )
    (told,) = jobs.with_features([spec], jobs.TrainCARFlags(**paths, output="out", features="stored"))
    assert told.name == spec.name and told.paths["text_features"].startswith("text-")
    live, stored = CARStage(spec), CARStage(told)
    for ours, theirs in itertools.islice(zip(live.batches(0), stored.batches(0), strict=True), 2):
        given = live.model.text(ours["text_BM"], ours["text_mask_BM"])
        torch.testing.assert_close(theirs["text_BC"].float(), given, rtol=1e-3, atol=2e-3)
    records: list[list[dict]] = [[], []]
    for run, seen in zip((live, stored), records, strict=True):
        fit(model=run.model, batches=run.batches, config=TRAIN, report=seen.append)
    assert records[1][-1]["ce"] == pytest.approx(records[0][-1]["ce"], abs=2e-3)
    stored.export(stored.model, tmp_path / "export")
    assert exported_text(tmp_path / "export")[1].keys() == exported_text(source)[1].keys()


def test_a_source_that_changed_since_is_refused(paths: dict[str, str], source: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(source, tmp_path / "moved"))
    spec = spec_of(paths, taking(moved))
    shutil.copytree(paths["tokenizer"], moved, dirs_exist_ok=True)
    with pytest.raises(ValueError, match="changed since this run was named|contains no text encoder"):
        CARStage(spec)


def test_weights_to_start_from_do_not_replace_it(paths: dict[str, str], source: Path, tmp_path: Path) -> None:
    other = CARStage(spec_of(paths, MODEL)).model
    with torch.no_grad():
        other.car.start.add_(1.0)
    start = other.save_pretrained(tmp_path / "start")
    spec = started_from(spec_of(paths, taking(source)), str(start))
    model = CARStage(spec).model
    initialise(model, spec)
    assert torch.equal(model.car.start, other.car.start)
    name, tensor = next(iter(exported_text(source)[1].items()))
    assert torch.equal(model.state_dict()[f"text_encoder.{name}"], tensor)


def test_the_plan_counts_its_width_before_the_run_is_named(source: Path) -> None:
    assert counts.condition_widths(taking(source)) == counts.condition_widths(MODEL)
