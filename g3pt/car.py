"""CAR, the next-scale generator, and G3PT, which holds it with its frozen tokenizer and its two encoders.

All tokens of a scale are predicted at once from all coarser scales. The first scale reads a learned start token; scale
k > 1 reads the sum of the coarser scales brought to its own tokens by the tokenizer (`G3PT.next_input`, the
one place where codes become inputs: teacher forcing and sampling both call it). Attention is full inside a scale and
causal across scales; image tokens stand before everything and see only themselves. The text, and the mean of the image
tokens, enter through adaptive layer norm. Either condition may be absent: learned null embeddings take its place, and
training drops each at random.

Source: G3PT (arXiv 2409.06322): GPT-2 style decoder, unit-norm queries and keys, causal across scales, cross-scale
alignment, DINOv2 prefix, CLIP by AdaLN. VAR (2404.02905): capped per-head scale, level and position embeddings.
Ours: AdaLN that starts at the identity (no zero gates); the mean image token in it, beside the prefix; `CodeHead`,
which predicts a code as a chain of few small softmaxes instead of one over V; the weights of the scales in the loss.
Shapes: B batch, S tokens of all scales, T tokens of a scale, L latents, D width (of CAR; A of the tokenizer's aligned tokens), H heads,
M image tokens, C width of a condition, F factors of a code, V values of a factor, N tokens of prefix and scales.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from g3pt.batches import rand_rows
from g3pt.checkpoint import Pretrained
from g3pt.conditions import NONE, SMALL_IMAGE, SMALL_TEXT, ImageEncoder, TextEncoder, prepare_image
from g3pt.config import CARConfig, CVQConfig, from_dict
from g3pt.decoding import decode_mesh
from g3pt.layers import unit_norm
from g3pt.sampling import KVCache, SampleConfig, sample_codes
from g3pt.tokenizer import CVQ


class UnitAttention(nn.Module):
    """Self-attention whose queries and keys are unit vectors, times a learned scale per head, capped at 100."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.to_out = nn.Linear(width, width)
        self.log_scale_H = nn.Parameter(torch.full((num_heads,), math.log(4.0)))

    def forward(self, x_BND: Tensor, mask_NN: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        query, key, value = self.to_qkv(x_BND).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = unit_norm(query, key, self.log_scale_H)
        if cache is not None:
            key, value = cache.append(key, value)
        out = F.scaled_dot_product_attention(query.to(value.dtype), key.to(value.dtype), value, attn_mask=mask_NN, scale=1.0)
        return self.to_out(out.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-LN transformer block, whose norms and branches are modulated by the condition (AdaLN)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        self.attention = UnitAttention(width, num_heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

    def forward(
        self, x_BND: Tensor, condition_BD: Tensor, mask_NN: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(condition_BD)[:, None].chunk(6, dim=-1)
        x_BND = x_BND + (1 + gate_1) * self.attention(modulate(x_BND, shift_1, scale_1), mask_NN, cache)
        return x_BND + (1 + gate_2) * self.mlp(modulate(x_BND, shift_2, scale_2))


def modulate(x_BND: Tensor, shift_B1D: Tensor, scale_B1D: Tensor) -> Tensor:
    """Layer norm with the condition's shift and scale."""
    return F.layer_norm(x_BND, x_BND.shape[-1:]) * (1 + scale_B1D) + shift_B1D


class CodeHead(nn.Module):
    """p(code | hidden) as a chain over the code's factors: p(f1) p(f2 | f1) ...; one factor of V values is the plain head.

    A code is a mixed-radix number of its factors, first factor fastest, as the tokenizer's quantiser numbers them.
    """

    def __init__(self, width: int, factors: Sequence[int]) -> None:
        super().__init__()
        self.factors = tuple(factors)
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

    def split(self, codes_BT: Tensor) -> list[Tensor]:
        """Codes to the values of their factors."""
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

    def cross_entropy(self, hidden_BTD: Tensor, codes_BT: Tensor) -> Tensor:
        """-log p(code), (B, T), in nats."""
        digits = self.split(codes_BT)
        total_BT = hidden_BTD.new_zeros(codes_BT.shape, dtype=torch.float32)
        for index, digit_BT in enumerate(digits):
            logits_BTV = self.logits(hidden_BTD, digits[:index]).float()
            total_BT = total_BT + F.cross_entropy(logits_BTV.flatten(0, 1), digit_BT.flatten(), reduction="none").view_as(total_BT)
        return total_BT


def code_factors(config: CARConfig, codec: CVQConfig) -> tuple[int, ...]:
    """The factors of a code: V for the joint head; else neighbouring digits, joined while at most `factor_values`."""
    if config.head == "joint":
        return (codec.num_codes,)
    factors = [1]
    for level in codec.code_levels:
        if factors[-1] * level <= config.factor_values:
            factors[-1] *= level
        else:
            factors.append(level)
    return tuple(f for f in factors if f > 1)


class CAR(nn.Module):
    """The block-causal transformer: aligned tokens and conditions in, hidden states of all tokens out."""

    def __init__(self, config: CARConfig, codec: CVQConfig, text_width: int, image_width: int | None, image_tokens: int = 0) -> None:
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
        self.blocks = nn.ModuleList(Block(width, config.num_heads) for _ in range(config.depth))
        self.modulation = nn.Linear(width, 2 * width)
        self.head = CodeHead(width, code_factors(config, codec))
        level_N = torch.tensor([-1] * self.num_prefix + [k for k, t in enumerate(self.scales) for _ in range(t)])
        self.register_buffer("level_N", level_N, persistent=False)
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
            nn.init.normal_(out.weight, std=0.02)

    @property
    def num_params_no_embed(self) -> int:
        """Parameters of the transformer itself: without embeddings, input and condition projections, and the head."""
        return sum(p.numel() for part in (self.blocks, self.modulation) for p in part.parameters())

    @property
    def flops_per_object(self) -> int:
        """Multiply-adds, counted as two, of the matrix products of one forward pass of one object; training costs three times it.

        Attention is counted over all pairs, as it is computed; the encoders and the tokenizer are not counted.
        """
        per_object = [self.text, self.modulation, *(block.modulation for block in self.blocks)]
        per_token = [layer for block in self.blocks for layer in (block.attention.to_qkv, block.attention.to_out, block.mlp[0], block.mlp[2])]
        tokens, scale_tokens = len(self.level_N), sum(self.scales)
        weights = sum(layer.weight.numel() for layer in per_object)
        weights += tokens * sum(layer.weight.numel() for layer in per_token)
        weights += scale_tokens * sum(layer.weight.numel() for layer in (*self.head.outs, *self.head.mixes))
        weights += (scale_tokens - self.scales[0]) * self.input.weight.numel()
        if self.num_prefix:
            weights += self.num_prefix * self.image.weight.numel() + self.image_pool.weight.numel()
        return 2 * weights + 4 * len(self.blocks) * tokens**2 * self.config.width

    def mask(self, num_tokens: int) -> Tensor:
        """True where row may attend to column, among the prefix and the first `num_tokens` tokens."""
        level_N = self.level_N[: self.num_prefix + num_tokens]
        return level_N[:, None] >= level_N[None, :]

    def condition(self, text_BC: Tensor, image_BMC: Tensor | None) -> Tensor:
        """Text vector and mean image token to what modulates every layer, (B, D)."""
        pooled_BD = self.text(text_BC)
        if self.num_prefix:
            pooled_BD = pooled_BD + self.image_pool(image_BMC.mean(dim=1))
        return F.silu(pooled_BD)

    def embed(self, aligned_BTA: Tensor | None, batch: int, first: int, last: int) -> Tensor:
        """Input tokens of scales `first` up to, not including, `last`: start or aligned tokens, plus level and position."""
        start, end = sum(self.scales[:first]), sum(self.scales[:last])
        parts = [self.start.expand(batch, -1, -1)] if first == 0 else []
        if aligned_BTA is not None:
            parts.append(self.input(aligned_BTA))
        level_T = self.level_N[self.num_prefix + start : self.num_prefix + end]
        return torch.cat(parts, dim=1) + self.levels[level_T] + self.positions[start:end]

    def embed_prefix(self, image_BMC: Tensor) -> Tensor:
        """Image tokens as the first tokens of the sequence, (B, M, D)."""
        return self.image(image_BMC) + self.prefix_level

    def forward(
        self, aligned_BTA: Tensor | None, text_BC: Tensor, image_BMC: Tensor | None, num_scales: int | None = None
    ) -> Tensor:
        """Teacher forcing: aligned tokens of scales 2, 3, ... -> hidden states (B, T, D) of the first `num_scales` scales."""
        num_scales = len(self.scales) if num_scales is None else num_scales
        condition_BD = self.condition(text_BC, image_BMC)
        x_BND = self.embed(aligned_BTA, len(text_BC), 0, num_scales)
        mask_NN = self.mask(x_BND.shape[1])
        if self.num_prefix:
            x_BND = torch.cat([self.embed_prefix(image_BMC), x_BND], dim=1)
        for block in self.blocks:
            if self.config.checkpoint_layers and torch.is_grad_enabled():
                x_BND = checkpoint(block, x_BND, condition_BD, mask_NN, use_reentrant=False)
            else:
                x_BND = block(x_BND, condition_BD, mask_NN)
        return self.finish(x_BND[:, self.num_prefix :], condition_BD)

    def finish(self, x_BTD: Tensor, condition_BD: Tensor) -> Tensor:
        """The last norm."""
        return modulate(x_BTD, *self.modulation(condition_BD)[:, None].chunk(2, dim=-1))

    def new_caches(self, batch: int) -> list[KVCache]:
        """One empty cache a layer, long enough for the prefix and all scales."""
        heads = self.config.num_heads
        shape = (batch, heads, len(self.level_N), self.config.width // heads)
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


class G3PT(nn.Module, Pretrained):
    """Text or image to mesh: the frozen tokenizer, CAR, and the two condition encoders.

    Encoders trained here are parts of the module and travel in its export; pretrained ones are frozen, live outside
    the module's tensors, and are loaded again by name and revision.
    """

    kind = "car"
    config_class = CARConfig

    def __init__(self, config: CARConfig, tokenizer: CVQ, small: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.small = small or {"text": SMALL_TEXT, "image": SMALL_IMAGE}
        self.tokenizer = tokenizer.requires_grad_(False).eval()
        self.frozen: dict[str, nn.Module] = {}
        text = TextEncoder(config.text_encoder, config.text_revision, self.small["text"])
        image = None
        if config.image_encoder != NONE:
            image = ImageEncoder(config.image_encoder, config.image_revision, config.image_size, self.small["image"])
        self.config = dataclasses.replace(config, text_revision=text.revision, image_revision=image and image.revision)
        for name, encoder in (("text", text), ("image", image)):
            if encoder is not None and encoder.trained_here:
                self.add_module(f"{name}_encoder", encoder)
            elif encoder is not None:
                self.frozen[name] = encoder
        self.car = CAR(config, tokenizer.config, text.width, image and image.width, image.num_tokens if image else 0)
        self.active_scales = len(self.scales)

    @property
    def scales(self) -> tuple[int, ...]:
        """Tokens per scale, coarse to fine."""
        return self.tokenizer.config.scales

    @property
    def text(self) -> TextEncoder:
        """The text encoder, trained here or frozen."""
        return self.frozen["text"] if self.frozen.get("text") else self.text_encoder

    @property
    def image(self) -> ImageEncoder | None:
        """The image encoder, trained here or frozen; None for a model without one."""
        return self.frozen.get("image") or getattr(self, "image_encoder", None)

    def _apply(self, fn: Any, recurse: bool = True) -> G3PT:
        for encoder in self.frozen.values():
            encoder._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True) -> G3PT:
        """Training mode for all but the tokenizer, whose statistics stand still."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    def set_phase(self, step: int, num_steps: int) -> bool:
        """Progressive training: only the coarser half of the scales during the first `progressive_share` of the steps."""
        early = step < round(self.config.progressive_share * num_steps)
        self.active_scales = math.ceil(len(self.scales) / 2) if early else len(self.scales)
        return False

    def next_input(self, canvas_BLA: Tensor, codes_BT: Tensor, scale: int) -> tuple[Tensor, Tensor]:
        """Add the codes of scale `scale` - 1 to the canvas and bring it to scale `scale`: (canvas, aligned (B, T, A))."""
        canvas_BLA = self.tokenizer.canvas_add(canvas_BLA, codes_BT, scale - 1)
        return canvas_BLA, self.tokenizer.align(canvas_BLA, scale)

    @torch.no_grad()
    def aligned_inputs(self, codes_BS: Tensor, num_scales: int | None = None) -> Tensor:
        """Teacher forcing: the inputs of scales 2, 3, ... for known codes, (B, S - T1, A)."""
        scales = self.scales[:num_scales]
        canvas_BLA, aligned = self.tokenizer.canvas_start(len(codes_BS)), []
        for scale, codes_BT in enumerate(codes_BS[:, : sum(scales)].split(list(scales), dim=1)[:-1], start=1):
            canvas_BLA, aligned_BTA = self.next_input(canvas_BLA, codes_BT, scale)
            aligned.append(aligned_BTA)
        if not aligned:
            return canvas_BLA[:, :0]
        return torch.cat(aligned, dim=1)

    def forward(self, batch: dict[str, Tensor], step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """The training loss and cross-entropies, in nats a token.

        `batch`: codes_BS; text_BM, text_mask_BM, has_text_B; images_B3HW, has_image_B (if the model reads images);
        aligned_BTA, if computed before. While training, present conditions are dropped at random.
        """
        codes_BS = batch["codes_BS"][:, : sum(self.scales[: self.active_scales])]
        aligned_BTA = self._inputs(batch, codes_BS)
        text_BC, image_BMC = self._conditions(batch)
        hidden_BSD = self.car(aligned_BTA, text_BC, image_BMC, num_scales=self.active_scales)
        return self._loss(self.car.head.cross_entropy(hidden_BSD, codes_BS))

    def _inputs(self, batch: dict[str, Tensor], codes_BS: Tensor) -> Tensor:
        if self.training and self.config.code_noise > 0:
            num_tokens = codes_BS.shape[1]
            noise_BS = (rand_rows(batch, num_tokens) * self.tokenizer.config.num_codes).long()
            replaced_BS = rand_rows(batch, num_tokens) < self.config.code_noise
            return self.aligned_inputs(torch.where(replaced_BS, noise_BS, codes_BS), self.active_scales)
        if "aligned_BTA" in batch:
            return batch["aligned_BTA"][:, : codes_BS.shape[1] - self.scales[0]]
        return self.aligned_inputs(codes_BS, self.active_scales)

    def _conditions(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Encoded conditions, with the null embeddings where one is absent or dropped. Everything is always computed,
        so that every trained tensor has a gradient at every step, whatever was dropped."""
        keep_text_B = self._keep(batch, "has_text_B", self.config.drop_text)
        text_BC = self.text(batch["text_BM"], batch["text_mask_BM"])
        text_BC = torch.where(keep_text_B[:, None], text_BC, self.car.null_text.to(text_BC.dtype))
        if self.image is None:
            return text_BC, None
        keep_image_B = self._keep(batch, "has_image_B", self.config.drop_image)
        image_BMC = self.image(batch["images_B3HW"])
        return text_BC, torch.where(keep_image_B[:, None, None], image_BMC, self.car.null_image.to(image_BMC.dtype))

    def _keep(self, batch: dict[str, Tensor], present: str, drop: float) -> Tensor:
        if not self.training:
            return batch[present]
        return batch[present] & (rand_rows(batch) >= drop)

    def _loss(self, entropy_BS: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Scale means of the cross-entropy, a scale of T tokens weighted by T ** (1 - scale_loss_power)."""
        scales = self.scales[: self.active_scales]
        mean_K = torch.stack([part.mean() for part in entropy_BS.split(list(scales), dim=1)])
        weight_K = mean_K.new_tensor(scales) ** (1 - self.config.scale_loss_power)
        loss = (mean_K * weight_K).sum() / weight_K.sum()
        logs = {f"ce_scale_{k}": ce for k, ce in enumerate(mean_K.detach(), start=1)}
        return loss, {"ce": entropy_BS.detach().mean()} | logs

    @torch.inference_mode()
    def encode_prompts(self, texts: Sequence[str | None], images: Sequence[Any | None]) -> tuple[Tensor, Tensor | None]:
        """Prompts, of which either part may be None, to conditions. Each is encoded alone, so that no neighbour changes it."""
        device = self.car.start.device
        known_texts: dict[str, Tensor] = {}
        for text in {t for t in texts if t is not None}:
            ids_BM, mask_BM = self.text.tokenizer([text])
            known_texts[text] = self.text(ids_BM.to(device), mask_BM.to(device))[0]
        text_BC = torch.stack([self.car.null_text if t is None else known_texts[t] for t in texts])
        if self.image is None:
            if any(image is not None for image in images):
                raise ValueError("this model was trained without images")
            return text_BC, None
        null_MC = self.car.null_image.expand(self.image.num_tokens, -1)
        known = {id(i): self._encode_image(i) for i in {id(i): i for i in images if i is not None}.values()}
        return text_BC, torch.stack([null_MC if i is None else known[id(i)] for i in images])

    def _encode_image(self, image: Any) -> Tensor:
        pixels = image if isinstance(image, Tensor) else prepare_image(image, self.config.image_size)
        return self.image(pixels[None].to(self.car.start.device))[0]

    def sample_codes(
        self,
        texts: Sequence[str | None],
        images: Sequence[Any | None],
        seeds: Sequence[int],
        settings: SampleConfig | None = None,
        batch: int = 8,
    ) -> Tensor:
        """One prompt and one seed a row -> codes int64 (B, S). Rows go through in batches of exactly `batch` (the last
        is filled up), so that a row's arithmetic, and with it its codes, doesn't depend on how many rows there are."""
        return self.sample_encoded(*self.encode_prompts(texts, images), seeds, settings, batch)

    def sample_encoded(
        self, text_BC: Tensor, image_BMC: Tensor | None, seeds: Sequence[int], settings: SampleConfig | None = None, batch: int = 8
    ) -> Tensor:
        """`sample_codes` for conditions that `encode_prompts` gave."""
        rows = []
        for start in range(0, len(seeds), batch):
            index = [min(start + i, len(seeds) - 1) for i in range(batch)]
            part = None if image_BMC is None else image_BMC[index]
            codes_BS = sample_codes(self, text_BC[index], part, [seeds[i] for i in index], settings or SampleConfig())
            rows.append(codes_BS[: len(seeds) - start])
        return torch.cat(rows)

    @torch.inference_mode()
    def decode_mesh(self, codes_S: Tensor, resolution: int = 128) -> tuple[np.ndarray, np.ndarray]:
        """Codes of one object -> (vertices float32 (V, 3), faces int64 (F, 3)), floaters removed."""
        return decode_mesh(self.tokenizer, self.tokenizer.decode_latents(codes_S[None]), resolution)

    def generate(
        self,
        text: str | None = None,
        image: Any = None,
        *,
        num: int = 1,
        seed: int = 0,
        settings: SampleConfig | None = None,
        resolution: int = 128,
    ) -> list[Any]:
        """`num` meshes (trimesh.Trimesh) for a text, an image, both or neither, with seeds `seed`, `seed` + 1, ..."""
        import trimesh

        codes_BS = self.sample_codes([text] * num, [image] * num, range(seed, seed + num), settings)
        return [trimesh.Trimesh(*self.decode_mesh(codes_S, resolution), process=False) for codes_S in codes_BS]

    def export_config(self) -> dict[str, Any]:
        """CAR's and the tokenizer's configuration, and the shapes of encoders trained here."""
        return {
            "model": dataclasses.asdict(self.config),
            "tokenizer": dataclasses.asdict(self.tokenizer.config),
            "small_encoders": self.small,
        }

    @classmethod
    def from_export_config(cls, values: dict[str, Any]) -> G3PT:
        """The model whose `export_config` this is, untrained."""
        tokenizer = CVQ(from_dict(CVQConfig, values["tokenizer"]))
        return cls(from_dict(CARConfig, values["model"]), tokenizer, values["small_encoders"])
