"""A study's folder for a repository: what is copied, that no path of this machine is, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from g3pt.scaling.forecast import VERSION, compared, read_forecast, seal, write_forecast
from g3pt.scaling.points import read_points, write_parquet, write_rows
from pipelines.cli.errors import UsageError
from pipelines.study.publish import PublishFlags, publish

SIZES = {"1x32": 20_000, "2x32": 40_000, "2x48": 90_000, "2x64": 160_000, "3x64": 230_000, "3x96": 520_000}
SAMPLES = (16_000, 32_000, 64_000)
AHEAD = {"run": "car-4x128-s0-0", "size": "4x128", "params": 1_200_000, "samples": 64_000}
PLAN: dict[str, Any] = {
    "data": "/home/me/pool", "tokenizer": "/home/me/weights/nano", "output": "/home/me/law", "sizes": list(SIZES),
    "samples": [str(n) for n in SAMPLES], "held_out": ["4x128:64000"], "seeds": [0, 1], "batch_size": 32,
    "set": {"text_encoder": "/home/me/weights/car", "beta2": "0.99"}, "placement": {"max_concurrent": 2},
}  # fmt: skip
TOML = """data = "pool"
tokenizer = "weights/nano"
output = "law"
sizes = ["1x32", "2x32", "2x48", "2x64", "3x64", "3x96"]
samples = [16000, 32000, 64000]
held_out = ["4x128:64000"]
seeds = [0, 1]
batch_size = 32
[conditions]
text_encoder = "weights/car"
[set]
beta2 = 0.99
"""


def law(params: float, samples: float) -> float:
    return 4.2 + 50 * params**-0.35 + 108 * samples**-0.45


def rows_of(with_ahead: bool) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    wanted = [(size, n, d, s, 0) for size, n in SIZES.items() for d in SAMPLES for s in (0, 1)]
    if with_ahead:
        wanted.append((AHEAD["size"], AHEAD["params"], AHEAD["samples"], 0, 1))
    return [
        {
            "size": size, "params_no_embed": n, "params_no_adaln": n // 2, "params_total": 2 * n, "flops": 6.0 * n * d,
            "seed": s, "samples": d, "test_ce": law(n, d) * (1 + 0.002 * rng.standard_normal()), "held_out": held,
            "run": f"car-{size}-s{s}-{held and 0}", "command": "python jobs/x.py --plan /home/me/study.toml",
        }
        for size, n, d, s, held in wanted
    ]  # fmt: skip


def write_points(rows: list[dict[str, Any]], study: Path) -> None:
    write_rows(rows, study / "points.csv")
    objects = {"id": ["a", "b"], "ce": [1.0, 2.0], "ce_scale_1": [1.0, 2.0]}
    write_parquet(rows, [objects] * len(rows), study / "points.parquet")


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose forecast is written and whose held-out run does not exist yet."""
    study = tmp_path_factory.mktemp("law")
    (study / "study.json").write_text(json.dumps({"plan": PLAN}))
    rows = rows_of(with_ahead=False)
    write_points(rows, study)
    (study / "fit.json").write_text('{"surface": {}}')
    (study / "curve.png").touch()
    rung = AHEAD | {"loss": 5.32, "interval_95": [5.29, 5.35], "half_width": 0.006, "beyond": ""}
    body = {"version": VERSION, "points_sha256": read_points(study / "points.csv").sha256, "rungs": [rung]}
    write_forecast(body | {"sha256": seal(body)}, study / "forecast.json")
    (study / "runs").mkdir()
    return study


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    output = tmp_path / "studies" / "law"
    output.mkdir(parents=True)
    (output / "study.toml").write_text(TOML)
    return output


def test_a_forecast_is_published_before_its_run_exists(
    sealed: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish(PublishFlags(study=str(sealed), output=str(folder))) == str(folder)
    assert {path.name for path in folder.iterdir()} == {
        "study.toml", "points.csv", "points.parquet", "fit.json", "forecast.json", "curve.png",
    }  # fmt: skip
    said = capsys.readouterr().out
    assert said.startswith("4x128 at 64,000 samples: ") and " expected (" in said and "measured" not in said
    for file in folder.glob("*.[cj]s*"):
        assert "/home/me" not in file.read_text()
    table = pq.read_table(folder / "points.parquet")
    assert set(table["command"].to_pylist()) == {"python jobs/scaling_sweep.py --plan studies/law/study.toml"}
    assert table["objects_ce"].to_pylist()[0] == [1.0, 2.0] and "objects_ce_scale_1" not in table.column_names
    forecast = json.loads((folder / "forecast.json").read_text())
    assert read_points(folder / "points.csv").sha256 == read_points(folder / "points.parquet").sha256
    assert read_points(folder / "points.csv").sha256 == forecast["points_sha256"]


def test_a_miss_is_published_with_its_run(
    sealed: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = shutil.copytree(sealed, tmp_path / "law")
    rows = rows_of(with_ahead=True)
    rows[-1]["test_ce"] = 5.84
    write_points(rows, study)
    fit = json.loads((study / "fit.json").read_text())
    forecast = compared(read_forecast(study / "forecast.json"), {AHEAD["run"]: 5.84})
    (study / "fit.json").write_text(json.dumps(fit | {"forecast": forecast}))
    publish(PublishFlags(study=str(study), output=str(folder)))
    said = capsys.readouterr().out
    assert "5.3200 expected" in said and "5.8400 measured: missed by -8.90%, OUTSIDE the interval" in said
    table = pq.read_table(folder / "points.parquet")
    assert table["held_out"].to_pylist() == [0] * 36 + [1]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"3x96"]', '"4x96"]', "sizes is 1x32,2x32,2x48,2x64,3x64,4x96, the study has 1x32"),
        ("beta2 = 0.99", "beta2 = 0.95", "set beta2 is 0.95, the study has 0.99"),
        ("seeds = [0, 1]", "", "seeds is missing, the study has 0,1"),
        ("weights/car", "weights/other", "set text_encoder is other, the study has car"),
    ],
)
def test_another_plan_is_refused(sealed: Path, folder: Path, old: str, new: str, says: str) -> None:
    assert old in TOML
    (folder / "study.toml").write_text(TOML.replace(old, new))
    with pytest.raises(UsageError, match=says.replace("[", r"\[")):
        publish(PublishFlags(study=str(sealed), output=str(folder)))
    assert [path.name for path in folder.iterdir()] == ["study.toml"], "nothing was copied"


def test_a_path_of_this_machine_is_not_published(sealed: Path, folder: Path, tmp_path: Path) -> None:
    study = shutil.copytree(sealed, tmp_path / "law")
    (study / "plan.csv").write_text("size,probe\n1x32,/home/me/probe.json\n")
    with pytest.raises(UsageError, match=r"plan\.csv names /home/me/probe\.json, a path of this machine"):
        publish(PublishFlags(study=str(study), output=str(folder)))
    assert [path.name for path in folder.iterdir()] == ["study.toml"]


@pytest.mark.parametrize("missing", ["study.json", "study.toml"])
def test_a_missing_plan_is_named(sealed: Path, folder: Path, tmp_path: Path, missing: str) -> None:
    study = shutil.copytree(sealed, tmp_path / "law")
    next(file for file in (study / missing, folder / missing) if file.exists()).unlink()
    with pytest.raises(UsageError, match=f"{missing} is missing: give the folder of a study"):
        publish(PublishFlags(study=str(study), output=str(folder)))


def test_a_study_without_points_has_nothing_to_publish(sealed: Path, folder: Path, tmp_path: Path) -> None:
    study = shutil.copytree(sealed, tmp_path / "law")
    (study / "points.csv").unlink()
    with pytest.raises(UsageError, match=r"has no points\.csv yet"):
        publish(PublishFlags(study=str(study), output=str(folder)))
