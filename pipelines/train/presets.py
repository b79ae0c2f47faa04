"""The table of generator presets, as Markdown, counted from the code: `python -m pipelines.train.presets`;
docs/reference/presets.md has it.

Parameters, operations and the K/V cache are exact: each model is built without memory for its weights. Memory of a
training is float32 weights with their gradient, AdamW's two moments and the average, and the frozen tokenizer and
encoders; with `--memory` also what a rehearsed step of one worker adds, without and with recomputed layers
(`pipelines.train.memory`). The operations of the frozen parts, and the small encoders of the sizes below 0.1B, are not
counted.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from g3pt.config import CAR_PRESETS, CVQ_PRESETS

COLUMNS = (
    "CAR",
    "depth x width, heads",
    "parameters without embeddings and head",
    "also without AdaLN",
    "all",
    "forward / training step per object",
    "training: fixed memory",
    "sampling: fixed memory + K/V cache per object with guidance",
)
STEP = ("a step adds, per object", "with recomputed layers")
COUNTS = ["", "k", "M"]


@dataclass(frozen=True, kw_only=True)
class PresetsFlags:
    """Print the sizes of the generator presets as a Markdown table."""

    tokenizer: Literal["nano", "micro", "small", "base", "paper", "large"] = "paper"
    """tokenizer preset whose codes are generated"""
    memory: bool = False
    """measure what a training step adds to the fixed memory, too, which takes some minutes"""


def presets(flags: PresetsFlags) -> None:
    """Print the table."""
    print("\n".join(lines(flags.tokenizer, flags.memory)))


def lines(tokenizer: str, memory: bool = False) -> list[str]:
    """The table's lines, heading first."""
    codec = CVQ_PRESETS[tokenizer][0]
    rows = [COLUMNS, ("---",) * len(COLUMNS), *(row(name, codec) for name in CAR_PRESETS)]
    if memory:
        steps = [STEP, ("---",) * len(STEP), *(step(name, codec) for name in CAR_PRESETS)]
        rows = [one + other for one, other in zip(rows, steps, strict=True)]
    return ["| " + " | ".join(cells) + " |" for cells in rows]


def row(name: str, codec: Any) -> tuple[str, ...]:
    """One preset's cells."""
    from g3pt.training import flops
    from g3pt.training.memory import training_memory
    from pipelines.cli.plain_text import with_bytes, with_flop, with_unit
    from pipelines.train.counts import meta_car
    from pipelines.train.memory import frozen_parameters

    model, _ = CAR_PRESETS[name]
    car = meta_car(model, codec)
    parameters, frozen = sum(p.numel() for p in car.parameters()), frozen_parameters(model, codec)
    operations = car.flops_per_object
    return (
        name,
        f"{model.depth} x {model.width}, {model.num_heads}",
        with_unit(car.num_params_no_embed, 1000, COUNTS),
        with_unit(car.num_params_no_adaln, 1000, COUNTS),
        with_unit(parameters, 1000, COUNTS),
        f"{with_flop(operations)} / {with_flop(flops.car_training(operations, model))}",
        with_bytes(training_memory(parameters, 0, frozen=frozen).state),
        f"{with_bytes(4 * (parameters + frozen))} + {with_bytes(cache_bytes(car))}",
    )


def step(name: str, codec: Any) -> tuple[str, ...]:
    """What a training step of one preset adds to its fixed memory, without and with recomputed layers."""
    from pipelines.cli.plain_text import with_bytes
    from pipelines.train.memory import needs

    model, train = CAR_PRESETS[name]
    both = (dataclasses.replace(model, checkpoint_layers=recompute) for recompute in (False, True))
    found = [needs(one, train.precision, codec).activations for one in both]
    return tuple(f"{with_bytes(one.fixed)} + {with_bytes(one.per_object)}" for one in found)


def cache_bytes(car: Any) -> int:
    """Bytes of the K/V cache for sampling one object with guidance, which computes it twice: with and without its
    prompt.
    """
    return sum(tensor.nbytes for cache in car.new_caches(2) for tensor in (cache.keys, cache.values))


if __name__ == "__main__":
    from pipelines.cli.main import main

    main(PresetsFlags, presets, example="python -m pipelines.train.presets --tokenizer paper", keep_stdout=True)
