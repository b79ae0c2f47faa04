"""Finds evaluated objects with a near-copy in the training split; metrics are also given without them.

How: an object is a near-duplicate if the Chamfer distance to its nearest training object is below THRESHOLD. Two
samples of one surface have a distance by sampling alone (0.012 to 0.027 at 4096 points). This distance, between the
object's own two stored samples, is subtracted first; otherwise no copy would count. Clouds are cut to NUM_POINTS. A
training split of more than MAX_TRAINING objects is not searched, and the protocol says so.

Ours: all of it.
"""

from typing import Any

import numpy as np

from g3pt.data import reading
from g3pt.data.datasets import DatasetInfo
from g3pt.metrics import pairwise
from pipelines.cli.progress import Progress

THRESHOLD = 0.01
NUM_POINTS, NUM_QUERIES = 4096, 1024
MAX_TRAINING = 20_000
RULE = (
    f"near-duplicate: the Chamfer distance to the nearest training object, minus that between the object's own two "
    f"samples, is below {THRESHOLD:g}; for {NUM_QUERIES} points per surface the nearest among {NUM_POINTS} is "
    "searched; "
    "all training objects are ranked by 64 points per surface, and the first 4 are compared"
)


def mark_near_duplicates(objects: list[dict[str, Any]], arrays: dict[str, Any], info: DatasetInfo, split: str) -> str:
    """Write `nearest_train`, `nearest_train_chamfer` (the excess) and `near_duplicate` into each object's scores;
    return the rule, or why none was applied.
    """
    if split == "train":
        return "not searched: the training split itself is evaluated"
    num_training = info.splits.get("train", 0)
    if not 0 < num_training <= MAX_TRAINING:
        return f"not searched: {num_training} training objects, and at most {MAX_TRAINING} are searched"
    train = [
        (row["id"], positions(row["eval_surface"])) for row in reading.read_rows(info, ["id", "eval_surface"], "train")
    ]
    library = [cloud for _, cloud in train]
    clouds = [positions(cloud) for cloud in arrays["eval_surface"]]
    nearest: list[int] = []
    distances: list[float] = []
    with Progress("evaluate", len(clouds), "objects", run="nearest training objects") as progress:
        for start in range(0, len(clouds), 16):
            index, distance = pairwise.nearest_objects(
                clouds[start : start + 16], library, num_queries=NUM_QUERIES, coarse=64, keep=4
            )
            nearest, distances = nearest + index.tolist(), distances + distance.tolist()
            progress.show(len(nearest))
    own = [
        pairwise.nearest_objects([cloud], [positions(again)], num_queries=NUM_QUERIES)[1][0]
        for cloud, again in zip(clouds, arrays["surface"], strict=True)
    ]
    for scores, k, distance, sampling in zip(objects, nearest, distances, own, strict=True):
        excess = max(0.0, distance - float(sampling))
        scores |= {"nearest_train": train[k][0], "nearest_train_chamfer": excess, "near_duplicate": excess < THRESHOLD}
    return RULE


def positions(cloud_P6: np.ndarray) -> np.ndarray:
    """The positions of the first NUM_POINTS stored points."""
    return cloud_P6[:NUM_POINTS, :3].astype(np.float32)
