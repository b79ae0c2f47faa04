"""What intervals a planned study would give, simulated before anything is spent.

How: losses of every planned point are drawn from an assumed law with assumed errors of sizes, seeds and points; the
study's own fit and intervals are computed for each draw. The table has the median half-widths, and how often the
intervals contained what they should.

Ours: all of it.
Shapes: n planned points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from g3pt.scaling.fit import Fit, fit_form
from g3pt.scaling.forms import ADDITIVE, Form
from g3pt.scaling.intervals import errors
from g3pt.scaling.points import Points

# For small generators of procedural shapes, in nats per token: assumed, not measured. A finished study has a law of its
# own.
ASSUMED = {"E": 4.2, "A": 50.0, "alpha": 0.35, "B": 107.6, "beta": 0.45}
ASSUMED_ERRORS = {"size": 0.003, "seed": 0.003, "point": 0.0015}


def assumed_law(values: Mapping[str, float] = ASSUMED, form: Form = ADDITIVE) -> Fit:
    """A law with these parameters, by name without `log`. ValueError for missing or unknown names."""
    names = [name.removeprefix("log ") for name in form.parameters]
    if set(names) != set(values):
        raise ValueError(f"{form.formula} has the parameters {', '.join(names)}, got {', '.join(values)}")
    theta = [np.log(values[name]) if f"log {name}" in form.parameters else values[name] for name in names]
    empty = np.zeros(0)
    return Fit(form=form, theta_p=np.array(theta), residual_n=empty, jacobian_np=empty, objective=0.0, delta=None)


def simulate(
    law: Fit,
    planned: Points,
    rungs: Sequence[tuple[float, float]] = (),
    sds: Mapping[str, float] = ASSUMED_ERRORS,
    *,
    trials: int = 100,
    seed: int = 0,
) -> dict[str, Any]:
    """Median half-widths of 95 % intervals, and coverage, of the law's exponents and of new runs at `rungs` (N, D).

    Only `params`, `samples`, `size` and `seed` of `planned` are read. Half-widths of losses are shares of the loss.
    ValueError if the planned points do not determine the law.
    """
    exact = law(planned.params, planned.samples)
    start = fit_form(law.form, planned.params, planned.samples, exact, start=law)
    exponents = [name for name in law.form.parameters if not name.startswith("log ")]
    widths: dict[str, list[float]] = {name: [] for name in [*exponents, *map(_rung, rungs)]}
    inside = dict.fromkeys(widths, 0)
    for trial in range(trials):
        rng = np.random.default_rng([seed, trial])
        losses = exact * np.exp(_errors(planned, sds, rng))
        parts = errors(
            fit_form(law.form, planned.params, planned.samples, losses, start=start), planned.size, planned.seed
        )
        for name in exponents:
            low, high = parts.parameter(name)
            widths[name].append((high - low) / 2)
            inside[name] += low <= law[name] <= high
        for rung in rungs:
            low, high = parts.loss(*rung, new_run=True)
            true = float(law(*rung))
            widths[_rung(rung)].append((high - low) / 2 / true)
            inside[_rung(rung)] += bool(low <= true * np.exp(rng.normal(0, _total(sds))) <= high)
    return {
        "trials": trials,
        "assumed": {**law.named(), **{f"{name}_sd": value for name, value in sds.items()}},
        "half_width": {name: float(np.median(values)) for name, values in widths.items()},
        "coverage": {name: count / trials for name, count in inside.items()},
    }


def _errors(planned: Points, sds: Mapping[str, float], rng: np.random.Generator) -> np.ndarray:
    sizes = {name: rng.normal(0, sds["size"]) for name in dict.fromkeys(planned.size)}
    pairs = list(zip(planned.size, planned.seed, strict=True))
    trunks = {pair: rng.normal(0, sds["seed"]) for pair in dict.fromkeys(pairs)}
    shared = np.array([sizes[pair[0]] + trunks[pair] for pair in pairs])
    return shared + rng.normal(0, sds["point"], len(pairs))


def _total(sds: Mapping[str, float]) -> float:
    return float(np.sqrt(sum(value**2 for value in sds.values())))


def _rung(rung: tuple[float, float]) -> str:
    return f"loss at N {rung[0]:.3g}, D {rung[1]:.3g}"
