"""Compares samples with held-out objects as two sets, and training objects in the samples' place: the result of a
perfect sampler.

How: `g3pt.metrics.sets` on equal numbers of samples and held-out objects: the first samples with a mesh, prompted by
text alone, and held-out objects in random order. Computed in this process, at 0.2 ms per pair with 1024 points and 2.5
N^2 pairs for both comparisons.
Ours: the sizes, and that prompts are not the reference objects' own captions: half are captions of the training split.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from g3pt.metrics import sets
from g3pt.metrics.sets import Tables
from pipelines.cli.progress import Progress

NUM_POINTS = 1024


def compare_sets(
    samples: Sequence[np.ndarray], held: Sequence[np.ndarray], train: Sequence[np.ndarray], wanted: int, seed: int
) -> dict[str, Any]:
    """COV, MMD and 1-NNA of at most `wanted` samples and as many held-out objects, and of training objects instead
    (train_*).

    Clouds are positions (P, 3). With too few objects the result is only the number of compared objects, 0.
    """
    size = min(wanted, len(samples), len(held))
    num_points = min([NUM_POINTS] + [len(cloud) for part in (samples, held, train) for cloud in part])
    if size < 2:
        return {"num_compared": 0}
    random = np.random.default_rng(seed)
    references = sets.stacked([held[k] for k in random.permutation(len(held))[:size]], num_points)
    found: dict[str, Any] = {"num_compared": size, "num_compared_points": num_points}
    with Progress("evaluate", 5 * size, "rows", run="compare sets") as progress:
        reference_NN = _within(references, progress)
        found |= sets.set_figures(_tables(sets.stacked(samples[:size], num_points), references, reference_NN, progress))
        if len(train) >= size:
            drawn = sets.stacked([train[k] for k in random.permutation(len(train))[:size]], num_points)
            found |= sets.set_figures(_tables(drawn, references, reference_NN, progress), "train_")
    return found


def _tables(clouds_N3P: np.ndarray, references_N3P: np.ndarray, reference_NN: np.ndarray, progress: Progress) -> Tables:
    across = []
    within_NN = _within(clouds_N3P, progress)
    for row in range(len(clouds_N3P)):
        across.append(sets.squared_chamfer_pairs(clouds_N3P[row : row + 1], references_N3P)[0])
        progress.show(progress.done + 1)
    return Tables(within_NN, reference_NN, np.stack(across))


def _within(clouds_N3P: np.ndarray, progress: Progress) -> np.ndarray:
    found = sets.squared_chamfer_within(clouds_N3P)
    progress.show(progress.done + len(clouds_N3P))
    return found


def protocol(found: dict[str, Any], split: str) -> dict[str, str]:
    """The protocol of these numbers, by name."""
    if not found["num_compared"]:
        return {"sets": "not compared: --num-compared, samples with a mesh or held-out objects are fewer than 2"}
    size = found["num_compared"]
    return {
        "sets": f"the first {size} samples of texts with a mesh, and {size} random objects of split {split!r}; "
        f"prompts are not these objects' captions; train_*: {size} random training objects in the samples' place, the "
        f"result of a perfect sampler",
        "sets_points": f"{found['num_compared_points']} points per surface, in the dataset's box, neither moved nor "
        "scaled",
        **{f"sets_{name}": words for name, words in sets.PROTOCOL.items()},
    }
