"""Power laws of a loss in the number of parameters, L(N) = E + A N^-alpha, with intervals and a held-out prediction.

Source: Hoffmann et al. 2022 (arXiv 2203.15556), section 3.3 and appendix D.2: the form and Huber's loss. How it is
fitted: fit.py. Where the intervals come from: intervals.py. The law in parameters and samples: surface.py, study.py.
Ours: the hold-out of the largest size, and that the pure power law (E = 0) is always reported beside it, because four
sizes cannot distinguish the two.
Shapes: n points; parameters are positive counts, losses positive, in nats per token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from g3pt.scaling.fit import HUBER_DELTA, Fit, fit_form
from g3pt.scaling.forms import POWER, PURE
from g3pt.scaling.intervals import Errors, errors

MIN_SIZES_FOR_ESTIMATE = 6
NAMES = {"irreducible": "E", "coefficient": "A", "exponent": "alpha"}


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """L(N) = irreducible + coefficient * N ** -exponent."""

    irreducible: float  # E
    coefficient: float  # A
    exponent: float  # alpha
    objective: float = 0.0  # mean Huber loss of the fit, over its delta

    def __call__(self, params: np.ndarray | float) -> np.ndarray:
        """Predicted loss."""
        return self.irreducible + self.coefficient * np.asarray(params, float) ** -self.exponent


def fit_power_law(params: Sequence[float], losses: Sequence[float], *, pure: bool = False) -> PowerLaw:
    """The law L(N) = E + A N^-alpha fitted to points (N, L) with Huber's loss; E = 0 if `pure`.

    ValueError for fewer sizes than the law needs, and for values that are not positive and finite.
    """
    return _power_law(_fit(params, losses, pure, HUBER_DELTA))


def _fit(params: Sequence[float], losses: Sequence[float], pure: bool, delta: float | None = None) -> Fit:
    return fit_form(PURE if pure else POWER, params, None, losses, delta=delta)


def _power_law(law: Fit) -> PowerLaw:
    values = law.named()
    return PowerLaw(
        irreducible=values.get("E", 0.0), coefficient=values["A"], exponent=values["alpha"],
        objective=law.objective / len(law.residual_n) / HUBER_DELTA,
    )  # fmt: skip


def intervals(parts: Errors) -> dict[str, list[float] | None]:
    """95 % interval of each parameter; None where nothing is left to tell errors by. That of an E of 0 is [0, 0]."""
    names = {name: theirs for name, theirs in NAMES.items() if theirs in parts.fit.named()}
    found: dict[str, list[float] | None] = {"irreducible": [0.0, 0.0]}
    for name, theirs in names.items():
        if not parts.determined:
            found[name] = None
        elif parts.fit[theirs] != 0:
            found[name] = list(parts.parameter(theirs))
    return found


def band(parts: Errors, params: Sequence[float], count: int = 31) -> dict[str, list[float]] | None:
    """95 % interval of the law from below the smallest size to above the largest: params, low, high."""
    if not parts.determined:
        return None
    line = np.geomspace(min(params) / 1.3, max(params) * 1.3, count)
    low, high = zip(*(parts.loss(float(n)) for n in line), strict=True)
    return {"params": line.tolist(), "low": list(low), "high": list(high)}


def hold_out_largest(
    params: Sequence[float], losses: Sequence[float], *, pure: bool = False
) -> dict[str, float] | None:
    """Prediction of the largest size by a fit to the others; None if too few sizes remain."""
    size, loss = np.asarray(params, float), np.asarray(losses, float)
    rest = size < size.max()
    if len(np.unique(size[rest])) < (2 if pure else 3):
        return None
    predicted = float(_fit(size[rest].tolist(), loss[rest].tolist(), pure)(size.max()))
    measured = float(loss[~rest].mean())
    return {
        "params": float(size.max()),
        "predicted": predicted,
        "measured": measured,
        "relative_error": predicted / measured - 1,
    }


def report(params: Sequence[float], losses: Sequence[float], seeds: Sequence[object] = ()) -> dict[str, Any]:
    """The content of fit.json for a study of sizes: both laws, by least squares, with intervals and hold-outs."""
    sizes = len(set(params))
    found: dict[str, Any] = {
        "num_sizes": sizes,
        "num_points": len(params),
        "status": "estimate" if sizes >= MIN_SIZES_FOR_ESTIMATE else "demonstration, not an estimate",
        "method": "Least squares of log L from starts by variable projection; 95 % intervals by the errors of sizes "
        "and of single runs (moments, Student's t)",
    }
    for name, pure in (("power_law_with_floor", False), ("pure_power_law", True)):
        if sizes < (2 if pure else 3):
            found[name] = None
            continue
        law = _fit(params, losses, pure)
        parts = errors(law, list(params), list(seeds) or list(range(len(params))))
        found[name] = {
            **dataclasses.asdict(_power_law(law)), "interval_95": intervals(parts), "band_95": band(parts, params),
            "hold_out": hold_out_largest(params, losses, pure=pure),
        }  # fmt: skip
    return found
