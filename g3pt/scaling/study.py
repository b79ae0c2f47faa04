"""What a study's points say, as one record (fit.json): the law of the form that predicts best, its intervals, its lack
of fit, its rivals, its sections, and what moves it.

Source and method: fit.py, choice.py,
intervals.py, sections.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from g3pt.scaling import choice, sections
from g3pt.scaling.fit import Fit, fit_form
from g3pt.scaling.forms import POWER, PURE, SURFACES, Form, saturating_at
from g3pt.scaling.intervals import PARTS, Errors, errors
from g3pt.scaling.points import Points

LACK_LEVEL = 0.05  # a law whose lack of fit is less probable is said to miss
METHOD = (
    "least squares of log L from starts by variable projection; 95 % intervals by the errors of sizes, seeds and "
    "points (moments, Satterthwaite); the form is the one that predicts rungs left out best"
)


def rivals(points: Points, ceiling: float | None = None) -> tuple[Form, ...]:
    """The forms compared, with a known ceiling in the saturating one; laws
    in N alone below three numbers of samples.
    """
    if len(np.unique(points.samples)) < 3:
        return POWER, PURE
    return tuple(saturating_at(ceiling) if ceiling and form.name == "saturating" else form for form in SURFACES)


def law_of(points: Points, form: str = "", ceiling: float | None = None) -> Fit:
    """The law of the named form, by default of the one that predicts rungs left out best.

    ValueError for an unknown form and for points that do not determine the law.
    """
    forms = {one.name: one for one in rivals(points, ceiling)}
    if form and form not in forms:
        raise ValueError(f"the form must be one of {', '.join(forms)}, got {form!r}")
    return choice.fit(forms[form] if form else choice.best_form(points, tuple(forms.values()))[0], points)


def report(
    points: Points, *, form: str = "", ceiling: float | None = None, others: Sequence[Points] = ()
) -> dict[str, Any]:
    """The content of fit.json. `others` are the same points by other counts of N, for the sensitivity table."""
    best, predictions = choice.best_form(points, rivals(points, ceiling))
    law = law_of(points, form or best.name, ceiling)
    parts = errors(law, points.size, points.seed)
    lack = choice.lack_of_fit(law, points)
    return {
        "points": {"sha256": points.sha256, "num": len(points), "count": points.count, "loss": points.column},
        "num_sizes": len(np.unique(points.params)),
        "num_samples": len(np.unique(points.samples)),
        "method": METHOD,
        "ceiling": ceiling,
        "law": described(law, parts),
        "errors": {f"{name}_sd": parts.variances.get(name, 0.0) ** 0.5 for name in PARTS if name in parts.groups},
        "lack_of_fit": lack,
        "misses": bool(lack and lack["p"] < LACK_LEVEL),
        "forms": {
            name: {
                "score": None if not found else choice.score(found),
                "left_out": [dataclasses.asdict(one) for one in found],
            }
            for name, found in predictions.items()
        },
        "sensitivity": choice.sensitivity(points, law.form, others),
        "sections": _sections(points, law),
    }


def described(law: Fit, parts: Errors) -> dict[str, Any]:
    """A law with its parameters and their 95 % intervals."""
    names = [name.removeprefix("log ") for name in law.form.parameters if name != "log H-E"]
    intervals = {name: parts.parameter(name) for name in names if parts.determined and law[name] != 0}
    return {
        "form": law.form.name,
        "formula": law.form.formula,
        "parameters": law.named(),
        "interval_95": {name: list(pair) for name, pair in intervals.items() if np.isfinite(pair).all()},
        "at_bound": [name for name, at in zip(law.form.parameters, at_bound(law), strict=True) if at],
        "theta": dict(zip(law.form.parameters, law.theta_p.tolist(), strict=True)),
        "rms": float(np.sqrt(np.square(law.residual_n).mean())),
    }


def at_bound(law: Fit) -> np.ndarray:
    """(p,) whether a parameter stopped at a bound of its exponent, where its interval means nothing."""
    low, high = law.form.bounds
    exponent = np.array([not name.startswith("log ") for name in law.form.parameters])
    return exponent & ((law.theta_p < low + 1e-3) | (law.theta_p > high - 1e-3))


def _sections(points: Points, surface: Fit) -> dict[str, Any]:
    """L(N) at the largest D that at least three sizes reached, L(C) on the frontier, and IsoFLOP parabolas, each with
    the best N of the law in N and D as `optimum`.
    """
    found: dict[str, Any] = {}
    for seen in np.unique(points.samples)[::-1]:
        part = points.where(points.samples == seen)
        if len(np.unique(part.params)) >= 3:
            laws = {form.name: fit_form(form, part.params, None, part.loss).named() for form in (POWER, PURE)}
            found["by_params"] = {"samples": float(seen), "num_points": len(part), **laws}
            break
    law = sections.frontier_law(points)
    if law is not None:
        found["by_flops"] = {"num_points": len(law.residual_n), "pure": law.named()}
    rows = sections.iso_flops(points)
    cost = sections.cost_of(points)
    for row in rows if surface.form.needs_samples else ():
        with contextlib.suppress(ValueError):  # the law has no optimum there
            row["optimum"] = sections.optimum(surface, cost, float(str(row["flops"]))).params
    return found | {"iso_flops": rows}
