"""Bad input to the commands that read datasets and runs: exit 2 and one clear line, before Ray starts
and before anything is written.
"""

import json
from pathlib import Path

import pytest

from g3pt.data.records import SCHEMA_VERSION
from pipelines.cli import main
from pipelines.evaluate.config import EvaluateFlags
from pipelines.evaluate.job import evaluate
from pipelines.generate.config import GenerateConfig
from pipelines.generate.job import generate
from pipelines.study.config import SweepFlags
from pipelines.study.job import scaling_sweep
from pipelines.train.jobs import TrainCARFlags, TrainCVQFlags, train_car, train_cvq
from tests.pipelines.toy_data import write_toy_dataset, write_toy_tokenizer

# command: (flags class, function, its flags; DATA, RUN and OUT are filled in)
COMMANDS = {
    "train_cvq": (TrainCVQFlags, train_cvq, "--data DATA --output OUT"),
    "train_car": (TrainCARFlags, train_car, "--data DATA --tokenizer RUN --output OUT"),
    "scaling_sweep": (SweepFlags, scaling_sweep, "--data DATA --tokenizer RUN --output OUT"),
    "evaluate": (EvaluateFlags, evaluate, "--model RUN --data DATA --output OUT.json"),
    "generate": (GenerateConfig, generate, "--model RUN --text chair --output OUT"),
}
READ_DATA = [name for name, row in COMMANDS.items() if "DATA" in row[2]]
READ_RUN = [name for name, row in COMMANDS.items() if "RUN" in row[2]]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A valid dataset and tokenizer."""
    folder = tmp_path_factory.mktemp("good")
    return {"DATA": write_toy_dataset(folder / "data").path, "RUN": write_toy_tokenizer(folder / "tokenizer")}


def complaint(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], **paths: Path) -> str:
    """Run a command that must exit 2 and write nothing; returns its one line on stderr."""
    flags_class, run, line = COMMANDS[command]
    output = tmp_path / "out"
    for name, path in {"OUT": output, **paths}.items():
        line = line.replace(name, str(path))
    with pytest.raises(SystemExit) as stop:
        main.main(flags_class, run, example="", args=line.split())
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, ""), err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert not list(tmp_path.glob("out*")), "something was written"
    return err


def unfinished_run(folder: Path) -> Path:
    """What a killed CVQ run leaves."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"stage": "cvq", "preset": "nano"}))
    (folder / "metrics.jsonl").write_text('{"step": 16, "loss": 1.0}\n')
    return folder


@pytest.mark.parametrize("command", READ_RUN)
def test_an_unfinished_tokenizer_run(
    command: str, good: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = unfinished_run(tmp_path / "cvq-nano-s0-00000000")
    said = complaint(command, tmp_path, capsys, **{**good, "RUN": run})
    assert str(run) in said and "not finished" in said


@pytest.mark.parametrize("command", READ_RUN)
@pytest.mark.parametrize("kind", ["missing", "empty"])
def test_a_run_that_is_none(
    command: str, kind: str, good: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / kind) in complaint(command, tmp_path, capsys, **{**good, "RUN": tmp_path / kind})


@pytest.mark.parametrize("command", READ_DATA)
def test_a_dataset_of_another_schema(
    command: str, good: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = write_toy_dataset(tmp_path / "data", count=8, num_shards=1)
    file = info.path / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema_version": 0}))
    assert f"schema version 0; this program reads version {SCHEMA_VERSION}" in complaint(
        command, tmp_path, capsys, **{**good, "DATA": info.path}
    )


@pytest.mark.parametrize("command", READ_DATA)
@pytest.mark.parametrize("kind", ["missing", "empty"])
def test_a_dataset_that_is_none(
    command: str, kind: str, good: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / kind) in complaint(command, tmp_path, capsys, **{**good, "DATA": tmp_path / kind})


@pytest.mark.parametrize("command", READ_DATA)
def test_a_dataset_that_was_not_finished(
    command: str, good: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = write_toy_dataset(tmp_path / "data", count=8, num_shards=1)
    (info.path / "dataset.json").unlink()
    assert "did not finish" in complaint(command, tmp_path, capsys, **{**good, "DATA": info.path})


def test_a_dataset_with_too_few_points_for_the_preset(
    good: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "preset nano reads num_points" in complaint("train_cvq", tmp_path, capsys, **good)


def test_a_generator_cannot_be_trained_on_a_generator(
    good: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.g3pt.tiny import tiny_g3pt

    generator = tiny_g3pt().save_pretrained(tmp_path / "generator")
    assert "takes a finished CVQ run" in complaint("train_car", tmp_path, capsys, **{**good, "RUN": generator})


def test_a_tokenizer_cannot_generate(good: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "not a generator" in complaint("generate", tmp_path, capsys, **good)
