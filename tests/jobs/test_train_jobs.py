"""The training and sweep commands: bad input is one line and exit 2; a dry run needs nothing."""

import dataclasses
import json
from pathlib import Path

import pytest

from g3pt.scaling.points import write_rows
from pipelines.cli import main
from pipelines.runs.identity import RunSpec
from pipelines.study import job
from pipelines.train import jobs

COMMANDS = {
    "cvq": (jobs.TrainCVQFlags, jobs.train_cvq),
    "car": (jobs.TrainCARFlags, jobs.train_car),
    "sweep": (job.SweepFlags, job.scaling_sweep),
}


def call(command: str, *args: str) -> int:
    flags, run = COMMANDS[command]
    tokenizer = [] if command == "cvq" else ["--tokenizer", "missing-run"]
    with pytest.raises(SystemExit) as stop:
        main.main(flags, run, example="", args=["--data", "missing-data", "--output", "missing-out", *tokenizer, *args])
    return stop.value.code


@pytest.mark.parametrize("command", COMMANDS)
def test_dry_run_needs_no_data(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(command, "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "parameters" in printed
    if command != "sweep":
        assert "operations of an object: forward" in printed and "memory of a worker:" in printed
        assert "\nevaluation: " in printed and "\ncheckpoints: each " in printed
    assert not Path("missing-out").exists()


@pytest.mark.parametrize(
    ("command", "args", "says"),
    [
        ("cvq", ["--preset", "huge"], "unknown preset 'huge'; choose one of nano"),
        ("car", ["--preset", "huge"], "unknown preset 'huge'; choose one of"),
        ("sweep", ["--sizes", "nano,huge"], "unknown preset 'huge'"),
        ("cvq", [], "does not exist"),
        ("car", [], "does not exist"),
        ("cvq", ["--steps", "0"], "--steps must be at least 1"),
        ("cvq", ["--batch-size", "3", "--num-workers", "2"], "not a multiple"),
        ("cvq", ["--micro-batch", "3"], "16 objects, is not a multiple of the micro-batch 3"),
        ("car", ["--num-to-keep", "0"], "--num-to-keep must be at least 1"),
        ("sweep", ["--num-workers", "3"], "--batch-size 16 is not a multiple of --num-workers 3"),
        ("sweep", ["--seeds", "0,1,0"], "--seeds names 0 twice"),
        ("sweep", ["--sizes", "nano,20k,nano"], "--sizes names nano twice"),
        ("sweep", ["--set", "seed=3"], "--set seed: it has a flag of its own, --seeds"),
        ("sweep", ["--set", "drop_phrase=0.5"], "--set drop_phrase: no such field; did you mean drop_phrases"),
        ("sweep", ["--sizes", "80k,150k", "--set", "width=64"], "--set width=64: it makes 80k and 150k the same model"),
    ],
)
def test_bad_input_is_one_line(command: str, args: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(command, *args) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


def test_set_changes_every_size_of_a_study_and_the_names_of_its_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("sweep", "--set", "head=bits,learning_rate=1e-3", "--steps", "7", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "every preset with head=bits,learning_rate=1e-3" in said
    assert said.count("  0.001, 0.00") == 4 and said.count("  1 + 0 + 6 cosine  ") == 4, (
        "rates of all and of hidden ones"
    )
    flags = job.SweepFlags(data="d", tokenizer="t", output="o", sizes="5k,20k", seeds="0,1", steps=7)
    names = []
    for text in (None, "head=bits,learning_rate=1e-3"):
        rows = job.plan(dataclasses.replace(flags, set=text))
        names.append(
            [
                RunSpec(
                    stage="car", preset=row.size, seed=row.train.seed, config={"model": dataclasses.asdict(row.model)}
                ).name
                for row in rows
            ]
        )
    assert [(r.size, r.model.head, r.train.learning_rate, r.train.steps, r.train.seed) for r in rows] == [
        (size, "bits", 1e-3, 7, seed) for size in ("20k", "5k") for seed in (0, 1)
    ]
    assert len(set(names[0]) | set(names[1])) == 8


def test_unfinished_tokenizer_is_named(tmp_path: Path) -> None:
    from pipelines.cli.errors import UsageError, bad_input

    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(UsageError, match="not finished"), bad_input():
        from g3pt.training.exports import read_export_config

        read_export_config(tmp_path)


def test_four_points_give_files_that_say_how_far_to_trust_them(tmp_path: Path) -> None:
    points = [
        {"size": str(n), "params_no_embed": n, "seed": 0, "samples": 800, "test_ce": 2 + 30 * n**-0.3, "held_out": 0}
        for n in (10_000, 50_000, 200_000, 1_000_000)
    ]
    write_rows(points, tmp_path / "points.csv")
    job.fit_and_draw(points, tmp_path)
    assert (tmp_path / "points.csv").read_text().splitlines()[0] == "size,params_no_embed,seed,samples,test_ce,held_out"
    found = json.loads((tmp_path / "fit.json").read_text())
    assert found["status"] == "demonstration, not an estimate"
    assert found["power_law_with_floor"]["exponent"] == pytest.approx(0.3, rel=0.1)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
