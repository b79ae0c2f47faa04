"""Attention: the tokenizer's, the generator's block-causal one without a dense mask, and the K/V cache of sampling.

Levels are runs of tokens in order: the image tokens, then each scale. A level attends to itself and to all levels
before it, so on the CPU each level's queries are one unmasked call of PyTorch's fused attention over the keys up to the
level's end. On a GPU, where many small calls are slow, the last level, most of the tokens, is such a call, and one
FlexAttention kernel with a block mask computes all levels before it. Sampling computes one level at a time against the
cache and needs neither.

Source: G3PT (arXiv 2409.06322): queries and keys normalised to unit vectors. VAR (2404.02905): a learned scale per
head, capped at
100. FlexAttention: torch.nn.attention.flex_attention (2412.05496).
Shapes: B batch, N tokens of all levels, T tokens of one, M context tokens, H heads, D width.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Levels = tuple[int, ...]  # tokens of each level, in order
MAX_LOG_SCALE = math.log(100.0)


class Causal(NamedTuple):
    """Which tokens attend to which, made once for all layers by `causal`."""

    levels: Levels
    mask: BlockMask | None = None  # of all levels but the last, on a GPU


class Attention(nn.Module):
    """Multi-head attention of `query_BND` over `context_BMD`, which is `query_BND` by default.

    Inputs arrive normalised.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_query = nn.Linear(width, width, bias=False)
        self.to_key = nn.Linear(width, width, bias=False)
        self.to_value = nn.Linear(width, width, bias=False)
        self.to_out = nn.Linear(width, width)

    def forward(self, query_BND: Tensor, context_BMD: Tensor | None = None) -> Tensor:
        context_BMD = query_BND if context_BMD is None else context_BMD
        query = self._split(self.to_query(query_BND))
        key, value = self._split(self.to_key(context_BMD)), self._split(self.to_value(context_BMD))
        return self.to_out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))

    def _split(self, x_BND: Tensor) -> Tensor:
        return x_BND.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class KVCache:
    """K and V of one layer (B, H, length, head width), filled from the front.

    Also keeps the layer's AdaLN modulation, which is the same for every scale.
    """

    def __init__(self, batch: int, heads: int, length: int, head_width: int, like: Tensor) -> None:
        self.keys = like.new_empty(batch, heads, length, head_width)
        self.values = torch.empty_like(self.keys)
        self.filled = 0
        self.modulation: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store K and V of T tokens, (B, H, T, head width); returns all that is stored."""
        end = self.filled + keys.shape[2]
        self.keys[:, :, self.filled : end] = keys
        self.values[:, :, self.filled : end] = values
        self.filled = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class UnitAttention(nn.Module):
    """Self-attention whose queries and keys are unit vectors, times a learned scale per head, capped at 100."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.to_out = nn.Linear(width, width)
        self.log_scale_H = nn.Parameter(torch.full((num_heads,), math.log(4.0)))

    def forward(self, x_BND: Tensor, causal: Causal | None = None, cache: KVCache | None = None) -> Tensor:
        """Block-causal as `causal` says; without it every token attends to all, those in the `cache` included."""
        query, key, value = self.to_qkv(x_BND).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        scale_H11 = self.log_scale_H.clamp_max(MAX_LOG_SCALE).exp()[:, None, None]
        query, key = F.normalize(query, dim=-1) * scale_H11, F.normalize(key, dim=-1)
        query, key = query.to(value.dtype), key.to(value.dtype)
        if cache is not None:
            key, value = cache.append(key, value)
        out = block_causal(query, key, value, causal or Causal((x_BND.shape[1],)))
        return self.to_out(out.transpose(1, 2).flatten(2))


def causal(levels: Levels, device: torch.device) -> Causal:
    """What `block_causal` needs for `levels` on a device."""
    on_gpu = device.type == "cuda" and len(levels) > 2
    return Causal(levels, block_mask(levels[:-1], device) if on_gpu else None)


def block_causal(query: Tensor, key: Tensor, value: Tensor, causal: Causal) -> Tensor:
    """Attention (B, H, N, head width) at scale 1, full inside a level and causal across levels."""
    if causal.mask is None:
        return level_by_level(query, key, value, causal.levels)
    last = causal.levels[-1]
    before = [one[:, :, :-last] for one in (query, key, value)]
    return torch.cat(
        [
            flex(*before, causal.mask),
            F.scaled_dot_product_attention(query[:, :, -last:], key, value, scale=1.0),
        ],
        dim=2,
    )


def level_by_level(query: Tensor, key: Tensor, value: Tensor, levels: Levels) -> Tensor:
    """One fused call per level, over the keys up to its end."""
    if len(levels) == 1:
        return F.scaled_dot_product_attention(query, key, value, scale=1.0)
    ends = itertools.accumulate(levels)
    parts = [
        F.scaled_dot_product_attention(query[:, :, end - size : end], key[:, :, :end], value[:, :, :end], scale=1.0)
        for size, end in zip(levels, ends, strict=True)
    ]
    return torch.cat(parts, dim=2)


def flex(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask) -> Tensor:
    """FlexAttention as one kernel: part of the graph of a block that is being compiled, else compiled by itself."""
    from torch.nn.attention.flex_attention import flex_attention

    call = flex_attention if torch.compiler.is_compiling() else compiled_flex()
    return call(query, key, value, block_mask=mask, scale=1.0)


@functools.cache
def compiled_flex() -> Callable[..., Tensor]:
    """FlexAttention, compiled at its first call."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


@functools.lru_cache(maxsize=16)  # progressive training has two, sampling none
def block_mask(levels: Levels, device: torch.device) -> BlockMask:
    """The structure of `levels` for FlexAttention: which blocks of 128 x 128 pairs are empty, full or partial."""
    from torch.nn.attention.flex_attention import create_block_mask

    level_N = level_of_tokens(levels).to(device)
    tokens = len(level_N)
    return create_block_mask(
        lambda b, h, q, kv: level_N[q] >= level_N[kv], B=None, H=None, Q_LEN=tokens, KV_LEN=tokens, device=device
    )


def level_of_tokens(levels: Levels) -> Tensor:
    """The number of each token's level, (N,)."""
    return torch.repeat_interleave(torch.arange(len(levels)), torch.tensor(levels))


def attended_pairs(levels: Levels) -> int:
    """Number of (query, key) pairs that attend."""
    return sum(size * end for size, end in zip(levels, itertools.accumulate(levels), strict=True))
