"""The loss as a function of parameters and training samples, L(N, D) = E + A N^-alpha + B D^-beta.

How: as `law.py` fits a power law, on the logarithm of the loss with a Huber loss of delta 1e-3, by L-BFGS from a grid of starts.

Source: Hoffmann et al. 2022 (arXiv 2203.15556), approach 3: equation 10, appendix D.2.
Ours: N and D are divided by their geometric means while fitting; the starts share out the loss above E instead of the paper's
grid of 4500.
Shapes: n points; N parameters, D samples, positive; losses positive, in nats per token.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from g3pt.scaling.law import fit_logarithms

FLOORS, SHARES, EXPONENTS = (0.1, 0.5, 0.9), (0.2, 0.8), (0.1, 0.3, 0.8)  # starts: of the least loss; of A; of both


@dataclass(frozen=True, kw_only=True)
class LossSurface:
    """L(N, D) = irreducible + params_coefficient * N ** -params_exponent + samples_coefficient * D ** -samples_exponent."""

    irreducible: float  # E
    params_coefficient: float  # A
    params_exponent: float  # alpha
    samples_coefficient: float  # B
    samples_exponent: float  # beta
    objective: float = 0.0  # mean Huber loss of the fit, over its delta

    def __call__(self, params: np.ndarray | float, samples: np.ndarray | float) -> np.ndarray:
        """Predicted loss; `params` and `samples` broadcast."""
        by_params = self.params_coefficient * np.asarray(params, float) ** -self.params_exponent
        return (
            self.irreducible
            + by_params
            + self.samples_coefficient * np.asarray(samples, float) ** -self.samples_exponent
        )


def fit_surface(params: Sequence[float], samples: Sequence[float], losses: Sequence[float]) -> LossSurface:
    """The surface fitted to runs of `params` parameters on `samples` samples with test losses `losses`.

    ValueError for fewer than five runs, for fewer than three sizes or three numbers of samples, which leave E and an exponent
    undetermined, and for values that are not positive and finite.
    """
    inputs_2n, loss = np.array([params, samples], float), np.asarray(losses, float)
    if inputs_2n.shape[1:] != loss.shape or len(loss) < 5:
        raise ValueError(
            f"the surface needs at least five runs, each with both inputs and a loss, got {len(loss)} losses"
        )
    if not (np.isfinite(inputs_2n).all() and (inputs_2n > 0).all() and np.isfinite(loss).all() and (loss > 0).all()):
        raise ValueError("parameters, samples and losses must be positive and finite")
    for name, values in zip(("sizes", "numbers of samples"), inputs_2n, strict=True):
        if len(np.unique(values)) < 3:
            raise ValueError(f"the surface needs at least three {name}, got {len(np.unique(values))}")
    centre_2 = np.exp(np.log(inputs_2n).mean(axis=1))
    theta, objective = fit_logarithms(np.log(inputs_2n / centre_2[:, None]), np.log(loss), _starts(loss))
    log_a, alpha, log_b, beta = theta[1:]
    return LossSurface(
        irreducible=float(np.exp(theta[0])),
        params_coefficient=float(np.exp(log_a) * centre_2[0] ** alpha),
        params_exponent=float(alpha),
        samples_coefficient=float(np.exp(log_b) * centre_2[1] ** beta),
        samples_exponent=float(beta),
        objective=objective,
    )


def _starts(loss: np.ndarray) -> list[list[float]]:
    """E as a share of the least loss, A and B as shares of the median loss above it, and exponents."""
    found = []
    for floor, share, alpha, beta in itertools.product(FLOORS, SHARES, EXPONENTS, EXPONENTS):
        above = np.median(loss) - floor * loss.min()
        found.append([np.log(floor * loss.min()), np.log(share * above), alpha, np.log((1 - share) * above), beta])
    return found
