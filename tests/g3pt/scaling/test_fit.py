"""Fits of every form: exact points give the law back, and published points the published law."""

from pathlib import Path

import numpy as np
import pytest

from g3pt.scaling.fit import HUBER_DELTA, fit_form, huber
from g3pt.scaling.forms import ADDITIVE, BROKEN, JOINT, SATURATING, SURFACES, Form, saturating_at
from g3pt.scaling.points import import_rows
from tests.g3pt.scaling.grids import SEEN, SIZES, additive, grid

TRUE = {
    "additive": [np.log(1.7), np.log(400), 0.34, np.log(500), 0.45],
    "joint": [np.log(0.8), np.log(30), 0.2, np.log(150), 0.4],
    "saturating": [np.log(1.2), np.log(1500), 0.4, np.log(3e4), 0.8, np.log(8)],
    "broken": [np.log(2.2), np.log(40), 0.3, np.log(20), 0.15, 0.5, np.log(30e3)],
}


@pytest.mark.parametrize("form", SURFACES, ids=lambda form: form.name)
@pytest.mark.parametrize("delta", [None, HUBER_DELTA])
def test_exact_points_give_the_law_back(form: Form, delta: float | None) -> None:
    points, theta = grid(), np.array(TRUE[form.name])
    losses = np.exp(form.predict(theta, np.log(points.params), np.log(points.samples)))
    law = fit_form(form, points.params, points.samples, losses, delta=delta)
    assert law.theta_p == pytest.approx(theta, abs=1e-5)
    assert law(4e6, 1e6) == pytest.approx(float(np.exp(form.predict(theta, np.log(4e6), np.log(1e6)))), rel=1e-6)


def test_a_known_ceiling_is_kept() -> None:
    points, theta = grid(), np.array(TRUE["saturating"])
    losses = np.exp(SATURATING.predict(theta, np.log(points.params), np.log(points.samples)))
    law = fit_form(saturating_at(9.2), points.params, points.samples, losses)
    assert law.theta_p == pytest.approx(theta[:5], abs=1e-5)
    assert law(1e-3, 1e-3) == pytest.approx(9.2, rel=1e-3), "with nothing learnt the loss is the ceiling"
    with pytest.raises(ValueError, match="the ceiling must be above every loss: 5.0 is not above"):
        fit_form(saturating_at(5.0), points.params, points.samples, losses)


def epoch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """N, D and L of the 240 points of Epoch's fit."""
    rows = import_rows(Path(__file__).parent / "chinchilla_figure4_points.csv")
    n, d, loss = (np.array([float(row[name]) for row in rows]) for name in ("params_total", "samples", "test_ce"))
    kept = loss < np.sort(loss)[-5]
    return n[kept], d[kept], loss[kept]


def test_epoch_s_points_give_epoch_s_law() -> None:
    """Published: Besiroglu et al. 2024. Their parameters are just beside the minimum."""
    n, d, loss = epoch()
    assert len(n) == 240
    law = fit_form(ADDITIVE, n, d, loss, delta=HUBER_DELTA)
    published = {
        "E": np.exp(0.59711196),
        "A": np.exp(6.17795598),
        "alpha": 0.34781303,
        "B": np.exp(7.64273236),
        "beta": 0.36585412,
    }
    theirs = published["E"] + published["A"] * n ** -published["alpha"] + published["B"] * d ** -published["beta"]
    assert law.objective <= float(huber(np.log(loss / theirs)).sum())
    assert law.objective == pytest.approx(1018.274e-6, rel=1e-6), "recomputed with another optimiser"
    for name, tolerance in (("alpha", 0.001), ("beta", 0.002), ("E", 0.001)):
        assert law[name] == pytest.approx(published[name], abs=tolerance)
    for name in ("A", "B"):
        assert law[name] == pytest.approx(published[name], rel=0.04)


def test_a_mean_of_huber_losses_with_default_tolerances_stops_early_and_ours_does_not() -> None:
    """The trap of published fits: exact points, and an optimiser that believes to be done."""
    from scipy.optimize import minimize

    points = grid()
    x, y, log_loss = np.log(points.params), np.log(points.samples), np.log(points.loss)

    def mean(theta: np.ndarray) -> float:
        return float(huber(ADDITIVE.predict(theta, x, y) - log_loss).mean())

    starts = [
        [np.log(e), np.log(a), al, np.log(b), be]
        for e in (1, 4)
        for a in (5, 50)
        for al in (0.3, 0.5)
        for b in (10, 200)
        for be in (0.3, 0.5)
    ]
    naive = min((minimize(mean, start, method="BFGS") for start in starts), key=lambda one: one.fun)
    assert abs(naive.x[4] - 0.45) > 0.01 or abs(np.exp(naive.x[0]) - 4.2) > 0.02
    law = fit_form(ADDITIVE, points.params, points.samples, points.loss, delta=HUBER_DELTA)
    assert (law["E"], law["alpha"], law["beta"]) == pytest.approx((4.2, 0.35, 0.45), rel=1e-8)


def test_a_parameter_can_be_held() -> None:
    points = grid()
    law = fit_form(ADDITIVE, points.params, points.samples, points.loss, fixed={"log E": -25.0})
    assert law["E"] == 0 and law["beta"] < 0.2, "what falls most slowly takes the part of the floor"


def test_a_start_replaces_the_grid_and_finds_the_same() -> None:
    points = grid()
    first = fit_form(ADDITIVE, points.params, points.samples, points.loss * 1.001)
    again = fit_form(ADDITIVE, points.params, points.samples, points.loss, start=first)
    assert again.theta_p == pytest.approx(
        fit_form(ADDITIVE, points.params, points.samples, points.loss).theta_p, abs=1e-7
    )


def test_the_derivatives_are_those_of_differences() -> None:
    for form in SURFACES:
        theta = np.array(TRUE[form.name])
        n, d = 3e4, 5e4
        losses = np.exp(form.predict(theta, np.log(SIZES)[:, None], np.log(SEEN)[None]))
        n_grid, d_grid = (part.ravel() for part in np.meshgrid(SIZES, SEEN, indexing="ij"))
        law = fit_form(form, n_grid, d_grid, losses.ravel())
        for k in range(len(theta)):
            step = np.zeros(len(theta))
            step[k] = 1e-6
            ahead, behind = (form.predict(law.theta_p + sign * step, np.log(n), np.log(d)) for sign in (1, -1))
            slope = (ahead - behind) / 2e-6
            exact = form.predict(law.theta_p + 1e-30j * (step > 0), np.log(n), np.log(d)).imag / 1e-30
            assert float(exact) == pytest.approx(float(slope), abs=1e-6)


def test_named_parameters_include_the_ceiling_and_the_break() -> None:
    points = grid()
    named = {
        form.name: fit_form(form, points.params, points.samples, points.loss).named()
        for form in (SATURATING, BROKEN, JOINT)
    }
    assert set(named["saturating"]) == {"E", "A", "alpha", "B", "beta", "H"}
    assert set(named["broken"]) == {"E", "A", "alpha", "B", "beta", "change", "d"}
    assert named["saturating"]["H"] > additive(SIZES, SEEN[0]).max()
