"""What a training step costs: floating-point operations of the matrix products, counted exactly, and the memory it needs.

Operations are multiply-adds counted as two, of linear layers and of attention over all pairs (as it is computed). Norms, activations
and the quantiser are left out, as torch's own counter leaves them out. A backward pass costs twice a forward one, less the
gradients that nothing needs (of the points, and of what a phase does not train). Tests compare the counts with
`torch.utils.flop_counter` on real passes, and the memory with the bytes that autograd saves.

The tokenizer is counted here by part. CAR counts its own forward pass (`CAR.flops_per_object`); `car_training` multiplies it.
Shapes: as in g3pt/models/tokenizer.py: P surface points, Q query points, L latents, T tokens of a scale, D width, C digits of a code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

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
    """`count` self-attention blocks over the latents, and `before` operations. A recomputed block stops before its last layer, whose output is not needed."""
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


def car_training(forward: int, config: CARConfig) -> int:
    """Operations of one object in one step, from those of its forward pass, which recomputed layers repeat."""
    return (4 if config.checkpoint_layers else 3) * forward


# --- memory -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one worker while it trains. `activations` is an estimate."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.weights + self.gradients + self.optimizer + self.average + self.activations


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """Parameters that FSDP2 gathers (g3pt/training/parallel.py): those of the largest block, and those in no block."""

    block: int
    outside: int
    narrow: bool  # blocks are gathered in bf16 in a bf16 run


def training_memory(
    parameters: int,
    activations: int,
    *,
    shards: int = 1,
    gathered: Gathered | None = None,
    precision: str = "fp32",
    frozen: int = 0,
) -> Memory:
    """Memory of a worker that trains `parameters` parameters in `shards` shards; `frozen` ones are whole on each worker.

    In bf16, autocast keeps a bf16 copy of every trained float32 weight for the whole step; frozen weights are cast at each use.
    Of a sharded model a worker holds whole: the current block and the next one, what is in no block, and the gradients of one
    block (as computed, and in float32 for the sum) and of what is in no block.
    """
    held = -(-parameters // shards)
    cast, weights, gradients = parameters, 0, 0
    if gathered is not None and shards > 1:
        width = 2 if gathered.narrow and precision == "bf16" else 4
        cast = gathered.outside if width == 2 else parameters
        weights, gradients = (
            2 * width * gathered.block + 4 * gathered.outside,
            (width + 4) * gathered.block + 4 * gathered.outside,
        )
    copies = 2 * cast if precision == "bf16" else 0
    return Memory(
        weights=4 * (held + frozen) + weights + copies,
        gradients=4 * held + gradients,
        optimizer=8 * held,
        average=4 * held,
        activations=activations,
    )


def cvq_activations(config: CVQConfig, objects: int, precision: str = "fp32") -> int:
    """Bytes saved for the backward pass of the joint phase over `objects`."""
    width, latents, queries = config.width, config.num_latents, config.num_volume_queries + config.num_near_queries
    points, features = config.num_points + config.num_sharp_points, 6 * config.num_fourier
    blocks = config.encoder_layers + config.decoder_layers
    total = 4 * points * (6 + features) + 4 * queries * (3 + features)
    total += _cross_saved(latents, points, width, config.num_heads, precision) + _cross_saved(
        queries, latents, width, config.num_heads, precision
    )
    block = _self_saved(latents, width, config.num_heads, precision)
    total += 4 * blocks * latents * width + block if config.checkpoint_layers else blocks * block
    total += 8 * queries * width  # the head's norm and input, always in float32
    total += (4 + _bytes(precision)) * 2 * latents * width  # the latents' norm, the decoder's projection
    if config.latent_queries == "anchored":  # the weights of every point for every anchor
        total += _bytes(precision) * latents * config.num_points
    return objects * (total + _cqt_saved(config))


def _cqt_saved(config: CVQConfig) -> int:
    """The canvas, down block and up block of every scale, always in float32."""
    width, latents, digits, total = config.width, config.num_latents, len(config.code_levels), 0
    for scale, tokens in enumerate(config.scales):
        total += 4 * (latents * width + tokens * (width + 8 * digits))
        if config.resampling == "slices" or scale == config.num_scales - 1:
            continue
        rows = {"pooled": 10 * latents + 2 * tokens, "queries": 12 * latents + 3 * (tokens + 1)}[config.resampling]
        total += 4 * (latents + rows) * width
        if config.resampling == "queries":
            total += _cross_saved(tokens, latents, width, config.num_heads, "fp32")
    return total


def _self_saved(rows: int, width: int, heads: int, precision: str) -> int:
    """The residual stream twice in float32; q, k, v, attention's output, two norms and both sides of the perceptron as computed."""
    return rows * (width * (2 * 4 + 14 * _bytes(precision)) + 4 * (4 + heads))


def _cross_saved(queries: int, context: int, width: int, heads: int, precision: str) -> int:
    asked = queries * (width * (2 * 4 + 12 * _bytes(precision)) + 4 * (4 + heads))
    return asked + context * (width * (4 + 3 * _bytes(precision)) + 8)


def car_activations(config: CARConfig, tokens: int, objects: int, precision: str = "fp32") -> int:
    """Bytes saved for the backward pass of the transformer over `objects` of `tokens` (prefix included), without the encoders."""
    block = tokens * (config.width * (4 * 4 + 18 * _bytes(precision)) + 4 * (8 + config.num_heads))
    kept = 4 * config.depth * tokens * config.width + block if config.checkpoint_layers else config.depth * block
    return objects * kept


def _bytes(precision: str) -> int:
    return 2 if precision == "bf16" else 4


class SavedBytes:
    """Bytes of the distinct storages that autograd saves for the backward pass, without those of `model`."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = {_storage_id(t) for t in (*model.parameters(), *model.buffers())}
        self._kept: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no id is reused
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        if _storage_id(tensor) not in self._model:
            self._kept[_storage_id(tensor)] = tensor.untyped_storage()
        return tensor

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._hooks.__exit__(*raised)

    @property
    def total(self) -> int:
        """Bytes so far."""
        return sum(storage.nbytes() for storage in self._kept.values())


def _storage_id(tensor: torch.Tensor) -> int:
    """The same number for all views of a storage, on the meta device too, where storages have no address."""
    return tensor.untyped_storage()._cdata
