"""The flags of `jobs/evaluate.py`, checked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.cli.flags import DryRun, Numbers, OnData, OnRay, Replace
from pipelines.tracking.cards import given


@dataclass(frozen=True, kw_only=True)
class EvaluateFlags(DryRun, OnRay, OnData, Replace):
    """Evaluate a finished tokenizer (by reconstruction) or generator (by samples of prompts) on a dataset."""

    model: str
    """finished training run, or its export folder"""
    output: str
    """JSON file to write; pictures go beside it"""
    split: str = "test"
    """train, val or test"""
    limit: int = 0
    """take the N objects of the split with the smallest sha256(id); 0: all"""
    num_samples: int = 200
    """generator: samples, half of them with prompts absent from training"""
    num_image_samples: int = 64
    """generator: samples from pictures of held-out objects; 0: none"""
    seed: int = 0
    """first seed of samples; seed of surface points and shuffled codes"""
    resolution: int = 128
    """cells per side of the surface's grid, a power of two"""
    coarse: int = 32
    """cells of the coarse first grid; 16 misses parts thinner than 0.125"""
    num_queries: int = 8192
    """tokenizer: at most this many query points of each kind for IoU"""
    num_detailed: int = 16
    """objects also meshed per scale (tokenizer) or rebuilt (generator)"""
    num_compared: int = 200
    """generator: samples and held-out objects compared as sets; 0: none"""
    guidance_grid: Numbers | None = None
    """generator: 64 more samples per strength, as 0,1,2,4; default none"""
    cfg: float | None = None
    """generator: strength of guidance; 0 turns it off; default the sampler's"""
    top_k: int | None = None
    """generator: use the K likeliest values of each digit; 0: all; default the sampler's"""
    top_p: float | None = None
    """generator: use the likeliest values with this total probability; default the sampler's"""
    temperature: float | None = None
    """generator: below 1 sharpens, above 1 flattens; default the sampler's"""
    num_pictures: int = 12
    """objects in contact sheet and STEM.meshes, and as many worst; 0: none"""
    num_workers: int | None = None
    """Ray actors; 0: this process, the default if no cluster is named, else all"""

    def __post_init__(self) -> None:
        if self.split not in ("train", "val", "test"):
            raise ValueError(f"--split must be train, val or test, got {self.split!r}")
        if Path(self.output).suffix != ".json":
            raise ValueError(f"--output must end in .json, got {self.output!r}")
        for name, least in (
            ("limit", 0),
            ("num_samples", 2),
            ("num_image_samples", 0),
            ("num_queries", 8),
            ("num_detailed", 0),
            ("num_compared", 0),
            ("num_pictures", 0),
            ("num_workers", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
        for name, least in (("resolution", 16), ("coarse", 8)):
            value = getattr(self, name)
            if value < least or value & (value - 1):
                raise ValueError(f"--{name} must be a power of two, at least {least}, got {value}")
        if self.coarse > self.resolution:
            raise ValueError(f"--coarse must be at most --resolution {self.resolution}, got {self.coarse}")
        _check_sampling(given(self, ("cfg", "top_k", "top_p", "temperature")))
        if self.guidance_grid is not None:
            strengths(self.guidance_grid)


def _check_sampling(given: dict[str, Any]) -> None:
    """ValueError, naming the flag, for numbers that the sampler would refuse when the first sample is drawn."""
    from g3pt.models.sampling import SampleConfig
    from pipelines.generate.config import naming_flags

    with naming_flags():
        SampleConfig(**given)


def strengths(text: str) -> list[float]:
    """The numbers of --guidance-grid, sorted, without repetitions. ValueError for an invalid strength."""
    from g3pt.models.sampling import MAX_CFG

    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or not all(0 <= value <= MAX_CFG for value in found):
        raise ValueError(
            f"--guidance-grid must be comma-separated numbers from 0 to {MAX_CFG}, such as 0,1,2,4, got {text!r}"
        )
    return found
