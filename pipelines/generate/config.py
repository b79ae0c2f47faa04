"""The flags of `jobs/generate.py`, checked: prompts, sampling, output."""

from __future__ import annotations

import contextlib
import functools
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from g3pt.models.sampling import LISTED, SampleConfig
from pipelines.cli.flags import DryRun, Integers, Numbers, OnRay, Replace
from pipelines.cli.paths import REPOSITORY

COARSE_CELLS = 32  # cells of the first grid of the iso-surface; the resolution is this times a power of two
MAX_NUM = 100_000
MAX_SEED = 2**62 - 1
MIN_FACES = 16  # with fewer only a box is left
RELEASED = REPOSITORY / "weights" / "g3pt-nano-car"  # part of the repository


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(DryRun, OnRay, Replace):
    """Generate meshes from a text, an image, a mesh, or a file of prompts; what exists is not made again."""

    output: str
    """folder for meshes and manifest.parquet"""
    model: str | None = None
    """run or export of a generator; default weights/g3pt-nano-car"""
    text: str | None = None
    """description of the object; can be combined with --image; default none"""
    image: str | None = None
    """picture of it (transparency or plain border: background); default none"""
    prompts: str | None = None
    """file of prompts, .jsonl or .parquet, with id, text, image, mesh, keep_scales, seed, n, cfg, cfg_text,
    cfg_image; default none"""
    from_mesh: str | None = None
    """mesh to vary; can be combined with --text and --image; default none"""
    keep_scales: int | None = None
    """coarsest scales kept of a mesh, the others drawn; default none"""
    num: int = 1
    """samples per prompt, with consecutive seeds"""
    seed: int = 0
    """seed of a prompt's first sample"""
    cfg: Numbers = Numbers(str(SampleConfig.cfg))
    """strength of guidance; 0 turns it off"""
    cfg_text: Numbers | None = None
    """strength for the text; default --cfg"""
    cfg_image: Numbers | None = None
    """strength for the image; default --cfg"""
    cfg_schedule: Literal["constant", "ramp"] = "constant"
    """same strength at all scales, or rising from 0 at the coarsest; each number here can be a list, one per scale:
    0,1,2,2"""
    top_k: Integers = Integers(str(SampleConfig.top_k))
    """use the K likeliest values of each digit; 0: all"""
    top_p: Numbers = Numbers(str(SampleConfig.top_p))
    """use the likeliest values with this total probability"""
    temperature: Numbers = Numbers(str(SampleConfig.temperature))
    """below 1 sharpens, above 1 flattens"""
    resolution: int = 128
    """cells per side of the surface's grid: 32, 64, 128, 256, ..."""
    max_faces: int = 0
    """simplify a mesh to this many faces if it stays closed; 0 keeps all"""
    format: Literal["glb", "obj", "ply", "stl"] = "glb"
    """mesh file format; y is up in all, unless the model's data had other axes"""
    verify: bool = False
    """find finished meshes by sha256, not by size and time"""
    num_workers: int | None = None
    """workers, each with a GPU, or a CPU if there is none; default all"""

    def __post_init__(self) -> None:
        if self.model is None:
            if not RELEASED.is_dir():
                raise ValueError(f"--model is required: the released weights are not at {RELEASED}")
            object.__setattr__(self, "model", str(RELEASED))
        if self.prompts is not None and (self.text is not None or self.image is not None):
            raise ValueError("--prompts cannot be combined with --text or --image")
        if self.prompts is not None and self.from_mesh is not None:
            raise ValueError("--prompts cannot be combined with --from-mesh: its rows can have a mesh")
        if self.prompts is None and self.text is None and self.image is None and self.from_mesh is None:
            raise ValueError("one of --text, --image, --from-mesh, --prompts is required")
        if self.from_mesh is not None and self.keep_scales is None:
            raise ValueError("--from-mesh needs --keep-scales, the number of scales that are kept")
        if self.keep_scales is not None and self.from_mesh is None and self.prompts is None:
            raise ValueError("--keep-scales needs --from-mesh, or --prompts with meshes")
        if self.keep_scales is not None and self.keep_scales < 0:
            raise ValueError(f"--keep-scales must not be negative, got {self.keep_scales}")
        if self.prompts is not None and Path(self.prompts).suffix not in (".jsonl", ".parquet"):
            raise ValueError(f"--prompts must be a .jsonl or .parquet file, got {self.prompts!r}")
        if self.text is not None and is_blank(self.text):
            raise ValueError("--text is blank")
        if not 1 <= self.num <= MAX_NUM:
            raise ValueError(f"--num must be 1 to {MAX_NUM}, got {self.num}")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"--seed must be 0 to 2^62 - 1, got {self.seed}")
        cells = self.resolution // COARSE_CELLS
        if cells < 1 or COARSE_CELLS * (1 << (cells.bit_length() - 1)) != self.resolution:
            raise ValueError(f"--resolution must be {COARSE_CELLS} times a power of two, got {self.resolution}")
        if self.max_faces != 0 and self.max_faces < MIN_FACES:
            raise ValueError(f"--max-faces must be 0 (keep all) or at least {MIN_FACES}, got {self.max_faces}")
        if self.num_workers is not None and self.num_workers < 1:
            raise ValueError(f"--num-workers must be positive, got {self.num_workers}")
        self.sampling  # noqa: B018 (checks its values)

    @functools.cached_property
    def sampling(self) -> SampleConfig:
        """The sampling settings of prompts that have none of their own."""
        listed = {
            name: per_scale(f"--{name.replace('_', '-')}", getattr(self, name), int if name == "top_k" else float)
            for name in LISTED
        }
        with naming_flags():
            return SampleConfig(cfg_schedule=self.cfg_schedule, **listed)


def is_blank(text: str) -> bool:
    """Whether the text has nothing to see: only spaces, line ends, control characters, byte order marks
    and the like.
    """
    return all(unicodedata.category(character)[0] in "ZC" for character in text)


def coarser(resolution: int) -> str:
    """The flag against a lack of GPU memory of a command that extracts surfaces of this resolution."""
    if resolution <= COARSE_CELLS:
        return f"a GPU with more memory: --resolution {resolution} is the smallest"
    return f"--resolution {resolution // 2}: another try with {resolution} would fail in the same way"


@contextlib.contextmanager
def naming_flags() -> Iterator[None]:
    """Inside the block, ValueErrors of SampleConfig and of a prompt's columns name the flag instead."""
    try:
        yield
    except ValueError as error:
        name, _, rest = str(error).partition(" ")
        flag = "from-mesh" if name == "mesh" else name.replace("_", "-")
        raise ValueError(f"--{flag} {rest}") from None


def per_scale(name: str, value: Any, kind: type[Any] = float) -> Any:
    """A number, or a tuple with one number per scale, from a number, a list or comma-separated text; None for None.

    `name` is for the ValueError.
    """
    parts = list(value) if isinstance(value, (list, tuple)) else str(value).split(",")
    try:
        numbers = tuple(kind(part) for part in parts)
    except (TypeError, ValueError):
        if value is None:
            return None
        wanted = "whole number" if kind is int else "number"
        raise ValueError(
            f"{name} must be a {wanted}, or a comma-separated list with one per scale, got {value!r}"
        ) from None
    return numbers[0] if len(numbers) == 1 else numbers
