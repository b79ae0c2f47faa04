"""Meshes to a dataset of sharded Parquet: plan what is stale, convert it on Ray Data, write dataset.json last.

How: preprocess_plan says which shards are stale, preprocess_shards converts them; starting the command again after any
death redoes only shards that were not finished. `preprocess(config, run_shards=map_here)` does the same without Ray.

Source: DESIGN, contracts 2 and 3.
"""

from __future__ import annotations

import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from g3pt import datasets, records, storage
from pipelines import cards
from pipelines.cli import absolute
from pipelines.errors import bad_input
from pipelines.failures import on_disk
from pipelines.notes import working_in
from pipelines.preprocess_config import PreprocessConfig
from pipelines.preprocess_plan import Plan, make_plan
from pipelines.preprocess_shards import Runner, map_on_ray
from pipelines.progress import Progress
from pipelines.sources import list_objects
from pipelines.tracked import Outcome, logged


def preprocess(config: PreprocessConfig, run_shards: Runner = map_on_ray) -> str | None:
    """Bring the dataset at config.output up to date with its source. Returns its folder, None for a dry run."""
    config = _absolute(config)
    _check_output(config)
    if config.dry_run and not _input_exists(config):
        print(f"plan for {config.output}: --input {config.input} does not exist yet")
        return None
    objects = list_objects(config.source, config.input, config.limit, config.seed)
    plan = make_plan(config, objects)
    said = "plan" if config.dry_run else "preprocess"
    print(
        f"{said}: {len(objects)} objects of --source {config.source} -> {config.output} ({plan.num_shards} shards)",
        flush=True,
    )
    for line in plan.lines():
        print(f"  {line}", flush=True)
    if config.dry_run:
        return None
    started = time.monotonic()
    note = working_in(config.output, total=len(objects), flags=asdict(config))
    with note, on_disk(lambda: _finished_shards(config, plan)), logged(cards.preprocessing(config), config.output) as outcome:
        shards = _bring_up_to_date(config, plan, run_shards)
        summary = datasets.write_dataset(Path(config.output), config.record, config.settings, plan.num_shards, shards)
        _report(config, plan, shards, summary, time.monotonic() - started, outcome)
        if not summary["counts"].get("ok"):
            raise RuntimeError(f"no object is ok: {_counted(summary['failures'])}")
    return config.output


def _absolute(config: PreprocessConfig) -> PreprocessConfig:
    """Local paths made absolute: Ray changes its workers' working directory."""
    paths = {"output": config.output, "input": config.input}
    fixed = {name: absolute(path) for name, path in paths.items() if path}
    return PreprocessConfig(**{field.name: getattr(config, field.name) for field in fields(config)} | fixed)


def _check_output(config: PreprocessConfig) -> None:
    with bad_input("--output "):
        folder = storage.local_folder(config.output)
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is not a folder")
        if (folder / "dataset.json").exists():
            datasets.open_dataset(folder)


def _input_exists(config: PreprocessConfig) -> bool:
    return config.source != "dir" or config.input is None or "://" in config.input or Path(config.input).exists()


def _bring_up_to_date(config: PreprocessConfig, plan: Plan, run_shards: Runner) -> dict[int, dict[str, Any]]:
    """Write what is stale, remove what is extra. Returns index -> sidecar of the whole dataset."""
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    if plan.tasks or plan.extra:
        (folder / "dataset.json").unlink(missing_ok=True)  # until the work is done this is no complete dataset
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
    for index in plan.extra:
        for ending in ("json", "parquet"):
            (folder / f"{records.shard_name(index)}.{ending}").unlink(missing_ok=True)
    shards = dict(plan.current)
    if not plan.tasks:
        return shards
    with Progress("preprocess", sum(len(task.objects) for task in plan.tasks), "objects") as progress:
        done = failed = 0
        for finished in run_shards(plan.tasks, config):
            sidecar = shards[finished["index"]] = finished["sidecar"]
            done, failed = done + sidecar["rows"], failed + sum(sidecar["failures"].values())
            progress.show(done, failed=failed)
    return shards


def _finished_shards(config: PreprocessConfig, plan: Plan) -> str:
    """What a stopped command leaves."""
    left = sum(not (Path(config.output) / f"{records.shard_name(task.index)}.json").exists() for task in plan.tasks)
    total = len(plan.tasks) + len(plan.current)
    return f"{total - left} of {total} shards are finished ({config.output})"


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


def _report(
    config: PreprocessConfig, plan: Plan, shards: dict[int, dict], summary: dict[str, Any], seconds: float, outcome: Outcome
) -> None:
    """Say what the dataset holds, and what MLflow shows of it if anything was done."""
    done = [value for task in plan.tasks for value in shards[task.index]["seconds"].values()]
    print(
        f"dataset: {_counted(summary['counts'])}; splits {_counted(summary['splits'])}; {len(shards)} shards",
        flush=True,
    )
    if summary["failures"]:
        print(f"  not ok: {_counted(summary['failures'])}", flush=True)
    outcome.nothing_done = not done
    if not done:
        return
    mean, longest = sum(done) / len(done), max(done)
    print(f"  {mean:.2f} s per object (mean), {longest:.2f} s at most, {seconds:.0f} s in all", flush=True)
    counts, fingerprint = summary["counts"], summary["fingerprint"]
    outcome.metrics |= {"objects_ok": float(counts.get("ok", 0)), "objects_not_ok": float(sum(counts.values()) - counts.get("ok", 0))}
    outcome.metrics |= {f"not_ok/{name}": float(count) for name, count in summary["failures"].items()}
    outcome.metrics |= {f"split/{name}": float(count) for name, count in summary["splits"].items()}
    outcome.metrics |= {"objects_done": float(len(done)), "seconds": seconds, "seconds_per_object": mean, "seconds_per_object_max": longest}
    outcome.name = f"{Path(config.output).name}-r{config.resolution}-{fingerprint[: cards.SHORT]}"
    outcome.params |= {"fingerprint": fingerprint, "num_shards": plan.num_shards}
    outcome.dataset = cards.DatasetInput(name=Path(config.output).name, fingerprint=fingerprint, path=config.output, context="made here")
    outcome.artifacts.append(Path(config.output) / "dataset.json")
