"""Preprocessing, meshes to a dataset of sharded Parquet: plan which shards are stale, convert them on Ray Data, write
dataset.json last.

How: `plan` finds the stale shards, `shards` converts them. Starting the command again after a kill redoes only
unfinished shards. `preprocess(config, run_shards=map_here)` does the same without Ray.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from g3pt.data import datasets, records, storage
from g3pt.data.datasets import NOT_THERE, list_shards
from g3pt.data.storage import Location, location
from pipelines.cli.failures import on_disk
from pipelines.cli.main import absolute
from pipelines.cli.progress import Progress
from pipelines.cluster.storage import check_arrived
from pipelines.preprocess.config import PreprocessConfig, named
from pipelines.preprocess.cost import cost_lines, probe
from pipelines.preprocess.output import alone_in, check_output
from pipelines.preprocess.plan import Plan, make_plan
from pipelines.preprocess.shards import Runner, map_on_ray
from pipelines.preprocess.sources import Listing
from pipelines.preprocess.sources.hub import default_folder
from pipelines.preprocess.sources.objaverse import NotDownloaded
from pipelines.runs.notes import working_in
from pipelines.runs.settings import changes, check_unchanged
from pipelines.tracking import cards
from pipelines.tracking.cards import Card, DatasetInput, code
from pipelines.tracking.client import best_effort
from pipelines.tracking.tracked import Outcome, WritePage, logged


@dataclass
class Seconds:
    """The seconds of this run's objects: count, sum, maximum."""

    count: int = 0
    total: float = 0.0
    longest: float = 0.0

    def add(self, seconds: Iterable[float]) -> None:
        """Add the seconds of one shard's objects."""
        for value in seconds:
            self.count, self.total, self.longest = self.count + 1, self.total + value, max(self.longest, value)


def preprocess(config: PreprocessConfig, run_shards: Runner = map_on_ray, page: WritePage | None = None) -> str | None:
    """Bring the dataset at config.output up to date with its source. Returns its folder, None for a dry run."""
    config = _absolute(config)
    check_output(config.output)
    with contextlib.nullcontext() if config.dry_run else alone_in(config.output):
        return _preprocess(config, run_shards, page)


def _preprocess(config: PreprocessConfig, run_shards: Runner, page: WritePage | None) -> str | None:
    if config.dry_run and not _input_exists(config):
        print(f"plan for {config.output}: --input {config.input} does not exist yet")
        return None
    listing = Listing(config)
    try:
        plan = make_plan(config, listing)
    except NotDownloaded as missing:
        print(f"plan for {config.output}: {missing}")
        return None
    said = "plan" if config.dry_run else "preprocess"
    print(
        f"{said}: {plan.num_objects} objects of --source {config.source} -> {config.output} ({plan.num_shards} shards)",
        flush=True,
    )
    for line in [*listing.lines(), *plan.lines()]:
        print(f"  {line}", flush=True)
    check_settings(config, plan)
    if config.dry_run:
        for line in cost_lines(config, plan, probe(config) if config.probe and plan.tasks else None):
            print(f"  {line}", flush=True)
        return None
    finished = run_shards(plan.tasks, config) if plan.tasks else []  # on Ray: joins it, and converts nothing yet
    started = time.monotonic()
    note = working_in(config.output, total=plan.num_objects, flags=asdict(config))
    with (
        note,
        on_disk(lambda: _finished_shards(config, plan)),
        logged(card(config), config.output) as outcome,
    ):
        outcome.nothing_done = _is_whole(config, plan)
        seconds = _bring_up_to_date(config, plan, finished)
        summary = datasets.write_dataset(
            location(config.output), config.record, config.settings, plan.num_shards, plan.current
        )
        _report(config, plan, seconds, summary, time.monotonic() - started, outcome, page)
        if not summary["counts"].get("ok"):
            raise RuntimeError(f"no object is ok: {_counted(summary['failures'])}")
    return config.output


def _absolute(config: PreprocessConfig) -> PreprocessConfig:
    """The config with absolute local paths: Ray changes the working directory of workers, and their environment may
    name another cache.
    """
    if config.source == "objaverse" and not config.input:
        config = replace(config, input=default_folder())
    paths = {name: getattr(config, name) for name in ("output", "input", "ids", "captions")}
    return replace(config, **{name: absolute(path) for name, path in paths.items() if path})


def _input_exists(config: PreprocessConfig) -> bool:
    return config.source != "dir" or config.input is None or "://" in config.input or Path(config.input).exists()


def _is_whole(config: PreprocessConfig, plan: Plan) -> bool:
    """Whether an earlier start finished the dataset.

    A start killed after its last shard did not: the next one still has to report it.
    """
    return not plan.tasks and not plan.extra and (location(config.output) / "dataset.json").exists()


def check_settings(config: PreprocessConfig, plan: Plan) -> None:
    """UsageError if finished shards were made with other settings, unless --replace is given."""
    if plan.other is None:
        return
    wanted, stored = config.settings, plan.other.get("config") or _settings_of_dataset(config, plan.other)
    found = changes(
        named(stored) | {"--num-shards": plan.other.get("num_shards")},
        named(wanted) | {"--num-shards": plan.num_shards},
    )
    check_unchanged(
        f"--output {config.output}", found or ["other settings, which it does not name"], replace=config.replace
    )


def _settings_of_dataset(config: PreprocessConfig, sidecar: dict[str, Any]) -> dict[str, Any]:
    """The settings of a shard whose sidecar has their hash only, from dataset.json; empty if they are unknown."""
    try:
        info = datasets.open_dataset(config.output)
    except ValueError:
        return {}
    return info.settings if records.config_hash(info.settings) == sidecar["config_sha256"] else {}


def _bring_up_to_date(config: PreprocessConfig, plan: Plan, results: Iterable[dict[str, Any]]) -> Seconds:
    """Write stale shards, add them to the current ones, remove extra ones. Returns the seconds of the objects.

    `results` are those of the plan's tasks; the first one that is asked for starts the work.
    """
    folder = location(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    if plan.tasks or plan.extra:
        (folder / "dataset.json").unlink(missing_ok=True)  # the dataset is incomplete until the work is done
    storage.remove_temporaries(folder)
    for index in plan.extra:
        for ending in ("json", "parquet"):
            (folder / f"{records.shard_name(index)}.{ending}").unlink(missing_ok=True)
    seconds = Seconds()
    if not plan.tasks:
        return seconds
    with Progress("preprocess", plan.tasks.num_objects, "objects") as progress:
        failed = 0
        for finished in results:
            sidecar = finished["sidecar"]
            parquet = folder / f"{records.shard_name(finished['index'])}.parquet"
            check_arrived({str(parquet): sidecar["bytes"]}, finished.get("node", "unknown"))
            plan.current.add(finished["index"], sidecar)
            seconds.add(sidecar["seconds"].values())
            failed += sum(sidecar["failures"].values())
            progress.show(seconds.count, failed=failed)
    storage.remove_temporaries(folder)  # of workers that died
    return seconds


def _finished_shards(config: PreprocessConfig, plan: Plan) -> str:
    """What is finished when the command stops, in words."""
    there = list_shards(location(config.output))
    left = sum(not there.get(index, NOT_THERE).has_sidecar for index in plan.tasks.indices)
    total = len(plan.current.shards.keys() | set(plan.tasks.indices))
    return f"{total - left} of {total} shards are finished ({config.output})"


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


def card(config: PreprocessConfig) -> Card:
    """What MLflow shows of the command. The dataset's fingerprint joins the run's name once it is known."""
    names = (
        "source",
        "input",
        "limit",
        "resolution",
        "watertight",
        "open_surfaces",
        "views",
        "num_surface",
        "num_queries",
        "seed",
        "seeds",
    )
    folder = location(config.output)
    return Card(
        stage="preprocess",
        name=f"{folder.name}-r{config.resolution}",
        folder=folder,
        params=cards.given(config, names),
        title=f"**Dataset {code(folder.name)}** from source {code(config.source)}, solids at {config.resolution}³.",
    )


def _report(
    config: PreprocessConfig,
    plan: Plan,
    took: Seconds,
    summary: dict[str, Any],
    seconds: float,
    outcome: Outcome,
    page: WritePage | None,
) -> None:
    """Print what the dataset contains and, if anything was done, fill in what MLflow shows."""
    print(
        f"dataset: {_counted(summary['counts'])}; splits {_counted(summary['splits'])}; {len(summary['shards'])} "
        f"shards",
        flush=True,
    )
    if summary["failures"]:
        print(f"  not ok: {_counted(summary['failures'])}", flush=True)
    if outcome.nothing_done:
        return
    if took.count:
        mean = took.total / took.count
        print(f"  {mean:.2f} s per object (mean), {took.longest:.2f} s at most, {seconds:.0f} s in all", flush=True)
        outcome.metrics |= {"seconds_per_object": mean, "seconds_per_object_max": took.longest}
    counts, fingerprint = summary["counts"], summary["fingerprint"]
    outcome.metrics |= {
        "objects_ok": float(counts.get("ok", 0)),
        "objects_not_ok": float(sum(counts.values()) - counts.get("ok", 0)),
    }
    outcome.metrics |= {f"not_ok/{name}": float(count) for name, count in summary["failures"].items()}
    outcome.metrics |= {f"split/{name}": float(count) for name, count in summary["splits"].items()}
    outcome.metrics |= {"objects_done": float(took.count), "seconds": seconds}
    folder = location(config.output)
    outcome.name = f"{folder.name}-r{config.resolution}-{fingerprint[: cards.SHORT]}"
    outcome.params |= {"fingerprint": fingerprint, "num_shards": plan.num_shards}
    outcome.dataset = DatasetInput(name=folder.name, fingerprint=fingerprint, path=config.output, context="made here")
    outcome.artifacts.append(folder / "dataset.json")
    best_effort("the dataset's card", lambda: _card(folder, outcome, page))


def _card(folder: Location, outcome: Outcome, page: WritePage | None) -> None:
    """Write the dataset's card and report; only for local folders, and also for a dataset without ok objects."""
    if isinstance(folder, storage.RemotePath):
        print("  no card: cards are made for local folders only", flush=True)
        return
    from pipelines.preprocess.dataset_card import CARD, write_card

    outcome.artifacts += write_card(folder)
    outcome.page = page(folder) if page else None
    print(f"  card: {outcome.page or folder / CARD}", flush=True)
