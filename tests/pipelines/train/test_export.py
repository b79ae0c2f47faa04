"""The last and the best weights of a run, finished or not, as folders that load."""

import dataclasses
import functools
import json
from pathlib import Path

import pytest
import torch

from g3pt.models.tokenizer import CVQ
from g3pt.training import compiled
from g3pt.training.exports import export_hash, read_export_config
from pipelines.cli.errors import UsageError
from pipelines.runs.identity import RunSpec
from pipelines.runs.ledger import Ledger
from pipelines.train import checkpoints
from pipelines.train import run as train
from pipelines.train.cvq import CVQStage
from pipelines.train.export import ExportFlags, export
from tests.g3pt.models.test_tokenizer import TINY
from tests.pipelines.toy_data import write_toy_dataset
from tests.pipelines.train.test_jobs import POINTS

BUILD = "tests.pipelines.tiny_cvq_stage:build_stage"
LOOP = {"steps": 6, "batch_size": 4, "learning_rate": 1e-3, "log_every": 1, "eval_every": 1, "checkpoint_every": 1}
SHARES = {"continuous_share": 0.17, "pyramid_share": 0.17}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, whose joint phase begins at step 2."""
    config = {"model": dataclasses.asdict(dataclasses.replace(TINY, **SHARES)), "train": LOOP}
    spec = RunSpec(stage="cvq", preset="tiny", seed=0, config=config)
    run_dir = train.prepare_run(spec, tmp_path_factory.mktemp("runs"))
    train.work(train.work_config(spec, run_dir, BUILD))
    return run_dir


def test_both_exports_are_made_and_the_best_names_its_record(run_dir: Path) -> None:
    records = Ledger.of(run_dir).read()
    values = {record["step"]: record["val_norm"] for record in records if record["step"] > 8}
    samples = max(values, key=values.__getitem__)
    assert read_export_config(run_dir / "export-best")["best"] == {
        "samples": samples,
        "validation_loss": -values[samples],
    }
    assert "best" not in read_export_config(run_dir / "export")
    norm = sum(float(p.detach().square().sum()) for p in CVQ.from_pretrained(run_dir / "export-best").parameters())
    assert norm == pytest.approx(values[samples], rel=1e-6)
    assert all("val_norm_raw" in record for record in records)
    assert values[samples] != records[-1]["val_norm"], "or best and last could be confused"


@pytest.mark.parametrize("weights", ["last", "best"])
def test_an_unfinished_run_exports_what_it_will_when_it_is_finished(
    weights: str, run_dir: Path, tmp_path: Path
) -> None:
    done = export(ExportFlags(run=str(run_dir), output=str(tmp_path / "done"), weights=weights), BUILD)
    mark = run_dir / "_SUCCESS"
    mark.unlink()
    try:
        early = export(ExportFlags(run=str(run_dir), output=str(tmp_path / "early"), weights=weights), BUILD)
    finally:
        mark.touch()
    kept = run_dir / ("export" if weights == "last" else "export-best")
    assert export_hash(done) == export_hash(early) == export_hash(kept)
    model, expected = CVQ.from_pretrained(early), CVQ.from_pretrained(kept)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), expected.state_dict().values(), strict=True)
    )


def test_a_tokenizer_is_chosen_by_the_validation_loss_of_its_last_phase(tmp_path: Path) -> None:
    few = dataclasses.replace(TINY, **{name: 8 for name in POINTS})
    config = {"model": dataclasses.asdict(few), "train": LOOP}
    info = write_toy_dataset(tmp_path / "data", count=60)
    stage = CVQStage(RunSpec(stage="cvq", preset="tiny", seed=0, config=config, paths={"data": str(info.path)}), 0, 1)
    stage.model.phase = "joint"
    record = stage.evaluate(stage.model)
    assert stage.evaluate_raw(stage.model)["val_loss_volume_raw"] == pytest.approx(record["val_loss_volume"], rel=1e-6)
    assert stage.best_by(record) == record["val_loss_volume"] and stage.best_by({}) is None
    stage.model.phase = "pyramid"
    assert stage.best_by(record) is None


def test_what_there_is_not_is_one_line(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists already"):
        export(ExportFlags(run=str(run_dir), output=str(run_dir)), BUILD)
    with pytest.raises(UsageError, match="not a training run"):
        export(ExportFlags(run=str(tmp_path), output=str(tmp_path / "out")), BUILD)
    spec = RunSpec(stage="cvq", preset="tiny", seed=1, config={"model": dataclasses.asdict(TINY), "train": LOOP})
    new = train.prepare_run(spec, tmp_path)
    with pytest.raises(UsageError, match="no readable checkpoint yet"):
        export(ExportFlags(run=str(new), output=str(tmp_path / "out")), BUILD)
    oldest = checkpoints.read_checkpoint(checkpoints.checkpoints(run_dir / "checkpoints")[-1])
    fit = oldest["fit"]()
    del fit["best"]
    checkpoints.save_checkpoint(new / "checkpoints", {**oldest, "fit": fit}, 1)
    with pytest.raises(UsageError, match="has no best weights"):
        export(ExportFlags(run=str(new), output=str(tmp_path / "out"), weights="best"), BUILD)


def test_a_run_with_compiled_blocks_has_the_same_name_and_weights(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Captured by dynamo and run as they are, through the changes of phase; Inductor would compile for minutes."""
    monkeypatch.setattr(compiled, "compile_blocks", functools.partial(compiled.compile_blocks, backend="eager"))
    spec = RunSpec.from_dict(json.loads((run_dir / "config.json").read_text(encoding="utf-8")))
    other = train.prepare_run(spec, tmp_path)
    train.work(train.work_config(spec, other, BUILD, train.Speed(compile="on")))
    torch.compiler.reset()
    assert "transformer blocks are compiled" in capsys.readouterr().out
    assert other.name == run_dir.name
    for folder in ("export", "export-best"):
        weights = [(run / folder / "model.safetensors").read_bytes() for run in (run_dir, other)]
        assert weights[0] == weights[1]
