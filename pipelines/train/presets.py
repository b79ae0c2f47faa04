"""The table of generator presets, as Markdown, counted from the code: `python -m pipelines.train.presets`;
docs/reference/presets.md has it.

Parameters, operations and the K/V cache are exact: each model is built without memory for its weights. Activations are
an estimate (`g3pt.training.flops`). Memory includes float32 weights with their gradient, AdamW's two moments and the
average, the bf16 copy of the trained weights, and the frozen tokenizer and encoders. The operations of the frozen
parts, and the small encoders of the sizes below 0.1B, are not counted.
"""

from dataclasses import dataclass
from typing import Any, Literal

from g3pt.config import CAR_PRESETS, CVQ_PRESETS

COLUMNS = (
    "CAR",
    "depth x width, heads",
    "parameters without embeddings",
    "all",
    "forward / training step per object",
    "training: fixed memory + per object",
    "sampling: fixed memory + K/V cache per object with guidance",
)
COUNTS = ["", "k", "M"]


@dataclass(frozen=True, kw_only=True)
class PresetsFlags:
    """Print the sizes of the generator presets as a Markdown table."""

    tokenizer: Literal["nano", "micro", "small", "base", "paper"] = "paper"
    """tokenizer preset whose codes are generated"""


def presets(flags: PresetsFlags) -> None:
    """Print the table."""
    print("\n".join(lines(flags.tokenizer)))


def lines(tokenizer: str) -> list[str]:
    """The table's lines, heading first."""
    codec = CVQ_PRESETS[tokenizer][0]
    rows = [COLUMNS, ("---",) * len(COLUMNS), *(row(name, codec) for name in CAR_PRESETS)]
    return ["| " + " | ".join(cells) + " |" for cells in rows]


def row(name: str, codec: Any) -> tuple[str, ...]:
    """One preset's cells."""
    from g3pt.training import flops
    from pipelines.train.plan import car_memory, frozen_parameters, meta_car, with_bytes, with_flop, with_unit

    model, train = CAR_PRESETS[name]
    car = meta_car(model, codec)
    parameters = sum(p.numel() for p in car.parameters())
    memory = car_memory(car, codec, train.precision, 1)
    operations = car.flops_per_object
    return (
        name,
        f"{model.depth} x {model.width}, {model.num_heads}",
        with_unit(car.num_params_no_embed, 1000, COUNTS),
        with_unit(parameters, 1000, COUNTS),
        f"{with_flop(operations)} / {with_flop(flops.car_training(operations, model))}",
        f"{with_bytes(memory.total - memory.activations)} + {with_bytes(memory.activations)}",
        f"{with_bytes(4 * (parameters + frozen_parameters(model, codec)))} + {with_bytes(cache_bytes(car))}",
    )


def cache_bytes(car: Any) -> int:
    """Bytes of the K/V cache for sampling one object with guidance, which computes it twice: with and without its
    prompt.
    """
    return sum(tensor.nbytes for cache in car.new_caches(2) for tensor in (cache.keys, cache.values))


if __name__ == "__main__":
    from pipelines.cli.main import main

    main(PresetsFlags, presets, example="python -m pipelines.train.presets --tokenizer paper", keep_stdout=True)
