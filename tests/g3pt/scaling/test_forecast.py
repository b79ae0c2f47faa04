"""A forecast is sealed, written once, and compared with what was measured."""

import json
from pathlib import Path

import numpy as np
import pytest

from g3pt.scaling import forecast as forecasts
from g3pt.scaling.choice import fit
from g3pt.scaling.forms import ADDITIVE
from g3pt.scaling.intervals import errors
from g3pt.scaling.points import Points
from tests.g3pt.scaling.grids import additive, grid, noisy


def made() -> tuple[dict, Points]:
    points = noisy(grid(3), np.random.default_rng(0))
    law = fit(ADDITIVE, points)
    rungs = [
        {"run": "r4M", "size": "4M", "params": 4.1e6, "samples": 128e3},
        {"run": "r-in", "size": "in", "params": 89e3, "samples": 64e3},
    ]
    return forecasts.forecast(errors(law, points.size, points.seed), points, rungs), points


def test_a_rung_has_its_loss_and_the_interval_of_a_new_run() -> None:
    body, points = made()
    outside, inside = body["rungs"]
    assert outside["loss"] == pytest.approx(float(additive(4.1e6, 128e3)), rel=0.01)
    assert outside["interval_95"][0] < outside["loss"] < outside["interval_95"][1]
    assert outside["beyond"] == "N is 3.42 times the largest measured" and inside["beyond"] == ""
    assert outside["half_width"] > inside["half_width"] > 0.003
    assert body["points_sha256"] == points.sha256


def test_it_is_written_once_and_a_change_shows(tmp_path: Path) -> None:
    body, file = made()[0], tmp_path / "forecast.json"
    forecasts.write_forecast(body, file)
    assert forecasts.read_forecast(file) == json.loads(json.dumps(body))
    with pytest.raises(FileExistsError):
        forecasts.write_forecast(body, file)
    assert list(tmp_path.iterdir()) == [file]
    changed = json.loads(file.read_text())
    changed["rungs"][0]["loss"] += 0.01
    file.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="was changed after it was written"):
        forecasts.read_forecast(file)
    file.write_text("{}")
    with pytest.raises(ValueError, match="is no forecast"):
        forecasts.read_forecast(file)


def test_a_miss_is_said_with_its_sign() -> None:
    body, points = made()
    loss = 0.99 * body["rungs"][0]["loss"]
    first, second = forecasts.compared(body, {"r4M": loss, "another run of equal size": 1.0})
    assert first["measured"] == loss and first["miss"] == pytest.approx(1 / 0.99 - 1)
    assert first["inside"] == (first["interval_95"][0] <= loss <= first["interval_95"][1])
    assert "measured" not in second, "no run of it yet"
    assert points.sha256 != points.where(points.loss > points.loss.min()).sha256
