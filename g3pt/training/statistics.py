"""Running statistics of a model: buffers that follow means over the objects of each step, and stay fixed within a step.

During a step the modules only sum up what they see (`see`), micro-batch by micro-batch. `update_statistics` ends the
step: it averages over micro-batches and workers, with one all-reduce for all modules, and each module moves its buffers
(`follow`). So a step's gradients do not depend on how its objects are divided among micro-batches and workers, but for
float noise.

Ours: all of it. BatchNorm normalises by the batch at hand; with a momentum of 0.03 that is 3 % of these statistics.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from g3pt.training.parallel import mean_over_workers


class RunningStatistics:
    """Mixin of a module that has running statistics."""

    _sum: Tensor | None = None
    _count: int = 0

    @torch.no_grad()
    def see(self, mean: Tensor) -> None:
        """Take note of a mean over the objects of one micro-batch; each of a step's has the same shape
        and number of objects.
        """
        self._sum = mean.detach() if self._sum is None else self._sum + mean
        self._count += 1

    def take_seen(self) -> Tensor | None:
        """The mean of what was seen since the last call; None if nothing was."""
        if self._sum is None:
            return None
        mean, self._sum, self._count = self._sum / self._count, None, 0
        return mean

    def follow(self, mean: Tensor) -> None:
        """Move the statistics towards the mean over a step's objects."""
        raise NotImplementedError


@torch.no_grad()
def update_statistics(model: nn.Module) -> None:
    """Call on every worker after a step's last backward pass: the modules that saw something move their statistics."""
    modules = [module for module in model.modules() if isinstance(module, RunningStatistics)]
    seen = [(module, mean) for module in modules if (mean := module.take_seen()) is not None]
    if not seen:
        return
    flat = mean_over_workers(torch.cat([mean.flatten() for _, mean in seen]))
    for (module, mean), part in zip(seen, flat.split([mean.numel() for _, mean in seen]), strict=True):
        module.follow(part.view_as(mean))


def pace(steps: Tensor, momentum: float) -> Tensor:
    """How far to move in step number `steps`: all the way up to step 1, then as an exact average over 1 / `momentum`
    steps, then as an exponential one.
    """
    return (1.0 / steps.clamp_min(1)).clamp_min(momentum)  # a tensor, so that no GPU is synchronised
