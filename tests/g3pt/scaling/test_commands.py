"""`python -m g3pt.scaling` as it is typed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from g3pt.scaling import forecast as forecasts
from g3pt.scaling.__main__ import main
from g3pt.scaling.choice import fit
from g3pt.scaling.forms import ADDITIVE, JOINT
from g3pt.scaling.intervals import errors
from g3pt.scaling.points import Points, read_points, read_rows, write_parquet, write_rows
from g3pt.scaling.study import described
from tests.g3pt.scaling.grids import evaluated, grid, noisy

EPOCH = Path(__file__).parent / "chinchilla_figure4_points.csv"


def write(points: Points, file: Path) -> Path:
    runs = [f"run-{k}" for k in range(len(points))]
    columns = (points.size, points.params, points.flops, points.seed, points.samples, points.loss, runs)
    names = ("size", "params_no_embed", "flops", "seed", "samples", "test_ce", "run")
    write_rows([dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)], file)
    return file


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write(noisy(grid(2), np.random.default_rng(0)), tmp_path / "points.csv")


def test_published_points_are_imported_and_fitted_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from g3pt.scaling.__main__ import main; "
        f"assert main(['import', {str(EPOCH)!r}, '--output', {str(tmp_path / 'points.csv')!r}]) == 0; "
        f"assert main(['fit', {str(tmp_path / 'points.csv')!r}, '--max-loss', '4', '--form', 'additive']) == 0; "
        "assert not {'torch', 'ray', 'pyarrow', 'mlflow'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "245 points" in done.stdout and "L = E + A N^-alpha + B D^-beta" in done.stdout


def test_fit_prints_the_law_and_writes_it(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(study), "--output", str(tmp_path / "fit.json")]) == 0
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "fit.json").read_text())
    assert found["points"]["sha256"] == read_points(study).sha256 and found["points"]["num"] == 80
    assert "80 points, 8 sizes, 5 numbers of samples" in shown and shown.endswith(f"result: {tmp_path / 'fit.json'}\n")
    assert set(found["forms"]) == {"additive", "joint", "saturating", "broken"}
    assert found["sections"]["by_params"]["samples"] == 128e3 and len(found["sections"]["iso_flops"]) >= 3
    assert not found["misses"] and "MISSES" not in shown


def test_a_study_of_sizes_alone_gets_a_law_in_n(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points = grid()
    one = points.where(points.samples == 64e3)
    assert main(["fit", str(write(one, tmp_path / "points.csv")), "--form", "power"]) == 0
    shown = capsys.readouterr().out
    assert "L = E + A N^-alpha " in shown and "alpha  0.35 " in shown
    few = write(one.where(one.params < 30e3), tmp_path / "few.csv")
    assert main(["fit", str(few), "--form", "power", "--output", str(tmp_path / "fit.json")]) == 0
    assert "no interval: as many parameters as points" in capsys.readouterr().out
    assert json.loads((tmp_path / "fit.json").read_text())["law"]["interval_95"] == {}
    assert main(["optimum", str(few), "--flops", "1e12", "--form", "power"]) == 2


def test_a_floor_that_the_points_do_not_show_is_0_and_has_no_interval() -> None:
    """Its logarithm is anywhere below; an interval of it would end at infinity, which is no JSON."""
    points = grid(2, lambda n, d: ((30 * n**-0.2) ** 2.5 + (150 * d**-0.4) ** 2.5) ** 0.4)
    law = fit(JOINT, noisy(points, np.random.default_rng(0), seed=1e-6, point=1e-6))
    law.theta_p[law.form.parameters.index("log E")] = -22.0
    found = described(law, errors(law, points.size, points.seed))
    assert found["parameters"]["E"] == 0.0 and "E" not in found["interval_95"]
    json.dumps(found, allow_nan=False)


def test_the_same_points_give_the_same_file(study: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert main(["fit", str(study), "--form", "additive", "--output", str(tmp_path / name)]) == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_optimum_names_a_size_that_exists(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["optimum", str(study), "--flops", "1e12", "--form", "additive", "--presets", str(study)]) == 0
    shown = capsys.readouterr().out
    assert (
        "1e+12 operations (counted)" in shown
        and "size that exists: 520000.0" in shown
        or "size that exists: 157000.0" in shown
    )
    assert main(["optimum", str(study), "--flops", "1e18", "--form", "additive"]) == 0
    assert "extrapolated: N is " in capsys.readouterr().out


def test_compare_says_what_is_not_seen(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write(noisy(grid(2), np.random.default_rng(1)), tmp_path / "other.csv")
    file = tmp_path / "comparison.json"
    assert main(["compare", str(study), str(other), "--form", "additive", "--output", str(file)]) == 0
    shown = capsys.readouterr().out
    assert shown.count(": not seen") == 2 and "operations of the first for the same loss above E" in shown
    found = json.loads(file.read_text())
    assert [one["name"] for one in found["differences"]] == ["alpha", "beta"] and found["objects"] is None
    assert found["first"]["points_sha256"] == read_points(study).sha256 != found["second"]["points_sha256"]
    assert f"{found['multiplier']['value']:.3g} times the {found['multiplier']['flops']:.3g}" in shown
    assert len(found["frontier"]) == 15
    for one in found["frontier"]:
        assert one["first"] == pytest.approx(one["second"], rel=0.2), "the same law, drawn twice"
    assert [row["first"] for row in found["frontier"]] == sorted((r["first"] for r in found["frontier"]), reverse=True)


def test_compare_pairs_the_test_objects_of_two_studies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A study is named by its folder, whose points.parquet has the losses of objects."""
    for k, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        points = evaluated(noisy(grid(2), np.random.default_rng(k)), np.random.default_rng(7), "object-", count=50 + k)
        write(points, tmp_path / folder / "points.csv")
        assert points.objects
        losses = [{"id": points.objects.ids, "ce": row} for row in points.objects.loss_no]
        write_parquet(read_rows(tmp_path / folder / "points.csv"), losses, tmp_path / folder / "points.parquet")
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--form", "additive"]) == 0
    paired = capsys.readouterr().out
    assert "include the choice of test objects: 50 and 51, 50 in both and paired" in paired
    assert main(["compare", *(str(tmp_path / k / "points.csv") for k in "ab"), "--form", "additive"]) == 0
    alone = capsys.readouterr().out
    assert "without the losses of each (points.parquet)" in alone
    assert [line.split(", diff")[0] for line in alone.splitlines()[2:4]] == [
        line.split(", diff")[0] for line in paired.splitlines()[2:4]
    ], "the same laws"


def test_a_forecast_is_shown_beside_its_points(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points = read_points(study)
    law = fit(ADDITIVE, points)
    body = forecasts.forecast(
        errors(law, points.size, points.seed),
        points,
        [{"run": "run-79", "size": "s", "params": 1.2e6, "samples": 128e3}],
    )
    forecasts.write_forecast(body, tmp_path / "forecast.json")
    assert main(["forecast", str(study), str(tmp_path / "forecast.json")]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.endswith("measured,miss,inside") and row.startswith("run-79,s,1200000.0,128000.0,")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fit", "nowhere.csv"], "error: nowhere.csv: No such file or directory"),
        (
            ["fit", "{study}", "--form", "cubic"],
            "error: the form must be one of additive, joint, saturating, broken, got 'cubic'",
        ),
        (["fit", "{study}", "--loss", "test_iou"], "error: {study} has no column 'test_iou'"),
        (["fit", "{study}", "--form", "saturating", "--ceiling", "5"], "error: the ceiling must be above every loss"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], said: str, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.format(study=study) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(said.format(study=study)) and error.count("\n") == 1
