"""Power laws of a loss in the number of parameters, L(N) = E + A N^-alpha, with intervals and a held-out prediction.

How: the law is fitted to the logarithm of the loss with a Huber loss of delta 1e-3 (an outlier counts linearly), by L-BFGS on
(log E, log A, alpha) from many starting points. Intervals come from resampling the points of each size (seeds), or, with one point per
size, from resampling residuals around the fit. The law in parameters and samples: surface.py.

Source: Hoffmann et al. 2022 (arXiv 2203.15556), section 3.3 and appendix D.2: the form, the Huber loss, the many starts.
Ours: the intervals, the hold-out of the largest size, and that the pure power law (E = 0) is always reported beside it, because four
sizes cannot distinguish the two.
Shapes: n points; parameters are positive counts, losses positive, in nats per token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

HUBER_DELTA = 1e-3
MIN_SIZES_FOR_ESTIMATE = 6


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """L(N) = irreducible + coefficient * N ** -exponent."""

    irreducible: float  # E
    coefficient: float  # A
    exponent: float  # alpha
    objective: float = 0.0  # mean Huber loss of the fit

    def __call__(self, params: np.ndarray | float) -> np.ndarray:
        """Predicted loss."""
        return self.irreducible + self.coefficient * np.asarray(params, float) ** -self.exponent


def huber(residual: np.ndarray, delta: float = HUBER_DELTA) -> np.ndarray:
    """Quadratic below delta, linear above."""
    size = np.abs(residual)
    return np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))


def fit_power_law(
    params: Sequence[float], losses: Sequence[float], *, pure: bool = False, starts: int = 32, seed: int = 0
) -> PowerLaw:
    """The law L(N) = E + A N^-alpha fitted to points (N, L): the best of `starts` fits, with E = 0 if `pure`.

    ValueError for fewer sizes than the law needs, and for values that are not positive and finite.
    """
    size, loss = np.asarray(params, float), np.asarray(losses, float)
    needed = 2 if pure else 3
    if len(np.unique(size)) < needed:
        raise ValueError(
            f"{'the pure power law' if pure else 'E + A N^-alpha'} needs at least {needed} sizes, got {len(np.unique(size))}"
        )
    if not (np.all(size > 0) and np.all(loss > 0) and np.all(np.isfinite(loss))):
        raise ValueError(f"parameters and losses must be positive and finite, got {size.tolist()} and {loss.tolist()}")
    center = float(np.exp(np.log(size).mean()))  # N / center decorrelates A and alpha while fitting
    found = _fit_pure(size / center, loss) if pure else _fit_full(size / center, loss, starts, seed)
    return dataclasses.replace(found, coefficient=found.coefficient * center**found.exponent)


def _fit_full(size: np.ndarray, loss: np.ndarray, starts: int, seed: int) -> PowerLaw:
    log_size, log_loss = np.log(size), np.log(loss)
    guesses = [
        [np.log(share * loss.min()), np.log((1 - share) * np.median(loss)), alpha]
        for share, alpha in _starts(starts, np.random.default_rng(seed))
    ]
    found, objective = fit_logarithms(log_size[None], log_loss, guesses)
    return PowerLaw(
        irreducible=float(np.exp(found[0])),
        coefficient=float(np.exp(found[1])),
        exponent=float(found[2]),
        objective=objective,
    )


def fit_logarithms(
    log_inputs_Kn: np.ndarray, log_loss: np.ndarray, starts: Sequence[Sequence[float]]
) -> tuple[np.ndarray, float]:
    """The best fit of log L = log(E + sum_k A_k x_k ^ -alpha_k) from several starts, and its mean Huber loss over delta.

    A start and the result are (log E, log A_1, alpha_1, log A_2, alpha_2, ...).
    """
    from scipy.optimize import minimize

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        powers = theta[1::2, None] - theta[2::2, None] * log_inputs_Kn
        terms = np.concatenate([np.full((1, len(log_loss)), theta[0]), powers])
        predicted = np.logaddexp.reduce(terms, axis=0)
        share = np.exp(terms - predicted)  # d predicted / d terms
        residual = predicted - log_loss
        slope = np.clip(residual, -HUBER_DELTA, HUBER_DELTA) / len(residual)
        gradient = np.empty_like(theta)
        gradient[0] = (slope * share[0]).sum()
        gradient[1::2] = (slope * share[1:]).sum(axis=1)
        gradient[2::2] = -(slope * share[1:] * log_inputs_Kn).sum(axis=1)
        return float(huber(residual).mean()) / HUBER_DELTA, gradient / HUBER_DELTA

    highest = float(log_loss.max())
    bounds = [(-20.0, highest)] + [(-20.0, 5.0 + highest), (1e-3, 3.0)] * len(log_inputs_Kn)
    options = {"maxiter": 150 * len(log_inputs_Kn), "ftol": 1e-12, "gtol": 1e-9}
    done = [
        minimize(objective, np.array(start), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        for start in starts
    ]
    best = min(done, key=lambda one: one.fun)
    return best.x, float(best.fun)


def _starts(count: int, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Random starts: (share of the smallest loss that is irreducible, alpha)."""
    return [
        (float(rng.uniform(0.02, 0.98)), float(np.exp(rng.uniform(np.log(0.03), np.log(1.2))))) for _ in range(count)
    ]


def _fit_pure(size: np.ndarray, loss: np.ndarray) -> PowerLaw:
    """Least squares in logarithms, then Huber by reweighting."""
    log_size, log_loss, weight = np.log(size), np.log(loss), np.ones(len(size))
    for _ in range(30):
        slope, intercept = np.polyfit(log_size, log_loss, 1, w=np.sqrt(weight))
        residual = np.abs(intercept + slope * log_size - log_loss)
        weight = np.where(residual <= HUBER_DELTA, 1.0, HUBER_DELTA / np.maximum(residual, 1e-300))
    return PowerLaw(
        irreducible=0.0,
        coefficient=float(np.exp(intercept)),
        exponent=float(-slope),
        objective=float(huber(residual).mean()) / HUBER_DELTA,
    )


def bootstrap(
    params: Sequence[float],
    losses: Sequence[float],
    *,
    pure: bool = False,
    samples: int = 100,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of irreducible, coefficient and exponent, from `resampled_fits`."""
    return intervals(resampled_fits(params, losses, pure=pure, samples=samples, seed=seed), level)


def intervals(fits: Sequence[PowerLaw], level: float = 0.95) -> dict[str, tuple[float, float]]:
    """Percentiles of each parameter over resampled fits."""
    return {
        name: _percentiles(np.array([getattr(law, name) for law in fits]), level)
        for name in ("irreducible", "coefficient", "exponent")
    }


def resampled_fits(
    params: Sequence[float], losses: Sequence[float], *, pure: bool = False, samples: int = 100, seed: int = 0
) -> list[PowerLaw]:
    """The law fitted to `samples` bootstrap draws of the points.

    Points of one size are resampled among themselves if every size has several; else residuals (in logarithms, made larger for
    the fitted degrees of freedom) are resampled around the fit.
    """
    size, loss, rng = np.asarray(params, float), np.asarray(losses, float), np.random.default_rng(seed)
    draw = _resample_seeds(size, loss) if _has_repeats(size) else _resample_residuals(size, loss, pure)
    return [fit_power_law(size, draw(rng), pure=pure, starts=2, seed=index) for index in range(samples)]


def band(
    fits: Sequence[PowerLaw], params: Sequence[float], level: float = 0.95, count: int = 31
) -> dict[str, list[float]]:
    """Percentiles of the curves of resampled fits, from below the smallest size to above the largest: params, low, high."""
    line = np.geomspace(min(params) / 1.3, max(params) * 1.3, count)
    low, high = zip(*(_percentiles(np.array([float(law(n)) for law in fits]), level) for n in line), strict=True)
    return {"params": line.tolist(), "low": list(low), "high": list(high)}


def _percentiles(values: np.ndarray, level: float) -> tuple[float, float]:
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(values, [tail, 100 - tail]).tolist()
    return low, high


def _has_repeats(size: np.ndarray) -> bool:
    return bool(np.unique(size, return_counts=True)[1].min() >= 2)


def _resample_seeds(size: np.ndarray, loss: np.ndarray) -> Callable[[np.random.Generator], np.ndarray]:
    groups = [np.flatnonzero(size == value) for value in np.unique(size)]

    def draw(rng: np.random.Generator) -> np.ndarray:
        drawn = loss.copy()
        for group in groups:
            drawn[group] = loss[rng.choice(group, len(group))]
        return drawn

    return draw


def _resample_residuals(size: np.ndarray, loss: np.ndarray, pure: bool) -> Callable[[np.random.Generator], np.ndarray]:
    law = fit_power_law(size, loss, pure=pure)
    residual = np.log(loss) - np.log(law(size))
    free = max(1, len(size) - (2 if pure else 3))
    residual = (residual - residual.mean()) * np.sqrt(len(size) / free)
    return lambda rng: law(size) * np.exp(rng.choice(residual, len(size)))


def hold_out_largest(
    params: Sequence[float], losses: Sequence[float], *, pure: bool = False
) -> dict[str, float] | None:
    """Prediction of the largest size by a fit to the others; None if too few sizes remain."""
    size, loss = np.asarray(params, float), np.asarray(losses, float)
    rest = size < size.max()
    if len(np.unique(size[rest])) < (2 if pure else 3):
        return None
    predicted = float(fit_power_law(size[rest], loss[rest], pure=pure)(size.max()))
    measured = float(loss[~rest].mean())
    return {
        "params": float(size.max()),
        "predicted": predicted,
        "measured": measured,
        "relative_error": predicted / measured - 1,
    }


def report(params: Sequence[float], losses: Sequence[float], *, samples: int = 100, seed: int = 0) -> dict[str, Any]:
    """The content of fit.json: both laws with intervals and hold-outs."""
    sizes = len(set(params))
    found: dict[str, Any] = {
        "num_sizes": sizes,
        "num_points": len(params),
        "status": "estimate" if sizes >= MIN_SIZES_FOR_ESTIMATE else "demonstration, not an estimate",
        "method": f"Huber({HUBER_DELTA}) on log L, multi-start L-BFGS; 95 % bootstrap of "
        + ("seeds within sizes" if _has_repeats(np.asarray(params)) else "residuals around the fit"),
    }
    for name, pure in (("power_law_with_floor", False), ("pure_power_law", True)):
        if sizes < (2 if pure else 3):
            found[name] = None
            continue
        law = fit_power_law(params, losses, pure=pure)
        fits = resampled_fits(params, losses, pure=pure, samples=samples, seed=seed)
        found[name] = {
            **dataclasses.asdict(law), "interval_95": intervals(fits), "band_95": band(fits, params), "hold_out": hold_out_largest(params, losses, pure=pure),
        }  # fmt: skip
    return found
