"""The figures of a study's page: each shows what its file says, and nothing where there is no file."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from g3pt.scaling.learning_rate import Sweep, report
from g3pt.scaling.points import write_rows
from pipelines.report.html import Page
from pipelines.report.plots import COLOURS
from pipelines.report.study_comparison import comparison
from pipelines.report.study_figures import cooldowns, costs, rates, residuals
from pipelines.report.values import read_csv


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    (tmp_path / "study.json").write_text(json.dumps({"runs": [], "flags": {}}))
    return tmp_path


def words_of(html: object) -> str:
    return re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", str(html)))


def write_run(folder: Path, size: str, steps: int, start: int = 0, seed: int = 0) -> None:
    """A run of a ladder that began at `start` samples, with the records of the run it began from."""
    run_dir = folder / "runs" / f"car-{size}-s{seed}-{steps}"
    run_dir.mkdir()
    train = {"schedule": "wsd", "warmup_samples": 8, "steps": steps, "batch_size": 4}
    spec = {"stage": "car", "preset": size, "seed": seed, "paths": {}, "config": {"train": train}}
    (run_dir / "config.json").write_text(json.dumps(spec))
    if start:
        (run_dir / "branch.json").write_text(json.dumps({"from": "trunk", "samples": start}))
    records = [{"step": at, "val_ce": 9 - at / 1000, "time": 0.0} for at in range(40, 4 * steps + 1, 40)]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def write_rates(folder: Path, best: float) -> None:
    """Two sweeps about a best rate of .001, and a check whose best rate is `best`."""

    def sweep(params: float, centre: float) -> Sweep:
        rates = tuple(0.001 * factor for factor in (0.25, 0.5, 1, 2, 4))
        losses = tuple(5 + 0.02 * float(np.log(rate / centre)) ** 2 for rate in rates)
        return Sweep(params=params, samples=1000.0, rates=rates, losses=losses)

    found = report([sweep(1e4, 0.001), sweep(4e4, 0.001)], [sweep(1e5, best)])
    (folder / "lr.json").write_text(json.dumps(found))


def test_every_run_has_its_residual(folder: Path) -> None:
    rows = [
        {"params_no_embed": n, "samples": d, "test_ce": 5.0, "held_out": n > 200}
        for n in (100, 200, 400)
        for d in (8, 9)
    ]
    write_rows([row | {"held_out": int(row["held_out"])} for row in rows], folder / "points.csv")
    drawn = str(residuals(read_csv(folder / "points.csv", folder), lambda params, samples: 4.0))  # type: ignore[arg-type]
    assert drawn.partition("<ul")[0].count("<circle") == 4, "held-out runs are compared with their forecast"
    assert "8 samples: from 22.31 to 22.31" in drawn


def test_cooldowns_leave_the_longest_run_where_they_began(folder: Path) -> None:
    page = Page(root=folder)
    assert cooldowns(folder, page) == ""
    write_run(folder, "1x8", 100)
    write_run(folder, "1x8", 50, start=160)
    write_run(folder, "1x8", 100, seed=1)
    write_run(folder, "1x8", 70)
    names = ("car-1x8-s0-100", "car-1x8-s0-50", "car-1x8-s1-100")
    (folder / "study.json").write_text(json.dumps({"runs": [{"name": name} for name in names], "flags": {}}))
    drawn = str(cooldowns(folder, page))
    whole, branch = re.findall(r'<polyline points="([^"]+)"', drawn)
    assert len(whole.split()) == 10 and len(branch.split()) == 2, "from the last validation before it: 160, 200"
    assert whole.split()[3] == branch.split()[0] and drawn.count("stroke-dasharray") == 1
    assert drawn.count("<li>") == 1, "one entry per size"


@pytest.mark.parametrize(("best", "said"), [(0.001, "rates held at the size"), (0.0022, "did not hold at the size")])
def test_the_sweeps_and_their_check_are_shown(best: float, said: str, folder: Path) -> None:
    page = Page(root=folder)
    assert rates(folder, page) == ""
    write_rates(folder, best)
    shown = words_of(rates(folder, page))
    assert said in shown and "10,000" in shown and f"{best:.3g}" in shown and "(check)" in shown


def test_a_comparison_with_another_study_is_shown(folder: Path) -> None:
    page = Page(root=folder)
    assert comparison(folder, page) == ""
    alpha = {"name": "alpha", "first": 0.31, "second": 0.25, "difference": 0.06, "interval_95": [0.01, 0.11]}
    beta = {"name": "beta", "first": 0.4, "second": 0.39, "difference": 0.01, "interval_95": [-0.1, 0.12]}
    alpha, beta = alpha | {"seen": True}, beta | {"seen": False}
    found = {
        "first": {"source": "out/a"}, "second": {"source": "out/b"}, "formula": "E + A N^-alpha + B D^-beta",
        "differences": [alpha, beta],
        "multiplier": {"flops": 1e12, "value": 1.75, "interval_95": [1.25, None]},
        "frontier": [{"flops": c, "first": 1 / c, "second": 2 / c} for c in (1.0, 10.0)],
        "objects": {"first": 4096, "second": 4096, "both": 4000},
    }  # fmt: skip
    (folder / "comparison.json").write_text(json.dumps(found))
    drawn = comparison(folder, page)
    shown = words_of(drawn)
    assert "alpha 0.3100 0.2500 +0.0600 +0.0100 to +0.1100" in shown and shown.count("not seen") == 1
    assert "with 1e+12 operations the second needs 1.75 times as many (95 %: 1.25 to infinity)" in shown
    assert "4,000 are in both studies and paired" in shown and str(drawn).count("<polyline") == 2
    (folder / "comparison.json").write_text(json.dumps(found | {"multiplier": None, "frontier": [], "objects": None}))
    assert "Intervals are about the test objects of the studies." in words_of(comparison(folder, page))


def test_cost_is_shown_as_planned_and_as_it_was(folder: Path) -> None:
    page = Page(root=folder)
    assert costs(folder, page) == ""
    row = {"run": "r", "size": "1x8", "seed": 0, "samples": 400, "planned_steps": 50, "planned_seconds": 2.0}
    unknown = row | {"run": "s", "size": "1x16", "planned_seconds": "", "steps": "", "seconds": "", "ratio": ""}
    done = row | {"steps": 50, "seconds": 3.0, "ratio": 1.5}
    write_rows([done, unknown, done | {"run": "sum", "size": "", "samples": ""}], folder / "plan.csv")
    shown = words_of(costs(folder, page))
    assert "all 50 50 2.0 3.0 1.50" in shown and "Cost of 2 runs" in shown
    assert "1x8, seed 0 400 50 50 2.0 3.0 1.50 1x16, seed 0 400 50" in shown


def test_sizes_of_a_study_have_colours_of_their_own() -> None:
    assert len(set(COLOURS)) == len(COLOURS) >= 12, "the presets from nano to 1.5B"
