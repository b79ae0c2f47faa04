"""The surface on points whose law is known."""

import numpy as np
import pytest

from g3pt.scaling.law import fit_power_law
from g3pt.scaling.surface import LossSurface, fit_surface

PARAMS, SAMPLES = (
    grid.ravel() for grid in np.meshgrid(np.geomspace(1e5, 1e8, 5), np.geomspace(1e4, 1e7, 5), indexing="ij")
)
TRUE = [
    LossSurface(
        irreducible=1.7, params_coefficient=400.0, params_exponent=0.34, samples_coefficient=50.0, samples_exponent=0.28
    ),
    LossSurface(
        irreducible=0.9, params_coefficient=12.0, params_exponent=0.12, samples_coefficient=900.0, samples_exponent=0.6
    ),
]


@pytest.mark.parametrize("true", TRUE)
def test_exact_points_give_the_surface_back(true: LossSurface) -> None:
    found = fit_surface(PARAMS, SAMPLES, true(PARAMS, SAMPLES))
    assert found.irreducible == pytest.approx(true.irreducible, rel=1e-2)
    assert found.params_exponent == pytest.approx(true.params_exponent, rel=2e-2)
    assert found.samples_exponent == pytest.approx(true.samples_exponent, rel=2e-2)
    assert found(1e9, 1e8) == pytest.approx(float(true(1e9, 1e8)), rel=2e-3), (
        "a size and a data set ten times the largest"
    )


def test_runs_far_off_hardly_move_it() -> None:
    losses = TRUE[0](PARAMS, SAMPLES)
    losses[[3, 17]] *= (1.5, 0.7)
    assert fit_surface(PARAMS, SAMPLES, losses)(1e9, 1e8) == pytest.approx(float(TRUE[0](1e9, 1e8)), rel=1e-2)


def test_the_loss_s_unit_scales_the_surface_and_no_exponent() -> None:
    losses = TRUE[0](PARAMS, SAMPLES)
    nats, bits = fit_surface(PARAMS, SAMPLES, losses), fit_surface(PARAMS, SAMPLES, losses / np.log(2))
    assert bits.irreducible == pytest.approx(nats.irreducible / np.log(2), rel=1e-3)
    assert bits.params_exponent == pytest.approx(nats.params_exponent, rel=1e-3)


def test_with_endless_data_it_is_the_power_law() -> None:
    sizes = np.geomspace(1e5, 1e8, 5)
    law = fit_power_law(sizes, TRUE[0](sizes, 1e30))
    assert law.exponent == pytest.approx(TRUE[0].params_exponent, rel=1e-2)


@pytest.mark.parametrize(
    ("params", "samples", "losses", "said"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], [4, 3, 2, 1], "needs at least 5 points, got 4"),
        ([1, 2, 3, 4, 5], [1, 1, 1, 2, 2], [5, 4, 3, 2, 1], "at least 3 different D, got 2"),
        ([1, 2, 1, 2, 1], [1, 2, 3, 4, 5], [5, 4, 3, 2, 1], "at least 3 different N, got 2"),
        ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [5, 4, -3, 2, 1], "positive and finite"),
    ],
)
def test_runs_that_determine_nothing_are_refused(
    params: list[float], samples: list[float], losses: list[float], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        fit_surface(params, samples, losses)
