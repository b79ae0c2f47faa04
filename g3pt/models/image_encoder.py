"""The small image encoder that a generator trains from scratch: residual convolutions down to a coarse grid
of tokens, then attention.

A small DINOv2 over 14-pixel patches with two layers learnt next to nothing from a few thousand pictures (LOG.md,
2026-11-28).

Source: residual blocks before activation (1603.05027); convolutions as a transformer's stem (2106.14881).
Ours: the sizes.
Shapes: B batch, H W pixels, C channels, M tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from g3pt.models.layers import SelfBlock


class ConvEncoder(nn.Module):
    """Normalised pixels (B, 3, H, H) to tokens (B, M, C): each stage halves the grid, the last one's width is C."""

    def __init__(
        self, size: int, widths: Sequence[int], blocks: Sequence[int], num_layers: int, num_heads: int
    ) -> None:
        """`widths` and `blocks`: channels and residual blocks of each stage; `num_layers` of attention follow."""
        super().__init__()
        stages: list[nn.Module] = []
        for before, width, count in zip((3, *widths[:-1]), widths, blocks, strict=True):
            stages.append(nn.Conv2d(before, width, 3, stride=2, padding=1))
            stages += [ResidualBlock(width) for _ in range(count)] or [nn.GroupNorm(1, width), nn.GELU()]
        self.stages = nn.Sequential(*stages)
        self.positions = nn.Parameter(torch.randn(grid_tokens(size, len(widths)), widths[-1]) * 0.02)
        self.layers = nn.ModuleList(SelfBlock(widths[-1], num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(widths[-1])

    def forward(self, images_B3HW: Tensor) -> Tensor:
        tokens_BMC = self.stages(images_B3HW).flatten(2).transpose(1, 2) + self.positions
        for layer in self.layers:
            tokens_BMC = layer(tokens_BMC)
        return self.norm(tokens_BMC)


class ResidualBlock(nn.Module):
    """x + convolutions of x, which are initialised to zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.GroupNorm(1, width), nn.GroupNorm(1, width)
        self.conv_1, self.conv_2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        nn.init.zeros_(self.conv_2.weight)
        nn.init.zeros_(self.conv_2.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        inner_BCHW = self.conv_1(F.gelu(self.norm_1(x_BCHW)))
        return x_BCHW + self.conv_2(F.gelu(self.norm_2(inner_BCHW)))


def grid_tokens(size: int, num_stages: int) -> int:
    """Tokens of a picture of `size` pixels, whose side each stage halves, rounding up."""
    for _ in range(num_stages):
        size = (size + 1) // 2
    return size * size
