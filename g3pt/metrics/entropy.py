"""Entropies of codes: of probabilities in nats, of counts in bits; and the values that uniform draws would have.

Source: Shannon entropy; its plug-in estimate from counts. Ours: the corrections for few draws.
Shapes: V values that a code or digit can take, N codes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def entropy(probability: Tensor) -> Tensor:
    """Shannon entropy of probabilities along the last axis, in nats."""
    return -(probability * probability.clamp_min(1e-9).log()).sum(-1)


def entropy_bits(counts: Tensor) -> Tensor:
    """Plug-in Shannon entropy of counts along the last axis, in bits."""
    share = counts.double() / counts.sum(-1, keepdim=True)
    return torch.xlogy(share, share).sum(-1).abs() / math.log(2)


def sample_entropy(codes_N: Tensor, num_codes: int) -> float:
    """Plug-in Shannon entropy of a flat sample of codes below `num_codes`, in bits."""
    return float(entropy_bits(torch.bincount(codes_N, minlength=num_codes)))


def digit_entropies(counts_V: Tensor, levels: tuple[int, ...]) -> list[float]:
    """Entropy in bits of each digit of the counted codes (first digit fastest)."""
    grid = counts_V.view(*reversed(levels))  # the last axis is the fastest, digit 0
    axes = range(len(levels))
    return [
        float(entropy_bits(grid.sum([a for a in axes if a != len(levels) - 1 - c]) if len(levels) > 1 else grid))
        for c in axes
    ]


def expected_distinct(draws: int, num_codes: int) -> float:
    """Expected number of distinct codes in `draws` uniform draws of `num_codes`; utilisation is a share of it."""
    return num_codes * -math.expm1(draws * math.log1p(-1 / num_codes))


def expected_entropy(draws: int, num_values: int) -> float:
    """Expected plug-in entropy of `draws` uniform draws of `num_values`, in bits, with Poisson counts."""
    rate, total = draws / num_values, 0.0
    for count in range(2, math.ceil(rate + 10 * math.sqrt(rate) + 20)):
        total += math.exp(count * math.log(rate) - rate - math.lgamma(count + 1)) * count * math.log2(count)
    return math.log2(draws) - total / rate
