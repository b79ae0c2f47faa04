"""What converting the objects of a plan takes, for `--dry-run`: bytes by the schema, and with `--probe N` CPU-hours,
money and stored bytes by N objects that are converted for it.

How: the N objects with the smallest sha256(id), which is a random sample, are converted in the sandbox as any object
into a folder that is then removed. Downloads are not timed.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from g3pt.data.records import RecordConfig
from pipelines.cli.plain_text import duration, with_bytes
from pipelines.cluster.session import available_cpus
from pipelines.preprocess.config import PreprocessConfig
from pipelines.preprocess.plan import Plan, make_plan
from pipelines.preprocess.shards import map_here
from pipelines.preprocess.sources import Listing


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What the objects of a probe took: seconds of each, and bytes of their Parquet."""

    seconds: Sequence[float]
    stored: int

    @property
    def mean(self) -> float:
        """Seconds per object."""
        return statistics.fmean(self.seconds)

    @property
    def error(self) -> float:
        """Half of the 95 % interval of the mean (normal): slow objects are few, so it is wide for few objects."""
        count = len(self.seconds)
        return 1.96 * statistics.stdev(self.seconds) / math.sqrt(count) if count > 1 else math.inf


def row_bytes(record: RecordConfig) -> int:
    """Bytes of one object's tensors before compression; views and solids have no fixed size."""
    return sum(np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in record.tensors.values())


def probe(config: PreprocessConfig) -> Probe:
    """Convert `config.probe` of the objects here, and forget them."""
    with tempfile.TemporaryDirectory(prefix="g3pt-probe-") as folder:
        few = replace(
            config, output=str(Path(folder) / "data"), limit=min(config.probe, config.limit or config.probe),
            num_shards=1, dry_run=False, drop_downloads=False, probe=0,
        )  # fmt: skip
        done = [result["sidecar"] for result in map_here(make_plan(few, Listing(few)).tasks, few)]
    return Probe(
        seconds=[second for sidecar in done for second in sidecar["seconds"].values()],
        stored=sum(int(sidecar["bytes"]) for sidecar in done),
    )


def cost_lines(config: PreprocessConfig, plan: Plan, measured: Probe | None) -> list[str]:
    """Lines of the plan about its unfinished objects; `measured` is None without a probe."""
    count, each = plan.tasks.num_objects, row_bytes(config.record)
    if not count:
        return []
    more = " and the views" * bool(config.views) + " and the solids" * config.keep_solid
    lines = [f"{with_bytes(each)} of tensors per object{more}, {with_bytes(each * count)} in all before compression"]
    if measured is None:
        return [*lines, "time: unknown here; --probe 32 converts so many objects to find out"]
    hours, workers = measured.mean * count / 3600, config.num_workers or available_cpus()
    money = f", {hours * config.price:,.2f} at {config.price:g} per hour" if config.price else ""
    stored = measured.stored / len(measured.seconds)
    lines.append(
        f"{len(measured.seconds)} objects took {measured.mean:.2f} s each (± {measured.error:.2f}, "
        f"{max(measured.seconds):.2f} at most) and {with_bytes(stored)}: {hours:.3g} CPU-hours{money}, "
        f"{with_bytes(stored * count)}; {duration(hours * 3600 / workers)} with {workers} such CPUs, downloads aside"
    )
    return lines
