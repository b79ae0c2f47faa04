"""Next-scale sampling: guidance, top-k, top-p, inverse-CDF draws, and the loop over scales with a K/V cache.

Every random number of a sample is drawn before the loop from a generator of its own (`draw_uniforms`), so that a sample
depends on its prompt and seed and not on who shares its batch. A code is drawn factor by factor (see `CodeHead`).
At each scale only that scale's tokens pass through the transformer; keys and values of the prefix and of all coarser
scales lie in a cache allocated once.

Source: VAR (2404.02905): t = cfg * k / (S - 1) over scales, logits = (1 + t) conditional - t unconditional; G3PT's
cross-scale alignment makes the next scale's input (see `car.next_input`).
Ours: inverse-CDF draws per sample, top-k and top-p per factor of a code, the constant guidance schedule.
Shapes: B batch, S tokens of all scales, T tokens of a scale, F factors of a code, V values of a factor, D width,
M image tokens, C condition width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from g3pt.car import G3PT


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How codes are drawn from logits."""

    cfg: float = 2.0  # guidance: 0 is none
    cfg_schedule: str = "ramp"  # ramp: from 0 at the first scale to cfg at the last; constant
    top_k: int = 0  # values of a factor kept; 0 keeps all
    top_p: float = 0.95  # smallest set of values with this much probability is kept; 1 keeps all
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name, good, want in (
            ("cfg", 0 <= self.cfg < math.inf, "finite and at least 0"),
            ("cfg_schedule", self.cfg_schedule in ("ramp", "constant"), "ramp or constant"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("temperature", 0 < self.temperature < math.inf, "finite and above 0"),
        ):
            if not good:
                raise ValueError(f"{name} must be {want}, got {getattr(self, name)!r}")

    def guidance(self, scale: int, num_scales: int) -> float:
        """t of scale `scale` (0 is the coarsest)."""
        if self.cfg_schedule == "constant" or num_scales == 1:
            return self.cfg
        return self.cfg * scale / (num_scales - 1)


def filter_logits(logits_V: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits (..., V) with -inf outside the top k values, then outside the smallest set that holds `top_p`."""
    if 0 < top_k < logits_V.shape[-1]:
        smallest = logits_V.topk(top_k, dim=-1).values[..., -1:]
        logits_V = logits_V.masked_fill(logits_V < smallest, -torch.inf)
    if top_p < 1:
        sorted_V, order_V = logits_V.sort(dim=-1, descending=True, stable=True)
        probability_V = sorted_V.softmax(-1)
        before_V = probability_V.cumsum(-1) - probability_V
        outside_V = torch.zeros_like(logits_V, dtype=torch.bool).scatter(-1, order_V, before_V >= top_p)
        logits_V = logits_V.masked_fill(outside_V, -torch.inf)
    return logits_V


def inverse_cdf(logits_V: Tensor, uniform: Tensor) -> Tensor:
    """The value whose slice of the cumulative distribution holds `uniform` in [0, 1): logits (..., V) -> int64 (...)."""
    cumulative_V = logits_V.double().softmax(-1).cumsum(-1)
    threshold = uniform.double() * cumulative_V[..., -1]
    return (cumulative_V <= threshold[..., None]).sum(-1).clamp_max(logits_V.shape[-1] - 1)


def draw_uniforms(seeds: Sequence[int], num_tokens: int, num_factors: int) -> Tensor:
    """One generator a seed: (B, S, F) in [0, 1), whatever the batch."""
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        rows.append(torch.rand(num_tokens, num_factors, generator=generator, dtype=torch.float64))
    return torch.stack(rows)


def choose_codes(model: G3PT, hidden_BTD: Tensor, uniform_BTF: Tensor, guidance: float, settings: SampleConfig) -> Tensor:
    """Codes (B, T) of one scale; with guidance the batch holds the conditional half, then the unconditional one."""
    head = model.car.head
    batch = uniform_BTF.shape[0]
    digits: list[Tensor] = []
    for factor in range(len(head.factors)):
        repeated = [d.repeat(hidden_BTD.shape[0] // batch, 1) for d in digits]
        logits_BTV = head.logits(hidden_BTD, repeated).float()
        if hidden_BTD.shape[0] > batch:
            logits_BTV = (1 + guidance) * logits_BTV[:batch] - guidance * logits_BTV[batch:]
        logits_BTV = filter_logits(logits_BTV / settings.temperature, settings.top_k, settings.top_p)
        digits.append(inverse_cdf(logits_BTV, uniform_BTF[..., factor]))
    return head.join(digits)


@torch.inference_mode()
def sample_codes(
    model: G3PT,
    text_BC: Tensor,
    image_BMC: Tensor | None,
    seeds: Sequence[int],
    settings: SampleConfig,
    *,
    known_BS: Tensor | None = None,
    cached: bool = True,
) -> Tensor:
    """Encoded conditions and one seed a row -> codes int64 (B, S). `cached=False` recomputes all scales (for tests).

    `known_BS`: codes of the first whole scales, kept as they are; only the finer ones are drawn (completion of a coarse shape).
    """
    car, tokenizer, scales = model.car, model.tokenizer, model.scales
    batch = len(seeds)
    uniforms_BSF = draw_uniforms(seeds, sum(scales), len(car.head.factors)).to(text_BC.device)
    if settings.cfg > 0:
        text_BC = torch.cat([text_BC, car.null_text.expand_as(text_BC)])
        image_BMC = None if image_BMC is None else torch.cat([image_BMC, car.null_image.expand_as(image_BMC)])
    ways = text_BC.shape[0] // batch
    condition, caches = car.condition(text_BC, image_BMC), None
    if cached:
        caches = car.new_caches(text_BC.shape[0])
        car.run_prefix(image_BMC, condition, caches)
    num_known = 0 if known_BS is None else known_BS.shape[1]
    if num_known not in (sum(scales[:k]) for k in range(len(scales) + 1)):
        raise ValueError(f"{num_known} known codes are no whole number of the scales {scales}")
    canvas_BLD = tokenizer.canvas_start(batch)
    codes, aligned = [], []
    for scale, num_tokens in enumerate(scales):
        if scale > 0:
            canvas_BLD, aligned_BTD = model.next_input(canvas_BLD, codes[-1], scale)
            aligned.append(aligned_BTD.repeat(ways, 1, 1))
        if cached:
            hidden_BTD = car.run_scale(aligned[-1] if aligned else None, scale, condition, caches)
        else:
            hidden_BTD = car(_join(aligned), text_BC, image_BMC, num_scales=scale + 1)[:, -num_tokens:]
        start = sum(scales[:scale])
        if start < num_known:
            codes.append(known_BS[:, start : start + num_tokens].to(text_BC.device))
            continue
        uniform_BTF = uniforms_BSF[:, start : start + num_tokens]
        codes.append(choose_codes(model, hidden_BTD, uniform_BTF, settings.guidance(scale, len(scales)), settings))
    return torch.cat(codes, dim=1)


def _join(aligned: list[Tensor]) -> Tensor | None:
    return torch.cat(aligned, dim=1) if aligned else None
