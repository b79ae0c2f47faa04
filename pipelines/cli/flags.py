"""Flags that mean the same in several commands: one place for their names, defaults and wording.

How: a command's flag class inherits the classes below that apply to it. `--help` lists the optional ones last, under
their own heading.
"""

from dataclasses import dataclass
from typing import Literal, NewType

Numbers = NewType("Numbers", str)  # comma-separated
Integers = NewType("Integers", str)
MAX_FAILURES = 3


def listed(text: str | None) -> tuple[str, ...]:
    """The parts of a comma-separated flag, sorted and without repetitions."""
    return tuple(sorted({part.strip() for part in (text or "").split(",") if part.strip()}))


@dataclass(frozen=True, kw_only=True)
class OnData:
    """A command that reads a dataset."""

    data: str
    """dataset made by jobs/preprocess.py"""


@dataclass(frozen=True, kw_only=True)
class WithTokenizer:
    """A command that trains on a tokenizer's codes."""

    tokenizer: str
    """finished run of jobs/train_cvq.py, or its export folder"""


@dataclass(frozen=True, kw_only=True)
class WithFeatures:
    """A command that trains generators."""

    features: Literal["live", "stored"] = "live"
    """outputs of pretrained encoders: computed in every step (live), or once and kept below DATASET/derived (stored)"""


@dataclass(frozen=True, kw_only=True)
class OnDevice:
    """A command whose workers hold a model."""

    device: str = "auto"
    """auto (a GPU if the cluster has one), cpu or gpu"""


@dataclass(frozen=True, kw_only=True)
class WithRetries:
    """A command that trains on workers which may be lost."""

    max_failures: int = MAX_FAILURES
    """failures in a row, without a new checkpoint, that are tried again"""


@dataclass(frozen=True, kw_only=True)
class OnRay:
    """A command that uses Ray."""

    ray_address: str | None = None
    """Ray cluster to join, or auto; default RAY_ADDRESS, else a new local one"""


@dataclass(frozen=True, kw_only=True)
class Replace:
    """A command whose output may exist with other settings."""

    replace: bool = False
    """make output of other settings anew; without it that is refused"""


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """A command that can print its plan."""

    dry_run: bool = False
    """print the plan and write nothing"""
