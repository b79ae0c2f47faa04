"""The plan that `--dry-run` of the training commands prints: parameters, operations and memory, from the configuration
alone.

Operations are exact counts (`g3pt.training.flops`). Activations are an estimate, within 15 % of what autograd saves (a
test checks it).
"""

import functools
from pathlib import Path
from typing import Any

from g3pt.training import flops

CLIP_WIDTH, DINO_WIDTH, DINO_PATCH = 768, 1024, 14  # of the encoders named by the large presets, both ViT-L/14
CLIP_PARAMETERS, DINO_PARAMETERS = 123_060_480, 304_368_640  # CLIP's text tower only; both are frozen


def print_plan(stage: str, flags: Any, model: Any, train: Any, counts: dict[str, int]) -> None:
    """Print the plan of one training command. Neither data nor tokenizer need exist."""
    print(f"{stage} {flags.preset}: " + ", ".join(f"{key} {value:,}" for key, value in counts.items()))
    print(f"model: {model}")
    print(f"train: {train}")
    print(schedule_line(model, train))
    for line in cvq_lines(model, train, flags) if stage == "cvq" else car_lines(model, train, flags):
        print(line)
    print(f"samples: {train.steps * train.batch_size:,} on {flags.num_workers} worker(s)")
    print(
        f"data: {flags.data}{'' if Path(flags.data).exists() else ' (does not exist yet)'}; output below {flags.output}"
    )


def schedule_line(model: Any, train: Any) -> str:
    """The learning rate's peak and course, as "learning rate 0.002, 0.001 of hidden matrices; cosine: 24 steps of warm-up,
    1,176 of a cosine to zero".
    """
    hidden = train.learning_rate * train.base_width / model.width if train.base_width else train.learning_rate
    falls = train.cooldown_steps if train.schedule == "wsd" else train.steps - train.warmup_steps
    constant = train.steps - train.warmup_steps - falls
    course = [f"{train.warmup_steps:,} steps of warm-up"]
    course += [f"{constant:,} constant"] if constant else []
    course += [f"{falls:,} of 1 - sqrt to zero" if train.schedule == "wsd" else f"{falls:,} of a cosine to zero"]
    return (
        f"learning rate {train.learning_rate:g}, {hidden:.3g} of hidden matrices; {train.schedule}: {', '.join(course)}"
    )


def cvq_lines(model: Any, train: Any, flags: Any) -> list[str]:
    """Lines of a tokenizer's plan: operations by phase and part, and a worker's memory."""
    from g3pt.models.tokenizer import CVQ
    from g3pt.training.parallel import gathered

    cvq, parts = CVQ(model), flops.cvq_parts(model)
    forward = sum(cost.forward for cost in parts.values())
    shares = ", ".join(f"{name} {cost.forward / forward:.0%}" for name, cost in parts.items())
    phases = ", ".join(f"{phase} {with_flop(flops.cvq_training(model, phase))}" for phase in flops.PHASES)
    objects = _at_once(train, flags)
    memory = flops.training_memory(
        sum(p.numel() for p in cvq.parameters()),
        flops.cvq_activations(model, objects, train.precision),
        shards=_shards(flags),
        gathered=gathered(cvq),
        precision=train.precision,
    )
    return [
        f"operations of an object: forward {with_flop(forward)} ({shares})",
        f"  with its backward pass: {phases}; the run {with_flop(flops.cvq_run(model, train))}",
        _memory_line(memory, objects, flags),
    ]


def car_lines(model: Any, train: Any, flags: Any) -> list[str]:
    """Lines of a generator's plan: operations of its transformer, and a worker's memory, which includes the frozen
    tokenizer and encoders.
    """
    codec, which = _codec(flags)
    car = meta_car(model, codec)
    training = flops.car_training(car.flops_per_object, model)
    objects = _at_once(train, flags)
    return [
        f"operations of an object: forward {with_flop(car.flops_per_object)}, with its backward pass "
        f"{with_flop(training)}, "
        f"the run {with_flop(training * train.steps * train.batch_size)} ({codec.num_tokens} tokens of {which}, "
        f"{car.num_prefix} of the image)",
        _memory_line(
            car_memory(car, codec, train.precision, objects, _shards(flags), encoders=flags.features == "live"),
            objects,
            flags,
        ),
    ]


def meta_car(model: Any, codec: Any) -> Any:
    """The transformer of a configuration for a tokenizer's codes, without memory for its weights."""
    import torch

    from g3pt.models.transformer import CAR

    text, image, image_tokens = condition_widths(model)
    with torch.device("meta"):
        return CAR(model, codec, text_width=text, image_width=image, image_tokens=image_tokens)


def car_memory(
    car: Any, codec: Any, precision: str, objects: int, shards: int = 1, encoders: bool = True
) -> flops.Memory:
    """Memory of a worker that trains `car` on `objects` at once, without small encoders."""
    from g3pt.training.parallel import gathered

    activations = flops.car_activations(car.config, codec.num_tokens + car.num_prefix, objects, precision)
    trained, frozen = sum(p.numel() for p in car.parameters()), frozen_parameters(car.config, codec, encoders)
    return flops.training_memory(
        trained, activations, shards=shards, gathered=gathered(car), precision=precision, frozen=frozen
    )


def frozen_parameters(model: Any, codec: Any, encoders: bool = True) -> int:
    """Frozen parameters: those of the tokenizer and, unless their features are stored, of the pretrained encoders."""
    from g3pt.models.encoders import NONE, SMALL

    named = [(model.text_encoder, CLIP_PARAMETERS), (model.image_encoder, DINO_PARAMETERS)]
    return tokenizer_parameters(codec) + sum(count for name, count in named if encoders and name not in (SMALL, NONE))


@functools.lru_cache
def tokenizer_parameters(codec: Any) -> int:
    """Parameters of a tokenizer. It is built for that, which takes two seconds at the paper's size."""
    from pipelines.train.counts import count_cvq

    return count_cvq(codec)["parameters"]


def _codec(flags: Any) -> tuple[Any, str]:
    """(the tokenizer's configuration, its name in words): of the given run, else of the preset with the same name, else
    of the paper's.
    """
    from g3pt.config import CVQ_PRESETS, CVQConfig, from_dict
    from g3pt.training.exports import read_export_config

    try:
        return from_dict(CVQConfig, read_export_config(flags.tokenizer)["model"]), flags.tokenizer
    except (OSError, ValueError, KeyError):
        name = flags.preset if flags.preset in CVQ_PRESETS else "paper"
        return CVQ_PRESETS[name][0], f"preset {name}, as {flags.tokenizer} does not exist yet"


def condition_widths(model: Any) -> tuple[int, int | None, int]:
    """(width of the text's vector, width of an image token, number of image tokens)."""
    from g3pt.models.encoders import NONE, SMALL, SMALL_IMAGE, SMALL_TEXT
    from g3pt.models.image_encoder import grid_tokens

    text = SMALL_TEXT["hidden_size"] if model.text_encoder == SMALL else CLIP_WIDTH
    if model.image_encoder == NONE:
        return text, None, 0
    if model.image_encoder == SMALL:
        return text, SMALL_IMAGE["widths"][-1], grid_tokens(model.image_size, len(SMALL_IMAGE["widths"]))
    return text, DINO_WIDTH, (model.image_size // DINO_PATCH) ** 2 + 1


def _at_once(train: Any, flags: Any) -> int:
    share = train.batch_size // max(1, flags.num_workers)
    return min(share, flags.micro_batch or share)


def _shards(flags: Any) -> int:
    return max(1, flags.num_workers) if flags.parallel == "fsdp" else 1


def _memory_line(memory: Any, objects: int, flags: Any) -> str:
    names = ("weights", "gradients", "optimizer", "average", "activations")
    parts = ", ".join(f"{name} {with_bytes(getattr(memory, name))}" for name in names)
    return f"memory of a worker: {with_bytes(memory.total)} ({parts} of {objects} objects at once; {flags.parallel})"


def with_flop(count: float) -> str:
    """1070000000 as 1.07 GFLOP."""
    return with_unit(count, 1000, ["FLOP", *(f"{letter}FLOP" for letter in "kMGTPEZ")])


def with_bytes(count: float) -> str:
    """1073741824 as 1 GiB."""
    return with_unit(count, 1024, ["B", *(f"{letter}iB" for letter in "KMGT")])


def with_unit(count: float, step: int, units: list[str]) -> str:
    """The count with three digits and the largest unit that keeps it at least 1."""
    power = 0
    while count >= step and power < len(units) - 1:
        count, power = count / step, power + 1
    return f"{count:.3g} {units[power]}" if count < 1000 else f"{count:.0f} {units[power]}"
