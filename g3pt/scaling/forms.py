"""The forms of a loss law L(N, D) that a study's points are fitted with: what each predicts, and where its fit starts.

How: a form's parameters are a vector theta, amounts (E, A, B, ...) as logarithms, exponents as they are. A fit starts
by variable projection: at each node of a grid of the exponents the amounts follow from linear least squares that are
not negative. N and D are divided by their geometric means while fitting, so that an amount and its exponent are hardly
correlated.

Source: Hoffmann et al. 2022 (arXiv 2203.15556), equation 10: additive. Kaplan et al. 2020 (arXiv 2001.08361), equation
1.5, to which a floor E is added: joint. Caballero et al. 2022 (arXiv 2210.14891), equation 1: one smooth break, here in
D. Golub & Pereyra 1973: variable projection.
Ours: saturating, in which the loss approaches a ceiling H (for codes: their marginal entropy) where N or D is small;
the sharpness BREAK of the break, which few points determine.
Shapes: n points, x = log N and y = log D less their means, both (n,).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

EXPONENTS = tuple(np.geomspace(0.06, 1.5, 7))
FLOORS = (0.02, 0.4, 0.7, 0.9)  # of the smallest loss, where E is no linear amount
CEILINGS = (1.02, 1.15)  # of the largest loss
BREAK = 0.5  # sharpness of the break in log D: 0 is a corner
LOG_LEAST = -25.0  # the logarithm of an amount that is as good as 0

Theta = np.ndarray


@dataclass(frozen=True)
class Node:
    """A node of the grid of starts: the amounts c of columns_nk @ c = target_n, in least squares weighted by `slope_n`
    (the derivative of log L by the target), complete `theta`: theta[amount] = power * log c.
    """

    columns_nk: np.ndarray
    target_n: np.ndarray
    slope_n: np.ndarray
    theta: list[float]
    power: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Form:
    """A form: `predict(theta, x, y)` is log L; complex theta give complex values, so that derivatives are exact."""

    name: str
    formula: str
    parameters: tuple[str, ...]  # of theta; "log E" is a logarithm
    predict: Callable[[Theta, np.ndarray, np.ndarray], np.ndarray]
    nodes: Callable[[np.ndarray, np.ndarray, np.ndarray], Iterator[Node]]  # of x, y and the losses
    amounts: tuple[int, ...]  # indices in theta of a node's amounts
    needs_samples: bool = True

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds of theta."""
        ranges = {"alpha": (1e-3, 4.0), "beta": (1e-3, 4.0), "change": (-1.0, 3.0), "log d": (-20.0, 20.0)}
        low, high = zip(*(ranges.get(name, (LOG_LEAST, 10.0)) for name in self.parameters), strict=True)
        return np.array(low), np.array(high)


# ------------------------------------------------------------------------------------------------------------- in N
# alone


def _power(theta: Theta, x: np.ndarray, _y: np.ndarray) -> np.ndarray:
    log_e, log_a, alpha = theta
    return np.log(np.exp(log_e) + np.exp(log_a - alpha * x))


def _power_nodes(x: np.ndarray, _y: np.ndarray, loss: np.ndarray) -> Iterator[Node]:
    for alpha in EXPONENTS:
        yield Node(np.stack([np.ones_like(x), np.exp(-alpha * x)], axis=1), loss, 1 / loss, [0, 0, alpha])


def _pure(theta: Theta, x: np.ndarray, _y: np.ndarray) -> np.ndarray:
    return theta[0] - theta[1] * x


def _pure_nodes(x: np.ndarray, _y: np.ndarray, loss: np.ndarray) -> Iterator[Node]:
    for alpha in EXPONENTS:
        yield Node(np.exp(-alpha * x)[:, None], loss, 1 / loss, [0, alpha])


POWER = Form(
    name="power", formula="E + A N^-alpha", parameters=("log E", "log A", "alpha"), predict=_power,
    nodes=_power_nodes, amounts=(0, 1), needs_samples=False,
)  # fmt: skip
PURE = Form(
    name="pure", formula="A N^-alpha", parameters=("log A", "alpha"), predict=_pure, nodes=_pure_nodes, amounts=(0,),
    needs_samples=False,
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ in N and
# D


def _additive(theta: Theta, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    log_e, log_a, alpha, log_b, beta = theta
    return np.log(np.exp(log_e) + np.exp(log_a - alpha * x) + np.exp(log_b - beta * y))


def _additive_nodes(x: np.ndarray, y: np.ndarray, loss: np.ndarray) -> Iterator[Node]:
    for alpha, beta in itertools.product(EXPONENTS, EXPONENTS):
        columns = np.stack([np.ones_like(x), np.exp(-alpha * x), np.exp(-beta * y)], axis=1)
        yield Node(columns, loss, 1 / loss, [0, 0, alpha, 0, beta])


def _joint(theta: Theta, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    log_e, log_a, alpha, log_b, beta = theta
    by_params, by_samples = (log_a - alpha * x) / beta, log_b / beta - y
    larger = np.maximum(by_params.real, by_samples.real)  # divided by a small beta, their exponentials overflow
    both = larger + np.log(np.exp(by_params - larger) + np.exp(by_samples - larger))
    return np.log(np.exp(log_e) + np.exp(beta * both))


def _joint_nodes(x: np.ndarray, y: np.ndarray, loss: np.ndarray) -> Iterator[Node]:
    for alpha, beta, floor in itertools.product(EXPONENTS, EXPONENTS, FLOORS):
        lowest = floor * loss.min()
        target = (loss - lowest) ** (1 / beta)
        columns = np.stack([np.exp(-alpha / beta * x), np.exp(-y)], axis=1)
        slope = beta * (loss - lowest) / (target * loss)
        yield Node(columns, target, slope, [np.log(lowest), 0, alpha, 0, beta], power=beta)


def _saturating(theta: Theta, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    log_e, log_a, alpha, log_b, beta, log_span = theta
    reducible = np.exp(log_a - alpha * x) + np.exp(log_b - beta * y)
    return np.log(np.exp(log_e) + 1 / (1 / reducible + np.exp(-log_span)))


def _saturating_nodes(
    x: np.ndarray, y: np.ndarray, loss: np.ndarray, ceilings: Sequence[float] = CEILINGS
) -> Iterator[Node]:
    for alpha, beta, floor, ceiling in itertools.product(EXPONENTS, EXPONENTS, FLOORS, ceilings):
        lowest, span = floor * loss.min(), ceiling * loss.max() - floor * loss.min()
        above = loss - lowest
        reducible = 1 / (1 / above - 1 / span)
        columns = np.stack([np.exp(-alpha * x), np.exp(-beta * y)], axis=1)
        slope = (above / reducible) ** 2 / loss
        yield Node(columns, reducible, slope, [np.log(lowest), 0, alpha, 0, beta, np.log(span)])


def _broken(theta: Theta, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    log_e, log_a, alpha, log_b, beta, change, log_d = theta
    bend = BREAK * np.log(1 + np.exp((y - log_d) / BREAK))
    return np.log(np.exp(log_e) + np.exp(log_a - alpha * x) + np.exp(log_b - beta * y - change * bend))


def _broken_nodes(x: np.ndarray, y: np.ndarray, loss: np.ndarray) -> Iterator[Node]:
    for alpha, beta, change, share in itertools.product(EXPONENTS[1::2], EXPONENTS[1::2], (0.1, 0.4), (0.3, 0.7)):
        log_d = float(y.min() + share * np.ptp(y))
        bend = BREAK * np.log1p(np.exp((y - log_d) / BREAK))
        columns = np.stack([np.ones_like(x), np.exp(-alpha * x), np.exp(-beta * y - change * bend)], axis=1)
        yield Node(columns, loss, 1 / loss, [0, 0, alpha, 0, beta, change, log_d])


def saturating_at(ceiling: float) -> Form:
    """The saturating form with H known, such as the codes' marginal entropy in nats per token."""

    def predict(theta: Theta, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return _saturating(np.append(theta, np.log(ceiling - np.exp(theta[0]))), x, y)

    def nodes(x: np.ndarray, y: np.ndarray, loss: np.ndarray) -> Iterator[Node]:
        if loss.max() >= ceiling:
            raise ValueError(f"the ceiling must be above every loss: {ceiling} is not above {loss.max()}")
        for node in _saturating_nodes(x, y, loss, [ceiling / loss.max()]):
            yield dataclasses.replace(node, theta=node.theta[:-1])

    formula = f"E + 1 / (1 / (A N^-alpha + B D^-beta) + 1 / ({ceiling:g} - E))"
    return Form(name="saturating", formula=formula, parameters=BOTH, predict=predict, nodes=nodes, amounts=(1, 3))


BOTH = ("log E", "log A", "alpha", "log B", "beta")
ADDITIVE = Form(
    name="additive", formula="E + A N^-alpha + B D^-beta", parameters=BOTH, predict=_additive, nodes=_additive_nodes,
    amounts=(0, 1, 3),
)  # fmt: skip
JOINT = Form(
    name="joint", formula="E + [(A N^-alpha)^(1/beta) + (B D^-beta)^(1/beta)]^beta", parameters=BOTH, predict=_joint,
    nodes=_joint_nodes, amounts=(1, 3),
)  # fmt: skip
SATURATING = Form(
    name="saturating", formula="E + 1 / (1 / (A N^-alpha + B D^-beta) + 1 / (H - E))",
    parameters=(*BOTH, "log H-E"), predict=_saturating, nodes=_saturating_nodes, amounts=(1, 3),
)  # fmt: skip
BROKEN = Form(
    name="broken", formula=f"E + A N^-alpha + B D^-beta [1 + (D/d)^(1/{BREAK:g})]^(-{BREAK:g} change)",
    parameters=(*BOTH, "change", "log d"), predict=_broken, nodes=_broken_nodes, amounts=(0, 1, 3),
)  # fmt: skip
SURFACES = (ADDITIVE, JOINT, SATURATING, BROKEN)
FORMS = {form.name: form for form in (POWER, PURE, *SURFACES)}
