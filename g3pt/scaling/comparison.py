"""Two laws compared, such as those of two tokenizers: differences of their exponents, and the compute multiplier.

How: what two studies share (sizes, seeds, order of the data) moves both, so the covariance of their errors is estimated
from the points that both have, by the same parts as the variances, and subtracted. What test objects that both have
move is known where the losses of single objects are. Losses of different codes have different units of information, so
losses are not compared: only exponents, and the operations to the same reducible loss L - E as a share of the first
one's.

Ours: all of it.
Shapes: n points of each study, p parameters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from g3pt.scaling.intervals import Errors, errors
from g3pt.scaling.points import Points, shared_evaluation
from g3pt.scaling.sections import Cost, best_log_params, cost_of
from g3pt.scaling.study import described, law_of


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A parameter of the first law less that of the second."""

    name: str
    first: float
    second: float
    difference: float
    interval: tuple[float, float]

    @property
    def seen(self) -> bool:
        """Whether the interval excludes 0."""
        return self.interval[0] > 0 or self.interval[1] < 0


def compared(
    first: Points, second: Points, *, form: str = "", ceiling: float | None = None, flops: float | None = None
) -> dict[str, Any]:
    """The content of comparison.json: both laws in one form, by default the first study's; differences of exponents;
    the compute multiplier at `flops`, by default the most operations that both have counted; shared test objects.
    """
    law = law_of(first, form, ceiling)
    laws = law, law_of(second, form or law.form.name, ceiling)
    both = first, second
    studies = tuple(errors(fit, one.size, one.seed, one.evaluation_nn) for fit, one in zip(laws, both, strict=True))
    flops = flops or min(float(one.flops[np.isfinite(one.flops)].max(initial=0)) for one in both)
    named = {
        name: {"source": one.source, "points_sha256": one.sha256, "law": described(parts.fit, parts)}
        for name, one, parts in zip(("first", "second"), both, studies, strict=True)
    }
    return named | {
        "formula": law.form.formula,
        "differences": [
            {
                "name": one.name, "first": one.first, "second": one.second, "difference": one.difference,
                "interval_95": list(one.interval), "seen": one.seen,
            }
            for one in differences((studies[0], studies[1]), both)
        ],
        "multiplier": _multiplier_at((studies[0], studies[1]), both, flops) if flops else None,
        "frontier": _frontier((studies[0], studies[1]), both),
        "objects": {
            "first": len(first.objects.ids), "second": len(second.objects.ids),
            "both": len(set(first.objects.ids) & set(second.objects.ids)),
        } if first.objects and second.objects else None,
    }  # fmt: skip


def _multiplier_at(studies: tuple[Errors, Errors], points: tuple[Points, Points], flops: float) -> dict[str, Any]:
    value, ends = compute_multiplier(studies, points, (cost_of(points[0]), cost_of(points[1])), flops)
    return {"flops": flops, "value": value, "interval_95": [end if np.isfinite(end) else None for end in ends]}


def _frontier(studies: tuple[Errors, Errors], points: tuple[Points, Points]) -> list[dict[str, float]]:
    """Loss above E of both laws at their best sizes, for operations that both have counted."""
    counted = [one.flops[np.isfinite(one.flops)] for one in points]
    if not all(len(one) for one in counted):
        return []
    costs, found = [cost_of(one) for one in points], []
    low, high = max(one.min() for one in counted), min(one.max() for one in counted)
    for flops in np.geomspace(low, high, 15).tolist() if low < high else ():
        with contextlib.suppress(ValueError):  # a law has no optimum there
            one, two = (
                _reducible(parts, parts.fit.theta_p, cost, flops) for parts, cost in zip(studies, costs, strict=True)
            )
            found.append({"flops": flops, "first": one, "second": two})
    return found


def shared_parts(studies: tuple[Errors, Errors], points: tuple[Points, Points]) -> np.ndarray:
    """(n, m) covariance of the errors of both studies' points, from the points of equal size, seed and D, and from test
    objects that both have; zero where neither study has the part.
    """
    (first, second), (first_points, second_points) = studies, points
    where = {key: k for k, key in enumerate(_keys(second_points))}
    pairs = [(k, where[key]) for k, key in enumerate(_keys(first_points)) if key in where]
    known_nm = np.zeros((len(first_points), len(second_points)))
    if first_points.objects and second_points.objects:
        known_nm = shared_evaluation(first_points.objects, second_points.objects)
    if len(pairs) < 3:
        return known_nm
    rows, columns = (np.array(side) for side in zip(*pairs, strict=True))
    both = _products(first, second, known_nm)[np.ix_(rows, columns)]
    own = _products(first, first, first.evaluation_nn)[np.ix_(rows, rows)]
    theirs = _products(second, second, second.evaluation_nn)[np.ix_(columns, columns)]
    shared = known_nm.copy()
    for name in first.groups.keys() & second.groups.keys():
        member, other = first.groups[name][rows], second.groups[name][columns]
        mean_nn = member @ np.diag(1 / np.maximum(member.sum(axis=0), 1)) @ member.T
        product, *squares = (float(np.sum(mean_nn * matrix)) for matrix in (both, own, theirs))
        correlation = product / (squares[0] * squares[1]) ** 0.5 if min(squares) > 0 else 0.0
        size = float(np.clip(correlation, -1, 1)) * (first.variances[name] * second.variances[name]) ** 0.5
        shared[np.ix_(rows, columns)] += size * (member @ other.T)
    return shared


def _products(one: Errors, two: Errors, known_nm: np.ndarray) -> np.ndarray:
    """(n, m) products of two studies' residuals, less what errors of a known covariance are expected to add."""
    return np.outer(one.fit.residual_n, two.fit.residual_n) - one.left_nn @ known_nm @ two.left_nn.T


def _keys(points: Points) -> list[tuple[str, str, float]]:
    return list(zip(points.size, points.seed, points.samples.tolist(), strict=True))


def differences(
    studies: tuple[Errors, Errors], points: tuple[Points, Points], names: tuple[str, ...] = ("alpha", "beta")
) -> list[Difference]:
    """The exponents' differences with 95 % intervals, paired where the studies share points."""
    from scipy.stats import t

    (first, second), shared = studies, shared_parts(studies, points)
    found = []
    for name in names:
        one, two = (e.influence_pn[e.fit.form.parameters.index(name)] for e in (first, second))
        parts = float(one @ first.covariance_nn @ one), float(two @ second.covariance_nn @ two)
        variance = max(sum(parts) - 2 * float(one @ shared @ two), 0.05 * sum(parts))
        free = 1 / sum(
            (part / sum(parts)) ** 2 / e.degrees(i)
            for part, e, i in zip(parts, (first, second), (one, two), strict=True)
        )
        half = float(t.ppf(0.975, free)) * variance**0.5
        values = first.fit[name], second.fit[name]
        found.append(
            Difference(
                name=name, first=values[0], second=values[1], difference=values[0] - values[1],
                interval=(values[0] - values[1] - half, values[0] - values[1] + half),
            )
        )  # fmt: skip
    return found


def compute_multiplier(
    studies: tuple[Errors, Errors],
    points: tuple[Points, Points],
    costs: tuple[Cost, Cost],
    flops: float,
    *,
    draws: int = 100,
    seed: int = 0,
) -> tuple[float, tuple[float, float]]:
    """Operations that the second law needs, at its best sizes, for the reducible loss that the first has with `flops`
    at its best size, over `flops`; with the 95 % percentiles of joint draws of both laws' parameters, paired where the
    studies share points. A draw without an answer counts as infinite.
    """
    first, second = studies
    shared = first.influence_pn @ shared_parts(studies, points) @ second.influence_pn.T
    covariance = np.block([[first.covariance_pp, shared], [shared.T, second.covariance_pp]])
    thetas = np.concatenate([first.fit.theta_p, second.fit.theta_p])
    rng, found = np.random.default_rng(seed), []
    for theta in rng.multivariate_normal(thetas, covariance, draws, method="svd", check_valid="ignore"):
        try:
            found.append(_multiplier(studies, np.split(theta, [len(first.fit.theta_p)]), costs, flops))
        except ValueError:
            found.append(np.inf)
    low, high = np.quantile(found, [0.025, 0.975], method="nearest").tolist()
    return _multiplier(studies, (first.fit.theta_p, second.fit.theta_p), costs, flops), (low, high)


def _multiplier(
    studies: tuple[Errors, Errors], thetas: Sequence[np.ndarray], costs: tuple[Cost, Cost], flops: float
) -> float:
    from scipy.optimize import brentq

    wanted = _reducible(studies[0], thetas[0], costs[0], flops)

    def gap(log_flops: float) -> float:
        return float(np.log(_reducible(studies[1], thetas[1], costs[1], float(np.exp(log_flops))) / wanted))

    return float(np.exp(brentq(gap, np.log(flops) - 12, np.log(flops) + 12, xtol=1e-8))) / flops


def _reducible(errors: Errors, theta_p: np.ndarray, cost: Cost, flops: float) -> float:
    """Least loss above E for a number of operations."""
    best = float(np.exp(best_log_params(errors.fit, theta_p, cost, flops)))
    floor = float(np.exp(theta_p[errors.fit.form.parameters.index("log E")]))
    return float(np.exp(errors.fit.log_loss(theta_p, best, flops / cost(best)))) - floor
