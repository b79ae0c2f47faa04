"""How similar two sets of shapes are: coverage, minimum matching distance, 1-nearest-neighbour accuracy.

How: a compiled kernel computes squared Chamfer distances of all pairs. The three tables (within either set, and across)
give each object's verdict; means of verdicts are the metrics, and the verdicts give their intervals.

Source: COV and MMD: Achlioptas et al. (arXiv 1707.02392), section 4; 1-NNA and the squared Chamfer distance, a sum of
two means: PointFlow (Yang et al., arXiv 1906.12320), section 5.1.
Ours: clouds stay in the box of `metrics.pairwise.PROTOCOL`, neither centred nor scaled to unit variance; fewer points
than PointFlow's 2048 if the caller gives fewer; a tie between an object's nearest of its own set and of the other goes
to the other, so that copies are noticed (two equal sets have 1-NNA 0). Intervals keep the neighbours fixed: another
draw of either set varies more.
Legend: N samples and as many reference objects, P points of a cloud.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from g3pt.metrics.pairwise import bootstrap_interval, wilson_interval

PROTOCOL: dict[str, str] = {
    "chamfer": "squared Chamfer distance as in PointFlow: mean_a min_b |a-b|^2 + mean_b min_a |a-b|^2, a sum of both "
    "directions",
    "cov": "share of reference objects that are the nearest one of at least one sample",
    "mmd": "mean over reference objects of the distance to their nearest sample",
    "one_nna": "share of all objects of both sets whose nearest other object is of their own set; .5 if the sets "
    "can't be told apart, 1 if they lie apart, near 0 if samples copy references",
    "intervals": "95 %, neighbours held fixed: Wilson for shares, percentile bootstrap for mmd",
}


@dataclass(frozen=True)
class Tables:
    """Distances within the samples and within the references, both (N, N) with an infinite diagonal, and
    from samples to references.
    """

    within_NN: np.ndarray
    reference_NN: np.ndarray
    across_NN: np.ndarray


def stacked(clouds_N: Sequence[np.ndarray], num_points: int) -> np.ndarray:
    """The first `num_points` positions of each cloud as (N, 3, P) float32.

    Points of a cloud must be in random order.
    """
    if not len(clouds_N):
        raise ValueError("expected clouds of points, got none")
    for k, cloud in enumerate(clouds_N):
        if len(cloud) < num_points:
            raise ValueError(f"expected clouds of at least {num_points} points, got {len(cloud)} in number {k}")
    found = np.stack([np.asarray(cloud)[:num_points, :3].T for cloud in clouds_N]).astype(np.float32)
    if not np.isfinite(found).all():
        raise ValueError("expected finite points")
    return np.ascontiguousarray(found)


def squared_chamfer_pairs(clouds_N3P: np.ndarray, others_M3P: np.ndarray) -> np.ndarray:
    """Squared Chamfer distance of each cloud of one set to each of the other, float64 (N, M);
    clouds as `stacked` returns them.
    """
    from g3pt.metrics._cloud_kernels import squared_chamfer_pairs as compiled

    return compiled(clouds_N3P, others_M3P)


def squared_chamfer_within(clouds_N3P: np.ndarray) -> np.ndarray:
    """The same within one set, (N, N), each pair computed once.

    The diagonal is infinite: no object is its own neighbour.
    """
    num = len(clouds_N3P)
    found = np.full((num, num), np.inf)
    for row in range(num - 1):
        found[row, row + 1 :] = found[row + 1 :, row] = squared_chamfer_pairs(
            clouds_N3P[row : row + 1], clouds_N3P[row + 1 :]
        )[0]
    return found


def covered(tables: Tables) -> np.ndarray:
    """Whether each reference object is the nearest one of any sample, bool (N,)."""
    found = np.zeros(tables.across_NN.shape[1], dtype=bool)
    found[tables.across_NN.argmin(axis=1)] = True
    return found


def matched(tables: Tables) -> np.ndarray:
    """Distance of each reference object to its nearest sample, float64 (N,)."""
    return tables.across_NN.min(axis=0)


def told_apart(tables: Tables) -> np.ndarray:
    """Whether the nearest other object of each object, samples first, is in its own set, bool (2N,)."""
    samples = tables.within_NN.min(axis=1) < tables.across_NN.min(axis=1)
    references = tables.reference_NN.min(axis=1) < tables.across_NN.min(axis=0)
    return np.concatenate([samples, references])


def set_figures(tables: Tables, prefix: str = "") -> dict[str, float | list[float]]:
    """COV, MMD and 1-NNA with their intervals.

    ValueError unless both sets have the same number of objects, at least 2.
    """
    num = len(tables.within_NN)
    if num < 2 or any(table.shape != (num, num) for table in (tables.reference_NN, tables.across_NN)):
        raise ValueError(f"expected two sets of equally many objects, at least 2, got {tables.across_NN.shape}")
    found: dict[str, float | list[float]] = {}
    for name, verdicts in (("cov", covered(tables)), ("one_nna", told_apart(tables))):
        found[f"{prefix}{name}"] = float(verdicts.mean())
        found[f"{prefix}{name}_interval_95"] = list(wilson_interval(int(verdicts.sum()), len(verdicts)))
    distances = matched(tables)
    found[f"{prefix}mmd"] = float(distances.mean())
    found[f"{prefix}mmd_interval_95"] = list(bootstrap_interval(distances))
    return found
