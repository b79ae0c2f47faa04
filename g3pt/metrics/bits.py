"""Bits of an object's codes: stored as they are, and after an entropy coder
that knows each digit's frequencies at each position.

How: the coder's model is counting with one added to every count (Laplace), one table per position and digit, fitted to
the *other* objects. So the length is one that a decoder could reach; it may exceed the plain length, and does with few
objects. The sum of position entropies would not be valid: N objects can't show more than log2 N bits at a position.

Ours: all of it. Shapes: N objects, S tokens, C digits of a code.
"""

from collections.abc import Sequence

import numpy as np


def plain_bits(num_tokens: int, num_codes: int) -> float:
    """Bits of `num_tokens` codes of `num_codes` values each."""
    return float(num_tokens * np.log2(num_codes))


def coded_bits(digits_NSC: np.ndarray, levels: Sequence[int]) -> np.ndarray:
    """Bits (N,) of each object's digits, coded with the other objects' counts at the same position and digit."""
    digits_NSC = np.asarray(digits_NSC)
    count, num_tokens, num_digits = digits_NSC.shape
    if num_digits != len(levels) or count < 1:
        raise ValueError(f"expected digits (N, S, {len(levels)}) of at least one object, got {digits_NSC.shape}")
    bits_N = np.zeros(count)
    positions = np.arange(num_tokens)
    for digit, num_levels in enumerate(levels):
        values_NS = digits_NSC[..., digit]
        counts = np.zeros((num_tokens, num_levels))
        for row_S in values_NS:
            counts[positions, row_S] += 1
        own_NS = counts[positions, values_NS]  # its own count takes the place of the added one
        bits_N -= np.log2(own_NS / (count - 1 + num_levels)).sum(axis=1)
    return bits_N
