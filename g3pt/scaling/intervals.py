"""Intervals of a fitted law from the parts of its errors: of a size, of a seed's trajectory, of a single point.

How: the points of one size share an error (a learning rate that is a little off), those of one size and seed another
(one trajectory, from which all sample counts branch), and each has its own. The three variances are estimated from the
residuals by the method of moments, which accounts for what the fit took from them; the law's covariance follows by
linearisation, and the degrees of freedom of Student's t by Satterthwaite's rule. Resampling seeds within sizes instead
covers too rarely: it cannot see a size's error, and k seeds understate a variance by (k - 1) / k.

All points are evaluated on the same test objects. What other objects would change alike in all of them is no residual.
Its covariance is known where the losses of single objects are; the other parts are then estimated beside it.

Source: Searle, Casella & McCulloch 1992, Variance Components, chapter 5 (moments); Satterthwaite 1946.
Ours: which parts a study has; a part whose variance is estimated below 0 is left out. Coverage:
benchmarks/law_coverage.py.
Shapes: n points, p parameters, g groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from g3pt.scaling.fit import Fit, jacobian

PARTS = ("size", "seed", "point")


@dataclass(frozen=True, kw_only=True)
class Errors:
    """The error parts of a fit's points, as variances of the log loss, and what intervals need of them."""

    fit: Fit
    variances: dict[str, float]  # of PARTS, as far as the points can tell them apart
    groups: dict[str, np.ndarray]  # part -> (n, g) membership, 0 or 1
    influence_pn: np.ndarray  # change of theta by an error of each point
    weights_kl: np.ndarray  # variances = weights @ quadratic forms of the residuals
    forms_knn: np.ndarray  # the quadratic forms
    evaluation_nn: np.ndarray  # known covariance by the choice of the test objects; 0: only those objects count

    @property
    def determined(self) -> bool:
        """Whether there are more points than parameters: else nothing is left to tell errors by."""
        return len(self.fit.residual_n) > len(self.fit.theta_p)

    @property
    def covariance_nn(self) -> np.ndarray:
        """Covariance of the points' errors."""
        return self.estimated_nn + self.evaluation_nn

    @property
    def left_nn(self) -> np.ndarray:
        """What the fit leaves of the points' errors: residuals = left @ errors."""
        return np.eye(len(self.fit.residual_n)) - self.fit.jacobian_np @ self.influence_pn

    @property
    def estimated_nn(self) -> np.ndarray:
        """The part of it that was estimated from the residuals."""
        parts = [self.variances[name] * member @ member.T for name, member in self.groups.items()]
        return np.sum(parts, axis=0)

    @property
    def covariance_pp(self) -> np.ndarray:
        """Covariance of theta."""
        return self.influence_pn @ self.covariance_nn @ self.influence_pn.T

    def interval(
        self, slope_p: np.ndarray, value: float, level: float = 0.95, *, new_run: bool = False
    ) -> tuple[float, float]:
        """Interval of a quantity with this value and derivative by theta; with `new_run` of what a new run of a new
        size and seed would measure.
        """
        from scipy.stats import t

        if not self.determined:
            return -np.inf, np.inf
        influence_n = slope_p @ self.influence_pn
        extra = sum(self.variances.values()) if new_run else 0.0
        variance = float(influence_n @ self.covariance_nn @ influence_n) + extra
        half = float(t.ppf(0.5 + level / 2, self.degrees(influence_n, extra > 0))) * variance**0.5
        return value - half, value + half

    def degrees(self, influence_n: np.ndarray, new_run: bool = False) -> float:
        """Degrees of freedom of the estimated variance of influence_n @ errors, by Satterthwaite's rule; at least 1."""
        shares_k = np.array([float(np.square(influence_n @ member).sum()) + new_run for member in self.groups.values()])
        estimate_l = shares_k @ self.weights_kl  # the variance as a combination of the quadratic forms
        form_nn = np.tensordot(estimate_l, self.forms_knn, axes=1)
        covariance_nn = self.covariance_nn
        value = float(np.trace(form_nn @ self.estimated_nn) + influence_n @ self.evaluation_nn @ influence_n)
        spread = 2 * float(np.trace(form_nn @ covariance_nn @ form_nn @ covariance_nn))
        return max(1.0, 2 * value**2 / spread) if spread > 0 and value > 0 else 1.0

    def parameter(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """Interval of a parameter by its name without `log`; of amounts in logarithms, so both ends are positive."""
        names = self.fit.form.parameters
        is_log = f"log {name}" in names
        k = names.index(f"log {name}" if is_log else name)
        low, high = self.interval(np.eye(len(names))[k], float(self.fit.theta_p[k]), level)
        with np.errstate(over="ignore"):  # of an amount that is not determined
            return (float(np.exp(low)), float(np.exp(high))) if is_log else (low, high)

    def loss(
        self, params: float, samples: float = 1.0, level: float = 0.95, *, new_run: bool = False
    ) -> tuple[float, float]:
        """Interval of the loss at N and D."""
        slope_p = loss_slope(self.fit, params, samples)
        low, high = self.interval(slope_p, float(np.log(self.fit(params, samples))), level, new_run=new_run)
        return float(np.exp(low)), float(np.exp(high))


def loss_slope(fit: Fit, params: float, samples: float = 1.0) -> np.ndarray:
    """(p,) derivative of the logarithm of the predicted loss by theta."""
    return jacobian(fit.form, fit.theta_p, np.log([params]), np.log([samples]))[0]


def errors(
    fit: Fit, sizes: Sequence[object], seeds: Sequence[object], evaluation_nn: np.ndarray | None = None
) -> Errors:
    """The error parts of a least-squares fit whose points have these sizes and seeds. With `evaluation_nn`
    (`Points.evaluation_nn`), intervals are about other test objects, too; without, about those of the study.
    """
    residual_n, jacobian_np = fit.residual_n, fit.jacobian_np
    groups = _groups(sizes, seeds)
    influence_pn = np.linalg.pinv(jacobian_np)
    left_nn = np.eye(len(residual_n)) - jacobian_np @ influence_pn  # residuals = left @ errors
    known_nn = np.zeros_like(left_nn) if evaluation_nn is None else evaluation_nn
    found = _moments(residual_n, left_nn, groups, known_nn)
    while (found[0] < 0).any() and len(groups) > 1:  # a negative variance means that the part cannot be seen
        worst = list(groups)[int(np.argmin(found[0]))]
        groups = {name: member for name, member in groups.items() if name != worst}
        found = _moments(residual_n, left_nn, groups, known_nn)
    variances_k, weights_kl, forms_knn = found
    return Errors(
        fit=fit, variances=dict(zip(groups, np.maximum(variances_k, 0).tolist(), strict=True)), groups=groups,
        influence_pn=influence_pn, weights_kl=weights_kl, forms_knn=forms_knn,
        evaluation_nn=known_nn,
    )  # fmt: skip


def _groups(sizes: Sequence[object], seeds: Sequence[object]) -> dict[str, np.ndarray]:
    """Part -> membership, without parts whose groups are those of another."""
    point = np.eye(len(sizes))
    size = _members(sizes)
    trunk = _members(list(zip(sizes, seeds, strict=True)))
    found = {"size": size} if size.shape[1] < len(sizes) else {}
    if size.shape[1] < trunk.shape[1] < len(sizes):
        found["seed"] = trunk
    return found | {"point": point}


def _members(labels: Sequence[object]) -> np.ndarray:
    known = list(dict.fromkeys(labels))
    return np.array([[label == one for one in known] for label in labels], float)


def _moments(
    residual_n: np.ndarray, left_nn: np.ndarray, groups: dict[str, np.ndarray], known_nn: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Variances at which each part's quadratic form of the residuals has its expectation, beside errors of the known
    covariance; the weights and the forms.
    """
    forms_knn, expected_kl = [], []
    for member in groups.values():
        mean_nn = member @ np.diag(1 / member.sum(axis=0)) @ member.T  # the mean of a group, at each of its points
        forms_knn.append(left_nn.T @ mean_nn @ left_nn)
        expected_kl.append([float(np.trace(other.T @ forms_knn[-1] @ other)) for other in groups.values()])
    weights_kl = np.linalg.pinv(np.array(expected_kl))
    seen_k = np.array([residual_n @ form @ residual_n - float(np.sum(form * known_nn)) for form in forms_knn])
    return weights_kl @ seen_k, weights_kl, np.array(forms_knn)
