"""A plan's simulated intervals: known ones, and how they shrink with what is spent."""

import numpy as np
import pytest

from g3pt.scaling.power import ASSUMED_ERRORS, assumed_law, simulate
from tests.g3pt.scaling.grids import SIZES, A, B, additive, grid

LAW = assumed_law({"E": 4.2, "A": A, "alpha": 0.35, "B": B, "beta": 0.45})
RUNG = (4.1e6, 128e3)


def test_an_assumed_law_is_the_one_named() -> None:
    assert LAW(3e4, 5e4) == pytest.approx(float(additive(3e4, 5e4)))
    with pytest.raises(ValueError, match="has the parameters E, A, alpha, B, beta, got E, A"):
        assumed_law({"E": 1.0, "A": 2.0})


def test_more_seeds_narrow_the_intervals_which_contain_what_they_should() -> None:
    one, three = (simulate(LAW, grid(seeds), [RUNG], trials=60) for seeds in (1, 3))
    name = "loss at N 4.1e+06, D 1.28e+05"
    assert three["half_width"]["alpha"] < one["half_width"]["alpha"]
    assert 0.004 < three["half_width"][name] < 0.03
    assert min(three["coverage"].values()) > 0.85
    assert three["assumed"]["size_sd"] == ASSUMED_ERRORS["size"]


def test_a_plan_of_two_sizes_is_refused() -> None:
    with pytest.raises(ValueError, match="needs at least 3 different N, got 2"):
        simulate(LAW, grid(sizes=SIZES[:2]), trials=1)


def test_a_wider_range_of_sizes_tells_more() -> None:
    near, far = (simulate(LAW, grid(sizes=np.geomspace(1e5, end, 6)), trials=40) for end in (3e5, 3e6))
    assert far["half_width"]["alpha"] < 0.5 * near["half_width"]["alpha"]
