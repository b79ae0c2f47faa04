"""AdamW and the schedules of its learning rate.

Schedules: the rate rises linearly over W steps of warm-up to its peak. `cosine`: then it falls as half a cosine to zero at the end
of the run. `wsd` (warm-up, stable, decay): it stays at its peak until N_d steps before the end and then falls as
1 - sqrt(n / N_d) in step n of the cooldown.

Source: cooldown 1 - sqrt, Haegele et al. 2405.18392.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from g3pt.config import TrainConfig

# Part of a run's hash. Raise it when the same configuration takes other steps than before: an unfinished run must not be resumed with
# them. Runs before version 2 have none; their warm-up took 50 steps, and their cosine began before its end.
STEP_RULES = 2


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of optimiser step `step`, counted from 0. The peak is reached in the last step of the warm-up; zero is not reached."""
    warmup = config.warmup_steps
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    start = warmup if config.schedule == "cosine" else config.steps - config.cooldown_steps
    progress = max(0, step - start) / (config.steps - start)
    falling = 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1 - math.sqrt(progress)
    return config.learning_rate * falling


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; vectors and scalars (biases, norms) are not decayed."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, config.beta2), fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int) -> None:
    """Give each group the rate of optimiser step `step`."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step)
