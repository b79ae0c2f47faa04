"""Residual blocks of the tokenizer and the generator: pre-LayerNorm, attention, then a perceptron.

`SelfBlock` and `CrossBlock` make up the tokenizer, `ModulatedBlock` the generator, whose condition enters in its layer
norms (AdaLN). Attention itself is in attention.py, the convolutional blocks of the small image encoder in
image_encoder.py.

Shapes: B batch, N tokens, M context tokens, D width, H heads, P points, F point features.
Source: standard; AdaLN as in DiT (2212.09748); Fourier features as in the 3DShape2VecSet family (8 frequencies).
Ours: AdaLN starts near the identity: it adds to 1 where DiT's gates are zero.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from g3pt.models.attention import Attention, Causal, KVCache, UnitAttention
from g3pt.training.parallel import ShardUnit


def feed_forward(width: int, approximate: str = "none") -> nn.Sequential:
    """The two-layer perceptron of a transformer block, four times as wide inside."""
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate=approximate), nn.Linear(4 * width, width))


class SelfBlock(nn.Module, ShardUnit):
    """x + Attention(LN x), then x + MLP(LN x)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = Attention(width, num_heads), feed_forward(width)

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = x_BND + self.attention(self.norm_attention(x_BND))
        return x_BND + self.mlp(self.norm_mlp(x_BND))


class CrossBlock(nn.Module, ShardUnit):
    """x + Attention(LN x, LN context), then x + MLP(LN x)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm_query, self.norm_context, self.norm_mlp = (nn.LayerNorm(width) for _ in range(3))
        self.attention, self.mlp = Attention(width, num_heads), feed_forward(width)

    def forward(self, x_BND: Tensor, context_BMD: Tensor) -> Tensor:
        x_BND = x_BND + self.attention(self.norm_query(x_BND), self.norm_context(context_BMD))
        return x_BND + self.mlp(self.norm_mlp(x_BND))


class ModulatedBlock(nn.Module, ShardUnit):
    """A pre-LN transformer block, whose norms and branches are modulated by the condition (AdaLN)."""

    gathered_in_bf16 = True

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        self.attention = UnitAttention(width, num_heads)
        self.mlp = feed_forward(width, approximate="tanh")

    def forward(
        self, x_BND: Tensor, condition_BD: Tensor, causal: Causal | None = None, cache: KVCache | None = None
    ) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self._modulation(condition_BD, cache)[:, None].chunk(
            6, dim=-1
        )
        x_BND = x_BND + (1 + gate_1) * self.attention(modulate(x_BND, shift_1, scale_1), causal, cache)
        return x_BND + (1 + gate_2) * self.mlp(modulate(x_BND, shift_2, scale_2))

    def _modulation(self, condition_BD: Tensor, cache: KVCache | None) -> Tensor:
        """Shifts, scales and gates (B, 6 D). Sampling computes them once for all scales and keeps them in the cache."""
        if cache is None:
            return self.modulation(condition_BD)
        if cache.modulation is None:
            cache.modulation = self.modulation(condition_BD)
        return cache.modulation


def modulate(x_BND: Tensor, shift_B1D: Tensor, scale_B1D: Tensor) -> Tensor:
    """Layer norm with the condition's shift and scale."""
    return F.layer_norm(x_BND, x_BND.shape[-1:]) * (1 + scale_B1D) + shift_B1D


class FourierPoints(nn.Module):
    """Points (and normals, if any) embedded: xyz, sin and cos of pi 2^i xyz for i < num_fourier, then normals.

    `points_BPF` with F = 3 (xyz in [-1, 1]) or F = 6 (xyz, unit normal) gives (B, P, width). Points in float16, as a
    dataset stores them, are cast to float32 here, on the device.
    """

    def __init__(self, width: int, num_fourier: int, num_features: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.arange(num_fourier), persistent=False)
        self.project = nn.Linear(num_features + 6 * num_fourier, width)

    def forward(self, points_BPF: Tensor) -> Tensor:
        points_BPF = points_BPF.float()
        angles = (points_BPF[..., :3, None] * self.frequencies).flatten(-2)
        return self.project(torch.cat([points_BPF, angles.sin(), angles.cos()], dim=-1))


def run_blocks(blocks: nn.ModuleList, x_BND: Tensor, recompute: bool) -> Tensor:
    """Apply `blocks` in turn; with `recompute` their activations are recomputed in the backward pass."""
    for block in blocks:
        x_BND = checkpoint(block, x_BND, use_reentrant=False) if recompute and torch.is_grad_enabled() else block(x_BND)
    return x_BND
