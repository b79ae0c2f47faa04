"""What studies/ holds: rules of learning rates follow from their own losses, plans can be read."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from g3pt.scaling import learning_rate
from g3pt.scaling.forecast import read_forecast
from g3pt.scaling.learning_rate import Sweep
from g3pt.scaling.points import read_points, read_rows
from pipelines.cli.paths import REPOSITORY
from pipelines.study.plan import number
from pipelines.study.plan_file import read_plan
from pipelines.study.points import surface
from pipelines.study.publish import LOCAL

STUDIES = sorted(path.parent for path in (REPOSITORY / "studies").glob("*/study.toml"))


def sweeps(rows: list[dict[str, Any]]) -> list[Sweep]:
    return [
        Sweep(params=row["params"], samples=row["samples"], rates=tuple(row["rates"]), losses=tuple(row["losses"]))
        for row in rows
    ]


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_the_rule_of_learning_rates_follows_from_the_losses(study: Path) -> None:
    kept = json.loads((study / "lr.json").read_text(encoding="utf-8"))
    found = learning_rate.report(sweeps(kept["sweeps"]), sweeps(kept["gate"]))
    assert found["holds"] is kept["holds"] is True
    for name in ("a", "b", "c"):
        assert found["rule"][name] == pytest.approx(kept["rule"][name], rel=1e-9)
    assert [row["cost"] for row in found["gate"]] == pytest.approx([row["cost"] for row in kept["gate"]], rel=1e-9)
    assert all(row["minimum"]["inside"] for row in found["sweeps"])


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_a_plan_can_be_read(study: Path) -> None:
    plan = read_plan(str(study / "study.toml"))
    assert plan["tokenizer"].startswith("weights/") and len(plan["sizes"].split(",")) >= 6


FITTED = [study for study in STUDIES if (study / "fit.json").exists()]


@pytest.mark.parametrize("study", FITTED, ids=lambda study: study.name)
def test_the_points_are_those_of_the_plan(study: Path) -> None:
    plan, points = read_plan(str(study / "study.toml")), read_rows(study / "points.csv")
    fitted = {(row["size"], row["seed"], number(row["samples"])) for row in points if row["held_out"] == "0"}
    sizes, seeds = plan["sizes"].split(","), plan["seeds"].split(",")
    samples = [number(text) for text in plan["samples"].split(",")]
    assert fitted == {(size, seed, count) for size in sizes for seed in seeds for count in samples}
    ahead = {f"{row['size']}:{number(row['samples'])}" for row in points if row["held_out"] == "1"}
    wanted = (rung.partition(":") for rung in plan["held_out"].split(","))
    assert ahead <= {f"{size}:{number(count)}" for size, _, count in wanted}


@pytest.mark.parametrize("study", FITTED, ids=lambda study: study.name)
def test_the_law_follows_from_the_points(study: Path, tmp_path: Path) -> None:
    """Fitted again from points.csv, in a folder without the known fit."""
    shutil.copy(study / "points.csv", tmp_path)
    kept = json.loads((study / "fit.json").read_text(encoding="utf-8"))["surface"]
    found = surface(tmp_path, kept["ceiling"])
    assert found["points"]["sha256"] == kept["points"]["sha256"]
    same(json.loads(json.dumps(found["law"])), kept["law"])


@pytest.mark.parametrize("study", FITTED, ids=lambda study: study.name)
def test_the_forecast_was_made_of_these_points(study: Path) -> None:
    forecast = read_forecast(study / "forecast.json")
    points = read_points(study / "points.csv")
    assert forecast["points_sha256"] == points.sha256
    same(forecast["law"], json.loads((study / "fit.json").read_text(encoding="utf-8"))["surface"]["law"])
    for name in (study / "points.csv", study / "fit.json", study / "forecast.json", study / "plan.csv"):
        assert not LOCAL.search(name.read_text(encoding="utf-8")), name


def same(found: Any, kept: Any) -> None:
    """Equal but for the last digits of numbers."""
    if isinstance(kept, dict):
        assert found.keys() == kept.keys()
        for name in kept:
            same(found[name], kept[name])
    elif isinstance(kept, list):
        assert len(found) == len(kept)
        for one, other in zip(found, kept, strict=True):
            same(one, other)
    elif isinstance(kept, float):
        assert found == pytest.approx(kept, rel=1e-4)
    else:
        assert found == kept
