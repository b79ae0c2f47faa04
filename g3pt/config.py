"""Model and training configurations, and the presets: one table for tokenizers, one for generators.

A configuration is a frozen dataclass that refuses invalid values. Derived values are properties; presets are rows of a
table, so that two sizes can be compared. Comments beside fields say what is the paper's and what is ours. The commands'
flags are in pipelines/ (each stage's config or jobs module).

Scales: code names a scale by its index in `CVQConfig.scales`, so 0 is the coarsest. Keys of records (`ce_scale_1`),
messages and prose number them from 1.

Source: G3PT (arXiv 2409.06322); CVQ's L = 2304, C = 512, 12 + 16 layers and 8192 codes are the paper's.
Ours: every other number, the presets below `paper`, and all schedules of scales (the paper gives the first scale, 1,
and the total, 2408; `paper` uses the one sum of squares that fits both).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal

# Format of config.json of runs and exports. Raise it when older files can no longer be read; a new field with a default
# is no such change.
FORMAT_VERSION = 1


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class CVQConfig:
    """The tokenizer: point encoder, Cross-scale Querying Transformer (CQT), quantiser, occupancy decoder."""

    scales: tuple[int, ...]  # tokens per scale, coarse to fine; the last equals the number of latents L
    width: int  # D, of latents and of every layer
    num_heads: int
    encoder_layers: int  # self-attention layers after the cross-attention from the points
    decoder_layers: int  # self-attention layers before the query points' cross-attention
    latent_queries: Literal["anchored", "learned"] = "anchored"  # learned: the paper's
    anchor_blur: float = 0.2  # anchored: width of the Gaussian weights of the points, in spacings of the anchors
    # queries: the paper's CQT; pooled and slices are controls of the scaling study (g3pt/models/cqt.py)
    resampling: Literal["queries", "pooled", "slices"] = "queries"
    quantizer: Literal["fsq", "lfq"] = "fsq"  # lfq: the paper's
    fsq_levels: tuple[int, ...] = (8, 8, 5, 5, 5)
    lfq_bits: int = 13
    num_fourier: int = 8  # frequencies of the point embedding
    num_points: int = 2048  # surface points read per object and step
    num_sharp_points: int = 0  # points on sharp edges read beside them
    num_encode_points: int = 8192  # surface points read when a trained tokenizer encodes an object
    num_volume_queries: int = 1024  # occupancy queries per object and step, uniform in the box
    num_near_queries: int = 1024  # and near the surface
    near_weight: float = 0.25  # of the near-surface loss against the volume's
    latent_weight: float = 1.0  # of the pyramid's loss on the latents
    commitment_weight: float = 0.1  # pulls the encoder towards what the pyramid can express
    code_weight: float = 0.05  # LFQ: entropy pressure; FSQ needs none
    continuous_share: float = 0.2  # phase A: share of the steps that train the autoencoder alone
    pyramid_share: float = 0.3  # phase A2: share of the steps that also fit the quantised pyramid to the latents
    stat_momentum: float = 0.03  # of the running per-position statistics before the quantiser
    stat_freeze_share: float = 0.1  # share of the steps, at the end, during which those statistics are constant
    checkpoint_layers: bool = False  # recompute activations in the backward pass; training chooses it by memory

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(int(t) for t in self.scales))
        object.__setattr__(self, "fsq_levels", tuple(int(v) for v in self.fsq_levels))
        _require(len(self.scales) >= 1 and min(self.scales) >= 1, f"scales must be positive, got {self.scales}")
        _require(list(self.scales) == sorted(self.scales), f"scales must not shrink, got {self.scales}")
        _require(
            self.width % self.num_heads == 0, f"width {self.width} is not a multiple of num_heads {self.num_heads}"
        )
        _require(self.latent_queries in ("anchored", "learned"), f"unknown latent_queries {self.latent_queries!r}")
        _require(self.resampling in ("queries", "pooled", "slices"), f"unknown resampling {self.resampling!r}")
        _require(self.quantizer in ("fsq", "lfq"), f"unknown quantizer {self.quantizer!r}")
        _require(self.anchor_blur > 0, f"anchor_blur must be positive, got {self.anchor_blur}")
        _require(
            1 <= self.lfq_bits <= 16, f"lfq_bits must be 1 to 16 (codes are stored as uint16), got {self.lfq_bits}"
        )
        _require(
            min(self.fsq_levels) >= 3,
            f"fsq_levels must be at least 3 (a digit of two values never changes), got {self.fsq_levels}",
        )
        _require(self.num_codes <= 65536, f"{self.num_codes} codes do not fit uint16")
        shares = self.continuous_share + self.pyramid_share + self.stat_freeze_share
        _require(0 <= shares <= 1, f"continuous, pyramid and freeze shares add up to {shares}, more than the whole run")

    @property
    def num_latents(self) -> int:
        """L."""
        return sum(self.scales) if self.resampling == "slices" else self.scales[-1]

    @property
    def num_scales(self) -> int:
        """Number of scales."""
        return len(self.scales)

    @property
    def num_tokens(self) -> int:
        """S, tokens of all scales."""
        return sum(self.scales)

    @property
    def num_codes(self) -> int:
        """V, the number of values of a token."""
        return math.prod(self.fsq_levels) if self.quantizer == "fsq" else 2**self.lfq_bits

    @property
    def code_levels(self) -> tuple[int, ...]:
        """Values of each digit of a code: FSQ's levels, or 2 for each LFQ bit."""
        return self.fsq_levels if self.quantizer == "fsq" else (2,) * self.lfq_bits


@dataclass(frozen=True, kw_only=True)
class CARConfig:
    """The generator: a block-causal transformer over the tokens of all scales, and its two conditions."""

    depth: int
    width: int
    num_heads: int
    # digits: a chain of softmaxes over the code's digits; joint: the paper's softmax over V; bits: independent digits
    head: Literal["digits", "joint", "bits"] = "digits"
    factor_values: int = 8  # digits head: neighbouring digits share a softmax of at most this many values
    scale_loss_power: float = 0.5  # the loss of a token of scale k is weighted by T_k ** -power
    progressive_share: float = 0.0  # share of the steps, at the start, that train only the coarser half of the scales
    # probabilities of one draw per object and step; null embeddings replace what is dropped
    drop_both: float = 0.1  # text and image: guidance's pass without a condition learns from these objects
    drop_text: float = 0.05  # the text of an object that keeps its image
    drop_image: float = 0.2  # the image of an object that keeps its text
    image_text_weight: float = 4.0  # of the loss that pulls an image's modulation towards its caption's (ours)
    drop_phrases: float = 0.0  # probability that training removes attributes of a caption (g3pt/data/captions.py)
    # codes of each object to train on: its own, and those of variants of it (g3pt/data/variants.py)
    code_variants: int = 1
    # "small": trained here, jointly; a generator's export or run: its text encoder, frozen ("exported" in the
    # configuration of what is trained with it); else a hub id or a folder of CLIPTextModel
    text_encoder: str = "small"
    text_revision: str | None = None  # a hub id's commit, an export's hash
    image_encoder: str = "small"  # "none", "small": trained here, jointly; else a hub id or a folder of Dinov2Model
    image_revision: str | None = None
    image_size: int = 56  # pixels, both sides, of what the image encoder reads
    checkpoint_layers: bool = False  # as of CVQConfig

    def __post_init__(self) -> None:
        _require(
            self.width % self.num_heads == 0, f"width {self.width} is not a multiple of num_heads {self.num_heads}"
        )
        _require(self.depth >= 1, f"depth must be at least 1, got {self.depth}")
        _require(self.head in ("digits", "joint", "bits"), f"unknown head {self.head!r}")
        _require(self.factor_values >= 2, f"factor_values must be at least 2, got {self.factor_values}")
        drops = ("drop_both", "drop_text", "drop_image")
        _require(self.code_variants >= 1, f"code_variants must be at least 1, got {self.code_variants}")
        for name in (*drops, "drop_phrases", "progressive_share"):
            _require(0 <= getattr(self, name) <= 1, f"{name} must be a share in [0, 1], got {getattr(self, name)}")
        dropped = sum(getattr(self, name) for name in drops)
        _require(dropped <= 1 + 1e-9, f"{', '.join(drops)} must add up to at most 1, got {dropped:g}")
        _require(self.image_text_weight >= 0, f"image_text_weight must not be negative, got {self.image_text_weight}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One optimisation run: AdamW, a schedule of the learning rate, clipping, an exponential average of the weights.

    The schedules and the rates of the parameter groups: g3pt/training/optimizer.py.
    """

    steps: int  # optimiser steps
    batch_size: int  # objects per step over all workers
    learning_rate: float  # its peak, at `base_width`
    # hidden matrices of a model of another width learn at learning_rate * base_width / width; None: as everything else
    base_width: int | None = None
    schedule: Literal["cosine", "wsd"] = "cosine"  # after the warm-up; wsd: constant, then a cooldown
    warmup_share: float = 0.02  # share of the steps, at the start, during which the rate rises
    # the same in objects, in place of the share: independent of the length of the run
    warmup_samples: int | None = None
    cooldown_share: float = 0.2  # wsd: share of the steps, at the end, during which the rate falls
    beta2: float = 0.95  # of AdamW: decay of the mean square of the gradients
    weight_decay: float = 0.05  # of weight matrices; embeddings, queries, positions, norms and biases are not decayed
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    seed: int = 0
    log_every: int = 20  # steps
    eval_every: int = 200  # steps
    checkpoint_every: int = 100  # steps
    test_objects: int = 4096  # at most, of the test at the end; fewer for many short runs
    precision: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "eval_every", "checkpoint_every", "test_objects"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        _require(self.learning_rate > 0, f"learning_rate must be positive, got {self.learning_rate}")
        _require(self.base_width is None or self.base_width >= 1, f"base_width must be positive, got {self.base_width}")
        _require(self.schedule in ("cosine", "wsd"), f"unknown schedule {self.schedule!r}")
        for name in ("warmup_share", "cooldown_share"):
            _require(0 <= getattr(self, name) <= 1, f"{name} must be a share in [0, 1], got {getattr(self, name)}")
        _require((self.warmup_samples or 0) >= 0, f"warmup_samples must not be negative, got {self.warmup_samples}")
        falling = self.cooldown_steps if self.schedule == "wsd" else 1
        _require(
            self.warmup_steps + falling <= self.steps,
            f"{self.steps} steps are too few for {self.warmup_steps} steps of warm-up and {falling} of a falling rate",
        )
        for name in ("beta2", "ema_decay"):
            _require(0 <= getattr(self, name) < 1, f"{name} must be in [0, 1), got {getattr(self, name)}")
        _require(self.weight_decay >= 0, f"weight_decay must not be negative, got {self.weight_decay}")
        _require(self.precision in ("fp32", "bf16"), f"unknown precision {self.precision!r}")

    @property
    def warmup_steps(self) -> int:
        """Steps of the warm-up."""
        if self.warmup_samples is None:
            return round(self.warmup_share * self.steps)
        return math.ceil(self.warmup_samples / self.batch_size)

    @property
    def cooldown_steps(self) -> int:
        """Steps of the cooldown of `wsd`."""
        return max(1, round(self.cooldown_share * self.steps))


def from_dict(cls: type, values: dict[str, Any]) -> Any:
    """The configuration `cls` from parsed JSON. ValueError that names unknown keys."""
    known = {f.name for f in fields(cls)}
    unknown = sorted(set(values) - known)
    _require(not unknown, f"{cls.__name__} has no field {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


MODEL_CONFIGS: dict[str, type] = {"cvq": CVQConfig, "car": CARConfig}  # by stage of a run, and kind of an export


def without_defaults(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `values` that differ from the default of the field of `cls` with their name.

    What names and hashes cover: a field that is added to `cls` with a default changes none of them.
    """
    defaults = {f.name: _as_json(f.default) for f in fields(cls) if f.default is not MISSING}
    return {k: v for k, v in values.items() if k not in defaults or _as_json(v) != defaults[k]}


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def check_format(values: Mapping[str, Any], file: str | Path) -> None:
    """ValueError unless `values`, the parsed config.json `file`, have the format version that this program reads."""
    found = values.get("format_version")
    said = "has no format version" if found is None else f"has format version {found}"
    _require(
        found == FORMAT_VERSION,
        f"{file} {said}; this g3pt reads version {FORMAT_VERSION}: use the g3pt that wrote it, or train or "
        "export again with this one",
    )


PAPER_SCALES = (1, 4, 9, 16, 25, 49, 2304)  # sums to the paper's 2408; the split is ours
# `learning_rate` is that of hidden matrices at `base_width`, the width of nano. Above nano, no rate was measured:
# hidden matrices learn at about the rates that were set by hand before rates followed the width.
# The smallest presets. Their warm-up is a longer share of fewer steps: 16 steps cost nano more than 32 or 50 (LOG.md).
SHORT: dict[str, Any] = {"steps": 1200, "batch_size": 16, "warmup_share": 0.08, "ema_decay": 0.99}
# Heads from `micro` on are 64 wide, a tile of a GPU's matrix units (`1.5M` and `10M`: 32). Learning rates above `nano`
# are not measured.
# fmt: off
CVQ_LONG: dict[str, Any] = {"steps": 60_000, "base_width": 64, "precision": "bf16"}
CVQ_PRESETS: dict[str, tuple[CVQConfig, TrainConfig]] = {
    "nano":  (CVQConfig(scales=(1, 4, 16, 64), width=64, num_heads=4, encoder_layers=1, decoder_layers=2,
                        num_fourier=2, num_points=1024, num_encode_points=4096, num_volume_queries=256,
                        num_near_queries=256),
              TrainConfig(**SHORT, learning_rate=2e-3, base_width=64, eval_every=300)),
    "micro": (CVQConfig(scales=(1, 4, 9, 16, 32, 64, 128), width=128, num_heads=2, encoder_layers=2, decoder_layers=4,
                        num_points=2048, num_volume_queries=512, num_near_queries=512),
              TrainConfig(steps=20_000, batch_size=32, learning_rate=2e-3, base_width=64, eval_every=920)),
    "small": (CVQConfig(scales=(1, 4, 9, 16, 36, 81, 182, 512), width=256, num_heads=4, encoder_layers=4,
                        decoder_layers=6, num_points=8192, num_sharp_points=2048, num_encode_points=16384,
                        num_volume_queries=2048, num_near_queries=2048),
              TrainConfig(batch_size=256, learning_rate=1.6e-3, **CVQ_LONG, ema_decay=0.9995)),
    "base":  (CVQConfig(scales=(1, 4, 9, 16, 36, 81, 182, 410, 1024), width=384, num_heads=6, encoder_layers=8,
                        decoder_layers=12, num_points=16384, num_sharp_points=4096, num_encode_points=16384,
                        num_volume_queries=4096, num_near_queries=4096),
              TrainConfig(batch_size=128, learning_rate=1.2e-3, **CVQ_LONG, ema_decay=0.9999)),
    "paper": (CVQConfig(scales=PAPER_SCALES, width=512, num_heads=8, encoder_layers=12, decoder_layers=16,
                        latent_queries="learned", quantizer="lfq",
                        num_points=16384, num_sharp_points=0, num_encode_points=16384,
                        num_volume_queries=8192, num_near_queries=8192),
              TrainConfig(batch_size=256, learning_rate=8e-4, **CVQ_LONG, ema_decay=0.9999)),
    # The paper's size with what won at `nano` (LOG.md): anchored latents with their blur, FSQ, and sharp points as from
    # `small` on.
    "large": (CVQConfig(scales=PAPER_SCALES, width=512, num_heads=8, encoder_layers=12, decoder_layers=16,
                        num_points=16384, num_sharp_points=4096, num_encode_points=16384,
                        num_volume_queries=8192, num_near_queries=8192),
              TrainConfig(batch_size=256, learning_rate=8e-4, **CVQ_LONG, ema_decay=0.9999)),
}
# Small sizes are named by their parameters; from 0.1B on, VAR's rule: width = 64 x depth, heads = depth.
# 18 x depth x width^2 parameters each, without embeddings and head. From nano on a size is 1.5 to 2.9 times the one
# before: twelve points over three and a half decades for a scaling study. The demo's sweep trains 5k to 150k.
PRETRAINED: dict[str, Any] = {
    "text_encoder": "openai/clip-vit-large-patch14",
    "image_encoder": "facebook/dinov2-large",
    "image_size": 224,
    "image_text_weight": 0.0,  # DINOv2 is trained on pictures already; not measured
}
CAR_LONG: dict[str, Any] = {"steps": 200_000, "base_width": 96, "precision": "bf16", "ema_decay": 0.9999}
CAR_PRESETS: dict[str, tuple[CARConfig, TrainConfig]] = {
    "5k":    (CARConfig(depth=1, width=16, num_heads=1),   TrainConfig(**SHORT, learning_rate=3e-3, base_width=96)),
    "20k":   (CARConfig(depth=1, width=32, num_heads=2),   TrainConfig(**SHORT, learning_rate=3e-3, base_width=96)),
    "80k":   (CARConfig(depth=2, width=48, num_heads=2),   TrainConfig(**SHORT, learning_rate=3e-3, base_width=96)),
    "150k":  (CARConfig(depth=2, width=64, num_heads=2),   TrainConfig(**SHORT, learning_rate=3e-3, base_width=96)),
    "nano":  (CARConfig(depth=3, width=96, num_heads=3),   TrainConfig(**SHORT, learning_rate=3e-3, base_width=96)),
    "1.5M":  (CARConfig(depth=5, width=128, num_heads=4),
              TrainConfig(steps=4000, batch_size=32, learning_rate=2.6e-3, base_width=96, warmup_share=0.08,
                          ema_decay=0.995)),
    "micro": (CARConfig(depth=6, width=192, num_heads=3),
              TrainConfig(steps=10_000, batch_size=64, learning_rate=2e-3, base_width=96, eval_every=280)),
    "10M":   (CARConfig(depth=8, width=256, num_heads=8),
              TrainConfig(steps=20_000, batch_size=128, learning_rate=1.6e-3, base_width=96, precision="bf16")),
    "small": (CARConfig(depth=8, width=384, num_heads=6),
              TrainConfig(steps=50_000, batch_size=256, learning_rate=1.6e-3, base_width=96, precision="bf16")),
    "base":  (CARConfig(depth=12, width=512, num_heads=8),
              TrainConfig(steps=100_000, batch_size=256, learning_rate=1.1e-3, base_width=96, precision="bf16")),
    "0.1B":  (CARConfig(depth=11, width=704, num_heads=11, **PRETRAINED),
              TrainConfig(**CAR_LONG, batch_size=256, learning_rate=1.5e-3)),
    "0.2B":  (CARConfig(depth=14, width=896, num_heads=14, **PRETRAINED),
              TrainConfig(**CAR_LONG, batch_size=256, learning_rate=1.9e-3)),
    "0.3B":  (CARConfig(depth=16, width=1024, num_heads=16, **PRETRAINED),
              TrainConfig(**CAR_LONG, batch_size=512, learning_rate=1.9e-3)),
    "0.5B":  (CARConfig(depth=19, width=1216, num_heads=19, **PRETRAINED),
              TrainConfig(**CAR_LONG, batch_size=512, learning_rate=1.9e-3)),
    "0.9B":  (CARConfig(depth=23, width=1472, num_heads=23, **PRETRAINED),
              TrainConfig(**CAR_LONG, batch_size=1024, learning_rate=1.9e-3)),
    "1.5B":  (CARConfig(depth=27, width=1728, num_heads=27, **PRETRAINED),
              TrainConfig(**CAR_LONG, batch_size=1024, learning_rate=1.9e-3)),
}
# fmt: on


def cvq_preset(name: str) -> tuple[CVQConfig, TrainConfig]:
    """The tokenizer preset `name`. ValueError, with the known names, for an unknown one."""
    return _lookup(CVQ_PRESETS, name)


def car_preset(name: str) -> tuple[CARConfig, TrainConfig]:
    """The generator preset `name`, or a small one of DEPTHxWIDTH, such as 2x48.
    ValueError, with the known names, for an unknown one.
    """
    sized = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", name)
    return _sized(int(sized[1]), int(sized[2])) if sized else _lookup(CAR_PRESETS, name)


def _sized(depth: int, width: int) -> tuple[CARConfig, TrainConfig]:
    """A generator for scaling studies, with heads about 32 wide, trained as the smallest presets are."""
    _require(width % 8 == 0, f"the width of {depth}x{width} must be a multiple of 8")
    heads = next(count for count in range(max(1, width // 32), 0, -1) if width % count == 0)
    return CARConfig(depth=depth, width=width, num_heads=heads), CAR_PRESETS["nano"][1]


def _lookup(table: dict[str, Any], name: str) -> Any:
    _require(name in table, f"unknown preset {name!r}; choose one of {', '.join(table)}")
    return table[name]
