"""AdamW's parameter groups and the schedules of its learning rate.

Schedules: the rate rises linearly over W steps of warm-up to its peak. `cosine`: then it falls as half a cosine to zero
at the end of the run. `wsd` (warm-up, stable, decay): it stays at its peak until N_d steps before the end and then
falls as 1 - sqrt(n / N_d) in step n of the cooldown.

Weights of linear and convolutional layers are decayed: a step takes rate x weight_decay of them. Embeddings, positions,
levels, start tokens, queries, `base`, norms and biases are not.

Rates by width: the rate of a hidden matrix, one that reads a vector as wide as the model, is the schedule's times
base_width / width. An entry of such a matrix moves by about its rate in each step of Adam whatever the width, and what
it is multiplied with adds up over the width. Everything else learns at the schedule's rate.

Source: cooldown 1 - sqrt, Haegele et al. 2405.18392; rates by width, muP under Adam, Yang & Hu et al. 2203.03466, table
3.
Ours: of the initial weights only a generator's output layers follow muP. Decay is not multiplied by width / base_width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from g3pt.config import TrainConfig

# Part of a run's hash. Raise it when the same configuration takes other steps than before: an unfinished run must not
# be resumed with them. Runs without one warmed up over 50 steps; version 2 had one rate for all tensors and decayed
# embeddings, version 3 dropped text and image independently.
STEP_RULES = 4
DECAYED = (nn.Linear, nn.Conv2d)  # their weights; everything else is not decayed


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of optimiser step `step`, counted from 0.

    The peak is reached in the last step of the warm-up; zero is not reached.
    """
    warmup = config.warmup_steps
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    start = warmup if config.schedule == "cosine" else config.steps - config.cooldown_steps
    progress = max(0, step - start) / (config.steps - start)
    falling = 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1 - math.sqrt(progress)
    return config.learning_rate * falling


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of `model`, before its first step."""
    return torch.optim.AdamW(
        parameter_groups(model, config), lr=config.learning_rate, betas=(0.9, config.beta2), fused=True
    )


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """The trainable parameters in groups, each with its `weight_decay` and the `rate`
    that multiplies the learning rate.

    `model.hidden_layers()`, if there is such a method, are the layers whose rate depends on `model.config.width`.
    """
    layers = model.hidden_layers() if config.base_width and hasattr(model, "hidden_layers") else ()
    hidden = {id(layer.weight) for layer in layers}
    decayed = {id(module.weight) for module in model.modules() if isinstance(module, DECAYED)}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for p in model.parameters():
        if p.requires_grad:
            groups.setdefault((id(p) in decayed, id(p) in hidden), []).append(p)
    return [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if is_decayed else 0.0,
            "rate": config.base_width / model.config.width if is_hidden else 1.0,
        }
        for (is_decayed, is_hidden), parameters in sorted(groups.items())
    ]


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int) -> None:
    """Give each group its rate of optimiser step `step`."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step) * group["rate"]
