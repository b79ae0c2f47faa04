"""The two scalar quantisers of CVQ behind one interface, and the statistics that keep their codes from collapsing.

A quantiser turns a normalised vector z (C digits) into the nearest code: FSQ rounds each digit to one of a few levels,
LFQ takes the sign of each bit. Both use a straight-through gradient and number a code by its digits, mixed radix, first
digit fastest. `RunningNorm` first centres and scales z per scale *and token position*: without it a code only says
where a token is, not what is there (LOG.md).

Source: FSQ, Mentzer et al. 2309.15505 (bound by tanh with half-step offset for even levels, as in
vector-quantize-pytorch); LFQ, Yu et al. 2310.05737 (sign, entropy terms, commitment); LFQ with 8192 codes is G3PT's.
Ours: the per-position statistics; the joint entropy over groups of at most seven bits.

The library vector-quantize-pytorch is only compared with (tests/g3pt/models/test_quantizer_parity.py): it needs einops,
einx and loguru; its LFQ computes the entropy over 8192 codes for every token of a batch at once, and numbers codes from
the other end.

Shapes: B batch, T tokens of a scale, C digits or bits of a code, G bits of a group.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from g3pt.metrics.entropy import entropy
from g3pt.training.parallel import mean_over_workers
from g3pt.training.statistics import RunningStatistics, pace


class RunningNorm(nn.Module, RunningStatistics):
    """z minus its running mean, divided by its running deviation, per token position and digit; neither has a gradient.

    In training, unless `frozen`, the statistics follow each step's; `calls` counts those steps. The first `settling` of
    them leave no
    trace: what a scale sees follows the statistics of all coarser scales, each of which needs a step.
    """

    def __init__(self, num_tokens: int, num_digits: int, momentum: float, settling: int = 0) -> None:
        super().__init__()
        self.momentum, self.settling = momentum, settling
        self.register_buffer("mean_TC", torch.zeros(num_tokens, num_digits))
        self.register_buffer("square_TC", torch.ones(num_tokens, num_digits))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, z_BTC: Tensor, frozen: bool) -> Tensor:
        if self.training and not frozen:
            seen_BTC = z_BTC.detach()
            self.see(torch.stack([seen_BTC.mean(0), seen_BTC.square().mean(0)]))
        deviation_TC = (self.square_TC - self.mean_TC.square()).clamp_min(1e-8).sqrt()
        return (z_BTC - self.mean_TC) / (deviation_TC + 1e-4)

    def follow(self, mean: Tensor) -> None:
        self.calls += 1
        share = pace(self.calls - self.settling, self.momentum)
        self.mean_TC.lerp_(mean[0], share)
        self.square_TC.lerp_(mean[1], share)


class Quantizer(nn.Module):
    """Base of FSQ and LFQ: codes as mixed-radix numbers of their digits."""

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.levels = levels
        self.register_buffer("levels_C", torch.tensor(levels), persistent=False)
        radix = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("radix_C", torch.tensor(radix), persistent=False)

    @property
    def num_digits(self) -> int:
        """C."""
        return len(self.levels)

    def digits_to_codes(self, digits_BTC: Tensor) -> Tensor:
        """Digits in [0, level) -> codes in [0, V), int64."""
        return (digits_BTC * self.radix_C).sum(-1)

    def codes_to_digits(self, codes_BT: Tensor) -> Tensor:
        """Codes in [0, V) -> digits in [0, level), int64."""
        return codes_BT[..., None] // self.radix_C % self.levels_C


class FSQ(Quantizer):
    """Finite scalar quantisation: digit c of z takes one of `levels[c]` values in [-1, 1]."""

    def forward(self, z_BTC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z -> (values with straight-through gradient; codes int64; loss 0)."""
        half_C = (self.levels_C - 1) * (1 + 1e-3) / 2
        offset_C = torch.where(self.levels_C % 2 == 0, 0.5, 0.0)
        bounded = (z_BTC + (offset_C / half_C).atanh()).tanh() * half_C - offset_C
        rounded = bounded + (bounded.round() - bounded).detach()
        codes_BT = self.digits_to_codes(rounded.detach().round().long() + self.levels_C // 2)
        return rounded / (self.levels_C // 2), codes_BT, z_BTC.new_zeros(())

    def values(self, codes_BT: Tensor) -> Tensor:
        """The values (B, T, C) that `forward` returns with these codes."""
        return (self.codes_to_digits(codes_BT) - self.levels_C // 2) / (self.levels_C // 2).float()


class LFQ(Quantizer):
    """Lookup-free quantisation: bit c of a code is the sign of z's component c."""

    def __init__(self, levels: tuple[int, ...], *, temperature: float = 4.0, group_bits: int = 7) -> None:
        super().__init__(levels)
        self.temperature, self.group_bits = temperature, group_bits

    def forward(self, z_BTC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z -> (signs with straight-through gradient; codes int64; mean H - H of the mean code + commitment)."""
        sign_BTC = torch.where(z_BTC > 0, 1.0, -1.0)
        codes_BT = self.digits_to_codes((z_BTC > 0).long())
        loss = self._entropy_loss(z_BTC) + 5.0 * (z_BTC - sign_BTC).square().mean()
        return z_BTC + (sign_BTC - z_BTC).detach(), codes_BT, loss

    def values(self, codes_BT: Tensor) -> Tensor:
        """Codes -> signs, (B, T, C) of -1 and 1."""
        return self.codes_to_digits(codes_BT).float() * 2 - 1

    def _entropy_loss(self, z_BTC: Tensor) -> Tensor:
        """Mean entropy of single codes minus entropy of the mean code, joint within groups of bits (in nats)."""
        one = torch.sigmoid(self.temperature * z_BTC.flatten(0, 1))
        loss = z_BTC.new_zeros(())
        for group in one.split(self.group_bits, dim=-1):
            joint = torch.ones_like(group[:, :1])
            for bit in group.unbind(-1):
                joint = torch.cat([joint * (1 - bit[:, None]), joint * bit[:, None]], dim=-1)
            mean = joint.mean(0)
            # The value is the mean over all workers; the gradient is this worker's share, which DDP averages.
            if self.training:
                mean = mean + (mean_over_workers(mean.detach().clone()) - mean.detach())
            loss = loss + entropy(joint).mean() - entropy(mean)
        return loss


def build_quantizer(kind: str, levels: tuple[int, ...]) -> FSQ | LFQ:
    """The quantiser named by the configuration: 'fsq' or 'lfq'."""
    if kind == "fsq":
        return FSQ(levels)
    if kind == "lfq":
        return LFQ(levels)
    raise ValueError(f"unknown quantizer {kind!r}; choose fsq or lfq")
