"""What studies/ holds: rules of learning rates follow from their own losses, plans can be read."""

import json
from pathlib import Path
from typing import Any

import pytest

from g3pt.scaling import learning_rate
from g3pt.scaling.learning_rate import Sweep
from pipelines.cli.paths import REPOSITORY
from pipelines.study.plan_file import read_plan

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
