"""The plan that `--dry-run` of the training commands prints: parameters, operations and memory, from the configuration
alone.

Operations are exact counts (`g3pt.training.flops`). Memory is that of a rehearsed step (`pipelines.train.memory`).
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

from g3pt.training import flops
from pipelines.cli.plain_text import with_bytes, with_flop
from pipelines.train.costs import cost_line, planned_for
from pipelines.train.counts import car_operations, count_car, count_cvq, meta_car
from pipelines.train.memory import GIB, MARGIN, gpu_bytes, needs, plan_step, trained_parameters, workers_of
from pipelines.train.saving import GPU_MINUTES

COPIED_BYTES = 16  # of a checkpoint per trained parameter, for which a step waits: weight, two moments, average
STATE_BYTES = 20  # of a checkpoint per trained parameter: the best weights, too
AFFORDABLE = 0.02  # share of the operations of training that evaluations may take


def print_plan(stage: str, flags: Any, model: Any, train: Any) -> None:
    """Print the plan of one training command. Neither data nor tokenizer need exist."""
    flags, gpu = planned_for(flags)
    codec, which = (None, "") if stage == "cvq" else _codec(flags)
    size = gpu_bytes(flags)
    choice = plan_step(model, train, flags, codec, size)
    model = dataclasses.replace(model, checkpoint_layers=choice.recompute)
    flags = dataclasses.replace(flags, micro_batch=choice.micro_batch)
    where = "no GPU is known here: --gpu-memory GIB plans for one"
    if size is not None:
        where = f"{size / GIB:.1f} GiB per GPU, {MARGIN:.0%} of it kept free"
    counts = count_cvq(model) if codec is None else count_car(model, codec)
    print(f"{stage} {flags.preset}: " + ", ".join(f"{key} {value:,}" for key, value in counts.items()))
    print(f"model: {model}")
    print(f"train: {train}")
    print(schedule_line(model, train))
    print(f"computes: {choice} ({where})")
    for line in cvq_lines(model, train) if codec is None else car_lines(model, train, codec, which):
        print(line)
    print(evaluation_line(model, train, codec, max(1, flags.num_workers)))
    print(_memory_line(model, train, flags, codec, encoders=getattr(flags, "features", "live") != "stored"))
    print(checkpoint_line(model, train, codec, flags))
    print(samples_line(model, train, flags))
    print(cost_line(flags, gpu, model, train, codec, evaluation_of(model, train, codec)))
    print(
        f"data: {flags.data}{'' if Path(flags.data).exists() else ' (does not exist yet)'}; output below {flags.output}"
    )


def samples_line(model: Any, train: Any, flags: Any) -> str:
    """The samples of the run; with a dataset that exists also its epochs and the share of samples that are not seen
    before. Variants of an object count as objects.
    """
    from g3pt.data.datasets import open_dataset

    samples, variants = train.steps * train.batch_size, getattr(model, "code_variants", 1)
    line = f"samples: {samples:,} on {flags.num_workers} worker(s)"
    try:
        objects = open_dataset(flags.data).splits["train"]
    except (OSError, ValueError):
        return line
    unique, what = objects * variants, f"{objects:,} objects" + f" in {variants} variants" * (variants > 1)
    if not unique:
        return line
    return f"{line}: {samples / unique:.3g} epochs of {what}, {min(1.0, unique / samples):.0%} of them unique"


def schedule_line(model: Any, train: Any) -> str:
    """The learning rate's peak and course, as "learning rate 0.002, 0.001 of hidden matrices; cosine: 24 steps of
    warm-up, 1,176 of a cosine to zero".
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


def cvq_lines(model: Any, train: Any) -> list[str]:
    """Lines of a tokenizer's plan: operations by phase and part."""
    parts = flops.cvq_parts(model)
    forward = sum(cost.forward for cost in parts.values())
    shares = ", ".join(f"{name} {cost.forward / forward:.0%}" for name, cost in parts.items())
    phases = ", ".join(f"{phase} {with_flop(flops.cvq_training(model, phase))}" for phase in flops.PHASES)
    return [
        f"operations of an object: forward {with_flop(forward)} ({shares})",
        f"  with its backward pass: {phases}; the run {with_flop(flops.cvq_run(model, train))}",
    ]


def car_lines(model: Any, train: Any, codec: Any, which: str) -> list[str]:
    """Lines of a generator's plan: operations of its transformer; `which` names the tokenizer in words."""
    car = meta_car(model, codec)
    training = flops.car_training(car.flops_per_object, model)
    return [
        f"operations of an object: forward {with_flop(car.flops_per_object)}, with its backward pass "
        f"{with_flop(training)}, "
        f"the run {with_flop(training * train.steps * train.batch_size)} ({codec.num_tokens} tokens of {which}, "
        f"{car.num_prefix} of the image)",
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What evaluating costs beside a run's training steps; the workers share the objects."""

    objects: int
    object_operations: int  # of an object in one evaluation
    test_objects: int
    test_operations: int  # of an object in the test
    step_operations: int  # of a training object, in the phase that costs least
    train: Any

    def share(self, workers: int, every: int | None = None) -> float:
        """Operations of a worker in the evaluations each `every` steps (default: the run's), over those of its steps:
        the worker that has the most objects.
        """
        steps = (every or self.train.eval_every) * self.train.batch_size // workers * self.step_operations
        return -(-self.objects // workers) * self.object_operations / steps

    def test_share(self, workers: int) -> float:
        """The same of the test, over the whole run."""
        steps = self.train.steps * self.train.batch_size // workers * self.step_operations
        return -(-self.test_objects // workers) * self.test_operations / steps

    def affordable(self, workers: int) -> int:
        """The smallest number of steps between evaluations whose share is at most AFFORDABLE; a multiple of
        `log_every`.
        """
        every = math.ceil(self.share(workers, 1) / AFFORDABLE)
        return -(-every // self.train.log_every) * self.train.log_every


def evaluation_of(model: Any, train: Any, codec: Any) -> Evaluation:
    """The evaluations of a generator of `codec`'s codes, else of a tokenizer; of splits with enough objects."""
    from pipelines.train import car, cvq

    if codec is None:
        from g3pt.models.diagnostics import EVAL_QUERIES

        during, test = flops.cvq_evaluation(model, EVAL_QUERIES)
        step = min(flops.cvq_training(model, phase) for phase in flops.PHASES)
        return Evaluation(
            objects=cvq.EVAL_OBJECTS, object_operations=during, test_objects=train.test_objects, test_operations=test,
            step_operations=step, train=train,
        )  # fmt: skip
    forward = car_operations(model, codec)
    conditions = 2 + (model.image_encoder != "none")
    return Evaluation(
        objects=car.EVAL_OBJECTS, object_operations=(conditions + 1) * forward, test_objects=train.test_objects,
        test_operations=conditions * forward, step_operations=flops.car_training(forward, model), train=train,
    )  # fmt: skip


def evaluation_line(model: Any, train: Any, codec: Any, workers: int) -> str:
    """What evaluating costs, as "evaluation: 256 objects each 200 steps, .67 % of the operations of the steps; ..."."""
    found = evaluation_of(model, train, codec)
    share, every = found.share(workers), found.affordable(workers)
    advice = f" (--set eval_every={every} for at most {AFFORDABLE:.0%})" if share > AFFORDABLE else ""
    return (
        f"evaluation: {found.objects} objects each {train.eval_every} steps, {share:.2%} of the operations of the "
        f"steps{advice}; the test of {found.test_objects:,} objects {found.test_share(workers):.2%}"
    )


def checkpoint_line(model: Any, train: Any, codec: Any, flags: Any) -> str:
    """When checkpoints begin, their size, and how much work a lost worker costs."""
    trained = count_cvq(model)["parameters"] if codec is None else trained_parameters(model, codec)
    workers = workers_of(train, flags).shards
    step = (
        flops.cvq_training(model, "joint") if codec is None else flops.car_training(car_operations(model, codec), model)
    )
    work = with_flop(step * train.batch_size * train.checkpoint_every)
    minutes = getattr(flags, "checkpoint_minutes", None)
    apart = f"{GPU_MINUTES:g} minutes apart on a GPU" if minutes is None else f"{minutes:g} minutes apart"
    each = " by each worker" if workers > 1 else ""
    return (
        f"checkpoints: each {train.checkpoint_every} steps ({work}), at least {apart}; "
        f"{with_bytes(STATE_BYTES * trained)}, of which {with_bytes(COPIED_BYTES * trained // workers)} are "
        f"copied{each} while the step waits; a lost worker costs the work since the last one"
    )


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


def _memory_line(model: Any, train: Any, flags: Any, codec: Any, encoders: bool = True) -> str:
    """The memory of a worker that computes as planned."""
    workers = workers_of(train, flags)
    narrow = workers.shards > 1 and train.precision == "bf16"
    memory = needs(model, train.precision, codec, encoders, narrow).memory(flags.micro_batch, workers)
    names = ("weights", "gradients", "optimizer", "average", "best", "batch", "activations")
    parts = ", ".join(f"{name} {with_bytes(size)}" for name in names if (size := getattr(memory, name)))
    return (
        f"memory of a worker: {with_bytes(memory.total)} ({parts} of {flags.micro_batch} objects at once; "
        f"{flags.parallel})"
    )
