"""One training loop for the tokenizer and the generator, in a test, a notebook or a Ray worker.

`fit` is plain: batches in, records and states out through two callbacks. It keeps no random state: each step seeds itself
from (seed, step, rank), and batches are asked for by the number of samples seen, so a resumed run repeats an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from g3pt.config import TrainConfig

Record = dict[str, float]


class NonFiniteLoss(ArithmeticError):
    """The loss became infinite or not a number; the message names the step, and so does `step`."""

    step: int | None = None


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then a cosine to zero at the last step."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return config.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * step / config.steps))


def step_seed(seed: int, step: int, rank: int) -> int:
    """A 63-bit seed for one step on one worker."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:8], "big") >> 1


def fit(
    *,
    model: nn.Module,
    batches: Callable[[int], Iterator[dict[str, Tensor]]],
    config: TrainConfig,
    report: Callable[[Record], None],
    save: Callable[[dict[str, Any], int], None] | None = None,
    resume: dict[str, Any] | None = None,
    evaluate: Callable[[nn.Module], Record] | None = None,
    device: str | torch.device = "cpu",
    wrap: Callable[[nn.Module], nn.Module] | None = None,
    rank: int = 0,
) -> nn.Module:
    """Train `model` for `config.steps` and give back its averaged (EMA) copy's weights, loaded into `model`.

    `model(batch, step)` gives (loss, logs). `batches(start_sample)` yields this worker's share of each global batch.
    `report` gets one flat record per `log_every` steps, `step` being samples seen after it; `save(state, step)` gets what
    `resume` takes. `wrap` (data parallelism) is applied anew whenever the set of trained tensors changes.
    Raises NonFiniteLoss with its step; nothing is saved after one.
    """
    model.to(device).train()
    optimizer = make_optimizer(model, config)
    average = WeightAverage(model, config.ema_decay)
    first_step = 0
    if resume is not None:
        first_step = load_state(resume, model, optimizer, average, config)
    wrapped, stream = None, batches(first_step * config.batch_size)
    pending, started, logged_step = [], time.perf_counter(), first_step
    autocast = contextlib.nullcontext
    if config.precision == "bf16":
        autocast = lambda: torch.autocast(torch.device(device).type, torch.bfloat16)  # noqa: E731

    for step in range(first_step, config.steps):
        with naming_step(step):
            changed = set_phase(model, step, config.steps)
            if wrapped is None or changed:
                wrapped = wrap(model) if wrap else model
            torch.manual_seed(step_seed(config.seed, step, rank))
            batch = {name: value.to(device, non_blocking=True) for name, value in next(stream).items()}
            with autocast():
                loss, logs = wrapped(batch, step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            grad_norm = nn.utils.clip_grad_norm_(trained_parameters(model), config.clip_norm)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step)
            optimizer.step()
            average.update(model)
            pending.append((step, loss.detach(), grad_norm.detach(), logs))

        done = step + 1
        is_last = done == config.steps
        if is_last or done % config.log_every == 0 or done % config.checkpoint_every == 0:
            check_finite(pending)
        if is_last or done % config.log_every == 0:
            record = mean_record(pending) | {"step": done * config.batch_size, "learning_rate": learning_rate(config, step)}
            record |= take_window(model)
            record["samples_per_second"] = (done - logged_step) * config.batch_size / (time.perf_counter() - started)
            if evaluate is not None and (is_last or done % config.eval_every < config.log_every):
                with average.in_place_of_weights(model):
                    record |= evaluate(model)
                model.train()
            report(record)
            pending, started, logged_step = [], time.perf_counter(), done
        if save is not None and (is_last or done % config.checkpoint_every == 0):
            save(state_dict(model, optimizer, average, done, config), done * config.batch_size)
    copy_into(model, average.tensors)
    return model.eval()


@contextlib.contextmanager
def naming_step(step: int) -> Iterator[None]:
    """An error that leaves the block says at which step: it gets an attribute `step`."""
    try:
        yield
    except Exception as error:
        error.step = getattr(error, "step", None) or step  # type: ignore[attr-defined]
        raise


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; vectors and scalars (biases, norms) are not decayed."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Parameters that have a gradient now."""
    return [p for p in model.parameters() if p.grad is not None]


def set_phase(model: nn.Module, step: int, num_steps: int) -> bool:
    """Let a model with phases choose its own; True if the set of trained tensors changed."""
    choose = getattr(model, "set_phase", None)
    return bool(choose(step, num_steps)) if choose else False


def take_window(model: nn.Module) -> Record:
    """What a model that counts has counted since the last record; every worker asks, as they add up."""
    take = getattr(model, "take_window", None)
    return take() if take else {}


class WeightAverage:
    """An exponential average of each parameter, which forgets where it started.

    The decay of a parameter's n-th update is min(decay, (1 + n) / (10 + n)): with a constant decay a short run, or a part of the
    model that starts training late, would still hold its random start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.updates = dict.fromkeys(self.tensors, 0)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the weights of every parameter trained now."""
        groups: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for name, p in model.named_parameters():
            if p.requires_grad:
                groups.setdefault(self.updates[name], []).append((self.tensors[name], p))
                self.updates[name] += 1
        for n, pairs in groups.items():
            decay = min(self.decay, (1 + n) / (10 + n))
            torch._foreach_lerp_([average for average, _ in pairs], [p for _, p in pairs], 1 - decay)

    @contextlib.contextmanager
    def in_place_of_weights(self, model: nn.Module) -> Iterator[None]:
        """Within the block the model holds its averaged weights."""
        current = {name: p.detach().clone() for name, p in model.named_parameters()}
        copy_into(model, self.tensors)
        try:
            yield
        finally:
            copy_into(model, current)


@torch.no_grad()
def copy_into(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Set the parameters named in `weights`."""
    for name, p in model.named_parameters():
        p.copy_(weights[name])


def check_finite(pending: list[tuple[int, Tensor, Tensor, dict[str, Tensor]]]) -> None:
    """Raise NonFiniteLoss for the first step whose loss or gradient is not finite."""
    for step, loss, grad_norm, _ in pending:
        if not bool(torch.isfinite(loss) & torch.isfinite(grad_norm)):
            values = f"the loss is {float(loss)}, the norm of its gradient {float(grad_norm)}"
            error = NonFiniteLoss(f"{values} at step {step}; lower the learning rate or look at that batch")
            error.step = step
            raise error


def mean_record(pending: list[tuple[int, Tensor, Tensor, dict[str, Tensor]]]) -> Record:
    """Means over the steps since the last record; a log that only some steps have is averaged over those."""
    sums: dict[str, list[float]] = {}
    for _, loss, grad_norm, logs in pending:
        for name, value in {"loss": loss, "grad_norm": grad_norm, **logs}.items():
            sums.setdefault(name, []).append(float(value))
    return {name: sum(values) / len(values) for name, values in sums.items()}


def state_dict(model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage, done: int, config: TrainConfig) -> dict[str, Any]:
    """All that continuing after `done` steps needs."""
    return {
        "steps_done": done,
        "batch_size": config.batch_size,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average.tensors,
        "average_updates": average.updates,
    }


def load_state(state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage, config: TrainConfig) -> int:
    """Restore what `state_dict` gave; the number of steps done."""
    if state["batch_size"] != config.batch_size:
        raise ValueError(f"checkpoint was made with a global batch of {state['batch_size']}, this run has {config.batch_size}")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    for name, tensor in average.tensors.items():
        tensor.copy_(state["average"][name])
    average.updates = dict(state["average_updates"])
    return int(state["steps_done"])
