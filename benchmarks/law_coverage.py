"""How often intervals of 95 % of a scaling law contain the truth: simulated studies of a known law, no training.

Prints a table of the closed form (g3pt/scaling/intervals.py) and of the wild cluster bootstrap, by seeds per size and
by the error that a size has of its own (such as a learning rate that is off). 95 % is meant; a share of 200 trials has
a standard error of .015.

    python benchmarks/law_coverage.py [--trials 200] [--draws 100]
"""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.machine import about
from g3pt.scaling.fit import Fit, fit_form
from g3pt.scaling.forms import ADDITIVE
from g3pt.scaling.intervals import errors
from g3pt.scaling.points import Points

TRUE = {"E": 4.2, "alpha": 0.35, "beta": 0.45}
SIZES = np.array([5e3, 12e3, 21e3, 40e3, 89e3, 157e3, 520e3, 1.2e6])
SEEN = np.array([8, 16, 32, 64, 128]) * 1000.0
SEED_SD, POINT_SD = 0.003, 0.0015
LARGER = (4.1e6, 128e3)


def law(params: np.ndarray | float, samples: np.ndarray | float) -> np.ndarray:
    """The true loss."""
    return 4.2 + 0.5 * (np.asarray(params) / 520e3) ** -0.35 + 0.85 * (np.asarray(samples) / 47e3) ** -0.45


def study(seeds: int, size_sd: float, rng: np.random.Generator) -> Points:
    """A simulated study: every size, number of samples and seed, with its errors."""
    k, d, s = (part.ravel() for part in np.meshgrid(np.arange(len(SIZES)), SEEN, np.arange(seeds), indexing="ij"))
    k, s = k.astype(int), s.astype(int)
    shift = rng.normal(0, size_sd, len(SIZES))[k] + rng.normal(0, SEED_SD, (len(SIZES), seeds))[k, s]
    loss = law(SIZES[k], d) * np.exp(shift + rng.normal(0, POINT_SD, len(k)))
    return Points(
        params=SIZES[k], samples=d, loss=loss, size=tuple(map(str, k)), seed=tuple(map(str, s)), flops=6 * SIZES[k] * d
    )


def wild_bootstrap(
    fit: Fit, params: np.ndarray, samples: np.ndarray, sizes: Sequence[object], count: int = 200, seed: int = 0
) -> list[Fit]:
    """Fits to points whose residuals change sign together, size by size, made larger for the fitted parameters."""
    rng, known = np.random.default_rng(seed), list(dict.fromkeys(sizes))
    place_n = np.array([known.index(size) for size in sizes])
    larger = (len(fit.residual_n) / max(1, len(fit.residual_n) - len(fit.theta_p))) ** 0.5
    found = []
    for _ in range(count):
        signs_n = rng.choice([-1.0, 1.0], len(known))[place_n]
        losses = fit(params, samples) * np.exp(larger * signs_n * fit.residual_n)
        found.append(fit_form(fit.form, params, samples, losses, delta=fit.delta, start=fit))
    return found


def coverage(seeds: int, size_sd: float, trials: int, draws: int) -> dict[str, float]:
    """Share of trials whose interval contains the truth, by method and quantity."""
    inside: Counter[str] = Counter()
    widths = []
    for trial in range(trials):
        rng = np.random.default_rng([seeds, int(1e6 * size_sd), trial])
        points = study(seeds, size_sd, rng)
        fit = fit_form(ADDITIVE, points.params, points.samples, points.loss)
        parts = errors(fit, points.size, points.seed)
        drawn = wild_bootstrap(fit, points.params, points.samples, points.size, draws, seed=trial) if draws else []
        for name, true in TRUE.items():
            low, high = parts.parameter(name)
            inside[f"closed form, {name}"] += low <= true <= high
            if name == "alpha":
                widths.append(high - low)
            if drawn:
                low, high = np.percentile([one[name] for one in drawn], [2.5, 97.5])
                inside[f"wild bootstrap, {name}"] += bool(low <= true <= high)
        spread = (size_sd**2 + SEED_SD**2 + POINT_SD**2) ** 0.5
        low, high = parts.loss(*LARGER, new_run=True)
        inside["closed form, a new run at 4.1M"] += bool(low <= law(*LARGER) * np.exp(rng.normal(0, spread)) <= high)
    return {name: count / trials for name, count in inside.items()} | {
        "median width of alpha": float(np.median(widths))
    }


def main() -> None:
    """Print the table and write law_coverage.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--draws", type=int, default=100, help="of the wild bootstrap per trial; 0: none")
    parser.add_argument("--output", type=Path, default=Path("law_coverage.json"))
    flags = parser.parse_args()
    found = {
        f"{seeds} seeds, size error {100 * sd:g} %": coverage(seeds, sd, flags.trials, flags.draws)
        for seeds in (1, 2, 3)
        for sd in (0.0, 0.004)
    }
    names = list(next(iter(found.values())))
    print("| | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for row, values in found.items():
        print(f"| {row} | " + " | ".join(f"{values[name]:.3f}" for name in names) + " |")
    record = {"machine": about("numpy", "scipy"), "trials": flags.trials, "coverage": found}
    flags.output.write_text(json.dumps(record, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
