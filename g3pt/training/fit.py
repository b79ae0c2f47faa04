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
import math
import time
from collections.abc import Callable, Container, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from g3pt.config import TrainConfig
from g3pt.data.batches import prefetched, rows_of
from g3pt.training.best import Best
from g3pt.training.optimizer import learning_rate, make_optimizer, set_learning_rate
from g3pt.training.optimizer_state import Like
from g3pt.training.parallel import SingleProcess, bf16_where, local, means_over_workers, shard_like, whole
from g3pt.training.skipped import Buffers, check_skipped, skip_flag, skipped_record, with_skipped
from g3pt.training.statistics import update_statistics

Record = dict[str, float]
Resume = (
    dict[str, Any] | Callable[[Like], dict[str, Any]]
)  # a state, or a function that reads one into existing tensors
Batch = dict[str, Any]  # tensors of B objects, and row_B and num_rows: their rows in the global batch, and its size
Step = tuple[int, Tensor, Tensor, dict[str, Tensor], Tensor]  # number, loss, gradient norm, logs, 1 if it was skipped
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
    on every worker too; a sharded model gathers one block at a time for it.
    `evaluate_raw` does the same with the weights themselves in place of their average. A bf16 run evaluates in bf16 on
    a GPU. `final` is called once on every worker in the end, with the averaged weights, in float32 unless the model is
    gathered in bf16. `best` keeps the averaged weights of the best evaluation, whole on rank 0 in the end.
    `micro_batch` objects are computed at once, by
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
    """Whether evaluations during training are computed as the training steps are: on a GPU that is eight times faster
    than float32.
    """
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


class WeightAverage:
    """An exponential moving average (EMA) of each trained parameter, with a decay that warms up.

    The decay of a parameter's n-th update is min(decay, (1 + n) / (10 + n)): with a constant decay the average of a
    short run, or of a part that starts training late, would still contain its random start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        self.updates = dict.fromkeys(self.tensors, 0)

    @torch.no_grad()
    def update(self, model: nn.Module, skip: Tensor | None = None) -> None:
        """Move the average of every parameter that is trained now towards its value, unless `skip` is 1."""
        groups: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for name, p in model.named_parameters():
            if p.requires_grad:
                groups.setdefault(self.updates[name], []).append((local(self.tensors[name]), local(p)))
                self.updates[name] += 1
        for n, pairs in groups.items():
            decay = min(self.decay, (1 + n) / (10 + n))
            _lerp_unless(skip, [average for average, _ in pairs], [p for _, p in pairs], 1 - decay)


def _lerp_unless(skip: Tensor | None, averages: list[Tensor], values: list[Tensor], weight: float) -> None:
    """average += weight * (value - average) for each pair, unless `skip` is 1.

    One kernel of fused SGD: it ascends the "gradient" `value` with a weight decay of 1. Other foreach functions cannot
    be masked on the device without a temporary copy of the model.
    """
    torch._fused_sgd_(
        averages,
        [value.detach() for value in values],
        [],
        weight_decay=1.0,
        momentum=0.0,
        lr=weight,
        dampening=0.0,
        nesterov=False,
        maximize=True,
        is_first_step=False,
        grad_scale=None,
        found_inf=skip,
    )


class Read(NamedTuple):
    """A step whose numbers are in main memory: loss, gradient norm and logs by name."""

    step: int
    values: dict[str, float]
    is_skipped: bool


def read_steps(pending: list[Step]) -> list[Read]:
    """The steps since the last record, read from their device together."""
    named = [{"loss": loss, "grad_norm": grad_norm, **logs, "skip": skip} for _, loss, grad_norm, logs, skip in pending]
    values = iter(read_scalars([tensor for scalars in named for tensor in scalars.values()]))
    found = [{name: next(values) for name in scalars} for scalars in named]
    return [Read(taken[0], scalars, bool(scalars.pop("skip"))) for taken, scalars in zip(pending, found, strict=True)]


def read_scalars(scalars: list[Tensor]) -> list[float]:
    """The values of scalar tensors of one device, moved to main memory at once."""
    kinds = {tensor.dtype: [i for i, other in enumerate(scalars) if other.dtype == tensor.dtype] for tensor in scalars}
    stacks = [torch.stack([scalars[i] for i in places]).double() for places in kinds.values()]
    values = torch.cat(stacks).tolist() if stacks else []
    order = [i for places in kinds.values() for i in places]
    return [value for _, value in sorted(zip(order, values, strict=True))]


def mean_record(taken: list[Read], device: torch.device) -> Record:
    """Means over the steps since the last record and over workers, and the steps that were skipped,
    which no mean contains.

    A value that only some steps logged is averaged over those.
    """
    sums: dict[str, list[float]] = {}
    skipped = [read.step for read in taken if read.is_skipped]
    for read in taken:
        for name, value in read.values.items() if not read.is_skipped else ():
            sums.setdefault(name, []).append(value)
    if not sums:
        return skipped_record(skipped)
    means = means_over_workers([sum(values) / len(values) for values in sums.values()], device)
    return dict(zip(sums, means, strict=True)) | skipped_record(skipped)


def begun_record(taken: list[Read], model: nn.Module, device: torch.device) -> dict[str, Any]:
    """The steps so far of the next record, over all workers, who must all call it; empty right after a record."""
    if not taken:
        return {}
    return {
        "begun": [[read.step, {} if read.is_skipped else mean_record([read], device)] for read in taken],
        "window": model.window_state() if hasattr(model, "window_state") else {},
    }


def go_on_with_record(state: dict[str, Any], model: nn.Module, is_first: bool) -> list[Step]:
    """The steps that `begun_record` stored.

    Every worker gets the means; only the first gets the counts, as those are summed.
    """
    if state.get("window"):
        model.load_window(state["window"], is_first)
    exact = {"dtype": torch.float64, "device": next(model.parameters()).device}
    found = []
    for step, values in state.get("begun", []):  # a skipped step has no values
        logs = {name: torch.tensor(value, **exact) for name, value in values.items()}
        skip = torch.tensor(float(not values), dtype=torch.float32, device=exact["device"])
        loss, grad_norm = (logs.pop(name, torch.tensor(math.nan, **exact)) for name in ("loss", "grad_norm"))
        found.append((step, loss, grad_norm, logs, skip))
    return found


def state_dict(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage, done: int, config: TrainConfig
) -> dict[str, Any]:
    """What resuming after `done` steps needs; the tensors are the model's own, sharded if it is. Frozen parameters are
    left out: whoever makes the model has them.
    """
    frozen = frozen_names(model, average)
    return {
        "steps_done": done,
        "batch_size": config.batch_size,
        "model": {name: tensor for name, tensor in model.state_dict().items() if name not in frozen},
        "optimizer": optimizer.state_dict(),
        "average": average.tensors,
        "average_updates": average.updates,
    }


def load_state(
    resume: Resume,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage,
    config: TrainConfig,
    parallel: SingleProcess,
    best: Best | None = None,
) -> tuple[int, list[Step], list[int]]:
    """Restore a state, sharded as the model is now; returns the number of steps done, the steps so far of the next
    record, and the steps skipped lately.
    """
    state = resume(filled_in_place(model, optimizer, average)) if callable(resume) else resume
    if state["batch_size"] != config.batch_size:
        raise ValueError(
            f"checkpoint was made with a global batch of {state['batch_size']}, this run has {config.batch_size}"
        )
    frozen = frozen_names(model, average)
    model.load_state_dict(
        {
            name: now if name in frozen else shard_like(state["model"][name], now)
            for name, now in model.state_dict().items()
        }
    )
    parameters = numbered(optimizer)
    found = {int(i): kept for i, kept in state["optimizer"]["state"].items()}
    moments = {i: {k: own(v, parameters[i]) for k, v in kept.items()} for i, kept in found.items()}
    optimizer.load_state_dict({**state["optimizer"], "state": moments})
    for name, tensor in average.tensors.items():
        tensor.copy_(shard_like(state["average"][name], tensor))
    average.updates = {name: state["average_updates"][name] for name in average.tensors}
    if best is not None and "best" in state:
        best.load(state["best"], average.tensors, parallel)
    begun = go_on_with_record(state, model, is_first=parallel.rank == 0)
    return int(state["steps_done"]), begun, list(state.get("skipped", []))


def frozen_names(model: nn.Module, average: WeightAverage) -> set[str]:
    """Names of the parameters that are never trained, and so have no average."""
    return {name for name, _ in model.named_parameters() if name not in average.tensors}


def own(moment: Tensor, parameter: Tensor) -> Tensor:
    """A moment of a stored state as one that an optimiser may keep: sharded as its parameter, and no part of a file."""
    if hasattr(moment, "placements"):
        return moment
    return shard_like(moment, parameter).clone() if moment.ndim else moment.clone()


def filled_in_place(model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage) -> Like:
    """Maps a stored tensor to the one to fill: the model's, the average's, or a new moment
    that is sharded as its parameter.
    """
    parameters, weights = numbered(optimizer), model.state_dict()

    def place(name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        part, _, rest = name.partition("/")
        if part == "optimizer" and shape:  # optimizer/state/<number>/<moment>
            return torch.zeros_like(parameters[int(rest.split("/")[1])])
        if part == "best" and rest.partition("/")[2] in average.tensors:  # best/weights/<name>
            return torch.zeros_like(average.tensors[rest.partition("/")[2]])
        known = {"model": weights, "average": average.tensors}.get(part, {})
        return known[rest] if rest in known else torch.empty(shape, dtype=dtype)

    return place


def numbered(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The parameters in the order by which the optimiser's state numbers them."""
    return [p for group in optimizer.param_groups for p in group["params"]]
