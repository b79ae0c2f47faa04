"""How CAR's hidden states become the probability of a code, and a drawn code.

`CodeHead` predicts a code as a chain of few small softmaxes instead of one over all V codes.

Source: G3PT (arXiv 2409.06322): one of 8192 classes (`head="joint"`).
Ours: the chain over the digits or bits of a code (`head="digits"`).
Shapes: B batch, T tokens of a scale, D width, F factors of a code, V values of a factor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from g3pt.config import CARConfig, CVQConfig


class CodeHead(nn.Module):
    """p(code | hidden) as a chain over the code's factors: p(f1) p(f2 | f1) ...; one factor of V values is the plain head.

    A code is a mixed-radix number of its factors, first factor fastest, as the tokenizer's quantiser numbers them.
    """

    def __init__(self, width: int, factors: Sequence[int]) -> None:
        super().__init__()
        self.factors = tuple(factors)
        self.outs = nn.ModuleList(nn.Linear(width, values) for values in self.factors)
        self.earlier = nn.ModuleList(nn.Embedding(values, width) for values in self.factors[:-1])
        self.mixes = nn.ModuleList(nn.Linear(width, width) for _ in self.factors if len(self.factors) > 1)

    def logits(self, hidden_BTD: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        """Logits (B, T, V) of the factor after the `earlier` ones, whose values (B, T) are known."""
        index = len(earlier)
        if self.mixes:
            hidden_BTD = self.mixes[index](hidden_BTD)
            for embed, digit_BT in zip(self.earlier, earlier, strict=False):
                hidden_BTD = hidden_BTD + embed(digit_BT)
            hidden_BTD = F.gelu(hidden_BTD, approximate="tanh")
        return self.outs[index](hidden_BTD)

    def split(self, codes_BT: Tensor) -> list[Tensor]:
        """Codes to the values of their factors."""
        digits = []
        for values in self.factors:
            digits.append(codes_BT % values)
            codes_BT = codes_BT // values
        return digits

    def join(self, digits: Sequence[Tensor]) -> Tensor:
        """The inverse of `split`."""
        codes_BT = torch.zeros_like(digits[-1])
        for values, digit_BT in zip(reversed(self.factors), reversed(list(digits)), strict=True):
            codes_BT = codes_BT * values + digit_BT
        return codes_BT

    def cross_entropy(self, hidden_BTD: Tensor, codes_BT: Tensor) -> Tensor:
        """-log p(code), (B, T), in nats."""
        digits = self.split(codes_BT)
        total_BT = hidden_BTD.new_zeros(codes_BT.shape, dtype=torch.float32)
        for index, digit_BT in enumerate(digits):
            logits_BTV = self.logits(hidden_BTD, digits[:index]).float()
            total_BT = total_BT + F.cross_entropy(logits_BTV.flatten(0, 1), digit_BT.flatten(), reduction="none").view_as(total_BT)
        return total_BT


def code_factors(config: CARConfig, codec: CVQConfig) -> tuple[int, ...]:
    """The factors of a code: V for the joint head; else neighbouring digits, joined while at most `factor_values`."""
    if config.head == "joint":
        return (codec.num_codes,)
    factors = [1]
    for level in codec.code_levels:
        if factors[-1] * level <= config.factor_values:
            factors[-1] *= level
        else:
            factors.append(level)
    return tuple(f for f in factors if f > 1)
