"""The page of a study with a law in N and D: its law is drawn as it was fitted,
its forecast stands beside the measured loss.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from g3pt.scaling.points import read_points, write_rows
from g3pt.scaling.study import law_of, report
from pipelines.report import loss_law
from pipelines.report.page import write_report
from pipelines.report.values import Source
from pipelines.study.points import fit_and_draw, write_forecast
from tests.g3pt.scaling.grids import SIZES, additive, grid, noisy
from tests.pipelines.report.test_study_figures import write_rates
from tests.pipelines.report_numbers import check_numbers


def rows_of_a_study() -> list[dict]:
    points = noisy(grid(2, sizes=SIZES[2:6]), np.random.default_rng(0))
    columns = zip(points.params, points.samples, points.seed, points.loss, points.flops, strict=True)
    return [
        {
            "size": f"size-{int(n)}", "params_no_embed": int(n), "params_no_adaln": int(n), "params_total": int(n),
            "flops": c,
            "seed": int(s), "samples": int(d), "lr": 1e-3, "test_ce": float(loss), "run": f"run-{int(n)}-{int(d)}-{s}",
            "held_out": 0,
        }
        for n, d, s, loss, c in columns
    ]  # fmt: skip


def test_law_rivals_and_forecast_are_on_the_page(tmp_path: Path) -> None:
    rows = [row | {"test_ce_scale_1": row["test_ce"] - 1, "test_ce_scale_2": -1.0} for row in rows_of_a_study()]
    write_rates(tmp_path, best=0.001)
    (tmp_path / "runs").mkdir()
    (tmp_path / "study.json").write_text(json.dumps({"runs": [], "flags": {}}))
    write_rows(rows, tmp_path / "points.csv")
    fit_and_draw(rows, tmp_path)
    write_forecast(tmp_path, [{"run": "r", "size": "larger", "params": 400_000, "samples": 128_000}])
    (expected,) = json.loads((tmp_path / "fit.json").read_text())["forecast"]
    page = Path(write_report(tmp_path)).read_text()
    assert "measured" not in expected and f"{expected['loss']:.4g}" in page and "not yet" in page
    ahead = {
        "size": "larger",
        "params_no_embed": 400_000,
        "test_ce": float(additive(4e5, 128e3)),
        "run": "r",
        "held_out": 1,
    }
    write_rows([*rows, rows[-1] | {"samples": 128_000} | ahead], tmp_path / "points.csv")
    fit_and_draw([*rows, rows[-1] | {"samples": 128_000} | ahead], tmp_path)
    fit = json.loads((tmp_path / "fit.json").read_text())
    page = Path(write_report(tmp_path)).read_text()
    words = re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", page))
    law = fit["surface"]["law"]
    assert law["formula"] in page and "Forms of the law, by what they predict" in words and "41 points" in words
    for number in (law["parameters"]["alpha"], law["parameters"]["beta"]):
        assert f"{number:.4g}" in words
    (rung,) = fit["forecast"]
    assert rung["inside"] and f"{rung['miss']:+.2%}" in words and "N is 2.55 times the largest measured" in words
    assert fit["learning_rate"]["holds"] is True and check_numbers(page, tmp_path) > 100
    assert fit["scales"]["1"]["form"] == law["form"] and "test_ce_scale_2 must be a positive number" in words
    assert "Sections of equal operations" in words and "Residuals, a point per seed" in words
    for row in fit["surface"]["sections"]["iso_flops"]:
        assert f"{row['optimum']:,.0f}" in words and 0.2 < row["optimum"] / row.get("vertex", row["optimum"]) < 5
    drawn = loss_law.law_of(Source("fit.json", fit["surface"]))
    assert float(drawn(4e5, 128e3)) == pytest.approx(rung["loss"], rel=1e-9), "the curve is the law of the forecast"
    assert known_again(tmp_path, rows) == fit["surface"]["points"]["sha256"], "held-out runs are no part of the fit"


def test_a_law_with_a_known_ceiling_is_drawn_with_it(tmp_path: Path) -> None:
    """To all digits: the formula shows six."""
    rows = rows_of_a_study()
    write_rows(rows, tmp_path / "points.csv")
    points = read_points(tmp_path / "points.csv")
    ceiling = 9.123456789
    found = report(points, form="saturating", ceiling=ceiling)
    drawn = loss_law.law_of(Source("fit.json", found))
    fitted = law_of(points, "saturating", ceiling)
    assert float(drawn(1e5, 3e4)) == pytest.approx(float(fitted(1e5, 3e4)), rel=1e-12)


def known_again(study: Path, rows: list[dict]) -> str:
    write_rows(rows, study / "points.csv")
    fit_and_draw(rows, study)
    return json.loads((study / "fit.json").read_text())["surface"]["points"]["sha256"]
