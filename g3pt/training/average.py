"""The averaged (EMA) weights of a training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from g3pt.training.parallel import local


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
