"""G3PT, the generator as it is trained, exported and used: CAR with its frozen tokenizer and its two encoders.

`G3PT.next_input` is the one place where codes become CAR's inputs: the tokenizer's own CQT aligns the sum of the
coarser scales to the next scale's tokens, in teacher forcing and in sampling alike. Where conditions enter the
transformer: transformer.py. Either condition may be absent: learned null embeddings take its place, and training drops
one or both at random.

Source: G3PT (arXiv 2409.06322): cross-scale alignment, DINOv2 and CLIP as conditions.
Ours: the weights of the scales in the loss; the loss that aligns image and text.
Shapes: B batch, S tokens of all scales, T tokens of a scale, L latents, A width of the tokenizer's aligned tokens,
M image tokens (or words of a text), C width of a condition, K scales.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from g3pt.config import CARConfig, CVQConfig, from_dict
from g3pt.data.batches import rand_rows
from g3pt.data.pictures import prepare_image
from g3pt.models.decoding import decode_field, decode_mesh
from g3pt.models.encoders import EXPORTED, NONE, SMALL_IMAGE, SMALL_TEXT, ImageEncoder, StoredEncoder, TextEncoder
from g3pt.models.encoding import encode_mesh
from g3pt.models.guidance import needed_passes
from g3pt.models.sampling import SampleConfig, check_keep_scales, row_settings, row_weights, sample_codes
from g3pt.models.tokenizer import CVQ
from g3pt.models.transformer import CAR
from g3pt.training.exports import Pretrained

if TYPE_CHECKING:
    from g3pt.geometry.search import Crossed, NoSurface


class G3PT(nn.Module, Pretrained):
    """Text or image to mesh: the frozen tokenizer, CAR, and the two condition encoders.

    Encoders trained here are parts of the module and travel in its export, as does a text encoder that was taken from
    another export. Pretrained ones are frozen, live outside the module's tensors, and are loaded again by name and
    revision.
    """

    kind = "car"
    config_class = CARConfig

    def __init__(
        self,
        config: CARConfig,
        tokenizer: CVQ,
        small: dict[str, Any] | None = None,
        stored: dict[str, StoredEncoder] | None = None,
    ) -> None:
        """`small` configures the encoders trained here; `stored` replaces pretrained ones whose features are
        in the batches.
        """
        super().__init__()
        self.small = small or {"text": SMALL_TEXT, "image": SMALL_IMAGE}
        self.tokenizer = tokenizer.requires_grad_(False).eval()
        self.frozen: dict[str, nn.Module] = {}
        stored = stored or {}
        text = None if config.text_encoder == EXPORTED else stored.get("text")  # the export needs its weights
        text = text or TextEncoder(config.text_encoder, config.text_revision, self.small["text"])
        image = stored.get("image")
        if config.image_encoder != NONE and image is None:
            image = ImageEncoder(config.image_encoder, config.image_revision, config.image_size, self.small["image"])
        self.config = dataclasses.replace(config, text_revision=text.revision, image_revision=image and image.revision)
        for name, encoder in (("text", text), ("image", image)):
            if encoder is not None and encoder.in_export:
                self.add_module(f"{name}_encoder", encoder)
            elif encoder is not None:
                self.frozen[name] = encoder
        self.car = CAR(config, tokenizer.config, text.width, image and image.width, image.num_tokens if image else 0)
        self.active_scales = len(self.scales)
        # a buffer: made in the loss, it would be copied to the GPU in every step, which waits for it
        weight_K = torch.tensor(self.scales, dtype=torch.float32) ** (1 - config.scale_loss_power)
        self.register_buffer("weight_K", weight_K, persistent=False)

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
        """Training mode for all but the tokenizer, whose statistics stay constant."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    def set_phase(self, step: int, num_steps: int) -> bool:
        """Progressive training: only the coarser half of the scales during the first `progressive_share`
        of the steps.
        """
        early = step < round(self.config.progressive_share * num_steps)
        self.active_scales = math.ceil(len(self.scales) / 2) if early else len(self.scales)
        return False

    def hidden_layers(self) -> list[nn.Linear]:
        """The layers that read a vector as wide as the transformer: their learning rate depends on its width."""
        parts = (self.car.blocks, self.car.modulation, self.car.head)
        return [layer for part in parts for layer in part.modules() if isinstance(layer, nn.Linear)]

    def next_input(self, canvas_BLA: Tensor, codes_BT: Tensor, scale: int) -> tuple[Tensor, Tensor]:
        """Add the codes of `scale` - 1 to the canvas and align it to `scale`: (canvas, aligned tokens (B, T, A))."""
        canvas_BLA = self.tokenizer.canvas_add(canvas_BLA, codes_BT, scale - 1)
        return canvas_BLA, self.tokenizer.align(canvas_BLA, scale)

    @torch.no_grad()
    def aligned_inputs(self, codes_BS: Tensor, num_scales: int | None = None) -> Tensor:
        """Teacher forcing: the inputs of all scales but the coarsest for known codes, (B,
        S less the coarsest's tokens, A).
        """
        scales = self.scales[:num_scales]
        canvas_BLA, aligned = self.tokenizer.canvas_start(len(codes_BS)), []
        for scale, codes_BT in enumerate(codes_BS[:, : sum(scales)].split(list(scales), dim=1)[:-1], start=1):
            canvas_BLA, aligned_BTA = self.next_input(canvas_BLA, codes_BT, scale)
            aligned.append(aligned_BTA)
        if not aligned:
            return canvas_BLA[:, :0]
        return torch.cat(aligned, dim=1)

    def forward(self, batch: dict[str, Tensor], step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """The training loss and cross-entropies, in nats per token; in evaluation mode also those
        of each object and scale.

        `batch`: codes_BS; text_BM, text_mask_BM, has_text_B; images_B3HW, has_image_B if the model reads images;
        text_BC and image_BMC, in any precision, may replace the encoders' inputs; aligned_BTA may hold inputs computed
        before. While training, conditions are dropped at random.
        """
        aligned_BTA, codes_BS = self._teacher(batch)
        encoded = self._encoded(batch)
        text_BC, image_BMC = self._dropped(batch, *encoded)
        hidden_BSD = self.car(aligned_BTA, text_BC, image_BMC, num_scales=self.active_scales)
        entropy_BS = self.car.head.cross_entropy(hidden_BSD, codes_BS)
        loss, logs = self._loss(entropy_BS)
        if not self.training:
            parts = entropy_BS.split(list(self.scales[: self.active_scales]), dim=1)
            logs["ce_BK"] = torch.stack([part.mean(dim=1) for part in parts], dim=1)
        if self.training and self.config.image_text_weight and image_BMC is not None:
            gap = self._image_text_gap(*encoded, batch["has_text_B"] & batch["has_image_B"])
            loss, logs = loss + self.config.image_text_weight * gap, logs | {"image_text_gap": gap.detach()}
        return loss, logs

    def _teacher(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Aligned inputs and target codes of the active scales."""
        num_tokens = sum(self.scales[: self.active_scales])
        codes_BS = batch["codes_BS"][:, :num_tokens]
        if "aligned_BTA" in batch:
            return batch["aligned_BTA"][:, : num_tokens - self.scales[0]], codes_BS
        return self.aligned_inputs(codes_BS, self.active_scales), codes_BS

    def _encoded(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The encoders' outputs, also for objects without the condition:
        every trained tensor needs a gradient at every step.
        """
        text_BC = batch["text_BC"].float() if "text_BC" in batch else self.text(batch["text_BM"], batch["text_mask_BM"])
        if self.image is None:
            return text_BC, None
        return text_BC, batch["image_BMC"].float() if "image_BMC" in batch else self.image(batch["images_B3HW"])

    def _dropped(
        self, batch: dict[str, Tensor], text_BC: Tensor, image_BMC: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Conditions, replaced by null embeddings where one is absent or dropped."""
        keep_text_B, keep_image_B = self._kept(batch)
        text_BC = torch.where(keep_text_B[:, None], text_BC, self.car.null_text.to(text_BC.dtype))
        if image_BMC is None:
            return text_BC, None
        return text_BC, torch.where(keep_image_B[:, None, None], image_BMC, self.car.null_image.to(image_BMC.dtype))

    def _kept(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Which objects keep their text, and which their image.

        While training, one draw per object drops both, or one of them if it has the other: `drop_both` is the
        probability that nothing remains, whether an object has one condition or two.
        """
        has_text_B = batch["has_text_B"]
        has_image_B = batch["has_image_B"] if self.image is not None else torch.zeros_like(has_text_B)
        if not self.training:
            return has_text_B, has_image_B
        drawn_B = rand_rows(batch)
        both = self.config.drop_both
        text = both + self.config.drop_text
        only_text_B = (both <= drawn_B) & (drawn_B < text) & has_image_B
        only_image_B = (text <= drawn_B) & (drawn_B < text + self.config.drop_image) & has_text_B
        kept_B = both <= drawn_B
        return has_text_B & kept_B & ~only_text_B, has_image_B & kept_B & ~only_image_B

    def _image_text_gap(self, text_BC: Tensor, image_BMC: Tensor, both_B: Tensor) -> Tensor:
        """Mean squared difference between the modulation that an image alone and its caption alone give.

        Ours. No gradient reaches the caption's side: images (and the null text) learn to give the caption's modulation.
        From codes alone a small image encoder learns very slowly (LOG.md).
        """
        said_BD = self.car.modulator(text_BC, self.car.null_image.expand_as(image_BMC)).detach()
        seen_BD = self.car.modulator(self.car.null_text.expand_as(text_BC), image_BMC)
        return ((seen_BD - said_BD).float().square().mean(dim=1) * both_B).mean()

    def _loss(self, entropy_BS: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean over scales of their mean cross-entropies; a scale of T tokens is weighted by T **
        (1 - scale_loss_power).
        """
        scales = self.scales[: self.active_scales]
        mean_K = torch.stack([part.mean() for part in entropy_BS.split(list(scales), dim=1)])
        weight_K = self.weight_K[: len(scales)]
        loss = (mean_K * weight_K).sum() / weight_K.sum()
        logs = {f"ce_scale_{k}": ce for k, ce in enumerate(mean_K.detach(), start=1)}
        return loss, {"ce": entropy_BS.detach().mean()} | logs

    @torch.inference_mode()
    def encode_prompts(self, texts: Sequence[str | None], images: Sequence[Any | None]) -> tuple[Tensor, Tensor | None]:
        """Conditions of prompts, of which either part may be None.

        Each is encoded alone, so that it does not depend on the others.
        """
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
        settings: SampleConfig | Sequence[SampleConfig] | None = None,
        batch: int = 8,
        known: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Codes int64 (B, S) of one prompt and one seed per row, with settings for all rows or one per row.

        `known`: codes of each row's coarsest scales, which are kept (possibly of none); only finer ones are drawn. Rows
        that need the same passes of guidance and keep as many scales are sampled in batches of exactly `batch` (the
        last is padded), so that a row's floating-point operations, and with them its codes, don't depend on the other
        rows.
        """
        return self.sample_encoded(*self.encode_prompts(texts, images), seeds, settings, batch, known)

    def sample_encoded(
        self,
        text_BC: Tensor,
        image_BMC: Tensor | None,
        seeds: Sequence[int],
        settings: SampleConfig | Sequence[SampleConfig] | None = None,
        batch: int = 8,
        known: Sequence[Tensor] | None = None,
        watch: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """`sample_codes` for conditions from `encode_prompts`.

        `watch` is called after each drawn scale, for each row, with the row's number and its codes so far.
        """
        rows = row_settings(settings or SampleConfig(), len(seeds))
        passes = [needed_passes(weights_KW) for weights_KW in row_weights(self, text_BC, image_BMC, rows)]
        kept = [0] * len(seeds) if known is None else [len(codes_S) for codes_S in known]
        kinds = list(zip(passes, kept, strict=True))
        found: dict[int, Tensor] = {}
        for kind in sorted(set(kinds)):
            alike = [row for row in range(len(seeds)) if kinds[row] == kind]
            for start in range(0, len(alike), batch):
                index = [alike[min(start + i, len(alike) - 1)] for i in range(batch)]
                codes_BS = sample_codes(
                    self,
                    text_BC[index],
                    None if image_BMC is None else image_BMC[index],
                    [seeds[i] for i in index],
                    [rows[i] for i in index],
                    known_BS=None if known is None else torch.stack([known[i] for i in index]),
                    watch=watch and partial(_each_row, watch, index),
                )
                found |= dict(zip(index, codes_BS, strict=True))
        return torch.stack([found[row] for row in range(len(seeds))])

    @torch.inference_mode()
    def decode_field(self, codes_S: Tensor, resolution: int = 128) -> Crossed | NoSurface:
        """The part of `decode_mesh` that needs the model (`g3pt.models.decoding.decode_field`)."""
        return decode_field(self.tokenizer, self.tokenizer.decode_latents(codes_S[None]), resolution)

    def decode_mesh(self, codes_S: Tensor, resolution: int = 128) -> tuple[np.ndarray, np.ndarray]:
        """Codes of one object -> (vertices float32 (V, 3), faces int64 (F, 3)), without floating fragments."""
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

    def vary(
        self,
        mesh: Any,
        *,
        keep_scales: int,
        text: str | None = None,
        image: Any = None,
        num: int = 1,
        seed: int = 0,
        settings: SampleConfig | None = None,
        resolution: int = 128,
    ) -> list[Any]:
        """`num` variations (trimesh.Trimesh) of a mesh, which share its codes of the `keep_scales` coarsest scales.

        `mesh`: a file's path, a trimesh.Trimesh, or (vertices, faces). It is converted and encoded like an object of a
        dataset; the other scales are drawn as in `generate`, whose meshes `keep_scales=0` gives. With all scales kept
        the result is the tokenizer's reconstruction. Results are in the model's box, like all generated meshes.
        """
        import trimesh

        known_S = self.kept_codes(encode_mesh(self.tokenizer, mesh), keep_scales)
        codes_BS = self.sample_codes(
            [text] * num, [image] * num, range(seed, seed + num), settings, known=[known_S] * num
        )
        return [trimesh.Trimesh(*self.decode_mesh(codes_S, resolution), process=False) for codes_S in codes_BS]

    def kept_codes(self, codes_S: Tensor, keep_scales: int) -> Tensor:
        """The codes of the `keep_scales` coarsest scales of an object. ValueError if the model has fewer."""
        check_keep_scales(keep_scales, len(self.scales))
        return codes_S[: sum(self.scales[:keep_scales])]

    def export_config(self) -> dict[str, Any]:
        """Configurations of CAR, of the tokenizer and of the encoders trained here."""
        return {
            "model": dataclasses.asdict(self.config),
            "tokenizer": dataclasses.asdict(self.tokenizer.config),
            "small_encoders": self.small,
        }

    @classmethod
    def from_export_config(cls, values: dict[str, Any]) -> G3PT:
        """The untrained model that `export_config` describes."""
        tokenizer = CVQ(from_dict(CVQConfig, values["tokenizer"]))
        return cls(from_dict(CARConfig, values["model"]), tokenizer, values["small_encoders"])


def _each_row(watch: Callable[[int, Tensor], None], index: Sequence[int], codes_BT: Tensor) -> None:
    """Call `watch` for the rows of a batch; rows that only pad it repeat the last."""
    for row, codes_T in dict(zip(index, codes_BT, strict=True)).items():
        watch(row, codes_T)
