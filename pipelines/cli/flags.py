"""Flags that mean the same in several commands: one place for their names, defaults and wording.

How: a command's flag class inherits those it has. `--help` shows the optional ones last, under a heading of their own.
"""

from dataclasses import dataclass
from typing import Literal, NewType

Numbers = NewType("Numbers", str)  # with commas between them
Integers = NewType("Integers", str)


def listed(text: str | None) -> tuple[str, ...]:
    """The parts of a flag that lists things with commas, sorted, each once."""
    return tuple(sorted({part.strip() for part in (text or "").split(",") if part.strip()}))


@dataclass(frozen=True, kw_only=True)
class OnData:
    """A command that reads a dataset."""

    data: str
    """dataset, as jobs/preprocess.py made it"""


@dataclass(frozen=True, kw_only=True)
class WithTokenizer:
    """A command that trains on a tokenizer's codes."""

    tokenizer: str
    """finished run of jobs/train_cvq.py, or its export"""


@dataclass(frozen=True, kw_only=True)
class WithFeatures:
    """A command that trains generators."""

    features: Literal["live", "stored"] = "live"
    """what pretrained encoders give: computed in each step (live), or once, below DATASET/derived (stored)"""


@dataclass(frozen=True, kw_only=True)
class OnDevice:
    """A command whose workers hold a model."""

    device: str = "auto"
    """auto (a GPU if the cluster has one), cpu or gpu"""


@dataclass(frozen=True, kw_only=True)
class OnRay:
    """A command that works on Ray."""

    ray_address: str | None = None
    """Ray cluster to join, or auto; default RAY_ADDRESS, else a local one"""


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """A command that can say what it would do."""

    dry_run: bool = False
    """print the plan, write nothing"""
