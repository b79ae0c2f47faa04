"""Sections of a law with known answers: the best size in closed form, costs, frontiers, parabolas."""

import numpy as np
import pytest

from g3pt.scaling.choice import fit
from g3pt.scaling.forms import ADDITIVE
from g3pt.scaling.intervals import errors
from g3pt.scaling.sections import beyond, cost_of, frontier, frontier_law, iso_flops, optimum
from tests.g3pt.scaling.grids import SIZES, A, B, grid, noisy, with_loss


def best_params(flops: float) -> float:
    """Hoffmann et al. 2022, equation 4, for 6 N operations per sample."""
    ratio = (0.35 * A / (0.45 * B)) ** (1 / (0.35 + 0.45))
    return ratio * (flops / 6) ** (0.45 / (0.35 + 0.45))


@pytest.mark.parametrize("flops", [1e11, 1e12, 1e14])
def test_the_best_size_is_that_of_the_closed_form(flops: float) -> None:
    points = grid()
    found = optimum(fit(ADDITIVE, points), cost_of(points), flops)
    assert found.params == pytest.approx(best_params(flops), rel=1e-4)
    assert found.samples == pytest.approx(flops / 6 / found.params, rel=1e-6)


def test_the_interval_of_the_best_size_contains_it() -> None:
    exact, inside = grid(3), 0
    for trial in range(20):
        points = noisy(exact, np.random.default_rng(trial))
        law = fit(ADDITIVE, points)
        found = optimum(law, cost_of(points), 1e12, errors(law, points.size, points.seed))
        low, high = found.params_interval
        inside += low <= best_params(1e12) <= high
        assert found.loss_interval[0] < found.loss < found.loss_interval[1]
    assert inside >= 17


def test_costs_are_those_counted_between_and_beyond_the_sizes() -> None:
    points = grid()
    cost = cost_of(points)
    assert (
        cost.counted
        and cost(SIZES) == pytest.approx(6 * SIZES)
        and cost(1e9) == pytest.approx(6e9)
        and cost(10.0) == pytest.approx(60)
    )
    none = cost_of(points.where(points.params > 0).__class__(**{**vars(points), "flops": np.full(len(points), np.nan)}))
    assert not none.counted and none(1e5) == pytest.approx(6e5)


def test_a_law_without_an_optimum_says_so() -> None:
    points = grid()
    law = fit(ADDITIVE, points)
    law.theta_p[law.form.parameters.index("log A")] = -20
    with pytest.raises(ValueError, match="the law has no best size for 1e\\+12 operations between N ="):
        optimum(law, cost_of(points), 1e12)


def test_outside_the_points_is_said() -> None:
    assert beyond(grid(), 1e5, 50e3) == ""
    assert beyond(grid(), 2.4e6, 4000) == "N is 2 times the largest measured; D is 2 times below the smallest measured"


def test_the_frontier_has_no_point_that_is_dearer_and_worse() -> None:
    best = frontier(grid())
    assert (np.diff(best.flops) > 0).all() and (np.diff(best.loss) < 0).all() and len(best) >= 5
    exact = grid(law=lambda n, d: 40 * (6 * n * d) ** -0.07)
    law = frontier_law(exact)
    assert (law["alpha"], law["A"]) == pytest.approx((0.07, 40))


def test_the_vertex_of_an_exact_parabola_is_found() -> None:
    points = grid(sizes=np.geomspace(1e4, 1e6, 9))
    curve = np.exp(0.02 * np.square(np.log(points.params / 1e5)) - 0.05 * np.log(points.flops) + 3)
    rows = iso_flops(with_loss(points, curve))
    about = [row for row in rows if row["params"][0] < 1e5 < row["params"][-1]]
    assert len(about) >= 1 and all(row["vertex"] == pytest.approx(1e5, rel=1e-3) for row in about)
    assert iso_flops(points.where(points.params < 2e4)) == [], "too few sizes"
