"""Next-scale sampling: guidance, top-k, top-p, inverse-CDF draws, and the loop over scales with a K/V cache.

Every random number of a sample is drawn before the loop from its own generator (`draw_uniforms`), and every row has its
own settings, so that a sample depends on its prompt, seed and settings and not on the rest of its batch. A code is
drawn factor by factor (see `heads.CodeHead`). At each scale only that scale's tokens pass through the transformer; the
keys and values of the prefix and of all coarser scales are in a cache allocated once.

Source: VAR (2404.02905): guidance t = cfg * k / (S - 1) over scales; G3PT's cross-scale alignment makes the next
scale's input (`car.G3PT.next_input`). Guidance of text and image: g3pt/models/guidance.py.
Ours: inverse-CDF draws per sample, top-k and top-p per factor of a code, the constant schedule, lists with a number per
scale.
Shapes: B batch, S tokens of all scales, T tokens of a scale, F factors of a code, V values of a factor, D width,
M image tokens, C condition width, K scales, W passes of guidance.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from g3pt.models.guidance import guided, needed_passes, pass_weights, spread_passes
from g3pt.models.tokenizer import CVQ
from g3pt.models.transformer import CAR

PerScale = float | tuple[float, ...]  # one number for all scales, or one for each, coarse to fine
LISTED = ("cfg", "cfg_text", "cfg_image", "top_k", "top_p", "temperature")  # settings that may be lists
MAX_CFG, MIN_TEMPERATURE = 1000, 0.001  # beyond these float32 logits overflow
RANGES = {
    "cfg": (lambda v: 0 <= v <= MAX_CFG, f"a number from 0 (no guidance) to {MAX_CFG}"),
    "top_k": (lambda v: 0 <= v < 2**31 and v == int(v), "a whole number from 0 (keep all) to 2^31"),
    "top_p": (lambda v: 0 < v <= 1, "above 0 and at most 1 (keep all)"),
    "temperature": (
        lambda v: MIN_TEMPERATURE <= v < math.inf,
        f"a number of at least {MIN_TEMPERATURE} (top_k 1 takes the likeliest)",
    ),
}


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How codes are drawn from logits.

    A tuple has one number per scale, coarse to fine; `check_scales` checks its length.
    """

    cfg: PerScale = 2.0  # guidance of both conditions: 0 is none
    cfg_text: PerScale | None = None  # of the text alone; None follows cfg
    cfg_image: PerScale | None = None  # of the image alone; None follows cfg
    cfg_schedule: str = (
        "constant"  # of a single number: the same at all scales; ramp: from 0 up to it at the last (VAR's)
    )
    top_k: int | tuple[int, ...] = 0  # values of a factor kept; 0 keeps all
    top_p: PerScale = 0.95  # smallest set of values with this much probability is kept; 1 keeps all
    temperature: PerScale = 1.0

    def __post_init__(self) -> None:
        if self.cfg_schedule not in ("ramp", "constant"):
            raise ValueError(f"cfg_schedule must be ramp or constant, got {self.cfg_schedule!r}")
        for name in LISTED:
            value = getattr(self, name)
            if value is None and name in ("cfg_text", "cfg_image"):
                continue
            if isinstance(value, list):
                value = tuple(value)
                object.__setattr__(self, name, value)
            good, want = RANGES["cfg" if name.startswith("cfg") else name]
            numbers = value if isinstance(value, tuple) else (value,)
            if not numbers or not all(good(number) for number in numbers):
                raise ValueError(f"{name} must be {want}, got {value!r}")

    def check_scales(self, num_scales: int) -> None:
        """ValueError for a list whose length is not the model's number of scales."""
        for name in LISTED:
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != num_scales:
                raise ValueError(
                    f"{name} has {len(value)} numbers, but the model has {num_scales} scales: give one number, or one "
                    f"per scale"
                )

    def at(self, name: str, scale: int) -> float:
        """The value of a setting at `scale`."""
        value = getattr(self, name)
        return value[scale] if isinstance(value, tuple) else value

    def guidance(self, condition: str, num_scales: int) -> list[float]:
        """Guidance of the condition `text` or `image` at each scale."""
        value = getattr(self, f"cfg_{condition}")
        value = self.cfg if value is None else value
        if isinstance(value, tuple):
            return list(value)
        if self.cfg_schedule == "constant" or num_scales == 1:
            return [value] * num_scales
        return [value * scale / (num_scales - 1) for scale in range(num_scales)]

    def as_dict(self) -> dict[str, Any]:
        """The settings for JSON; strengths that follow `cfg` are left out."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


def check_keep_scales(keep_scales: int, num_scales: int) -> None:
    """ValueError unless `keep_scales` is a number of scales of a model with `num_scales`."""
    if isinstance(keep_scales, bool) or not isinstance(keep_scales, int) or not 0 <= keep_scales <= num_scales:
        raise ValueError(f"keep_scales must be 0 to {num_scales}, the model's number of scales, got {keep_scales!r}")


class NextScaleModel(Protocol):
    """What sampling needs of `car.G3PT`."""

    car: CAR
    tokenizer: CVQ

    @property
    def scales(self) -> tuple[int, ...]:
        """Tokens per scale, coarse to fine."""

    def next_input(self, canvas_BLA: Tensor, codes_BT: Tensor, scale: int) -> tuple[Tensor, Tensor]:
        """The canvas with the codes of `scale` - 1, and its alignment to `scale`."""


def filter_logits(logits_V: Tensor, top_k: int | Tensor, top_p: float | Tensor) -> Tensor:
    """Logits (..., V) with -inf outside the top k values, then outside the smallest set that holds `top_p`.

    Either limit is a number or a tensor that broadcasts to (..., 1); `top_k` of 0 keeps all.
    """
    num_values = logits_V.shape[-1]
    top_k, top_p = torch.as_tensor(top_k), torch.as_tensor(top_p)
    limits_k, limits_p = bool((top_k > 0).any()), bool((top_p < 1).any())  # before they move to a GPU, which would wait
    if not (limits_k or limits_p):
        return logits_V
    top_k, top_p = top_k.to(logits_V.device), top_p.to(logits_V.device)
    sorted_V, order_V = logits_V.sort(dim=-1, descending=True, stable=True)
    if limits_k:
        last = torch.where(top_k > 0, top_k, num_values).clamp_max(num_values) - 1
        smallest = sorted_V.gather(-1, last.expand(*logits_V.shape[:-1], 1))
        logits_V, sorted_V = (x_V.masked_fill(x_V < smallest, -torch.inf) for x_V in (logits_V, sorted_V))
    if limits_p:
        probability_V = sorted_V.softmax(-1)
        before_V = probability_V.cumsum(-1) - probability_V
        beyond_V = (before_V >= top_p) & (top_p < 1)
        beyond_V[..., 0] = False  # the likeliest is kept, also where `top_p` is 0 in float32
        outside_V = torch.zeros_like(logits_V, dtype=torch.bool).scatter(-1, order_V, beyond_V)
        logits_V = logits_V.masked_fill(outside_V, -torch.inf)
    return logits_V


def inverse_cdf(logits_V: Tensor, uniform: Tensor) -> Tensor:
    """The value whose slice of the cumulative distribution holds `uniform` in [0, 1): logits (...,
    V) -> int64 (...).
    """
    cumulative_V = logits_V.double().softmax(-1).cumsum(-1)
    threshold = uniform.double() * cumulative_V[..., -1]
    return (cumulative_V <= threshold[..., None]).sum(-1).clamp_max(logits_V.shape[-1] - 1)


def draw_uniforms(seeds: Sequence[int], num_tokens: int, num_factors: int) -> Tensor:
    """Uniform numbers (B, S, F) in [0, 1), each row from a generator of its seed."""
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        rows.append(torch.rand(num_tokens, num_factors, generator=generator, dtype=torch.float64))
    return torch.stack(rows)


def row_settings(settings: SampleConfig | Sequence[SampleConfig], num_rows: int) -> list[SampleConfig]:
    """Settings of each row, from one for all or one per row."""
    rows = [settings] * num_rows if isinstance(settings, SampleConfig) else list(settings)
    if len(rows) != num_rows:
        raise ValueError(f"{len(rows)} settings for {num_rows} seeds: give one SampleConfig, or one per seed")
    return rows


def row_weights(
    model: NextScaleModel, text_BC: Tensor, image_BMC: Tensor | None, rows: Sequence[SampleConfig]
) -> Tensor:
    """Weights (B, K, 3) of the passes of rows with these encoded conditions; a condition equal
    to its null embedding is absent.
    """
    num_scales = len(model.scales)
    has_text_B = (text_BC != model.car.null_text).any(-1).tolist()
    has_image_B = (
        [False] * len(rows) if image_BMC is None else (image_BMC != model.car.null_image).flatten(1).any(-1).tolist()
    )
    weights = []
    for settings, has_text, has_image in zip(rows, has_text_B, has_image_B, strict=True):
        settings.check_scales(num_scales)
        weights.append(
            pass_weights(
                settings.guidance("text", num_scales), settings.guidance("image", num_scales), has_text, has_image
            )
        )
    return torch.stack(weights)


def choose_codes(
    model: NextScaleModel,
    hidden_BTD: Tensor,
    uniform_BTF: Tensor,
    weights_BW: Tensor,
    rows: Sequence[SampleConfig],
    scale: int,
) -> Tensor:
    """Codes (B, T) of one scale, from the hidden states (W * B, T, D) of all rows, one pass after the other."""
    head, num_passes = model.car.head, weights_BW.shape[1]
    top_k, top_p, temperature = (
        torch.tensor([settings.at(name, scale) for settings in rows])[:, None, None]
        for name in ("top_k", "top_p", "temperature")
    )
    temperature = temperature.to(hidden_BTD.device)
    digits: list[Tensor] = []
    for factor in range(len(head.factors)):
        logits_BTV = guided(head.logits(hidden_BTD, [d.repeat(num_passes, 1) for d in digits]).float(), weights_BW)
        logits_BTV = filter_logits(logits_BTV / temperature, top_k, top_p)
        digits.append(inverse_cdf(logits_BTV, uniform_BTF[..., factor]))
    return head.join(digits)


@torch.inference_mode()
def sample_codes(
    model: NextScaleModel,
    text_BC: Tensor,
    image_BMC: Tensor | None,
    seeds: Sequence[int],
    settings: SampleConfig | Sequence[SampleConfig],
    *,
    known_BS: Tensor | None = None,
    watch: Callable[[Tensor], None] | None = None,
    cached: bool = True,
) -> Tensor:
    """Codes int64 (B, S) for encoded conditions, with a seed per row and settings for all or per row.

    `known_BS`: codes of the coarsest scales, which are kept; only finer ones are drawn (completion of a coarse shape).
    `watch` is called after each drawn scale with the codes (B, T) of all scales so far.
    `cached=False` recomputes all scales (for tests). Every row takes part in each pass that any row needs;
    `G3PT.sample_encoded` groups rows by the passes they need.
    """
    car, tokenizer, scales = model.car, model.tokenizer, model.scales
    batch, rows = len(seeds), row_settings(settings, len(seeds))
    uniforms_BSF = draw_uniforms(seeds, sum(scales), len(car.head.factors)).to(text_BC.device)
    weights_BKW = row_weights(model, text_BC, image_BMC, rows)
    passes = needed_passes(weights_BKW)
    weights_BKW = weights_BKW[..., list(passes)].to(text_BC.device)
    text_BC, image_BMC = spread_passes(text_BC, image_BMC, car.null_text, getattr(car, "null_image", None), passes)
    condition, caches = car.condition(text_BC, image_BMC), None
    if cached:
        caches = car.new_caches(text_BC.shape[0])
        car.run_prefix(image_BMC, condition, caches)
    num_known = 0 if known_BS is None else known_BS.shape[1]
    if num_known not in (sum(scales[:k]) for k in range(len(scales) + 1)):
        raise ValueError(f"{num_known} known codes do not end at the end of one of the scales {scales}")
    canvas_BLD = tokenizer.canvas_start(batch)
    codes, aligned = [], []
    for scale, num_tokens in enumerate(scales):
        if scale > 0:
            canvas_BLD, aligned_BTD = model.next_input(canvas_BLD, codes[-1], scale)
            aligned.append(aligned_BTD.repeat(len(passes), 1, 1))
        if cached:
            hidden_BTD = car.run_scale(aligned[-1] if aligned else None, scale, condition, caches)
        else:
            hidden_BTD = car(_join(aligned), text_BC, image_BMC, num_scales=scale + 1)[:, -num_tokens:]
        start = sum(scales[:scale])
        if start < num_known:
            codes.append(known_BS[:, start : start + num_tokens].to(text_BC.device))
            continue
        uniform_BTF = uniforms_BSF[:, start : start + num_tokens]
        codes.append(choose_codes(model, hidden_BTD, uniform_BTF, weights_BKW[:, scale], rows, scale))
        if watch is not None:
            watch(torch.cat(codes, dim=1))
    return torch.cat(codes, dim=1)


def _join(aligned: list[Tensor]) -> Tensor | None:
    return torch.cat(aligned, dim=1) if aligned else None
