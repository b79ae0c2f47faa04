"""Two laws: what they share is subtracted, and a known multiplier is found."""

import numpy as np
import pytest

from g3pt.scaling.choice import fit
from g3pt.scaling.comparison import compute_multiplier, differences
from g3pt.scaling.forms import ADDITIVE
from g3pt.scaling.intervals import Errors, errors
from g3pt.scaling.points import Objects, Points, shared_evaluation
from g3pt.scaling.sections import cost_of
from tests.g3pt.scaling.grids import additive, evaluated, grid, noisy, with_loss


def law_of(points: Points) -> Errors:
    return errors(fit(ADDITIVE, points), points.size, points.seed, points.evaluation_nn)


def steeper(params: np.ndarray | float, samples: np.ndarray | float) -> np.ndarray:
    """The grids' law with alpha .05 higher, equal at N = 100,000."""
    return additive(params, samples) + (additive(params, 1e30) - 4.2) * ((np.asarray(params) / 1e5) ** -0.05 - 1)


def test_a_difference_is_found_and_the_interval_contains_it() -> None:
    inside, seen = 0, 0
    for trial in range(30):
        points = [noisy(grid(2, law), np.random.default_rng([trial, k])) for k, law in enumerate((additive, steeper))]
        alpha, beta = differences((law_of(points[0]), law_of(points[1])), (points[0], points[1]))
        inside += alpha.interval[0] <= -0.05 <= alpha.interval[1] and beta.interval[0] <= 0 <= beta.interval[1]
        seen += alpha.seen and not beta.seen
    assert inside >= 25 and seen >= 20


def test_errors_that_both_share_do_not_count() -> None:
    widths = []
    for shared in (True, False):
        base = grid(2)
        one = noisy(base, np.random.default_rng(0), size=0.006)
        errors_n = (
            np.log(one.loss / base.loss)
            if shared
            else np.log(noisy(base, np.random.default_rng(9), size=0.006).loss / base.loss)
        )
        other = with_loss(base, grid(2, steeper).loss * np.exp(errors_n))
        (alpha, _) = differences((law_of(one), law_of(other)), (one, other))
        widths.append(alpha.interval[1] - alpha.interval[0])
    assert widths[0] < 0.6 * widths[1]


def test_objects_that_both_were_evaluated_on_are_paired() -> None:
    """The same objects move both exponents alike; other objects would not."""
    widths = {}
    for same in (True, False):
        one = evaluated(noisy(grid(2), np.random.default_rng(0)), np.random.default_rng(2), "a")
        objects = (np.random.default_rng(2), "a") if same else (np.random.default_rng(3), "b")
        other = evaluated(noisy(grid(2, steeper), np.random.default_rng(1)), *objects)
        (alpha, _) = differences((law_of(one), law_of(other)), (one, other))
        assert alpha.interval[0] < -0.05 < alpha.interval[1]
        widths[same] = alpha.interval[1] - alpha.interval[0]
    assert widths[True] < 0.7 * widths[False]


def test_objects_of_which_only_some_are_shared_share_less() -> None:
    points = evaluated(grid(), np.random.default_rng(0), count=400)
    assert points.objects
    half = Objects(ids=points.objects.ids[:200], loss_no=points.objects.loss_no[:, :200])
    both = shared_evaluation(points.objects, half)
    assert both == pytest.approx(points.evaluation_nn, rel=0.5)
    assert np.trace(shared_evaluation(half, half)) == pytest.approx(2 * np.trace(both), rel=0.05)
    apart = Objects(ids=tuple(f"other{k}" for k in range(200)), loss_no=half.loss_no)
    assert not shared_evaluation(points.objects, apart).any()


def test_twice_the_operations_for_the_same_loss_is_a_multiplier_of_two() -> None:
    points = grid(2)
    dearer = Points(**{**vars(points), "flops": 2 * points.flops})
    first, second = (noisy(one, np.random.default_rng(0)) for one in (points, dearer))
    second = Points(**{**vars(second), "flops": dearer.flops})
    value, (low, high) = compute_multiplier(
        (law_of(first), law_of(second)), (first, second), (cost_of(first), cost_of(second)), 1e12, draws=40
    )
    assert value == pytest.approx(2, rel=1e-6) and (low, high) == pytest.approx((2, 2), rel=1e-3), (
        "all errors are shared"
    )
    apart = with_loss(second, noisy(points, np.random.default_rng(5)).loss)
    value, (low, high) = compute_multiplier(
        (law_of(first), law_of(apart)), (first, apart), (cost_of(first), cost_of(apart)), 1e12, draws=40
    )
    assert low < 2 < high and low < value < high
