"""Which form describes a study: by how well it predicts rungs left out, never by how well it fits;
and whether any does.

How: the largest sizes, the largest numbers of samples, or both, are left out in turn; each form is fitted to the rest
and predicts them. A lack of fit compares the residuals with the spread of replicate seeds (F test). The sensitivity
table refits with other losses, without some points, and by other counts of N.

Source: Draper & Smith 1998, section 2.2: lack of fit. Porian et al. 2024 (arXiv 2406.19146) and McLeish et al. 2025
(arXiv 2502.06857): how far such choices move a law. Ours: the rungs that are left out.
Shapes: n points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from g3pt.scaling.fit import HUBER_DELTA, Fit, fit_form
from g3pt.scaling.forms import ADDITIVE, SURFACES, Form
from g3pt.scaling.points import Points

MOST_RUNGS = 12


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Prediction of some points by a fit to the others."""

    name: str  # what was left out
    num_points: int
    error: float  # root mean square of log predicted over measured
    bias: float  # its mean: positive where the law predicts too high a loss


def fit(form: Form, points: Points, delta: float | None = None, fixed: dict[str, float] | None = None) -> Fit:
    """The form fitted to points."""
    return fit_form(form, points.params, points.samples, points.loss, delta=delta, fixed=fixed)


def rungs(points: Points) -> dict[str, np.ndarray]:
    """What is left out in turn -> mask: the one and two largest sizes, the largest and two largest D, and both at once.

    Where more than MOST_RUNGS values are scattered, a rung is an equal part of the points, not a value.
    """
    sizes, seen = rung_starts(points.params), rung_starts(points.samples)
    found = {}
    for count, word in ((1, "largest"), (2, "two largest")):
        if len(sizes) > count + 2:
            found[f"{word} N"] = points.params >= sizes[-count]
        if len(seen) > count + 2:
            found[f"{word} D"] = points.samples >= seen[-count]
    if len(sizes) > 3 and len(seen) > 3:
        found["largest N or D"] = (points.params >= sizes[-1]) | (points.samples >= seen[-1])
    return found


def rung_starts(values: np.ndarray) -> np.ndarray:
    """The least value of each rung, ascending."""
    known = np.unique(values)
    shares = np.arange(MOST_RUNGS) / MOST_RUNGS
    return known if len(known) <= MOST_RUNGS else np.unique(np.quantile(values, shares, method="higher"))


def left_out(form: Form, points: Points) -> list[LeftOut]:
    """The form's prediction of each of `rungs`; those that the rest cannot determine are missing."""
    found = []
    for name, away_n in rungs(points).items():
        try:
            law = fit(form, points.where(~away_n))
        except ValueError:
            continue
        rest = points.where(away_n)
        error_n = np.log(law(rest.params, rest.samples) / rest.loss)
        found.append(
            LeftOut(
                name=name,
                num_points=len(rest),
                error=float(np.sqrt(np.square(error_n).mean())),
                bias=float(error_n.mean()),
            )
        )
    return found


def score(predictions: Sequence[LeftOut]) -> float:
    """Root mean square over the rungs of a form's predictions; infinite without any."""
    return float(np.sqrt(np.mean([one.error**2 for one in predictions]))) if predictions else float("inf")


def best_form(points: Points, forms: Sequence[Form] = SURFACES) -> tuple[Form, dict[str, list[LeftOut]]]:
    """The form that predicts rungs left out best, and the predictions of all. Forms are compared on the same rungs; the
    first is returned if none can be left out.
    """
    predictions = {form.name: left_out(form, points) for form in forms}
    most = max(len(found) for found in predictions.values())
    whole = [form for form in forms if len(predictions[form.name]) == most]
    return (min(whole, key=lambda form: score(predictions[form.name])) if most else forms[0]), predictions


def lack_of_fit(law: Fit, points: Points) -> dict[str, float] | None:
    """F test of the residuals against replicate seeds (same N and D): F, its degrees of freedom and p; None without
    replicates.
    """
    from scipy.stats import f as f_distribution

    cells: dict[tuple[float, float], list[int]] = {}
    for k, key in enumerate(zip(points.params.tolist(), points.samples.tolist(), strict=True)):
        cells.setdefault(key, []).append(k)
    logs, num_parameters = np.log(points.loss), len(law.theta_p)
    pure = sum(float(np.square(logs[rows] - logs[rows].mean()).sum()) for rows in cells.values())
    pure_free, lack_free = len(points) - len(cells), len(cells) - num_parameters
    if pure_free < 1 or lack_free < 1 or pure == 0:
        return None
    lack = float(np.square(law.residual_n).sum()) - pure
    ratio = (lack / lack_free) / (pure / pure_free)
    return {
        "F": ratio, "free_lack": float(lack_free), "free_pure": float(pure_free),
        "p": float(f_distribution.sf(ratio, lack_free, pure_free)),
    }  # fmt: skip


def sensitivity(points: Points, form: Form = ADDITIVE, others: Sequence[Points] = ()) -> list[dict[str, float | str]]:
    """Parameters by how the law was fitted: losses, E pinned to nearly 0, without the smallest D or sizes, and `others`
    (the same study by other counts of N). A variant that cannot be fitted has the reason as `error`.
    """
    sizes, seen = np.unique(points.params), np.unique(points.samples)
    variants: list[tuple[str, Points, dict[str, object]]] = [
        ("least squares", points, {}),
        (f"Huber {HUBER_DELTA:g}, summed", points, {"delta": HUBER_DELTA}),
        ("Huber 0.01, summed", points, {"delta": 1e-2}),
        ("without a floor (E = 0)", points, {"fixed": {"log E": -24.9}}),
        ("without the smallest D", points.where(points.samples > seen[0]), {}),
        ("without the smallest size", points.where(points.params > sizes[0]), {}),
        ("without the two smallest sizes", points.where(points.params > sizes[min(1, len(sizes) - 1)]), {}),
        *((f"N counted as {other.count}", other, {}) for other in others),
    ]
    found = []
    for name, chosen, options in variants:
        try:
            law = fit(form, chosen, **options)  # type: ignore[arg-type]
            rms = float(np.sqrt(np.square(law.residual_n).mean()))
            found.append({"variant": name, "num_points": len(chosen), **law.named(), "rms": rms})
        except ValueError as reason:
            found.append({"variant": name, "num_points": len(chosen), "error": str(reason)})
    return found
