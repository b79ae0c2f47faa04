"""The Cross-scale Querying Transformer: L latents <-> tokens of S scales, through residuals.

From the coarsest scale to the finest: down queries read what is still unexplained of the latents (the residual) into T
tokens, these are quantised, up queries spread them over the L latents again, and the result is added to a running sum,
the *canvas*. `spread` is the only place where a scale's codes reach the canvas, and `align` the only one where the
canvas becomes a scale's
tokens: encoding, decoding, teacher forcing and sampling all use these two.

Source: G3PT, the CQT (down-sampling queries, quantisation, up-sampling queries, residual).
Ours: float32 under any autocast, because a rounding error of bf16 moves z to another code; residual amplitudes sigma_k;
per-position statistics before the quantiser; a learned base canvas; the query inside the up block's MLP and a sink
token, so that one token can still give position-dependent values; queries initialised from places (random Fourier
features of anchors), so that attention starts local; identity instead of attention at the finest scale. Controls
(`resampling`), measured in LOG.md: `pooled` has no queries: a scale's token is the mean of the latents nearest to its
centre, spread back by distance (VAR's interpolation; L tokens at every scale make it plain residual VQ). `slices` is
one-level VQ: token i is latent i, and a "scale" is the next group of latents in Morton order, which reads the group
before it.

Shapes: B batch, L latents, T tokens of a scale, D width, C code digits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from g3pt.config import CVQConfig
from g3pt.models.attention import Attention
from g3pt.models.layers import CrossBlock, feed_forward
from g3pt.models.quantizer import RunningNorm, build_quantizer
from g3pt.training.parallel import float32_on
from g3pt.training.statistics import RunningStatistics, pace

BOX = 1.9  # side of the cube that objects lie in


class ScaleDown(nn.Module):
    """Down_k: T learned queries cross-attend the residual of L latents."""

    def __init__(self, config: CVQConfig, places_LD: Tensor, centres_TD: Tensor, sharpness: float) -> None:
        super().__init__()
        self.queries = nn.Parameter(centres_TD.clone())
        self.key_places = nn.Parameter(places_LD.clone())
        self.block = CrossBlock(config.width, config.num_heads)
        local_attention(self.block.attention, sharpness)

    def forward(self, residual_BLD: Tensor) -> Tensor:
        queries_BTD = self.queries.expand(residual_BLD.shape[0], -1, -1)
        return self.block(queries_BTD, residual_BLD + self.key_places)


class ScaleUp(nn.Module):
    """Up_k: L learned queries cross-attend the T quantised tokens (and one sink token)."""

    def __init__(self, config: CVQConfig, places_LD: Tensor, centres_TD: Tensor, sharpness: float) -> None:
        super().__init__()
        width = config.width
        self.queries = nn.Parameter(places_LD.clone())
        self.token_places = nn.Parameter(centres_TD.clone())
        self.sink = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.embed = nn.Linear(len(config.code_levels), width)
        self.norm_query, self.norm_context, self.norm_mlp = (nn.LayerNorm(width) for _ in range(3))
        self.attention, self.mlp = Attention(width, config.num_heads), feed_forward(width)
        local_attention(self.attention, sharpness)

    def forward(self, values_BTC: Tensor) -> Tensor:
        batch_size = values_BTC.shape[0]
        context = torch.cat([self.embed(values_BTC) + self.token_places, self.sink.expand(batch_size, -1, -1)], dim=1)
        queries_BLD = self.queries.expand(batch_size, -1, -1)
        read_BLD = self.attention(self.norm_query(queries_BLD), self.norm_context(context))
        return read_BLD + self.mlp(self.norm_mlp(read_BLD + queries_BLD))


class PooledDown(nn.Module):
    """Control: each of T tokens is the mean of the latents whose nearest centre is its own."""

    def __init__(self, anchors_L3: Tensor, centres_T3: Tensor) -> None:
        super().__init__()
        nearest_L = torch.cdist(anchors_L3, centres_T3).argmin(1)
        member_TL = F.one_hot(nearest_L, len(centres_T3)).T.float()
        self.register_buffer("weights_TL", member_TL / member_TL.sum(1, keepdim=True))

    def forward(self, residual_BLD: Tensor) -> Tensor:
        return F.layer_norm(self.weights_TL @ residual_BLD, residual_BLD.shape[-1:])


class PooledUp(nn.Module):
    """Control: each latent reads the T tokens by distance, then a linear layer and a perceptron without any query."""

    def __init__(self, config: CVQConfig, anchors_L3: Tensor, centres_T3: Tensor) -> None:
        super().__init__()
        width = anchor_spacing(len(centres_T3)) / BOX  # about half of the centres' spacing
        weights_LT = (-torch.cdist(anchors_L3, centres_T3).square() / (2 * width**2)).softmax(1)
        self.register_buffer(
            "weights_LT", weights_LT if len(centres_T3) < len(anchors_L3) else torch.eye(len(anchors_L3))
        )
        self.embed, self.norm, self.mlp = (
            nn.Linear(len(config.code_levels), config.width),
            nn.LayerNorm(config.width),
            feed_forward(config.width),
        )

    def forward(self, values_BTC: Tensor) -> Tensor:
        read_BLD = self.weights_LT @ self.embed(values_BTC)
        return read_BLD + self.mlp(self.norm(read_BLD))


class CQT(nn.Module, RunningStatistics):
    """The pyramid of scales over L latents. `scale` is an index into `config.scales`.

    Its running statistics are the residuals' amplitudes, `sigma`.
    """

    def __init__(self, config: CVQConfig, anchors_L3: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        width, num_digits = config.width, len(config.code_levels)
        self.quantizer = build_quantizer(config.quantizer, config.code_levels)
        self.norms = nn.ModuleList(
            RunningNorm(t, num_digits, config.stat_momentum, scale) for scale, t in enumerate(config.scales)
        )
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        if config.resampling == "queries":
            self._add_queries(anchors_L3, generator)
        elif config.resampling == "pooled":
            for num_tokens in config.scales[:-1]:
                centres_T3 = anchors_L3[farthest_points(anchors_L3, num_tokens)]
                self.downs.append(PooledDown(anchors_L3, centres_T3))
                self.ups.append(PooledUp(config, anchors_L3, centres_T3))
        num_projections = 1 if config.resampling == "slices" else config.num_scales
        self.to_code = nn.ModuleList(nn.Linear(width, num_digits) for _ in range(num_projections))
        self.last_up = nn.Linear(num_digits, width)
        nn.init.zeros_(self.last_up.weight), nn.init.zeros_(self.last_up.bias)
        self.base = nn.Parameter(torch.zeros(config.num_latents, width))
        self.register_buffer("sigma", torch.ones(config.num_scales))
        self.register_buffer("sigma_calls", torch.zeros((), dtype=torch.int64))

    def _add_queries(self, anchors_L3: Tensor, generator: torch.Generator) -> None:
        config, width = self.config, self.config.width
        place = random_fourier_features(width, generator)
        places_LD = place(anchors_L3)
        for num_tokens in config.scales[:-1]:
            centres_TD = place(anchors_L3[farthest_points(anchors_L3, num_tokens)])
            if num_tokens == 1:
                centres_TD = torch.randn(1, width, generator=generator) * 0.1
            sharpness = 1.2 * (num_tokens / config.num_latents) ** (1 / 3)
            self.downs.append(ScaleDown(config, places_LD, centres_TD, sharpness))
            self.ups.append(ScaleUp(config, places_LD, centres_TD, sharpness))

    def canvas_start(self, batch_size: int) -> Tensor:
        """The empty canvas: the learned base, (B, L, D)."""
        return self.base.expand(batch_size, -1, -1)

    def spread(self, values_BTC: Tensor, scale: int) -> Tensor:
        """What `scale`'s quantised tokens add to the canvas, (B, L, D)."""
        if self.config.resampling == "slices":
            first, last = self._slice(scale)
            with float32_on(values_BTC.device):
                return F.pad(self.last_up(values_BTC), (0, 0, first, self.config.num_latents - last))
        up = self.last_up if scale == self.config.num_scales - 1 else self.ups[scale]
        with float32_on(values_BTC.device):
            return self.sigma[scale] * up(values_BTC)

    def align(self, features_BLD: Tensor, scale: int) -> Tensor:
        """`scale`'s T tokens (B, T, D) from L latents, which are a residual or the canvas."""
        if self.config.resampling == "slices":
            return self._align_slice(features_BLD, scale)
        if scale == self.config.num_scales - 1:
            return F.layer_norm(features_BLD, features_BLD.shape[-1:])
        with float32_on(features_BLD.device):
            return self.downs[scale](features_BLD)

    def _slice(self, scale: int) -> tuple[int, int]:
        first = sum(self.config.scales[:scale])
        return first, first + self.config.scales[scale]

    def _align_slice(self, features_BLD: Tensor, scale: int) -> Tensor:
        """As many latents as the group has, taken from before it: the canvas contains nothing
        of the group itself yet.
        """
        first, _ = self._slice(scale)
        num_tokens = self.config.scales[scale]
        return F.layer_norm(
            features_BLD[:, max(0, first - num_tokens) : max(num_tokens, first)], features_BLD.shape[-1:]
        )

    def quantize(self, residual_BLD: Tensor, scale: int, frozen: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """One scale of the residual -> (values (B, T, C), codes (B, T), the quantiser's loss)."""
        if self.config.resampling == "slices":
            first, last = self._slice(scale)
            tokens_BTD, to_code = F.layer_norm(residual_BLD[:, first:last], residual_BLD.shape[-1:]), self.to_code[0]
        else:
            tokens_BTD, to_code = self.align(residual_BLD, scale), self.to_code[scale]
        with float32_on(tokens_BTD.device):
            return self.quantizer(self.norms[scale](to_code(tokens_BTD), frozen))

    def forward(self, latents_BLD: Tensor, frozen: bool = False, num_scales: int | None = None) -> CQTOutput:
        """Encode latents by the first `num_scales` scales (all by default): the canvas, codes and loss of each."""
        canvas_BLD, output, squares = self.canvas_start(len(latents_BLD)), CQTOutput(), list[Tensor]()
        for scale in range(num_scales or self.config.num_scales):
            residual_BLD = latents_BLD - canvas_BLD
            squares.append(residual_BLD.detach().square().mean())
            values_BTC, codes_BT, loss = self.quantize(residual_BLD, scale, frozen)
            canvas_BLD = canvas_BLD + self.spread(values_BTC, scale)
            output.append(canvas_BLD, codes_BT, loss)
        if self.training and not frozen:
            self.see(torch.stack(squares))
        return output

    def follow(self, mean: Tensor) -> None:
        self.sigma_calls += 1
        settling = torch.arange(len(self.sigma), device=self.sigma.device)  # as of `RunningNorm`
        self.sigma.lerp_(mean.sqrt(), pace(self.sigma_calls - settling, self.config.stat_momentum))


class CQTOutput:
    """Result of encoding: canvases, codes and quantiser losses, one list entry per scale."""

    def __init__(self) -> None:
        self.canvases_BLD: list[Tensor] = []
        self.codes_BT: list[Tensor] = []
        self.losses: list[Tensor] = []

    def append(self, canvas_BLD: Tensor, codes_BT: Tensor, loss: Tensor) -> None:
        """Add the next scale."""
        self.canvases_BLD.append(canvas_BLD)
        self.codes_BT.append(codes_BT)
        self.losses.append(loss)


def make_anchors(num_anchors: int) -> Tensor:
    """Fixed points in the box, (L, 3) in [-0.95, 0.95]: scrambled Sobol points in Morton order, so
    that neighbours have near indices.
    """
    points = torch.quasirandom.SobolEngine(3, scramble=True, seed=0).draw(num_anchors).double() * BOX - BOX / 2
    cell = ((points + 1) / 2 * 1024).long()
    key = torch.zeros(num_anchors, dtype=torch.int64)
    for bit in range(10):
        for axis in range(3):
            key |= (cell[:, axis] >> bit & 1) << (3 * bit + axis)
    return points[key.argsort()].float()


def anchor_spacing(num_anchors: int) -> float:
    """Side of the cube whose volume is an anchor's share of the box."""
    return BOX / num_anchors ** (1 / 3)


def farthest_points(points_N3: Tensor, count: int) -> Tensor:
    """Indices (count,) of a farthest-point subset, in rising order; starts at the point nearest to the centre."""
    chosen = [int(points_N3.square().sum(-1).argmin())]
    distance_N = torch.full((len(points_N3),), torch.inf)
    while len(chosen) < count:
        distance_N = torch.minimum(distance_N, (points_N3 - points_N3[chosen[-1]]).square().sum(-1))
        chosen.append(int(distance_N.argmax()))
    return torch.tensor(sorted(chosen))


def random_fourier_features(width: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """A map (N, 3) -> (N, width) of unit variance whose inner products decrease with distance."""
    frequencies = torch.randn(3, width // 2, generator=generator) * 1.5

    def embed(points_N3: Tensor) -> Tensor:
        angles = points_N3 @ frequencies
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2) * 2**0.5

    return embed


@torch.no_grad()
def local_attention(attention: Attention, sharpness: float) -> None:
    """Initialise W_q and W_k near `sharpness` times the identity, so that tokens attend to near places."""
    for linear in (attention.to_query, attention.to_key):
        noise = torch.randn(linear.weight.shape) * 0.05
        linear.weight.copy_(noise + sharpness * torch.eye(linear.weight.shape[0]))
