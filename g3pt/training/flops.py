"""What a training step costs: floating-point operations of the matrix products, counted exactly. Its memory: memory.py.

Operations are multiply-adds counted as two, of linear layers and of attention over all pairs (as it is computed).
Norms, activations and the quantiser are left out, as torch's own counter leaves them out. A backward pass costs twice a
forward one, less the gradients that nothing needs (of the points, and of what a phase does not train). Tests compare
the counts with `torch.utils.flop_counter` on real passes.

The tokenizer is counted here by part. CAR counts its own forward pass (`CAR.flops_per_object`); `car_training`
multiplies it.
Shapes: as in g3pt/models/tokenizer.py: P surface points, Q query points, L latents, T tokens of a scale, D width, C
digits of a code.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from g3pt.config import CARConfig, CVQConfig, TrainConfig

PHASES = ("continuous", "pyramid", "joint")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Operations of one part of the forward and backward pass of one object."""

    forward: int
    backward: int
    recomputed: int = 0  # part of the forward pass that gradient checkpointing repeats


def linear(rows: int, inputs: int, outputs: int) -> int:
    """A linear layer applied to `rows` rows."""
    return 2 * rows * inputs * outputs


def attention(queries: int, context: int, width: int) -> int:
    """Projections of queries, keys, values and output, and the two products over all pairs."""
    return 2 * linear(queries, width, width) + 2 * linear(context, width, width) + 4 * queries * context * width


def mlp(rows: int, width: int) -> int:
    """The perceptron of a block, four times as wide inside."""
    return 2 * linear(rows, width, 4 * width)


def self_block(rows: int, width: int) -> int:
    """`layers.SelfBlock`."""
    return attention(rows, rows, width) + mlp(rows, width)


def cross_block(queries: int, context: int, width: int) -> int:
    """`layers.CrossBlock`."""
    return attention(queries, context, width) + mlp(queries, width)


def cvq_parts(config: CVQConfig) -> dict[str, Cost]:
    """Each part of one object's forward and backward pass in training, by name."""
    latents, width, queries = config.num_latents, config.width, config.num_volume_queries + config.num_near_queries
    points, features = config.num_points + config.num_sharp_points, 6 * config.num_fourier
    embedded = linear(points, 6 + features, width)
    anchors = _anchor_reads(config)
    asked = linear(queries, 3 + features, width)
    parts = {
        "points": Cost(forward=embedded + anchors, backward=embedded + _anchor_gradients(config)),
        "encoder cross-attention": _trained(cross_block(latents, points, width)),
        "encoder": _blocks(config.encoder_layers, config),
        "CQT": cqt(config),
        "decoder latents": _blocks(config.decoder_layers, config, linear(latents, width, width)),
        "query points": Cost(forward=asked, backward=asked),
        "query cross-attention": _trained(cross_block(queries, latents, width) + linear(queries, width, 1)),
    }
    return {name: cost for name, cost in parts.items() if cost.forward}


def _trained(forward: int) -> Cost:
    return Cost(forward=forward, backward=2 * forward)


def _blocks(count: int, config: CVQConfig, before: int = 0) -> Cost:
    """`count` self-attention blocks over the latents, and `before` operations.

    A recomputed block stops before its last layer, whose output is not needed.
    """
    rows, width = config.num_latents, config.width
    recomputed = count * (self_block(rows, width) - linear(rows, 4 * width, width)) if config.checkpoint_layers else 0
    forward = before + count * self_block(rows, width)
    return Cost(forward=forward, backward=2 * forward, recomputed=recomputed)


def _anchor_reads(config: CVQConfig) -> int:
    """Distances of anchors to points, and the weighted mean of the points' embeddings."""
    if config.latent_queries != "anchored":
        return 0
    return 2 * (3 + config.width) * config.num_latents * config.num_points


def _anchor_gradients(config: CVQConfig) -> int:
    """Of the weighted mean to the points' embeddings; the weights have none."""
    anchored = config.latent_queries == "anchored"
    return 2 * config.width * config.num_latents * config.num_points if anchored else 0


def cqt(config: CVQConfig) -> Cost:
    """All scales, down and up. Pooling has fixed weights, which need no gradient."""
    latents, width, digits = config.num_latents, config.width, len(config.code_levels)
    forward = fixed = 0
    for scale, tokens in enumerate(config.scales):
        forward += 2 * linear(tokens, width, digits)  # to the code's digits and back to the width
        if config.resampling == "slices" or scale == config.num_scales - 1:
            continue
        if config.resampling == "pooled":
            pooled = 2 * linear(tokens, latents, width)
            forward, fixed = forward + pooled + mlp(latents, width), fixed + pooled
        else:
            forward += cross_block(tokens, latents, width) + attention(latents, tokens + 1, width) + mlp(latents, width)
    return Cost(forward=forward, backward=2 * forward - fixed)


def cvq_training(config: CVQConfig, phase: str) -> int:
    """Operations of one object in one training step of `phase`, forward and backward."""
    return sum(
        cost.forward + cost.backward + cost.recomputed
        for name, cost in cvq_parts(config).items()
        if name != "CQT" or phase != "continuous"
    )


def cvq_run(config: CVQConfig, train: TrainConfig) -> int:
    """Operations of a whole run, phase by phase."""
    continuous = round(config.continuous_share * train.steps)
    pyramid = min(round(config.pyramid_share * train.steps), train.steps - continuous)
    steps = {"continuous": continuous, "pyramid": pyramid, "joint": train.steps - continuous - pyramid}
    return train.batch_size * sum(count * cvq_training(config, phase) for phase, count in steps.items())


def cvq_evaluation(config: CVQConfig, queries: int) -> tuple[int, int]:
    """(operations of one object in an evaluation during training, in the test), with `queries` points per decoding.

    Both encode two samplings and decode every scale and the latents themselves; during training the weights that are
    not averaged encode and decode once more (`g3pt.models.diagnostics`).
    """
    seen = dataclasses.replace(
        config, num_points=config.num_encode_points, num_volume_queries=queries, num_near_queries=0
    )
    forward = {name: cost.forward for name, cost in cvq_parts(seen).items()}
    decoding = sum(forward[name] for name in ("decoder latents", "query points", "query cross-attention"))
    encoding = sum(forward.values()) - decoding
    test = 2 * encoding + (config.num_scales + 1) * decoding
    return test + encoding + decoding, test


def car_training(forward: int, config: CARConfig) -> int:
    """Operations of one object in one step, from those of its forward pass, which recomputed layers repeat."""
    return (4 if config.checkpoint_layers else 3) * forward
