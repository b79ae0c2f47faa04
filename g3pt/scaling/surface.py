"""The loss as a function of parameters and training samples, L(N, D) = E + A N^-alpha + B D^-beta.

Source: Hoffmann et al. 2022 (arXiv 2203.15556), approach 3: equation 10, and Huber's loss of appendix D.2. How it is
fitted: fit.py. Other forms of the surface: forms.py. Intervals: intervals.py.
Shapes: n points; N parameters, D samples, positive; losses positive, in nats per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from g3pt.scaling.fit import HUBER_DELTA, fit_form
from g3pt.scaling.forms import ADDITIVE


@dataclass(frozen=True, kw_only=True)
class LossSurface:
    """L(N, D) = irreducible + params_coefficient * N ** -params_exponent + samples_coefficient * D **
    -samples_exponent.
    """

    irreducible: float  # E
    params_coefficient: float  # A
    params_exponent: float  # alpha
    samples_coefficient: float  # B
    samples_exponent: float  # beta
    objective: float = 0.0  # mean Huber loss of the fit, over its delta

    def __call__(self, params: np.ndarray | float, samples: np.ndarray | float) -> np.ndarray:
        """Predicted loss; `params` and `samples` broadcast."""
        by_params = self.params_coefficient * np.asarray(params, float) ** -self.params_exponent
        by_samples = self.samples_coefficient * np.asarray(samples, float) ** -self.samples_exponent
        return self.irreducible + by_params + by_samples


def fit_surface(params: Sequence[float], samples: Sequence[float], losses: Sequence[float]) -> LossSurface:
    """The surface fitted to runs of `params` parameters on `samples` samples with test losses `losses`.

    ValueError for fewer than five runs, for fewer than three sizes or three numbers of samples, which leave E and an
    exponent undetermined, and for values that are not positive and finite.
    """
    law = fit_form(ADDITIVE, params, samples, losses, delta=HUBER_DELTA)
    return LossSurface(
        irreducible=law["E"], params_coefficient=law["A"], params_exponent=law["alpha"], samples_coefficient=law["B"],
        samples_exponent=law["beta"], objective=law.objective / len(losses) / HUBER_DELTA,
    )  # fmt: skip
