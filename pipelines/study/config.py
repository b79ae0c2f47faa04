"""The flags of `jobs/scaling_sweep.py`."""

from dataclasses import dataclass
from typing import Literal

from pipelines.cli.flags import (
    DryRun,
    OnData,
    OnDevice,
    OnGpus,
    OnRay,
    Replace,
    WithFeatures,
    WithFeed,
    WithRetries,
    WithTokenizer,
    check_feed,
)
from pipelines.train.devices import UTILISATION

DEFAULT_SIZES = "20k,80k,150k,nano"


@dataclass(frozen=True, kw_only=True)
class SweepFlags(DryRun, OnGpus, OnRay, OnDevice, WithRetries, WithFeed, WithFeatures, WithTokenizer, OnData, Replace):
    """Train CAR at several sizes on the same data and fit the scaling law of its test cross-entropy."""

    output: str
    """folder of the study: study.json, points.csv, fit.json, curve.png, runs/"""
    plan: str | None = None
    """study.toml, or study.json of a study, with these flags; what is typed overrides it; default none"""
    sizes: str = DEFAULT_SIZES
    """CAR presets or DEPTHxWIDTH, comma-separated; the fit wants three at least, below six it is a demonstration"""
    samples: str | None = None
    """samples of each size's runs, as 8k,16k,32k: one trajectory per size and seed, with a cooldown for each; default
    the presets' steps"""
    held_out: str | None = None
    """runs predicted before they start, as 1.5M:128k,nano:256k; default none"""
    seeds: str = "0"
    """seeds of each size, comma-separated"""
    steps: int | None = None
    """optimiser steps of every run; default each preset's"""
    batch_size: int | None = None
    """objects per step, over all workers; default each preset's"""
    warmup_samples: int | None = None
    """warm-up with --samples; default (and most) an eighth of the fewest"""
    lr_rule: str | None = None
    """lr.json whose rule gives each size's learning rate; default the presets'"""
    set: str | None = None
    """change fields of every preset, name=value,... (head=bits,beta2=0.99), which train_car.py --dry-run prints;
    default none"""
    ceiling: float | Literal["auto"] | None = None
    """nats per token at which the law may saturate; auto: frequencies of the codes; default fitted"""
    max_interval: float | None = None
    """refuse a plan that would know a forecast less well than to this share of its loss (95 %, simulated); default any
    is taken"""

    num_workers: int | Literal["auto"] = "auto"
    """Ray Train workers per run, one CPU or GPU each; auto: one CPU, or the GPUs that suit its size; 0: in the trial's
    own process (CPU only)"""
    micro_batch: int | Literal["auto"] = "auto"
    """objects per forward pass of a worker; auto: what fits its GPU"""
    gpu_memory: float | None = None
    """GiB of a worker's GPU; default as found"""
    max_concurrent: int | None = None
    """runs at once; default as many as the cluster has CPUs (or GPUs) for"""

    utilisation: float = UTILISATION
    """share of the peak that --on assumes, from a roofline, not measured"""
    flops_per_s: float | None = None
    """operations per second of a device without a --probe; default unknown"""

    tune_lr: bool = False
    """only find a rule for learning rates, by sweeps at three sizes and a check at the largest: lr.json, lr.png"""
    probe: bool = False
    """only time some steps of each size here, for plans: probe.json"""
    pause: bool = False
    """stop the study that runs at --output once its runs have saved, and wait for it; its command continues it"""
    finish: bool = False
    """remove the checkpoints of the finished study at --output from which further runs could branch"""

    def __post_init__(self) -> None:
        check_feed(self)
        if self.pause and self.finish:
            raise ValueError("--pause and --finish do different things: give one of them")
        if self.samples and self.steps is not None:
            raise ValueError("--samples and --steps both say how long runs are: give one of them")
        if not 0 < self.utilisation <= 1:
            raise ValueError(f"--utilisation must be a share of the peak, got {self.utilisation}")
        if self.max_interval is not None and not self.held_out:
            raise ValueError("--max-interval is about forecasts: it needs --held-out")
        if self.held_out and not self.samples:
            raise ValueError("--held-out needs --samples")
