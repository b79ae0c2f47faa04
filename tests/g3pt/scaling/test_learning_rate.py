"""Learning rates: the vertex of a parabola, the rule through several, and its gate."""

import numpy as np
import pytest

from g3pt.scaling.learning_rate import Rule, Sweep, fit_rule, gate, minimum, report, rule_of

TRUE = Rule(c=-3.0, a=-0.25, b=-0.1)
RATES = np.array([0.25, 0.5, 1.0, 2.0, 4.0])


def sweep(params: float, samples: float, off: float = 1.0, rates: np.ndarray = RATES, bend: float = 0.01) -> Sweep:
    """Losses that rise by `bend` log(LR / best)^2, about `off` times the true rule's rate."""
    tried = rates * TRUE(params, samples)
    losses = 5 * np.exp(bend * np.square(np.log(tried / (off * TRUE(params, samples)))))
    return Sweep(params=params, samples=samples, rates=tuple(tried), losses=tuple(losses))


@pytest.mark.parametrize("off", [0.6, 1.0, 1.9])
def test_the_vertex_of_an_exact_parabola_is_found(off: float) -> None:
    found = minimum(sweep(1e5, 1e4, off))
    assert found.inside and found.rate == pytest.approx(off * TRUE(1e5, 1e4), rel=1e-9)
    assert found.loss == pytest.approx(5) and found.curvature == pytest.approx(0.02)


def test_a_lowest_loss_at_an_end_is_no_minimum() -> None:
    found = minimum(sweep(1e5, 1e4, off=9.0))
    assert not found.inside and found.rate == pytest.approx(4 * TRUE(1e5, 1e4))
    with pytest.raises(ValueError, match=r"at the end of their sweeps are N 1e\+05, D 1e\+04"):
        fit_rule([sweep(1e5, 1e4, off=9.0), sweep(1e6, 1e4)])


def test_the_rule_is_recovered_from_three_sizes_and_two_numbers_of_samples() -> None:
    found = fit_rule([sweep(n, d) for n in (1e4, 1e5, 1e6) for d in (1e4, 6e4)])
    assert (found.c, found.a, found.b) == pytest.approx((TRUE.c, TRUE.a, TRUE.b))
    one = fit_rule([sweep(n, 1e4) for n in (1e4, 1e5)])
    assert one.b == 0 and one(1e5, 1e9) == pytest.approx(TRUE(1e5, 1e4))


def test_the_gate_holds_where_the_rule_is_right_and_not_where_it_is_twice_off() -> None:
    three = np.array([0.5, 1.0, 2.0])
    assert gate(TRUE, sweep(2e6, 1e4, rates=three)) == {
        "params": 2e6, "samples": 1e4, "rule": pytest.approx(TRUE(2e6, 1e4)), "best": pytest.approx(TRUE(2e6, 1e4)),
        "inside": True, "cost": pytest.approx(0, abs=1e-9), "holds": True,
    }  # fmt: skip
    off = gate(TRUE, sweep(2e6, 1e4, off=1.35, rates=three, bend=0.05))
    assert not off["holds"] and off["cost"] == pytest.approx(np.expm1(0.05 * np.log(1.35) ** 2))
    outside = gate(TRUE, sweep(2e6, 1e4, off=4, rates=three))
    assert not outside["holds"] and outside["cost"] is None


def test_the_report_keeps_sweeps_rule_and_gate() -> None:
    found = report([sweep(n, d) for n in (1e4, 1e5) for d in (1e4, 6e4)], [sweep(1e6, 3e4)])
    assert found["holds"] and len(found["sweeps"]) == 4 and found["gate"][0]["rates"]
    assert rule_of(found)(1e6, 3e4) == pytest.approx(TRUE(1e6, 3e4))
    assert not report([sweep(n, 1e4) for n in (1e4, 1e5)], [])["holds"], "nothing was checked"
    with pytest.raises(ValueError, match="at least three rates"):
        Sweep(params=1.0, samples=1.0, rates=(1.0, 2.0), losses=(1.0, 2.0))
