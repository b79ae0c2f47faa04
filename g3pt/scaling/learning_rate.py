"""Learning rates of a study: the best one per size and number of samples, a rule through them, and its check elsewhere.

How: the best rate is the vertex of a parabola of log L in log LR about the lowest loss. The rule is log LR* = c + a log
N + b log D by least squares. The gate trains another size with half, once and twice the rule's rate: it holds if the
vertex is inside and the rule costs at most GATE of the loss there.

Source: the form of the rule: Li et al. 2025 (arXiv 2503.04715). Ours: the gate.
Shapes: r rates of one sweep, m sweeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

GATE = 0.002  # share of the loss


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Test losses of one size and number of samples by learning rate."""

    params: float
    samples: float
    rates: tuple[float, ...]
    losses: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(set(self.rates)) < 3 or len(self.rates) != len(self.losses):
            raise ValueError(f"a sweep needs losses of at least three rates, got {list(self.rates)}")


@dataclass(frozen=True, kw_only=True)
class Minimum:
    """The best learning rate of a sweep."""

    rate: float
    loss: float
    inside: bool  # False: the lowest loss is at an end of the rates, and `rate` is that end
    curvature: float  # second derivative of log L by log LR


@dataclass(frozen=True, kw_only=True)
class Rule:
    """LR* = e^c N^a D^b."""

    c: float
    a: float
    b: float

    def __call__(self, params: float, samples: float) -> float:
        """The learning rate."""
        return float(np.exp(self.c) * params**self.a * samples**self.b)


def minimum(sweep: Sweep) -> Minimum:
    """The vertex of the parabola through the lowest loss and its neighbours."""
    order = np.argsort(sweep.rates)
    x, y = np.log(np.array(sweep.rates))[order], np.log(np.array(sweep.losses))[order]
    at = int(np.argmin(y))
    if at in (0, len(x) - 1):
        return Minimum(rate=float(np.exp(x[at])), loss=float(np.exp(y[at])), inside=False, curvature=float("nan"))
    bend, slope, height = np.polyfit(x[at - 1 : at + 2] - x[at], y[at - 1 : at + 2], 2)
    shift = -slope / (2 * bend)
    return Minimum(
        rate=float(np.exp(x[at] + shift)), loss=float(np.exp(height + slope * shift / 2)), inside=True,
        curvature=2 * float(bend)
    )  # fmt: skip


def fit_rule(sweeps: Sequence[Sweep]) -> Rule:
    """The rule through the minima that lie inside their sweeps.

    ValueError, naming them, if the rest do not have two sizes; with one number of samples b is 0.
    """
    minima = [(sweep, minimum(sweep)) for sweep in sweeps]
    used = [(sweep, best) for sweep, best in minima if best.inside]
    if len({sweep.params for sweep, _ in used}) < 2:
        ends = ", ".join(f"N {s.params:.3g}, D {s.samples:.3g}: {best.rate:g}" for s, best in minima if not best.inside)
        raise ValueError(f"a rule needs the best rates of two sizes; at the end of their sweeps are {ends or 'none'}")
    by_samples = len({sweep.samples for sweep, _ in used}) > 1
    columns = [[1.0, np.log(s.params), np.log(s.samples) if by_samples else 0.0] for s, _ in used]
    c, a, b = np.linalg.lstsq(np.array(columns), np.log([best.rate for _, best in used]), rcond=None)[0]
    return Rule(c=float(c), a=float(a), b=float(b))


def gate(rule: Rule, sweep: Sweep) -> dict[str, Any]:
    """Whether the rule holds at another size: its cost there, as a share of the loss at the best rate of the sweep."""
    best, rate = minimum(sweep), rule(sweep.params, sweep.samples)
    cost = float("nan")
    if best.inside:
        cost = float(np.expm1(best.curvature / 2 * np.log(rate / best.rate) ** 2))
    return {
        "params": sweep.params, "samples": sweep.samples, "rule": rate, "best": best.rate, "inside": best.inside,
        "cost": cost if best.inside else None, "holds": bool(best.inside and cost <= GATE),
    }  # fmt: skip


def report(sweeps: Sequence[Sweep], checks: Sequence[Sweep]) -> dict[str, Any]:
    """The content of lr.json: sweeps with their minima, the rule, and its checks."""
    rule = fit_rule(sweeps)
    checked = [gate(rule, sweep) for sweep in checks]
    return {
        "sweeps": [{**asdict(sweep), "minimum": asdict(minimum(sweep))} for sweep in sweeps],
        "rule": {**asdict(rule), "formula": "LR = e^c N^a D^b"},
        "gate": [{**asdict(sweep), **found} for sweep, found in zip(checks, checked, strict=True)],
        "holds": bool(checked) and all(found["holds"] for found in checked),
    }


def rule_of(found: Mapping[str, Any]) -> Rule:
    """The rule of an lr.json."""
    return Rule(**{name: float(found["rule"][name]) for name in ("c", "a", "b")})
