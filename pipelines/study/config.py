"""The flags of `jobs/scaling_sweep.py`."""

from dataclasses import dataclass
from typing import Literal

from pipelines.cli.flags import DryRun, OnData, OnDevice, OnRay, Replace, WithFeatures, WithRetries, WithTokenizer

DEFAULT_SIZES = "20k,80k,150k,nano"


@dataclass(frozen=True, kw_only=True)
class SweepFlags(DryRun, OnRay, OnDevice, WithRetries, WithFeatures, WithTokenizer, OnData, Replace):
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
    """runs that are predicted before they start, as 1.5M:128k,nano:256k; with --samples; default none"""
    warmup_samples: int | None = None
    """with --samples: samples of the warm-up; default an eighth of the fewest, which is the most"""
    tune_lr: bool = False
    """only find a rule for learning rates, by sweeps at three sizes and a check at the largest: lr.json, lr.png"""
    lr_rule: str | None = None
    """lr.json whose rule gives each size's learning rate; default the presets'"""
    ceiling: float | None = None
    """entropy of the codes in nats per token, at which the law may saturate; default fitted"""
    seeds: str = "0"
    """seeds of each size, comma-separated"""
    steps: int | None = None
    """optimiser steps of every run; default each preset's"""
    batch_size: int | None = None
    """objects per step, over all workers; default each preset's"""
    num_workers: int = 1
    """Ray Train workers of each run, one process and one CPU or GPU each; 0 trains inside the trial's own process
    (least start-up, CPU only)"""
    micro_batch: int | Literal["auto"] = "auto"
    """objects per forward pass of a worker; auto: what fits its GPU"""
    gpu_memory: float | None = None
    """GiB of a worker's GPU, for --micro-batch auto; default as found"""
    set: str | None = None
    """change fields of every size's preset, name=value,... (drop_phrases=0.5,head=bits); train_car.py --dry-run prints
    all fields; default none"""
    max_concurrent: int | None = None
    """runs at once; default as many as the cluster has CPUs (or GPUs) for"""
    flops_per_s: float | None = None
    """operations per second of one CPU or GPU, for the hours of --dry-run; default none are printed"""
    price: float | None = None
    """price of an hour of one CPU or GPU, for the costs of --dry-run; default none are printed"""

    pause: bool = False
    """stop the study that runs at --output once its runs have saved, and wait for it; its command continues it"""
    finish: bool = False
    """remove the checkpoints of the finished study at --output from which further runs could branch"""

    def __post_init__(self) -> None:
        if self.pause and self.finish:
            raise ValueError("--pause and --finish do different things: give one of them")
        if self.samples and self.steps is not None:
            raise ValueError("--samples and --steps both say how long runs are: give one of them")
        if self.held_out and not self.samples:
            raise ValueError("--held-out needs --samples")
