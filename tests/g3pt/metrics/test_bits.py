"""Bits of codes: plain, and by a coder that could really be built."""

import numpy as np
import pytest

from g3pt.metrics.bits import coded_bits, plain_bits


def test_plain_bits() -> None:
    assert plain_bits(85, 8192) == 85 * 13


def test_coded_bits_equal_a_coder_fitted_to_the_other_objects() -> None:
    random = np.random.default_rng(0)
    levels = (4, 3)
    digits_NSC = np.stack([random.integers(level, size=(6, 5)) for level in levels], axis=-1)
    expected = np.zeros(6)
    for n in range(6):
        others = np.delete(digits_NSC, n, axis=0)
        for s in range(5):
            for c, level in enumerate(levels):
                expected[n] -= np.log2((np.sum(others[:, s, c] == digits_NSC[n, s, c]) + 1) / (5 + level))
    np.testing.assert_allclose(coded_bits(digits_NSC, levels), expected)


def test_constant_codes_cost_next_to_nothing_and_uniform_ones_never_less_than_plain() -> None:
    constant = np.zeros((500, 7, 2), int)
    assert coded_bits(constant, (8, 5)).max() < 7 * 2 * 0.03
    uniform = np.random.default_rng(1).integers(8, size=(400, 30, 1))
    assert plain_bits(30, 8) < coded_bits(uniform, (8,)).mean() < 1.03 * plain_bits(30, 8)
    with pytest.raises(ValueError, match="digits"):
        coded_bits(constant, (8,))
