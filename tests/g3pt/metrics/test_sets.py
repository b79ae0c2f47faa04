"""COV, MMD and 1-NNA where their values are known: equal sets, sets apart, one distribution, one mode,
tables written by hand.
"""

import numpy as np
import pytest

from g3pt.metrics import pairwise, sets
from g3pt.metrics.sets import Tables, set_figures, squared_chamfer_pairs, squared_chamfer_within, stacked


def _boxes(count: int, seed: int, centre: float = 0.0) -> np.ndarray:
    """`count` clouds of 64 points in boxes of random sides, (N, 3, 64)."""
    random = np.random.default_rng(seed)
    sides = random.uniform(0.2, 1.0, size=(count, 1, 3))
    return stacked(list(random.uniform(-1, 1, size=(count, 64, 3)) * sides + centre), 64)


def _figures(samples_N3P: np.ndarray, references_N3P: np.ndarray) -> dict:
    across = squared_chamfer_pairs(samples_N3P, references_N3P)
    return set_figures(Tables(squared_chamfer_within(samples_N3P), squared_chamfer_within(references_N3P), across))


def test_the_kernel_equals_the_definition() -> None:
    ours, others = _boxes(4, 0), _boxes(3, 1, centre=0.3)
    found = squared_chamfer_pairs(ours, others)
    wanted = [
        [2 * pairwise.chamfer_squared(a.T, b.T) for b in others] for a in ours
    ]  # a sum of both directions, not their mean
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    within = squared_chamfer_within(ours)
    np.testing.assert_array_equal(within, within.T)
    np.testing.assert_allclose(within[1, 2:], squared_chamfer_pairs(ours[1:2], ours[2:])[0])
    assert np.isinf(within.diagonal()).all() and np.isfinite(within[~np.eye(4, dtype=bool)]).all()


def test_equal_sets_cover_all_and_count_as_copies() -> None:
    same = _boxes(20, 2)
    found = _figures(same, same[::-1].copy())
    assert found["cov"] == 1.0 and found["mmd"] == 0.0 and found["one_nna"] == 0.0


def test_sets_that_lie_apart_are_told_apart() -> None:
    found = _figures(_boxes(20, 3), _boxes(20, 4, centre=5.0))
    assert found["one_nna"] == 1.0 and found["cov"] < 0.5 and found["mmd"] > 10
    assert found["one_nna_interval_95"][0] > 0.9


def test_two_draws_of_one_distribution_can_hardly_be_told_apart() -> None:
    found = _figures(_boxes(80, 5), _boxes(80, 6))
    low, high = found["one_nna_interval_95"]
    assert low < 0.5 < high and found["cov"] > 0.4
    low, high = found["mmd_interval_95"]
    assert low < found["mmd"] < high


def test_one_object_sampled_again_and_again_covers_one() -> None:
    references = _boxes(20, 7)
    samples = np.repeat(references[:1], 20, axis=0) + np.random.default_rng(0).normal(0, 1e-3, size=(20, 3, 1)).astype(
        np.float32
    )
    found = _figures(samples, references)
    assert found["cov"] == 1 / 20
    assert found["one_nna"] >= 0.9, "each copy of the one object has another copy as its nearest"


def test_verdicts_of_a_table_written_by_hand() -> None:
    inf = np.inf
    tables = Tables(
        np.array([[inf, 1.0, 9.0], [1.0, inf, 9.0], [9.0, 9.0, inf]]),
        np.array([[inf, 4.0, 4.0], [4.0, inf, 2.0], [4.0, 2.0, inf]]),
        np.array([[1.0, 5.0, 5.0], [3.0, 6.0, 7.0], [8.0, 3.0, 5.0]]),  # rows are samples
    )
    np.testing.assert_array_equal(sets.covered(tables), [True, True, False])
    np.testing.assert_array_equal(sets.matched(tables), [1.0, 3.0, 5.0])
    # the first sample ties (1 and 1): the other set has it
    np.testing.assert_array_equal(sets.told_apart(tables), [False, True, False, False, True, True])
    found = set_figures(tables, "oracle_")
    assert found["oracle_cov"] == pytest.approx(2 / 3) and found["oracle_mmd"] == 3.0 and found["oracle_one_nna"] == 0.5


@pytest.mark.parametrize(
    ("clouds", "said"), [([], "none"), ([np.zeros((5, 3))], "5 in number 0"), ([np.full((9, 3), np.nan)], "finite")]
)
def test_bad_clouds_are_refused(clouds: list, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        stacked(clouds, 8)


def test_sets_of_different_sizes_are_refused() -> None:
    one, two = _boxes(3, 0), _boxes(2, 1)
    with pytest.raises(ValueError, match="equally many"):
        _figures(one, two)
