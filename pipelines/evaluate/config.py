"""The flags of `jobs/evaluate.py`, checked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.cli.flags import DryRun, Numbers, OnData, OnRay
from pipelines.tracking.cards import given


@dataclass(frozen=True, kw_only=True)
class EvaluateFlags(DryRun, OnRay, OnData):
    """Evaluate a finished tokenizer (reconstruction) or generator (samples of prompts) against a dataset."""

    model: str
    """finished run of a training job, or its export"""
    output: str
    """JSON file to write; pictures are written beside it"""
    split: str = "test"
    """train, val or test"""
    limit: int = 0
    """objects of the split to use, by id; 0 for all"""
    num_samples: int = 200
    """generator: samples, with seeds from --seed on; half of their prompts are absent from training"""
    num_image_samples: int = 64
    """generator: samples, each from the first view of another held-out object and no text; 0 for none"""
    seed: int = 0
    """first seed of the samples, of surface points and of shuffled codes"""
    resolution: int = 128
    """cells along the box of the extracted surface, a power of two"""
    coarse: int = 32
    """cells of the first, coarse grid, at most --resolution; 16 is faster and misses parts thinner than 0.125"""
    num_queries: int = 8192
    """tokenizer: stored query points of each kind used for IoU, at most"""
    num_detailed: int = 16
    """objects also meshed by scale (tokenizer) or rebuilt (generator)"""
    num_compared: int = 200
    """generator: samples and held-out objects compared as sets; 0: none"""
    guidance_grid: Numbers | None = None
    """generator: 64 samples at each strength too, as 0,1,2,4; default none"""
    cfg: float | None = None
    """generator: strength of guidance; 0 is none; default the sampler's"""
    top_k: int | None = None
    """generator: keep K values of each digit; 0: all; default the sampler's"""
    top_p: float | None = None
    """generator: keep values of this joint probability; default the sampler's"""
    temperature: float | None = None
    """generator: below 1 sharpens, above 1 flattens; default the sampler's"""
    num_pictures: int = 12
    """objects in the contact sheet and in STEM.meshes beside the JSON, as many of the worst too; 0 for none"""
    num_workers: int = 0
    """Ray actors at work; 0 works in this process"""

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
            if getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(self, name)}")
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
    """A ValueError that names the flag of a number no sampler takes; now, not when the first sample is drawn."""
    from g3pt.models.sampling import SampleConfig
    from pipelines.generate.config import naming_flags

    with naming_flags():
        SampleConfig(**given)


def strengths(text: str) -> list[float]:
    """The numbers of a --guidance-grid, sorted, each once; ValueError for any that is no strength of guidance."""
    from g3pt.models.sampling import MAX_CFG

    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or not all(0 <= value <= MAX_CFG for value in found):
        raise ValueError(
            f"--guidance-grid must be numbers from 0 to {MAX_CFG} with commas between them, like 0,1,2,4, got {text!r}"
        )
    return found
