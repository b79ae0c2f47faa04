"""How CAR's hidden states become the probability of a code. How a code is drawn from it: sampling.py.

`CodeHead` predicts a code as a chain of few small softmaxes instead of one over all V codes. `BitHead` predicts its
bits (or digits) independently.

Source: G3PT (arXiv 2409.06322): one of 8192 classes (`head="joint"`). Infinity (2412.04431): independent bits
(`head="bits"`).
Ours: the chain over the digits or bits of a code (`head="digits"`); one logit per bit where Infinity has two; an
independent softmax per digit for FSQ, whose digits have more than two values.
Shapes: B batch, T tokens of a scale, D width, F factors of a code, V values of a factor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from g3pt.config import CARConfig, CVQConfig


class Head(nn.Module):
    """Base of all heads.

    A code is a mixed-radix number of its factors, first factor fastest, as the quantiser numbers codes.

    `outs` and `mixes` are the head's linear layers, each applied once to every token.
    """

    def __init__(self, factors: Sequence[int]) -> None:
        super().__init__()
        self.factors = tuple(factors)

    def split(self, codes_BT: Tensor) -> list[Tensor]:
        """The values of the factors of codes."""
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

    def logits(self, hidden_BTD: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        """Logits (B, T, V) of the factor after the `earlier` ones, whose values (B, T) are known."""
        raise NotImplementedError

    def cross_entropy(self, hidden_BTD: Tensor, codes_BT: Tensor) -> Tensor:
        """-log p(code), (B, T), in nats."""
        digits = self.split(codes_BT)
        total_BT = hidden_BTD.new_zeros(codes_BT.shape, dtype=torch.float32)
        for index, digit_BT in enumerate(digits):
            logits_BTV = self.logits(hidden_BTD, digits[:index]).float()
            total_BT = total_BT + F.cross_entropy(
                logits_BTV.flatten(0, 1), digit_BT.flatten(), reduction="none"
            ).view_as(total_BT)
        return total_BT


class CodeHead(Head):
    """p(code | hidden) as a chain over the code's factors: p(f1) p(f2 | f1) ...; one factor
    of V values is the plain head.
    """

    def __init__(self, width: int, factors: Sequence[int]) -> None:
        super().__init__(factors)
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


class BitHead(Head):
    """p(code | hidden) as a product over independent factors: one logit for a bit, V for a digit of V values."""

    def __init__(self, width: int, factors: Sequence[int]) -> None:
        super().__init__(factors)
        self.sizes = [1 if values == 2 else values for values in self.factors]
        self.outs = nn.ModuleList([nn.Linear(width, sum(self.sizes))])
        self.mixes = nn.ModuleList()

    def logits(self, hidden_BTD: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        """Logits (B, T, V) of the factor after the `earlier` ones, whose values are ignored.

        Those of a bit are 0 and its logit.
        """
        first, (out,) = sum(self.sizes[: len(earlier)]), self.outs
        rows = slice(first, first + self.sizes[len(earlier)])
        return padded(F.linear(hidden_BTD, out.weight[rows], out.bias[rows]))

    def cross_entropy(self, hidden_BTD: Tensor, codes_BT: Tensor) -> Tensor:
        """-log p(code), (B, T), in nats."""
        (out,) = self.outs
        parts = out(hidden_BTD).float().split(self.sizes, dim=-1)
        return sum(
            -padded(part).log_softmax(-1).gather(-1, digit[..., None])[..., 0]
            for part, digit in zip(parts, self.split(codes_BT), strict=True)
        )


def padded(logits_V: Tensor) -> Tensor:
    """Two logits, the first 0, from one; others unchanged."""
    return F.pad(logits_V, (1, 0)) if logits_V.shape[-1] == 1 else logits_V


def build_head(config: CARConfig, codec: CVQConfig) -> Head:
    """The head named by `config.head`."""
    kind = BitHead if config.head == "bits" else CodeHead
    return kind(config.width, code_factors(config, codec))


def code_factors(config: CARConfig, codec: CVQConfig) -> tuple[int, ...]:
    """Sizes of a code's factors: V for the joint head, each digit for `bits`,
    else neighbouring digits joined up to `factor_values`.
    """
    if config.head == "joint":
        return (codec.num_codes,)
    if config.head == "bits":
        return codec.code_levels
    factors = [1]
    for level in codec.code_levels:
        if factors[-1] * level <= config.factor_values:
            factors[-1] *= level
        else:
            factors.append(level)
    return tuple(f for f in factors if f > 1)
