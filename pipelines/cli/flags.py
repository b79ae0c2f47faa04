"""Flags that mean the same in several commands: one place for their names, defaults and wording.

How: a command's flag class inherits the classes below that apply to it. `--help` lists the optional ones last, under
their own heading.
"""

from dataclasses import dataclass
from pathlib import Path
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

    features: Literal["live", "pictures", "stored"] = "live"
    """encoders: on views, on views cut out once, or outputs stored once"""


@dataclass(frozen=True, kw_only=True)
class OnDevice:
    """A command whose workers hold a model."""

    device: str = "auto"
    """auto (a GPU if the cluster has one), cpu or gpu"""


@dataclass(frozen=True, kw_only=True)
class WithFeed:
    """A command whose workers read training objects."""

    cache: str = "auto"
    """folder for a node's copies of the data; auto: from 1 GiB on; off"""
    loader_workers: int | Literal["auto"] = "auto"
    """processes that make batches; auto: up to 8 per GPU"""


def check_feed(flags: WithFeed) -> None:
    """ValueError for a cache that is no local folder and for a negative number of loader processes."""
    if "://" in flags.cache:
        raise ValueError(f"--cache {flags.cache}: a cache is mapped into memory; name a folder on the node's own disk")
    if flags.loader_workers != "auto" and flags.loader_workers < 0:
        raise ValueError(f"--loader-workers must be at least 0, got {flags.loader_workers}")


def feed_of(flags: WithFeed) -> dict[str, str | int]:
    """The two flags, the folder as an absolute path."""
    folder = flags.cache if flags.cache in ("auto", "off") else str(Path(flags.cache).expanduser().resolve())
    return {"cache": folder, "loader_workers": flags.loader_workers}


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


@dataclass(frozen=True, kw_only=True)
class Priced:
    """A command whose plan has a price."""

    price: float | None = None
    """price of an hour of one CPU or GPU, for --dry-run; default unknown"""


@dataclass(frozen=True, kw_only=True)
class OnGpus(Priced):
    """A command whose plan may be for GPUs that are not at hand."""

    on: str | None = None
    """GPUs to plan for, with --dry-run, such as 64xH100; default this machine"""
