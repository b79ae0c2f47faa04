"""The fitter on points whose law is known."""

import numpy as np
import pytest

from g3pt.scaling import law as scaling

SIZES = np.geomspace(1e5, 1e9, 8)
TRUE = scaling.PowerLaw(irreducible=1.8, coefficient=60.0, exponent=0.3)


def noisy(sizes: np.ndarray, seed: int, noise: float = 0.002) -> np.ndarray:
    return TRUE(sizes) * np.exp(np.random.default_rng(seed).normal(0, noise, len(sizes)))


def test_exact_points_give_the_law_back() -> None:
    law = scaling.fit_power_law(SIZES, TRUE(SIZES))
    assert law.irreducible == pytest.approx(1.8, rel=1e-3)
    assert law.coefficient == pytest.approx(60, rel=2e-2)
    assert law.exponent == pytest.approx(0.3, rel=1e-2)


def test_pure_law_and_its_exponent() -> None:
    law = scaling.fit_power_law(SIZES, 12 * SIZES**-0.1, pure=True)
    assert (law.irreducible, law.coefficient, law.exponent) == (
        0,
        pytest.approx(12, rel=1e-6),
        pytest.approx(0.1, rel=1e-6),
    )


@pytest.mark.parametrize("repeats", [1, 3])
def test_truth_lies_within_the_interval(repeats: int) -> None:
    sizes = np.repeat(SIZES, repeats)
    found = scaling.report(sizes, noisy(sizes, seed=4), list(range(repeats)) * len(SIZES))
    for name, (low, high) in found["power_law_with_floor"]["interval_95"].items():
        assert low <= getattr(TRUE, name) <= high, name
        assert low < high


def test_with_as_many_sizes_as_parameters_no_interval_is_claimed() -> None:
    """Residuals of 0 are no errors of 0."""
    found = scaling.report(SIZES[:3], TRUE(SIZES[:3]))["power_law_with_floor"]
    assert found["interval_95"]["exponent"] is None and found["band_95"] is None
    assert found["exponent"] == pytest.approx(0.3, rel=1e-3)


def test_the_band_holds_the_curve_and_narrows_between_the_points() -> None:
    law = scaling.report(SIZES, noisy(SIZES, seed=4))["power_law_with_floor"]
    params, low, high = (np.array(law["band_95"][name]) for name in ("params", "low", "high"))
    assert params[0] < SIZES[0] and params[-1] > SIZES[-1] and (low < high).all()
    fitted = law["irreducible"] + law["coefficient"] * params ** -law["exponent"]
    assert ((low <= fitted) & (fitted <= high)).all()
    assert np.ptp([low[0], high[0]]) > (high - low).min()


def test_one_point_far_off_hardly_moves_the_fit() -> None:
    losses = TRUE(SIZES)
    losses[3] *= 1.5
    assert scaling.fit_power_law(SIZES, losses).exponent == pytest.approx(0.3, rel=0.05)


def test_the_largest_size_is_predicted_from_the_rest() -> None:
    held = scaling.hold_out_largest(SIZES, TRUE(SIZES))
    assert held["params"] == 1e9
    assert abs(held["relative_error"]) < 1e-3
    assert scaling.hold_out_largest(SIZES[:3], TRUE(SIZES[:3])) is None


def test_below_six_sizes_it_says_so() -> None:
    assert scaling.report(SIZES[:4], TRUE(SIZES[:4]))["status"] == "demonstration, not an estimate"
    assert scaling.report(SIZES, TRUE(SIZES))["status"] == "estimate"


@pytest.mark.parametrize("unit", [0.1, 1 / np.log(2), 1000.0])
def test_the_loss_s_unit_scales_the_law_and_not_its_exponent(unit: float) -> None:
    """Only a fit of logarithms has this: a Huber loss of L itself has a delta in the loss's unit."""
    losses = noisy(SIZES, seed=4, noise=0.01)
    law, scaled = scaling.fit_power_law(SIZES, losses), scaling.fit_power_law(SIZES, unit * losses)
    assert scaled.exponent == pytest.approx(law.exponent, rel=1e-3)
    assert scaled.irreducible == pytest.approx(unit * law.irreducible, rel=1e-3)
    assert scaled.coefficient == pytest.approx(unit * law.coefficient, rel=1e-2)
    assert scaled.objective == pytest.approx(law.objective, rel=1e-3)


@pytest.mark.parametrize(
    ("sizes", "losses"),
    [
        ([1.0, 1.0, 2.0], [3.0, 3.0, 2.0]),
        ([1.0, 2.0, 3.0], [1.0, -1.0, 2.0]),
        ([1.0, 2.0, 3.0], [1.0, float("nan"), 2.0]),
    ],
)
def test_points_that_mean_nothing_are_refused(sizes: list[float], losses: list[float]) -> None:
    with pytest.raises(ValueError):
        scaling.fit_power_law(sizes, losses)
