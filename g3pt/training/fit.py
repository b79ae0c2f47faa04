"""The training loop of tokenizer and generator, in a test, a notebook or a Ray worker, on one process or many.

`fit` is plain: batches in, records and states out through two callbacks. It keeps no random state: each step seeds
itself from (seed, step), and batches are requested by the number of samples seen, so a resumed run repeats an
uninterrupted one. What is drawn at random for an object follows from its row in the global batch
(`g3pt.data.batches.rand_rows`): neither the number of workers nor micro-batches change it.

Micro-batches (gradient accumulation) keep the global batch where a worker's share does not fit memory. They change a
model whose loss is a mean over objects by float noise. Running statistics do not change within a step
(`g3pt.training.statistics`). LFQ's entropy term reads the mean code of one micro-batch of all workers, so its weights
differ a little.

A step whose loss or gradient is not finite changes nothing (`g3pt.training.skipped`); the next record names it.

Every key of a record becomes an MLflow metric; what is logged under which key is decided by the models' losses and
evaluations.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Container, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from g3pt.config import TrainConfig
from g3pt.data.batches import prefetched, rows_of
from g3pt.training.average import WeightAverage
from g3pt.training.best import Best
from g3pt.training.optimizer import learning_rate, make_optimizer, set_learning_rate
from g3pt.training.parallel import SingleProcess, bf16_where, whole
from g3pt.training.skipped import Buffers, check_skipped, skip_flag, with_skipped
from g3pt.training.state import Resume, load_state, state_dict
from g3pt.training.statistics import update_statistics
from g3pt.training.step_records import Record, Step, begun_record, mean_record, read_steps

Batch = dict[str, Any]  # tensors of B objects, and row_B and num_rows: their rows in the global batch, and its size
PREFETCH = 2  # batches made ahead, on a GPU


class AskedToStop(Exception):
    """Training ended early on request; the state after `step` steps is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(f"asked to stop; saved after {step} steps")
        self.step = step

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return type(self), (self.step,)


def step_seed(seed: int, step: int) -> int:
    """The 63-bit seed of one step, the same on every worker."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/0".encode()).digest()[:8], "big") >> 1


def fit(
    *,
    model: nn.Module,
    batches: Callable[[int], Iterator[Batch]],
    config: TrainConfig,
    report: Callable[[Record], None],
    save: Callable[[dict[str, Any], int], None] | None = None,
    save_at: Container[int] = (),
    is_due: Callable[[], bool] | None = None,
    saved: Callable[[], None] | None = None,
    resume: Resume | None = None,
    evaluate: Callable[[nn.Module], Record] | None = None,
    evaluate_raw: Callable[[nn.Module], Record] | None = None,
    final: Callable[[nn.Module], None] | None = None,
    best: Best | None = None,
    device: str | torch.device = "cpu",
    parallel: SingleProcess | None = None,
    micro_batch: int | None = None,
    stop: Callable[[], bool] | None = None,
) -> nn.Module:
    """Train `model` for `config.steps` steps; returns it whole, with its averaged (EMA) weights.

    The result is `model` itself, unless that was sharded: then it is another one on rank 0, and an empty shell
    elsewhere. `model(batch, step)` returns (loss, logs). `batches(start_sample)` yields this worker's share of each
    global batch. `report` receives one flat record per `log_every` steps; its key `step` is the number of samples seen
    so far. `save(state, samples)` receives what `resume` takes. Both are called on every worker with the same content,
    apart from the slices of a sharded model's tensors. States are saved every `checkpoint_every` steps, at the samples
    `save_at`, at the end, and where the run is asked to stop. `is_due`, asked every `checkpoint_every` steps, may put
    that off; one worker's yes is enough. `save` may write later: `saved` returns when all is written. `evaluate` runs
    on every worker too; a sharded model gathers one block at a time for it. `evaluate_raw` does the same with the
    weights themselves in place of their average. A bf16 run evaluates in bf16 on a GPU. `final` is called once on every
    worker in the end, with the averaged weights, in float32 unless the model is gathered in bf16. `best` keeps the
    averaged weights of the best evaluation, whole on rank 0 in the end. `micro_batch` objects are computed at once, by
    default a worker's whole share. `stop` is asked on every worker after each step. If any says yes, all save and raise
    AskedToStop: one worker after that step, several after the next one, so that none waits for the others' answers.
    Raises NonFiniteLoss when too many steps were skipped; nothing is saved from then on.
    """
    parallel, device = parallel or SingleProcess(), torch.device(device)
    parts = count_parts(config.batch_size // parallel.world_size, micro_batch)
    model.to(device).train()
    parallel.shard(model, config.precision)
    optimizer = make_optimizer(model, config)
    average, buffers = WeightAverage(model, config.ema_decay), Buffers()
    first_step, pending, skipped = 0, list[Step](), list[int]()
    if resume is not None:
        first_step, pending, skipped = load_state(resume, model, optimizer, average, config, parallel, best)
    on_gpu, wrapped = device.type == "cuda", None
    started, logged_step = time.perf_counter(), first_step

    with contextlib.closing(
        prefetched(batches(first_step * config.batch_size), PREFETCH * on_gpu, pin=on_gpu)
    ) as stream:
        for step in range(first_step, config.steps):
            with naming_step(step):
                if set_phase(model, step, config.steps) or wrapped is None:
                    wrapped = parallel.wrap(model)
                batch = on_device(next(stream), device)
                batch = rows_of(batch, config.batch_size, parallel.rank, parallel.world_size, device)
                optimizer.zero_grad(set_to_none=True)
                buffers.remember(model)
                loss, logs = backward(wrapped, model, batch, step, parts, config, parallel)
                pending.append(update(model, optimizer, average, buffers, step, loss, logs, config))

            done = step + 1
            samples, is_last = done * config.batch_size, done == config.steps
            asked = stop is not None and parallel.agree_soon(stop())
            is_logged = is_last or done % config.log_every == 0
            is_saved = is_last or asked or samples in save_at
            if not is_saved and done % config.checkpoint_every == 0:
                is_saved = is_due is None or parallel.agree(is_due())
            if is_logged or is_saved:
                taken = read_steps(pending)
                skipped = with_skipped(skipped, [(read.step, read.is_skipped) for read in taken])
                check_skipped(skipped, config.steps if is_last else None)
            if is_logged:
                record = mean_record(taken, device) | {"step": samples, "learning_rate": learning_rate(config, step)}
                record |= take_window(model)
                seconds = time.perf_counter() - started
                record["samples_per_second"] = (done - logged_step) * config.batch_size / seconds
                if evaluate is not None and (is_last or done % config.eval_every < config.log_every):
                    with bf16_where(evaluates_in_bf16(config, device), device):
                        record |= evaluated(model, average, evaluate, evaluate_raw, parallel)
                    if best is not None:
                        best.consider(record, model, average.tensors, parallel)
                report(record)
                pending, taken, started, logged_step = [], [], time.perf_counter(), done
            if is_saved:
                begun = begun_record(taken, model, device)  # over all workers, also where nothing is saved
                if save is not None:
                    state = state_dict(model, optimizer, average, done, config) | begun | {"skipped": skipped}
                    save(state | (best.state() if best is not None else {}), samples)
                if saved is not None and (is_last or asked):
                    saved()
            if asked and not is_last:
                parallel.settle()
                parallel.agree(True)  # wait for each other: a worker that leaves could end one that still writes
                raise AskedToStop(done)
    parallel.settle()
    if final is not None:
        with parallel.holding(model, average.tensors):
            final(model)
    if best is not None:
        best.gather(parallel)
    return parallel.finished(model, average.tensors)


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage,
    buffers: Buffers,
    step: int,
    loss: Tensor,
    logs: dict[str, Tensor],
    config: TrainConfig,
) -> Step:
    """Clip the gradients, then move the weights and their average, unless the loss or a gradient is not finite."""
    grad_norm = whole(nn.utils.clip_grad_norm_(trained_parameters(model), config.clip_norm))
    set_learning_rate(optimizer, config, step)
    skip = skip_flag(loss, grad_norm)
    optimizer.found_inf = skip  # type: ignore[attr-defined]  # where it is 1, fused AdamW writes nothing
    optimizer.step()
    average.update(model, skip)
    buffers.restore_if(skip, model)
    return step, loss, grad_norm.detach(), logs, skip


def evaluated(
    model: nn.Module,
    average: WeightAverage,
    evaluate: Callable[[nn.Module], Record],
    evaluate_raw: Callable[[nn.Module], Record] | None,
    parallel: SingleProcess,
) -> Record:
    """What `evaluate` returns for the averaged weights, and `evaluate_raw` for the weights themselves."""
    with parallel.holding(model, average.tensors):
        record = dict(evaluate(model))
    if evaluate_raw is not None:
        with parallel.holding(model, {}):
            record |= evaluate_raw(model)
    model.train()
    return record


def evaluates_in_bf16(config: TrainConfig, device: torch.device) -> bool:
    """Whether evaluations during training are computed as the training steps are, in bf16 on a GPU."""
    return config.precision == "bf16" and device.type == "cuda"


def count_parts(share: int, micro_batch: int | None) -> int:
    """Number of micro-batches of a worker's share of the global batch."""
    if micro_batch is None or micro_batch >= share:
        return 1
    if micro_batch < 1 or share % micro_batch:
        raise ValueError(
            f"a worker's share of the batch, {share} objects, is not a multiple of the micro-batch {micro_batch}"
        )
    return share // micro_batch


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def backward(
    wrapped: nn.Module,
    model: nn.Module,
    batch: Batch,
    step: int,
    parts: int,
    config: TrainConfig,
    parallel: SingleProcess,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Gradients of the mean loss over `parts` micro-batches; that loss and its logs, detached.

    Moves the running statistics.
    """
    autocast = bf16_where(config.precision == "bf16", batch["row_B"].device)
    losses, logs = [], []
    for index, part in enumerate(split(batch, parts)):
        torch.manual_seed(step_seed(config.seed, step))  # micro-batches draw for the whole batch and take their rows
        with contextlib.nullcontext() if index == parts - 1 else parallel.accumulating(wrapped):
            with autocast:
                loss, part_logs = wrapped(part, step)
            (loss / parts if parts > 1 else loss).backward()
        losses.append(loss.detach())
        logs.append(part_logs)
    update_statistics(model)
    if parts == 1:
        return losses[0], logs[0]
    return torch.stack(losses).mean(), {name: torch.stack([part[name] for part in logs]).mean() for name in logs[0]}


def split(batch: Batch, parts: int) -> list[Batch]:
    """The batch as `parts` batches of equal size, in order."""
    if parts == 1:
        return [batch]
    size = len(batch["row_B"]) // parts
    cut = {name: value.split(size) if isinstance(value, Tensor) else [value] * parts for name, value in batch.items()}
    return [{name: values[i] for name, values in cut.items()} for i in range(parts)]


@contextlib.contextmanager
def naming_step(step: int) -> Iterator[None]:
    """Give an error raised in the block an attribute `step`."""
    try:
        yield
    except Exception as error:
        error.step = getattr(error, "step", None) or step  # type: ignore[attr-defined]
        raise


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Parameters that have a gradient now."""
    return [p for p in model.parameters() if p.grad is not None]


def set_phase(model: nn.Module, step: int, num_steps: int) -> bool:
    """Call `model.set_phase` if there is one; True if the set of trained tensors changed."""
    choose = getattr(model, "set_phase", None)
    return bool(choose(step, num_steps)) if choose else False


def take_window(model: nn.Module) -> Record:
    """`model.take_window()` if there is one: what it counted since the last record, over all workers,
    who must all call it.
    """
    take = getattr(model, "take_window", None)
    return take() if take else {}
