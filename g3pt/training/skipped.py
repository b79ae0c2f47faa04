"""Steps that are not finite: their update is skipped on the device, and they are counted when a record
or checkpoint is due.

How: `skip_flag` is 1 on every worker if the loss of any worker, or the norm of the gradient, is not finite. The fused
kernels of AdamW and of the average read it as `found_inf` and then write nothing; `Buffers` puts running statistics
back. The host never waits for the flag: it reads those of all steps since the last record together.

Ours: all of it. The learning rate and the average's warm-up count a skipped step as a step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from g3pt.training.parallel import sum_over_workers

MAX_SKIPPED, WINDOW = 10, 1000  # more skipped steps among the last WINDOW stop a run


class NonFiniteLoss(ArithmeticError):
    """Too many steps had a loss or gradient that is not finite; `step` is the last of them, the message names all."""

    step: int | None = None


def skip_flag(loss: Tensor, grad_norm: Tensor) -> Tensor:
    """1.0 if the loss of any worker or the norm of the gradient is not finite, else 0.0; every worker must call it."""
    is_bad = ~(torch.isfinite(loss) & torch.isfinite(grad_norm))
    return sum_over_workers(is_bad.float()).clamp_(max=1.0)


class Buffers:
    """A model's buffers before a step, to put back if it is skipped.

    Only buffers that change are copied after the first step.
    """

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}
        self.seen: dict[str, tuple[Tensor, int]] = {}  # the buffer of `kept`, and its version

    @torch.no_grad()
    def remember(self, model: nn.Module) -> None:
        """Call before the forward pass."""
        for name, buffer in self._changed(model):
            self.kept[name] = buffer.clone()
            self.seen[name] = buffer, buffer._version

    @torch.no_grad()
    def restore_if(self, skip: Tensor, model: nn.Module) -> None:
        """Put the remembered values back where `skip` is 1."""
        for name, buffer in self._changed(model):
            buffer.copy_(torch.where(skip.bool(), self.kept[name], buffer))

    def _changed(self, model: nn.Module) -> list[tuple[str, Tensor]]:
        known = {name: (id(buffer), version) for name, (buffer, version) in self.seen.items()}
        return [(name, b) for name, b in model.named_buffers() if known.get(name) != (id(b), b._version)]


def with_skipped(earlier: Sequence[int], taken: Sequence[tuple[int, bool]]) -> list[int]:
    """The skipped ones of `earlier` and of the steps `taken` (number, whether it was skipped), without those too old to
    matter.
    """
    if not taken:
        return list(earlier)
    new = {step for step, is_skipped in taken if is_skipped}
    return [step for step in sorted({*earlier, *new}) if step > taken[0][0] - WINDOW]


def skipped_record(steps: Sequence[int]) -> dict[str, float]:
    """The part of a record that names skipped `steps`: their number, and each as skipped_step_1 and so on;
    empty without one.
    """
    named = {f"skipped_step_{i}": float(step) for i, step in enumerate(steps, 1)}
    return {"skipped_steps": float(len(steps)), **named} if steps else {}


def check_skipped(skipped: Sequence[int], num_steps: int | None = None) -> None:
    """Raise NonFiniteLoss if more than MAX_SKIPPED of WINDOW steps in a row were skipped, or all `num_steps`
    of a finished run.
    """
    several = [skipped[i : i + MAX_SKIPPED + 1] for i in range(len(skipped) - MAX_SKIPPED)]
    found = next((steps for steps in several if steps[-1] - steps[0] < WINDOW), None)
    if found or len(skipped) == num_steps:
        found = list(found or skipped)
        error = NonFiniteLoss(
            f"{len(found)} of {num_steps or WINDOW:,} steps were skipped because the loss or its gradient was not "
            f"finite: steps {', '.join(map(str, found))}; lower the learning rate or look at those batches"
        )
        error.step = found[-1]
        raise error
