"""CAR, the next-scale transformer: aligned tokens and conditions in, hidden states of all tokens out.

Conditions enter here.

All tokens of a scale are predicted at once from all coarser scales. The coarsest scale reads a learned start token;
every other scale reads the sum of the coarser ones, aligned to its own tokens (`car.G3PT.next_input`). Attention is
full inside a scale and causal across scales. Image tokens come first and attend only to each other. The text, and the
mean of the image tokens, enter through adaptive layer norm (AdaLN). The encoders that make the conditions are in
encoders.py.

Source: G3PT (arXiv 2409.06322): GPT-2 style decoder, unit-norm queries and keys, causal across scales, DINOv2 prefix,
CLIP by AdaLN. VAR (2404.02905): capped per-head scale, level and position embeddings.
Ours: AdaLN that starts at the identity (no zero gates); the mean image token in it, beside the prefix.
Shapes: B batch, S tokens of all scales, T tokens of a scale, D width (A of the tokenizer's aligned tokens), H heads,
M image tokens, C width of a condition, N tokens of prefix and scales.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from g3pt.config import CARConfig, CVQConfig
from g3pt.models.attention import KVCache, Levels, attended_pairs, causal
from g3pt.models.heads import build_head
from g3pt.models.layers import ModulatedBlock, modulate


class CAR(nn.Module):
    """The block-causal transformer: aligned tokens and conditions in, hidden states of all tokens out."""

    def __init__(
        self, config: CARConfig, codec: CVQConfig, text_width: int, image_width: int | None, image_tokens: int = 0
    ) -> None:
        super().__init__()
        self.config, self.scales, width = config, codec.scales, config.width
        self.num_prefix = image_tokens if image_width else 0
        self.input = nn.Linear(codec.width, width)
        self.start = nn.Parameter(torch.randn(self.scales[0], width) * 0.02)
        self.levels = nn.Parameter(torch.randn(len(self.scales), width) * 0.02)
        self.positions = nn.Parameter(torch.randn(sum(self.scales), width) * 0.02)
        self.text = nn.Linear(text_width, width)
        self.null_text = nn.Parameter(torch.randn(text_width) * 0.5)
        if self.num_prefix:
            self.image = nn.Linear(image_width, width)
            self.image_pool = nn.Linear(image_width, width)
            self.null_image = nn.Parameter(torch.randn(image_width) * 0.5)
            self.prefix_level = nn.Parameter(torch.randn(width) * 0.02)
        self.blocks = nn.ModuleList(ModulatedBlock(width, config.num_heads) for _ in range(config.depth))
        self.modulation = nn.Linear(width, 2 * width)
        self.head = build_head(config, codec)
        scale_S = torch.tensor([k for k, t in enumerate(self.scales) for _ in range(t)])
        self.register_buffer("scale_S", scale_S, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                std = 0.02 if isinstance(module, nn.Embedding) else 1 / math.sqrt(module.weight.shape[1])
                if name.endswith(("to_out", "mlp.2")):
                    std /= math.sqrt(2 * self.config.depth)
                if name.endswith("modulation"):
                    std *= 0.1
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for out in self.head.outs:
            nn.init.normal_(
                out.weight, std=2 / self.config.width
            )  # muP: what a step adds to a logit is that of any width

    @property
    def num_params_no_embed(self) -> int:
        """Parameters of the transformer itself: without embeddings, input and condition projections, and the head."""
        return sum(p.numel() for part in (self.blocks, self.modulation) for p in part.parameters())

    @property
    def num_params_no_adaln(self) -> int:
        """The same without the layers that modulate norms (AdaLN): a third of each block, used once per object,
        not per token.
        """
        modulations = (self.modulation, *(block.modulation for block in self.blocks))
        return self.num_params_no_embed - sum(p.numel() for part in modulations for p in part.parameters())

    @property
    def flops_per_object(self) -> int:
        """Operations of the matrix products of one forward pass of one object, a multiply-add counted as two.

        Training costs three times as much. Attention is counted over the pairs that attend; encoders and tokenizer are
        not counted.
        """
        per_object = [self.text, self.modulation, *(block.modulation for block in self.blocks)]
        per_token = [
            layer
            for block in self.blocks
            for layer in (block.attention.to_qkv, block.attention.to_out, block.mlp[0], block.mlp[2])
        ]
        scale_tokens = sum(self.scales)
        tokens = self.num_prefix + scale_tokens
        weights = sum(layer.weight.numel() for layer in per_object)
        weights += tokens * sum(layer.weight.numel() for layer in per_token)
        weights += scale_tokens * sum(layer.weight.numel() for layer in (*self.head.outs, *self.head.mixes))
        weights += (scale_tokens - self.scales[0]) * self.input.weight.numel()
        if self.num_prefix:
            weights += self.num_prefix * self.image.weight.numel() + self.image_pool.weight.numel()
        return 2 * weights + 4 * len(self.blocks) * attended_pairs(self.attended(len(self.scales))) * self.config.width

    def attended(self, num_scales: int) -> Levels:
        """Tokens of each level: the prefix, if there is one, and the first `num_scales` scales."""
        return (self.num_prefix,) * (self.num_prefix > 0) + self.scales[:num_scales]

    def condition(self, text_BC: Tensor, image_BMC: Tensor | None) -> Tensor:
        """What modulates every layer, (B, D), from the text vector and the mean image token."""
        return F.silu(self.modulator(text_BC, image_BMC))

    def modulator(self, text_BC: Tensor, image_BMC: Tensor | None) -> Tensor:
        """The same before the activation: the sum of the two conditions' projections."""
        pooled_BD = self.text(text_BC)
        if self.num_prefix:
            pooled_BD = pooled_BD + self.image_pool(image_BMC.mean(dim=1))
        return pooled_BD

    def embed(self, aligned_BTA: Tensor | None, batch: int, first: int, last: int) -> Tensor:
        """Input tokens of the scales from `first` to before `last`: start or aligned tokens, plus level
        and position embeddings.
        """
        start, end = sum(self.scales[:first]), sum(self.scales[:last])
        parts = [self.start.expand(batch, -1, -1)] if first == 0 else []
        if aligned_BTA is not None:
            parts.append(self.input(aligned_BTA))
        return torch.cat(parts, dim=1) + self.levels[self.scale_S[start:end]] + self.positions[start:end]

    def embed_prefix(self, image_BMC: Tensor) -> Tensor:
        """The first tokens of the sequence from image tokens, (B, M, D)."""
        return self.image(image_BMC) + self.prefix_level

    def forward(
        self, aligned_BTA: Tensor | None, text_BC: Tensor, image_BMC: Tensor | None, num_scales: int | None = None
    ) -> Tensor:
        """Teacher forcing: aligned tokens of all scales but the coarsest -> hidden states (B, T, D)
        of the first `num_scales` scales.
        """
        num_scales = len(self.scales) if num_scales is None else num_scales
        condition_BD = self.condition(text_BC, image_BMC)
        x_BND = self.embed(aligned_BTA, len(text_BC), 0, num_scales)
        structure = causal(self.attended(num_scales), x_BND.device)
        if self.num_prefix:
            x_BND = torch.cat([self.embed_prefix(image_BMC), x_BND], dim=1)
        for block in self.blocks:
            if self.config.checkpoint_layers and torch.is_grad_enabled():
                x_BND = checkpoint(block, x_BND, condition_BD, structure, use_reentrant=False)
            else:
                x_BND = block(x_BND, condition_BD, structure)
        return self.finish(x_BND[:, self.num_prefix :], condition_BD)

    def finish(self, x_BTD: Tensor, condition_BD: Tensor) -> Tensor:
        """The final modulated layer norm."""
        return modulate(x_BTD, *self.modulation(condition_BD)[:, None].chunk(2, dim=-1))

    def new_caches(self, batch: int) -> list[KVCache]:
        """One empty cache per layer, long enough for the prefix and all scales."""
        heads = self.config.num_heads
        shape = (batch, heads, self.num_prefix + sum(self.scales), self.config.width // heads)
        return [KVCache(*shape, like=self.start) for _ in self.blocks]

    def run_prefix(self, image_BMC: Tensor | None, condition_BD: Tensor, caches: list[KVCache]) -> None:
        """Fill the caches with the image tokens."""
        if self.num_prefix:
            x_BMD = self.embed_prefix(image_BMC)
            for block, cache in zip(self.blocks, caches, strict=True):
                x_BMD = block(x_BMD, condition_BD, cache=cache)

    def run_scale(self, aligned_BTA: Tensor | None, scale: int, condition_BD: Tensor, caches: list[KVCache]) -> Tensor:
        """Hidden states (B, T, D) of one scale's tokens, given the cached prefix and coarser scales."""
        x_BTD = self.embed(aligned_BTA, len(condition_BD), scale, scale + 1)
        for block, cache in zip(self.blocks, caches, strict=True):
            x_BTD = block(x_BTD, condition_BD, cache=cache)
        return self.finish(x_BTD, condition_BD)
