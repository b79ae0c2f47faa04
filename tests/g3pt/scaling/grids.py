"""Points of a known law on the grid of a study."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from g3pt.scaling.points import Objects, Points

SIZES = np.array([5e3, 12e3, 21e3, 40e3, 89e3, 157e3, 520e3, 1.2e6])
SEEN = np.array([8, 16, 32, 64, 128]) * 1000.0
EXPONENTS = {"E": 4.2, "alpha": 0.35, "beta": 0.45}
A, B = 0.5 * 520e3**0.35, 0.85 * 47e3**0.45


Law = Callable[[np.ndarray, np.ndarray], np.ndarray]


def additive(params: np.ndarray | float, samples: np.ndarray | float) -> np.ndarray:
    return 4.2 + A * np.asarray(params) ** -0.35 + B * np.asarray(samples) ** -0.45


def grid(seeds: int = 1, law: Law = additive, sizes: np.ndarray = SIZES) -> Points:
    """Every size with every number of samples and seed, without noise; operations 6 N per sample."""
    n, d, s = (part.ravel() for part in np.meshgrid(sizes, SEEN, np.arange(seeds), indexing="ij"))
    return Points(
        params=n,
        samples=d,
        loss=law(n, d),
        size=tuple(map(str, n)),
        seed=tuple(map(str, s)),
        flops=6 * n * d,
        source="grid",
    )


def noisy(
    points: Points, rng: np.random.Generator, size: float = 0.0, seed: float = 0.003, point: float = 0.0015
) -> Points:
    """The points with errors of sizes, of trajectories and of single points, as standard deviations of log L."""
    sizes = dict.fromkeys(points.size)
    for name in sizes:
        sizes[name] = rng.normal(0, size)
    trunks = {key: rng.normal(0, seed) for key in dict.fromkeys(zip(points.size, points.seed, strict=True))}
    shift = np.array([sizes[n] + trunks[n, s] for n, s in zip(points.size, points.seed, strict=True)])
    return with_loss(points, points.loss * np.exp(shift + rng.normal(0, point, len(points))))


def with_loss(points: Points, loss: np.ndarray) -> Points:
    return Points(
        params=points.params, samples=points.samples, loss=loss, size=points.size, seed=points.seed, flops=points.flops
    )


def evaluated(points: Points, rng: np.random.Generator, name: str = "", count: int = 200) -> Points:
    """The points with losses of `count` drawn test objects, whose mean over all objects is the points' loss. Objects
    differ by their loss and by how it changes with N: `name` says which objects they are.
    """
    away = np.log(points.params / 1e5)
    level, slope = 0.3, 0.06
    logs = rng.normal(0, level, count) + np.outer(away, rng.normal(0, slope, count))
    loss_no = points.loss[:, None] * np.exp(logs - (level**2 + (slope * away[:, None]) ** 2) / 2)
    objects = Objects(ids=tuple(f"{name}{k}" for k in range(count)), loss_no=loss_no)
    return Points(**{**vars(points), "loss": loss_no.mean(axis=1), "objects": objects})
