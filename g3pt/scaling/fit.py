"""A form of a loss law fitted to points, on the logarithm of the loss: least squares, or Huber's loss.

How: the best nodes of the form's grid (forms.py) are refined by SciPy's trust-region least squares with exact
derivatives. The objective is a *sum*: divided by the number of points, it falls below the optimiser's tolerances, which
then stops early (a cause of wrong published laws).

Source: Hoffmann et al. 2022 (arXiv 2203.15556), appendix D.2: logarithms, Huber's loss with delta 1e-3. Besiroglu et
al. 2024 (arXiv 2404.10102): the sum. Ours: the starts by variable projection, derivatives by complex steps.
Shapes: n points, p parameters; N and D positive, losses positive, in nats per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from g3pt.scaling.forms import LOG_LEAST, Form

HUBER_DELTA = 1e-3
NUM_REFINED = 5  # best nodes that are refined
TOLERANCE = 1e-12


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A fitted law; call it with N and D for the predicted loss."""

    form: Form
    theta_p: np.ndarray  # of the form's parameters, in units of N = D = 1
    residual_n: np.ndarray  # log of measured over predicted loss
    jacobian_np: np.ndarray  # of log predicted loss by theta
    objective: float  # half the sum of squared residuals, or the sum of their Huber losses
    delta: float | None  # Huber's; None: least squares

    def __call__(self, params: np.ndarray | float, samples: np.ndarray | float = 1.0) -> np.ndarray:
        """Predicted loss; `params` and `samples` broadcast."""
        return np.exp(self.log_loss(self.theta_p, params, samples))

    def log_loss(self, theta_p: np.ndarray, params: np.ndarray | float, samples: np.ndarray | float) -> np.ndarray:
        """Logarithm of the loss that the form predicts with other parameters; complex ones are allowed."""
        x, y = np.broadcast_arrays(np.log(np.asarray(params, float)), np.log(np.asarray(samples, float)))
        return self.form.predict(theta_p, x, y)

    def __getitem__(self, name: str) -> float:
        """A parameter by its name without `log`: E, A, alpha, B, beta; H of the saturating form, d
        of the broken one.
        """
        values = dict(zip(self.form.parameters, self.theta_p.tolist(), strict=True))
        if name == "H":
            return self["E"] + float(np.exp(values["log H-E"]))
        return values[name] if name in values else _natural(values[f"log {name}"])

    def named(self) -> dict[str, float]:
        """All parameters by name."""
        names = [name.removeprefix("log ") for name in self.form.parameters]
        return {"H" if name == "H-E" else name: self["H" if name == "H-E" else name] for name in names}


def _natural(logarithm: float) -> float:
    return 0.0 if logarithm <= LOG_LEAST + 5 else float(np.exp(logarithm))


def fit_form(
    form: Form,
    params: Sequence[float] | np.ndarray,
    samples: Sequence[float] | np.ndarray | None,
    losses: Sequence[float] | np.ndarray,
    *,
    delta: float | None = None,
    fixed: dict[str, float] | None = None,
    start: Fit | None = None,
) -> Fit:
    """The form fitted to points: by least squares, or by Huber's loss of `delta`, of the log residuals.

    `fixed` holds parameters by name at a value ("log E": -25 for no floor). `start`, a fit of nearly the same points,
    replaces the grid. ValueError for points that cannot determine the form.
    """
    size, seen, loss = checked(form, params, samples, losses)
    centre = (float(np.log(size).mean()), float(np.log(seen).mean()) if form.needs_samples else 0.0)
    x, y = np.log(size) - centre[0], np.log(seen) - centre[1]
    held = {form.parameters.index(name): value for name, value in (fixed or {}).items()}
    if start is None:
        starts = _starts(form, x, y, loss)
    else:
        starts = [shifted(form, start.theta_p, *(-c for c in centre))]
    found = min((_refined(form, theta, x, y, loss, delta, held) for theta in starts), key=lambda one: one[1])
    theta_p = shifted(form, found[0], *centre)
    log_x, log_y = np.log(size), np.log(seen)
    return Fit(
        form=form,
        theta_p=theta_p,
        residual_n=np.log(loss) - form.predict(theta_p, log_x, log_y),
        jacobian_np=jacobian(form, theta_p, log_x, log_y),
        objective=found[1],
        delta=delta,
    )


def checked(
    form: Form,
    params: Sequence[float] | np.ndarray,
    samples: Sequence[float] | np.ndarray | None,
    losses: Sequence[float] | np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """N, D and L as arrays. ValueError, which says why, if they cannot determine the form."""
    size, loss = np.asarray(params, float), np.asarray(losses, float)
    seen = np.ones_like(size) if samples is None else np.asarray(samples, float)
    if not size.shape == seen.shape == loss.shape:
        raise ValueError(f"N, D and L must have one value per point, got {size.shape}, {seen.shape} and {loss.shape}")
    named = {"N": size, "L": loss} | ({"D": seen} if form.needs_samples else {})
    for name, values in named.items():
        bad = values[~(np.isfinite(values) & (values > 0))]
        if len(bad):
            raise ValueError(f"{name} must be positive and finite, got {bad[0]}")
    if len(loss) < len(form.parameters):
        raise ValueError(f"{form.formula} needs at least {len(form.parameters)} points, got {len(loss)}")
    needed = {"N": min(3, len(form.parameters)), "D": 3 if form.needs_samples else 0}
    for name, least in needed.items():
        values = len(np.unique(named.get(name, seen)))
        if values < least:
            raise ValueError(f"{form.formula} needs at least {least} different {name}, got {values}")
    return size, seen, loss


def shifted(form: Form, theta_p: np.ndarray, log_params: float, log_samples: float) -> np.ndarray:
    """Parameters for N and D divided by 1 from those for N / e^log_params and D / e^log_samples."""
    found = np.array(theta_p, float)
    index = form.parameters.index
    found[index("log A")] += theta_p[index("alpha")] * log_params
    if "log B" in form.parameters:
        found[index("log B")] += theta_p[index("beta")] * log_samples
    if "log d" in form.parameters:
        found[index("log d")] += log_samples
    return found


def jacobian(form: Form, theta_p: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(n, p) derivatives of log L by theta, exact to rounding: the imaginary part of a step of 1e-30 i."""
    steps = np.eye(len(theta_p)) * 1e-30j
    return np.stack([form.predict(theta_p + step, x, y).imag / 1e-30 for step in steps], axis=1)


def huber(residual: np.ndarray, delta: float = HUBER_DELTA) -> np.ndarray:
    """Quadratic below delta, linear above."""
    size = np.abs(residual)
    return np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))


def _starts(form: Form, x: np.ndarray, y: np.ndarray, loss: np.ndarray) -> list[np.ndarray]:
    """The NUM_REFINED nodes of the form's grid that fit best, by least squares of the logarithms."""
    from scipy.optimize import nnls

    found: list[tuple[float, np.ndarray]] = []
    low, high = form.bounds
    for node in form.nodes(x, y, loss):
        scale = 1 / np.linalg.norm(node.columns_nk * node.slope_n[:, None], axis=0)
        amounts, _ = nnls(node.columns_nk * node.slope_n[:, None] * scale, node.target_n * node.slope_n)
        theta = np.array(node.theta, float)
        theta[list(form.amounts)] = node.power * np.log(np.maximum(amounts * scale, 1e-300))
        theta = np.clip(theta, low + 1e-6, high - 1e-6)
        found.append((float(np.square(form.predict(theta, x, y) - np.log(loss)).sum()), theta))
    return [theta for _, theta in sorted(found, key=lambda one: one[0])[:NUM_REFINED]]


def _refined(
    form: Form,
    theta: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    loss: np.ndarray,
    delta: float | None,
    held: dict[int, float],
) -> tuple[np.ndarray, float]:
    """Theta at the nearest minimum, and the objective there."""
    from scipy.optimize import least_squares

    free = [k for k in range(len(theta)) if k not in held]
    whole, log_loss = theta.copy(), np.log(loss)
    whole[list(held)] = list(held.values())
    low, high = (bound[free] for bound in form.bounds)

    def residual(part: np.ndarray) -> np.ndarray:
        whole[free] = part
        return form.predict(whole, x, y) - log_loss

    def slope(part: np.ndarray) -> np.ndarray:
        whole[free] = part
        return jacobian(form, whole, x, y)[:, free]

    options = {"loss": "linear"} if delta is None else {"loss": "huber", "f_scale": delta}
    done = least_squares(
        residual, np.clip(whole[free], low + 1e-9, high - 1e-9), jac=slope, bounds=(low, high), x_scale="jac",
        xtol=TOLERANCE, ftol=TOLERANCE, gtol=TOLERANCE, max_nfev=500, **options,
    )  # fmt: skip
    whole[free] = done.x
    return whole.copy(), float(done.cost)
