"""CVQ, the tokenizer: surface points -> latents -> codes of S scales -> latents -> occupancy.

Training has three phases in one run (`set_phase`): A, the autoencoder without the pyramid of scales; A2, the
autoencoder as before, and beside it the quantised pyramid fitted to the latents, which the decoder does not read yet;
B, the decoder reads the pyramid. In B its input is canvas + latents - stop_gradient(latents), and the pyramid reads
stop_gradient(latents): a straight-through step around the whole pyramid, so that the encoder keeps the gradient of an
autoencoder (LOG.md).

Source: G3PT, CVQ (cross-attention encoder, CQT, self-attention decoder, occupancy of query points; two-phase training).
Ours: phase A2; the straight-through step around the pyramid; latent queries anchored to places
(`latent_queries='anchored'`).

Shapes: B batch, P surface points, Q query points, L latents, T tokens of a scale, S tokens of all scales, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from g3pt.config import CVQConfig
from g3pt.models.cqt import CQT, CQTOutput, anchor_spacing, make_anchors
from g3pt.models.layers import CrossBlock, FourierPoints, SelfBlock, run_blocks
from g3pt.training.exports import Pretrained
from g3pt.training.parallel import assign, float32_on
from g3pt.training.statistics import RunningStatistics
from g3pt.training.usage import CodeUsage

Phase = Literal["continuous", "pyramid", "joint"]
FARTHEST = 60.0  # logits of the anchors' Gaussian weights below the largest: exp(-60) changes no float32 sum
MAX_SCORES = 2**27  # anchor-to-point distances held at once: 0.5 GB in float32


class Encoder(nn.Module):
    """Surface points with normals -> L latents: cross-attention to the points, then self-attention."""

    def __init__(self, config: CVQConfig, anchors_L3: Tensor) -> None:
        super().__init__()
        self.config = config
        self.embed = FourierPoints(config.width, config.num_fourier, num_features=6)
        self.sharp_offset = nn.Parameter(torch.zeros(config.width)) if config.num_sharp_points else None
        self.register_buffer("anchors_L3", anchors_L3)
        self.queries = nn.Parameter(torch.randn(config.num_latents, config.width) * 0.02)
        self.cross = CrossBlock(config.width, config.num_heads)
        self.blocks = nn.ModuleList(SelfBlock(config.width, config.num_heads) for _ in range(config.encoder_layers))

    def forward(self, surface_BP6: Tensor, sharp_BP6: Tensor | None = None) -> Tensor:
        points_BPD = self.embed(surface_BP6)
        queries_BLD = self.queries.expand(len(surface_BP6), -1, -1)
        if self.config.latent_queries == "anchored":
            queries_BLD = queries_BLD + self._at_anchors(points_BPD, surface_BP6)
        if self.sharp_offset is not None:
            if sharp_BP6 is None:
                raise ValueError(
                    f"this tokenizer reads {self.config.num_sharp_points} sharp points beside the surface, got none"
                )
            points_BPD = torch.cat([points_BPD, self.embed(sharp_BP6) + self.sharp_offset], dim=1)
        x_BLD = run_blocks(self.blocks, self.cross(queries_BLD, points_BPD), self.config.checkpoint_layers)
        return F.layer_norm(x_BLD.float(), x_BLD.shape[-1:])  # fixed scale for everything after

    def _at_anchors(self, points_BPD: Tensor, surface_BP6: Tensor) -> Tensor:
        """Mean of the points' embeddings about each anchor, (B, L, D), with Gaussian weights."""
        # objects whose (L, P) distances are in memory at once
        rows = max(1, MAX_SCORES // (len(self.anchors_L3) * surface_BP6.shape[1]))
        parts = zip(points_BPD.split(rows), surface_BP6[..., :3].float().split(rows), strict=True)
        return torch.cat([self._read_at_anchors(values, places) for values, places in parts])

    def _read_at_anchors(self, points_BPD: Tensor, places_BP3: Tensor) -> Tensor:
        return self._weights(places_BP3).to(points_BPD.dtype) @ points_BPD

    @torch.no_grad()
    def _weights(self, places_BP3: Tensor) -> Tensor:
        """Weight of each point for each anchor, (B, L, P): softmax of minus the squared distance over twice the squared
        width.
        """
        anchors = self.anchors_L3.expand(len(places_BP3), -1, -1)
        width = self.config.anchor_blur * anchor_spacing(self.config.num_latents)
        with float32_on(places_BP3.device):  # bf16 is too coarse for distances
            logits_BLP = torch.bmm(anchors, places_BP3.transpose(1, 2)).mul_(-2)
            logits_BLP.add_(places_BP3.square().sum(-1)[:, None])  # the anchor's own square is the same for all points
            logits_BLP.div_(-2 * width**2)
            # weights below exp(-FARTHEST) of the largest would be denormal numbers, with which a CPU multiplies 20
            # times slower
            logits_BLP.clamp_min_(logits_BLP.amax(-1, keepdim=True) - FARTHEST)
            return logits_BLP.softmax(-1)


class Decoder(nn.Module):
    """Latents -> self-attention -> occupancy logits of query points by cross-attention."""

    def __init__(self, config: CVQConfig) -> None:
        super().__init__()
        self.config = config
        self.places = nn.Parameter(torch.randn(config.num_latents, config.width) * 0.02)
        self.project = nn.Linear(config.width, config.width)
        self.blocks = nn.ModuleList(SelfBlock(config.width, config.num_heads) for _ in range(config.decoder_layers))
        self.embed = FourierPoints(config.width, config.num_fourier, num_features=3)
        self.cross = CrossBlock(config.width, config.num_heads)
        self.norm, self.head = nn.LayerNorm(config.width), nn.Linear(config.width, 1)

    def latents(self, canvas_BLD: Tensor) -> Tensor:
        """The self-attention part, computed once per object."""
        return run_blocks(self.blocks, self.project(canvas_BLD) + self.places, self.config.checkpoint_layers)

    def logits(self, latents_BLD: Tensor, points_BQ3: Tensor) -> Tensor:
        """Occupancy logits (B, Q) in float32, positive inside."""
        read_BQD = self.cross(self.embed(points_BQ3), latents_BLD)
        with float32_on(read_BQD.device):  # a bf16 logit has 8 bits
            return self.head(self.norm(read_BQD.float())).squeeze(-1)


class CVQ(nn.Module, Pretrained, RunningStatistics):
    """The tokenizer.

    `encode` and `decode_latents` are deterministic in evaluation mode; `scale` is an index into `config.scales`.
    """

    kind = "cvq"
    config_class = CVQConfig

    def __init__(self, config: CVQConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            anchors_L3 = make_anchors(config.num_latents)
            self.encoder = Encoder(config, anchors_L3)
            self.cqt = CQT(config, anchors_L3, torch.Generator().manual_seed(seed))
            self.decoder = Decoder(config)
        self.register_buffer("latent_mean_LD", torch.zeros(config.num_latents, config.width))
        self.register_buffer("has_base", torch.zeros((), dtype=torch.bool))
        self.knows_base = False  # `has_base`, where reading it does not wait for a GPU
        self.register_load_state_dict_post_hook(_read_has_base)
        self.usage = CodeUsage(config.scales, config.code_levels)
        self.phase: Phase = "joint"
        self.statistics_frozen = False

    def set_phase(self, step: int, num_steps: int) -> bool:
        """Choose the phase of optimiser step `step` of `num_steps`; True if the set of trained tensors changed."""
        start_pyramid = round(self.config.continuous_share * num_steps)
        start_joint = start_pyramid + round(self.config.pyramid_share * num_steps)
        phase: Phase = "continuous" if step < start_pyramid else "pyramid" if step < start_joint else "joint"
        self.statistics_frozen = step >= round((1 - self.config.stat_freeze_share) * num_steps)
        if phase != "continuous" and start_pyramid > 0 and not self.knows_base:
            assign(self.cqt.base, self.latent_mean_LD)
            self.has_base.fill_(True)
            self.knows_base = True
        changed, self.phase = phase != self.phase, phase
        self.cqt.requires_grad_(phase != "continuous")
        return changed

    def hidden_layers(self) -> list[nn.Linear]:
        """The layers that read a vector as wide as the tokenizer: all but those that read points or codes."""
        widths = (self.config.width, 4 * self.config.width)
        return [layer for layer in self.modules() if isinstance(layer, nn.Linear) and layer.in_features in widths]

    def forward(self, batch: dict[str, Tensor], step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """Training loss of this phase and its parts.

        `batch`: surface_BP6, points_BQ3, occupancy_BQ, near_BQ, and sharp_BP6 if the tokenizer reads sharp points.
        """
        latents_BLD = self.encoder(batch["surface_BP6"], batch.get("sharp_BP6"))
        if self.training:
            self.see(latents_BLD.detach().mean(0))
        if self.phase == "continuous":
            return self._occupancy_loss(latents_BLD, batch)
        output = self.cqt(latents_BLD.detach(), frozen=self.statistics_frozen)
        if self.training:
            self.usage.add(output.codes_BT)
        pyramid_loss, logs = self._pyramid_loss(output, latents_BLD.detach())
        if self.phase == "pyramid":
            loss, occupancy_logs = self._occupancy_loss(latents_BLD, batch)
            return loss + pyramid_loss, occupancy_logs | logs
        canvas_BLD = output.canvases_BLD[-1]
        loss, occupancy_logs = self._occupancy_loss(canvas_BLD + latents_BLD - latents_BLD.detach(), batch)
        commitment = F.mse_loss(latents_BLD, canvas_BLD.detach())
        loss = loss + pyramid_loss + self.config.commitment_weight * commitment
        return loss, occupancy_logs | logs | {"loss_commitment": commitment.detach()}

    def take_window(self) -> dict[str, float]:
        """Figures of the codes since the last call, over all workers (`g3pt.training.usage`)."""
        return self.usage.take()

    def window_state(self) -> dict[str, Tensor]:
        """The tables counted since then, over all workers: for a checkpoint between two records."""
        return self.usage.state()

    def load_window(self, state: dict[str, Tensor], is_first: bool) -> None:
        """Continue counting from `state`, which the first worker alone takes over."""
        self.usage.load(state, is_first, next(self.parameters()).device)

    def follow(self, mean: Tensor) -> None:
        self.latent_mean_LD.lerp_(mean, 0.02)

    def _occupancy_loss(self, canvas_BLD: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        logits_BQ = self.decoder.logits(self.decoder.latents(canvas_BLD), batch["points_BQ3"])
        loss_BQ = F.binary_cross_entropy_with_logits(logits_BQ, batch["occupancy_BQ"].float(), reduction="none")
        near_BQ = batch["near_BQ"]
        volume = (loss_BQ * ~near_BQ).sum() / (~near_BQ).sum()  # no boolean index, which would synchronise a GPU
        near = (loss_BQ * near_BQ).sum() / near_BQ.sum()
        logs = {"loss_volume": volume.detach(), "loss_near": near.detach()}
        return volume + self.config.near_weight * near, logs

    def _pyramid_loss(self, output: CQTOutput, latents_BLD: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over scales of mse(canvas, latents) over the scale's amplitude, plus the quantiser's own loss.

        A logged residual ratio is the share of the latents' variance that a scale leaves over.
        """
        variance = 1 - self.latent_mean_LD.square().mean()  # the latents' mean square is 1
        losses, logs = [], {}
        for scale, canvas_BLD in enumerate(output.canvases_BLD):
            error = F.mse_loss(canvas_BLD.float(), latents_BLD)
            losses.append(error / (self.cqt.sigma[scale].square() + 1e-3))
            logs[f"residual_ratio_scale_{scale + 1}"] = (error / variance).detach()
        quantizer_loss = torch.stack(output.losses).mean()
        loss_latent = torch.stack(losses).mean()
        logs |= {"loss_latent": loss_latent.detach(), "loss_quantizer": quantizer_loss.detach()}
        return self.config.latent_weight * loss_latent + self.config.code_weight * quantizer_loss, logs

    @torch.no_grad()
    def encode(self, surface_BP6: Tensor, sharp_BP6: Tensor | None = None, num_scales: int | None = None) -> Tensor:
        """Surface points -> codes (B, S) int64, scales coarse to fine (the first `num_scales` only, if given)."""
        output = self.cqt(self.encoder(surface_BP6, sharp_BP6), frozen=True, num_scales=num_scales)
        return torch.cat(output.codes_BT, dim=1)

    def canvas_start(self, batch_size: int) -> Tensor:
        """The empty canvas, (B, L, D)."""
        return self.cqt.canvas_start(batch_size)

    def canvas_add(self, canvas_BLD: Tensor, codes_BT: Tensor, scale: int) -> Tensor:
        """The canvas with `scale`'s codes added."""
        return canvas_BLD + self.cqt.spread(self.cqt.quantizer.values(codes_BT), scale)

    def align(self, canvas_BLD: Tensor, scale: int) -> Tensor:
        """`scale`'s tokens (B, T, D) of the canvas: what CAR reads before it predicts their codes."""
        return self.cqt.align(canvas_BLD, scale)

    def canvas(self, codes_BS: Tensor) -> Tensor:
        """The canvas of `codes_BS`, which end at the end of a scale."""
        canvas_BLD, start = self.canvas_start(len(codes_BS)), 0
        for scale, num_tokens in enumerate(self.config.scales):
            if start == codes_BS.shape[1]:
                break
            if start + num_tokens > codes_BS.shape[1]:
                raise ValueError(f"{codes_BS.shape[1]} codes end inside scale {scale + 1} of {self.config.scales}")
            canvas_BLD = self.canvas_add(canvas_BLD, codes_BS[:, start : start + num_tokens], scale)
            start += num_tokens
        return canvas_BLD

    def decode_latents(self, codes_BS: Tensor, num_scales: int | None = None) -> Tensor:
        """Decoder latents (B, L, D) for `occupancy_logits`, from codes; from the first `num_scales` scales only,
        if given.
        """
        used = sum(self.config.scales[:num_scales]) if num_scales is not None else self.config.num_tokens
        return self.decoder.latents(self.canvas(codes_BS[:, :used]))

    def occupancy_logits(self, latents_BLD: Tensor, points_BQ3: Tensor) -> Tensor:
        """Logits (B, Q) that points in [-1, 1] are inside."""
        return self.decoder.logits(latents_BLD, points_BQ3)


def _read_has_base(tokenizer: nn.Module, _: object) -> None:
    """After a state was loaded."""
    assert isinstance(tokenizer, CVQ)
    tokenizer.knows_base = not tokenizer.has_base.is_meta and bool(tokenizer.has_base)
