"""One trajectory for many numbers of samples: a trunk at a constant learning rate, and a cooldown from it for each.

The longest run of a size and seed, the trunk, leaves a checkpoint where each shorter one's cooldown begins, and the
shorter ones start there (`pipelines.train.trajectory`).

Source: Hägele et al. 2024 (arXiv 2405.18392): cooldowns of 1 - sqrt from one constant trajectory. Ours: the limits
MIN_COOLDOWN_STEPS and MAX_WARMUP_SHARE.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from g3pt.config import TrainConfig

COOLDOWN_SHARE = 0.2
MIN_COOLDOWN_STEPS = 50
MAX_WARMUP_SHARE = 1 / 8  # of the fewest samples


def ladder(base: TrainConfig, samples: Sequence[int], warmup_samples: int) -> list[TrainConfig]:
    """The training of each number of samples, ascending, from `base`.

    ValueError for numbers that are no whole steps, are too short for a cooldown, or whose warm-up is too long.
    """
    found = []
    for count in sorted(set(samples)):
        steps, rest = divmod(count, base.batch_size)
        if rest or not steps:
            raise ValueError(f"{count} samples are no whole number of steps of {base.batch_size}")
        if steps <= MIN_COOLDOWN_STEPS:
            raise ValueError(f"{count} samples are {steps} steps: too few for a cooldown of {MIN_COOLDOWN_STEPS}")
        if warmup_samples > MAX_WARMUP_SHARE * count:
            raise ValueError(
                f"a warm-up of {warmup_samples} samples is more than {MAX_WARMUP_SHARE:g} of the {count} samples of a "
                f"run"
            )
        cooldown = max(COOLDOWN_SHARE, MIN_COOLDOWN_STEPS / steps)
        found.append(
            dataclasses.replace(
                base, steps=steps, schedule="wsd", warmup_samples=warmup_samples, cooldown_share=cooldown
            )
        )
    return found


def steps_taken(rungs: Sequence[TrainConfig]) -> int:
    """Steps that a ladder takes: those of the trunk, its longest run, and each shorter run's cooldown."""
    *shorter, trunk = sorted(rungs, key=lambda one: one.steps)
    return trunk.steps + sum(one.cooldown_steps for one in shorter)
