"""Transformer parts shared by the tokenizer and the generator.

Pre-LayerNorm residual blocks around PyTorch's fused attention. Nothing here knows of scales or codes.

Shapes: B batch, N tokens, M context tokens, D width, H heads, P points, F point features.
Source: standard; Fourier features as in the 3DShape2VecSet family (8 frequencies).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

MAX_LOG_SCALE = math.log(100.0)


class Attention(nn.Module):
    """Multi-head attention of `query_BND` over `context_BMD` (itself by default). Inputs arrive normalised.

    With `qk_norm`, queries and keys are unit vectors and a learned scale per head, capped at 100, takes the place of 1 / sqrt(width).
    """

    def __init__(self, width: int, num_heads: int, qk_norm: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.log_scale_H = nn.Parameter(torch.full((num_heads,), math.log(4.0))) if qk_norm else None
        self.to_query = nn.Linear(width, width, bias=False)
        self.to_key = nn.Linear(width, width, bias=False)
        self.to_value = nn.Linear(width, width, bias=False)
        self.to_out = nn.Linear(width, width)

    def forward(self, query_BND: Tensor, context_BMD: Tensor | None = None) -> Tensor:
        context_BMD = query_BND if context_BMD is None else context_BMD
        query = self._split(self.to_query(query_BND))
        key, value = self._split(self.to_key(context_BMD)), self._split(self.to_value(context_BMD))
        if self.log_scale_H is None:
            out = F.scaled_dot_product_attention(query, key, value)
        else:
            query, key = unit_norm(query, key, self.log_scale_H)
            out = F.scaled_dot_product_attention(query.to(value.dtype), key.to(value.dtype), value, scale=1.0)
        return self.to_out(out.transpose(1, 2).flatten(2))

    def _split(self, x_BND: Tensor) -> Tensor:
        return x_BND.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def unit_norm(query: Tensor, key: Tensor, log_scale_H: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys (B, H, N, width) as unit vectors, the queries times their head's scale, capped at 100."""
    scale_H11 = log_scale_H.clamp_max(MAX_LOG_SCALE).exp()[:, None, None]
    return F.normalize(query, dim=-1) * scale_H11, F.normalize(key, dim=-1)


def feed_forward(width: int, ratio: int = 4) -> nn.Sequential:
    """The two-layer perceptron of a transformer block."""
    return nn.Sequential(nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width))


class SelfBlock(nn.Module):
    """x + Attention(LN x), then x + MLP(LN x)."""

    def __init__(self, width: int, num_heads: int, qk_norm: bool = False) -> None:
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = Attention(width, num_heads, qk_norm), feed_forward(width)

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = x_BND + self.attention(self.norm_attention(x_BND))
        return x_BND + self.mlp(self.norm_mlp(x_BND))


class CrossBlock(nn.Module):
    """x + Attention(LN x, LN context), then x + MLP(LN x)."""

    def __init__(self, width: int, num_heads: int, qk_norm: bool = False) -> None:
        super().__init__()
        self.norm_query, self.norm_context, self.norm_mlp = (nn.LayerNorm(width) for _ in range(3))
        self.attention, self.mlp = Attention(width, num_heads, qk_norm), feed_forward(width)

    def forward(self, x_BND: Tensor, context_BMD: Tensor) -> Tensor:
        x_BND = x_BND + self.attention(self.norm_query(x_BND), self.norm_context(context_BMD))
        return x_BND + self.mlp(self.norm_mlp(x_BND))


class FourierPoints(nn.Module):
    """Points (and normals, if any) embedded: xyz, sin and cos of pi 2^i xyz for i < num_fourier, then normals.

    `points_BPF` with F = 3 (xyz in [-1, 1]) or F = 6 (xyz, unit normal) gives (B, P, width).
    """

    def __init__(self, width: int, num_fourier: int, num_features: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.arange(num_fourier), persistent=False)
        self.project = nn.Linear(num_features + 6 * num_fourier, width)

    def forward(self, points_BPF: Tensor) -> Tensor:
        angles = (points_BPF[..., :3, None] * self.frequencies).flatten(-2)
        return self.project(torch.cat([points_BPF, angles.sin(), angles.cos()], dim=-1))


def run_blocks(blocks: nn.ModuleList, x_BND: Tensor, recompute: bool) -> Tensor:
    """Apply `blocks` in turn; with `recompute` their activations are recomputed in the backward pass."""
    for block in blocks:
        x_BND = checkpoint(block, x_BND, use_reentrant=False) if recompute and torch.is_grad_enabled() else block(x_BND)
    return x_BND
