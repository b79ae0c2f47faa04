"""Distances between two shapes, and confidence intervals, each in one definition used everywhere.

Sets of shapes: sets.py.

How: nearest neighbours by scipy's exact k-d tree; point sets are surface samples in the box [-0.95, 0.95]^3.
Ours: all definitions (the paper's sampling counts and thresholds are unknown): Chamfer is the *mean* of the two
directed mean unsquared distances, not their sum; figures of other papers use other definitions and must not be
compared.
Legend: A, C points of two clouds (..._A3: points, ..._A6: points and unit normals), N objects.
"""

from collections.abc import Callable, Sequence

import numpy as np

F_THRESHOLDS: tuple[float, ...] = (0.005, 0.01, 0.02)

PROTOCOL: dict[str, str] = {
    "box": "the final solid is centred by its bounding box and scaled uniformly into [-0.95, 0.95]^3",
    "iou": "|A and B| / |A or B| over stored query points; both empty counts as 1; mean over objects",
    "chamfer": "Chamfer-L1: (mean_a min_b |a-b| + mean_b min_a |a-b|) / 2: mean of both directions, distances "
    "unsquared",
    "chamfer_squared": "Chamfer-L2: the same with squared distances: mean of both directions",
    "f_score": "harmonic mean of precision and recall, distance strictly below the threshold in box units",
    "hausdorff_95": "the larger of the two directed 95th percentiles of distances to the nearest point",
    "normal_consistency": "mean |n_a . n_nearest(a)|, mean of both directions, orientation ignored",
}


def volume_iou(predicted: np.ndarray, true: np.ndarray) -> float:
    """Intersection over union of two bool arrays of one shape; two empty sets agree (1)."""
    predicted, true = np.asarray(predicted), np.asarray(true)
    if predicted.shape != true.shape:
        raise ValueError(f"occupancies differ in shape: {predicted.shape} and {true.shape}")
    union = np.count_nonzero(predicted | true)
    return np.count_nonzero(predicted & true) / union if union else 1.0


def _checked(points: np.ndarray) -> np.ndarray:
    array = np.asarray(points, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 3 or not len(array) or not np.isfinite(array).all():
        raise ValueError(f"expected finite points of shape (n, 3) with n > 0, got {array.shape}")
    return array


def nearest(points_A3: np.ndarray, points_C3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each point of A the distance to the nearest point of C and its index."""
    from scipy.spatial import cKDTree

    return cKDTree(_checked(points_C3)).query(_checked(points_A3))


def chamfer(points_A3: np.ndarray, points_C3: np.ndarray) -> float:
    """Symmetric Chamfer distance: the mean of both directed mean unsquared distances."""
    return float((nearest(points_A3, points_C3)[0].mean() + nearest(points_C3, points_A3)[0].mean()) / 2)


def chamfer_squared(points_A3: np.ndarray, points_C3: np.ndarray) -> float:
    """Symmetric Chamfer distance of squared distances: the mean of both directed means."""
    return float(((nearest(points_A3, points_C3)[0] ** 2).mean() + (nearest(points_C3, points_A3)[0] ** 2).mean()) / 2)


def f_score(points_A3: np.ndarray, points_C3: np.ndarray, threshold: float) -> float:
    """Harmonic mean of the shares of A near C and of C near A, near = closer than the threshold."""
    if not threshold > 0:
        raise ValueError(f"threshold must be positive, got {threshold}")
    return _harmonic(nearest(points_A3, points_C3)[0], nearest(points_C3, points_A3)[0], threshold)


def _harmonic(distance_A: np.ndarray, distance_C: np.ndarray, threshold: float) -> float:
    precision, recall = (distance_A < threshold).mean(), (distance_C < threshold).mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def hausdorff_95(points_A3: np.ndarray, points_C3: np.ndarray) -> float:
    """The larger of the two directed 95th percentiles of distances to the nearest point:
    Hausdorff without the worst twentieth.
    """
    return float(
        max(np.percentile(nearest(points_A3, points_C3)[0], 95), np.percentile(nearest(points_C3, points_A3)[0], 95))
    )


def normal_consistency(surface_A6: np.ndarray, surface_C6: np.ndarray) -> float:
    """Mean absolute cosine between a point's normal and its nearest neighbour's, mean of both directions."""
    return surface_metrics(surface_A6, surface_C6, ())["normal_consistency"]


def surface_metrics(
    surface_A6: np.ndarray, surface_C6: np.ndarray, thresholds: Sequence[float] = F_THRESHOLDS
) -> dict[str, float]:
    """All surface metrics of two sampled surfaces with normals, by two tree queries in all."""
    points_A3, points_C3 = surface_A6[:, :3], surface_C6[:, :3]
    distance_A, index_A = nearest(points_A3, points_C3)
    distance_C, index_C = nearest(points_C3, points_A3)
    normal_A, normal_C = (np.asarray(surface[:, 3:6], dtype=np.float64) for surface in (surface_A6, surface_C6))
    cosine_A = np.abs((normal_A * normal_C[index_A]).sum(axis=1)).mean()
    cosine_C = np.abs((normal_C * normal_A[index_C]).sum(axis=1)).mean()
    scores = {f"f_score_{threshold:g}": _harmonic(distance_A, distance_C, threshold) for threshold in thresholds}
    return {
        "chamfer": float((distance_A.mean() + distance_C.mean()) / 2),
        "chamfer_squared": float(((distance_A**2).mean() + (distance_C**2).mean()) / 2),
        **scores,
        "hausdorff_95": float(max(np.percentile(distance_A, 95), np.percentile(distance_C, 95))),
        "normal_consistency": float((cosine_A + cosine_C) / 2),
    }


def nearest_objects(
    clouds_N: Sequence[np.ndarray],
    library_N: Sequence[np.ndarray],
    *,
    num_queries: int = 2048,
    coarse: int = 192,
    keep: int = 8,
    exclude: Sequence[int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Index of the nearest library cloud by Chamfer distance, and that distance, for each cloud of points (A, 3).

    How: Chamfer of the first `coarse` points, by one matrix product with the whole library, ranks the library. For the
    `keep` best, the first `num_queries` points of each side find their nearest among all points of the other; dense
    targets keep the distance of equal surfaces near 0. Points within a cloud must be in random order. `exclude[i]` is a
    library index that is never the result for cloud i (-1: none), so that a set can be searched in itself.
    """
    from scipy.spatial import cKDTree

    if not len(library_N):
        raise ValueError("the library of objects is empty")
    library = [_checked(cloud) for cloud in library_N]
    clouds = [_checked(cloud) for cloud in clouds_N]
    coarse = min(coarse, *(len(cloud) for cloud in library + clouds))
    coarse_NC3 = np.stack([cloud[:coarse] for cloud in library]).astype(np.float32)
    trees: dict[int, cKDTree] = {}  # built when first needed
    indices, distances = np.empty(len(clouds), dtype=np.int64), np.empty(len(clouds))
    for row, cloud in enumerate(clouds):
        tree = cKDTree(cloud)
        rank = _coarse_chamfer(cloud[:coarse].astype(np.float32), coarse_NC3)
        if exclude is not None and exclude[row] >= 0:
            rank[exclude[row]] = np.inf
        candidates = [k for k in np.argsort(rank, kind="stable")[:keep].tolist() if np.isfinite(rank[k])]
        if not candidates:
            raise ValueError(f"no library object is left for cloud {row}")
        exact = []
        for k in candidates:
            if k not in trees:
                trees[k] = cKDTree(library[k])
            there, back = trees[k].query(cloud[:num_queries])[0], tree.query(library[k][:num_queries])[0]
            exact.append((there.mean() + back.mean()) / 2)
        indices[row], distances[row] = candidates[int(np.argmin(exact))], min(exact)
    return indices, distances


def _coarse_chamfer(points_A3: np.ndarray, library_NC3: np.ndarray, chunk: int = 4) -> np.ndarray:
    """Chamfer distance of one small cloud to each of N small clouds, in chunks that fit the cache."""
    found = []
    square_A = (points_A3**2).sum(axis=1)
    for start in range(0, len(library_NC3), chunk):
        part = library_NC3[start : start + chunk]
        square = (part**2).sum(axis=2)[:, None] + square_A[None, :, None] - 2 * points_A3 @ part.transpose(0, 2, 1)
        there, back = square.min(axis=2), square.min(axis=1)
        found.append((np.sqrt(there.clip(min=0)).mean(axis=1) + np.sqrt(back.clip(min=0)).mean(axis=1)) / 2)
    return np.concatenate(found).astype(np.float64)


def wilson_interval(successes: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's confidence interval of a share."""
    from scipy.stats import norm

    if not 0 <= successes <= total or total <= 0:
        raise ValueError(f"expected 0 <= successes <= total and total > 0, got {successes} of {total}")
    z = float(norm.ppf((1 + confidence) / 2))
    share, denominator = successes / total, 1 + z * z / total
    middle = (share + z * z / (2 * total)) / denominator
    half = z / denominator * np.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def bootstrap_interval(
    values: np.ndarray,
    statistic: Callable[[np.ndarray], float] = np.mean,
    *,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic over objects."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"expected a non-empty list of values, got shape {array.shape}")
    random = np.random.default_rng(seed)
    drawn = [statistic(array[random.integers(len(array), size=len(array))]) for _ in range(num_resamples)]
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
