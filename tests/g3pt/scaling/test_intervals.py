"""Intervals: how often they contain the truth, and what they do without enough points."""

from collections import Counter

import numpy as np
import pytest

from g3pt.scaling.fit import fit_form
from g3pt.scaling.forms import ADDITIVE
from g3pt.scaling.intervals import errors
from tests.g3pt.scaling.grids import EXPONENTS, additive, evaluated, grid, noisy

TRIALS = 200
LARGER = (4.1e6, 128e3)


@pytest.mark.parametrize(("seeds", "size_error"), [(2, 0.0), (3, 0.004), (1, 0.004)])
def test_intervals_of_95_percent_contain_the_truth_at_least_90_times_of_100(seeds: int, size_error: float) -> None:
    exact, inside = grid(seeds), Counter()
    start = fit_form(ADDITIVE, exact.params, exact.samples, exact.loss)
    for trial in range(TRIALS):
        rng = np.random.default_rng(trial)
        points = noisy(exact, rng, size=size_error)
        parts = errors(
            fit_form(ADDITIVE, points.params, points.samples, points.loss, start=start), points.size, points.seed
        )
        for name, true in EXPONENTS.items():
            low, high = parts.parameter(name)
            inside[name] += low <= true <= high
        low, high = parts.loss(*LARGER)
        inside["law at a larger size"] += bool(low <= additive(*LARGER) <= high)
        low, high = parts.loss(*LARGER, new_run=True)
        inside["a new run there"] += bool(
            low <= additive(*LARGER) * np.exp(rng.normal(0, np.hypot(size_error, np.hypot(0.003, 0.0015)))) <= high
        )
    assert min(inside.values()) >= 0.9 * TRIALS, dict(inside)


def test_the_choice_of_the_test_objects_is_part_of_an_interval_where_their_losses_are_known() -> None:
    """It moves all points alike, so that no residual shows it."""
    exact, inside = grid(2), Counter()
    start = fit_form(ADDITIVE, exact.params, exact.samples, exact.loss)
    for trial in range(100):
        rng = np.random.default_rng(trial)
        points = evaluated(noisy(exact, rng), rng)
        law = fit_form(ADDITIVE, points.params, points.samples, points.loss, start=start)
        for name, known in (("with", points.evaluation_nn), ("without", None)):
            low, high = errors(law, points.size, points.seed, known).parameter("alpha")
            inside[name] += low <= EXPONENTS["alpha"] <= high
    assert inside["with"] >= 90 and inside["without"] < 80, dict(inside)


def test_the_parts_of_the_errors_are_found() -> None:
    exact, found = grid(4), []
    start = fit_form(ADDITIVE, exact.params, exact.samples, exact.loss)
    for trial in range(40):
        points = noisy(exact, np.random.default_rng(trial), size=0.006, seed=0.003, point=0.001)
        parts = errors(
            fit_form(ADDITIVE, points.params, points.samples, points.loss, start=start), points.size, points.seed
        )
        found.append([parts.variances.get(name, 0.0) for name in ("size", "seed", "point")])
    assert np.mean(found, axis=0) ** 0.5 == pytest.approx([0.006, 0.003, 0.001], rel=0.12)


def test_without_more_points_than_parameters_nothing_is_known() -> None:
    points = grid().where(np.array([0, 7, 14, 21, 28]))
    parts = errors(fit_form(ADDITIVE, points.params, points.samples, points.loss), points.size, points.seed)
    assert parts.parameter("alpha") == (-np.inf, np.inf) and parts.loss(1e6, 1e5) == (0.0, np.inf)


def test_an_interval_of_one_new_run_is_wider_than_the_law_s() -> None:
    points = noisy(grid(3), np.random.default_rng(0))
    parts = errors(fit_form(ADDITIVE, points.params, points.samples, points.loss), points.size, points.seed)
    law, run = parts.loss(*LARGER), parts.loss(*LARGER, new_run=True)
    assert run[0] < law[0] < parts.fit(*LARGER) < law[1] < run[1]
