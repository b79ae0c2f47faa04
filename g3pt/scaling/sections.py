"""What a fitted law says: sections L(N) and L(C), IsoFLOP parabolas, and the best N and D for a number of operations.

How: operations per sample as a function of N are those that the points counted, linear between them in logarithms and
beyond them by the slope of the last two sizes; 6 N only where nothing was counted. IsoFLOP parabolas are a picture and
a cross-check: their vertices are biased on wide grids, so the surface decides.

Source: Hoffmann et al. 2022 (arXiv 2203.15556), approaches 2 and 3; arXiv 2603.22339 on the bias of the parabolas.
Shapes: n points, s sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from g3pt.scaling.fit import Fit, fit_form
from g3pt.scaling.forms import PURE
from g3pt.scaling.intervals import Errors
from g3pt.scaling.points import Points


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Operations per sample as a function of N."""

    log_params_s: np.ndarray
    log_flops_s: np.ndarray
    counted: bool

    def __call__(self, params: np.ndarray | float) -> np.ndarray:
        """Operations of training on one sample."""
        x, known = np.log(np.asarray(params, float)), self.log_params_s
        if len(known) == 1:
            return np.exp(self.log_flops_s[0] + x - known[0])
        first, last = (np.diff(self.log_flops_s)[k] / np.diff(known)[k] for k in (0, -1))
        inside = np.interp(x, known, self.log_flops_s)
        below, above = np.minimum(x - known[0], 0), np.maximum(x - known[-1], 0)
        return np.exp(inside + first * below + last * above)


def cost_of(points: Points) -> Cost:
    """The counted operations of the points; 6 N per sample where none were counted."""
    known = np.isfinite(points.flops)
    if not known.any():
        sizes = np.unique(points.params)
        return Cost(log_params_s=np.log(sizes), log_flops_s=np.log(6 * sizes), counted=False)
    sizes = np.unique(points.params[known])
    per_sample = points.flops / points.samples
    counted = [float(np.median(per_sample[known & (points.params == size)])) for size in sizes]
    return Cost(log_params_s=np.log(sizes), log_flops_s=np.log(counted), counted=True)


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The best size for a number of operations."""

    flops: float
    params: float
    samples: float
    loss: float
    params_interval: tuple[float, float] | None = None
    loss_interval: tuple[float, float] | None = None


def optimum(law: Fit, cost: Cost, flops: float, errors: Errors | None = None) -> Optimum:
    """N and D of the least loss among those that cost `flops`, with 95 % intervals if the law's errors are given.

    ValueError if the least loss is at an end of the range that was searched: then the law has no optimum there.
    """
    best = best_log_params(law, law.theta_p, cost, flops)
    params, samples = float(np.exp(best)), float(flops / cost(np.exp(best)))
    found = Optimum(flops=flops, params=params, samples=samples, loss=float(law(params, samples)))
    if errors is None:
        return found
    steps = np.diag(1e-4 * np.maximum(1.0, np.abs(law.theta_p)))
    slope_p = np.array(
        [
            (best_log_params(law, law.theta_p + s, cost, flops) - best_log_params(law, law.theta_p - s, cost, flops))
            / (2 * s.sum())
            for s in steps
        ]
    )
    low, high = errors.interval(slope_p, best)
    return Optimum(
        flops=flops, params=params, samples=samples, loss=found.loss,
        params_interval=(float(np.exp(low)), float(np.exp(high))),
        loss_interval=errors.loss(params, samples),
    )  # fmt: skip


def best_log_params(law: Fit, theta_p: np.ndarray, cost: Cost, flops: float) -> float:
    """Logarithm of the N of the least loss with these parameters of the law: by a grid, then Brent's method about it.

    ValueError if it is at an end of the grid.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_params: np.ndarray | float) -> np.ndarray:
        size = np.exp(log_params)
        return law.log_loss(theta_p, size, flops / cost(size))

    grid = np.linspace(cost.log_params_s[0] - 7, cost.log_params_s[-1] + 16, 231)
    at = int(np.argmin(loss(grid)))
    if at in (0, len(grid) - 1):
        ends = f"{np.exp(grid[0]):.3g} and {np.exp(grid[-1]):.3g}"
        raise ValueError(f"the law has no best size for {flops:.3g} operations between N = {ends}")
    done = minimize_scalar(lambda x: float(loss(x)), bracket=(grid[at - 1], grid[at], grid[at + 1]), tol=1e-9)
    return float(done.x)


def beyond(points: Points, params: float, samples: float) -> str:
    """How far N and D are outside the points, in words; empty inside."""
    words = []
    for name, value, known in (("N", params, points.params), ("D", samples, points.samples)):
        if value > known.max():
            words.append(f"{name} is {value / known.max():.3g} times the largest measured")
        elif value < known.min():
            words.append(f"{name} is {known.min() / value:.3g} times below the smallest measured")
    return "; ".join(words)


def frontier(points: Points) -> Points:
    """The points that no point of at most as many operations beats, by operations; empty without counted operations."""
    order = [int(k) for k in np.lexsort((points.loss, points.flops)) if np.isfinite(points.flops[k])]
    kept: list[int] = []
    for k in order:
        if not kept or points.loss[k] < points.loss[kept[-1]]:
            kept.append(k)
    return points.where(np.array(kept, int))


def frontier_law(points: Points) -> Fit | None:
    """The pure power law L(C) on the frontier; None with fewer than three points there."""
    best = frontier(points)
    return fit_form(PURE, best.flops, None, best.loss) if len(np.unique(best.flops)) >= 3 else None


def iso_flops(points: Points, count: int = 5) -> list[dict[str, float | list[float]]]:
    """Sections of equal operations: per budget the sizes, their losses read off each size's curve, and the vertex of a
    parabola in log N, if it is one and lies among the sizes. Budgets that fewer than three sizes reach are left out.
    """
    known = np.isfinite(points.flops)
    if not known.any():
        return []
    curves = {}
    for size in np.unique(points.params[known]):
        mine = known & (points.params == size)
        flops = np.unique(points.flops[mine])
        curves[float(size)] = (np.log(flops), np.log([points.loss[mine & (points.flops == c)].mean() for c in flops]))
    found: list[dict[str, float | list[float]]] = []
    for budget in np.geomspace(points.flops[known].min(), points.flops[known].max(), count + 2)[1:-1]:
        log_c = np.log(budget)
        inside = [
            (size, float(np.exp(np.interp(log_c, *curve))))
            for size, curve in curves.items()
            if curve[0][0] <= log_c <= curve[0][-1]
        ]
        if len(inside) < 3:
            continue
        sizes, losses = (list(column) for column in zip(*inside, strict=True))
        bend, slope, _ = np.polyfit(np.log(sizes), np.log(losses), 2)
        vertex = float(np.exp(-slope / (2 * bend))) if bend > 0 else float("nan")
        row: dict[str, float | list[float]] = {"flops": float(budget), "params": sizes, "losses": losses}
        found.append(row | ({"vertex": vertex} if sizes[0] <= vertex <= sizes[-1] else {}))
    return found
