"""The form is chosen by what it predicts; a law that misses is told by the spread of seeds."""

import numpy as np
import pytest

from g3pt.scaling import choice
from g3pt.scaling.forms import ADDITIVE, JOINT, SATURATING, SURFACES, Form
from g3pt.scaling.points import Points
from tests.g3pt.scaling.grids import grid, noisy, with_loss
from tests.g3pt.scaling.test_fit import TRUE

# A pilot: parameters -> test losses at 4k, 8k, 16k and 32k procedural shapes, one seed.
PILOT = {
    5345: [8.694, 8.513, 8.345, 8.211], 20930: [8.537, 8.128, 7.714, 7.363], 88804: [8.414, 7.757, 7.062, 6.484],
    353_000: [8.146, 7.175, 6.267, 5.596], 1218832: [8.212, 7.023, 5.922],
}  # fmt: skip


def pilot() -> Points:
    rows = [(n, 4000.0 * 2**k, loss) for n, losses in PILOT.items() for k, loss in enumerate(losses)]
    n, d, loss = (np.array(column, float) for column in zip(*rows, strict=True))
    return Points(
        params=n, samples=d, loss=loss, size=tuple(map(str, n)), seed=("0",) * len(n), flops=np.full(len(n), np.nan)
    )


@pytest.mark.parametrize("form", [ADDITIVE, JOINT, SATURATING], ids=lambda form: form.name)
def test_the_true_form_predicts_best(form: Form) -> None:
    exact = grid()
    loss = np.exp(form.predict(np.array(TRUE[form.name]), np.log(exact.params), np.log(exact.samples)))
    points = noisy(with_loss(exact, loss), np.random.default_rng(0), seed=0.0005, point=0.0005)
    best, predictions = choice.best_form(points, SURFACES[:3])
    scores = {name: choice.score(found) for name, found in predictions.items()}
    limit = {"saturating"} if form is ADDITIVE else set()  # with a ceiling far away it is additive
    others = [scores[name] for name in scores.keys() - {form.name} - limit]
    assert best is form and min(others) > 10 * scores[form.name], scores


def test_a_pilot_near_the_codes_entropy_is_predicted_by_the_saturating_form_alone() -> None:
    best, predictions = choice.best_form(pilot())
    scores = {name: choice.score(found) for name, found in predictions.items()}
    assert best is SATURATING
    assert scores["saturating"] < 0.04 < 0.05 < min(scores["additive"], scores["joint"], scores["broken"])


def test_rungs_of_a_grid_are_values_and_of_scattered_points_equal_parts() -> None:
    points = grid()
    masks = choice.rungs(points)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {
        "largest N": 5, "two largest N": 10, "largest D": 8, "two largest D": 16, "largest N or D": 12,
    }  # fmt: skip
    assert choice.rung_starts(np.arange(240.0)).tolist() == [20.0 * k for k in range(12)]


def test_what_was_left_out_has_no_part_in_its_prediction() -> None:
    points = grid()
    spoilt = with_loss(points, np.where(points.params == points.params.max(), 1.5, 1.0) * points.loss)
    found = {one.name: one for one in choice.left_out(ADDITIVE, spoilt)}
    assert found["largest N"].error == pytest.approx(np.log(1.5), rel=1e-4)
    assert found["largest N"].bias == pytest.approx(-np.log(1.5), rel=1e-4)


def test_a_lack_of_fit_is_seen_against_replicate_seeds_and_not_where_there_is_none() -> None:
    exact = grid(3)
    ps = []
    for trial in range(20):
        points = noisy(exact, np.random.default_rng(trial), seed=0.0, point=0.002)
        found = choice.lack_of_fit(choice.fit(ADDITIVE, points), points)
        assert found is not None and (found["free_lack"], found["free_pure"]) == (35, 80)
        ps.append(found["p"])
    assert 0.25 < np.mean(ps) < 0.75, "p of a true law is uniform"
    loss = np.exp(SATURATING.predict(np.array(TRUE["saturating"]), np.log(exact.params), np.log(exact.samples)))
    points = noisy(with_loss(exact, loss), np.random.default_rng(0), seed=0.0, point=0.002)
    assert choice.lack_of_fit(choice.fit(ADDITIVE, points), points)["p"] < 1e-6
    assert choice.lack_of_fit(choice.fit(ADDITIVE, grid()), grid()) is None, "without replicates"


def test_the_sensitivity_table_refits_what_it_says() -> None:
    points = grid()
    rows = {row["variant"]: row for row in choice.sensitivity(points, others=[points])}
    assert rows["least squares"]["alpha"] == pytest.approx(0.35, abs=1e-6)
    assert rows["without the smallest D"]["num_points"] == 32
    assert rows["without the two smallest sizes"]["num_points"] == 30
    assert rows["without a floor (E = 0)"]["E"] == 0.0
    few = choice.sensitivity(points.where(points.samples > 20e3))
    assert "needs at least 3 different D" in {row["variant"]: row for row in few}["without the smallest D"]["error"]
