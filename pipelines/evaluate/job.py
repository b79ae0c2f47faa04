"""How good a finished run is: a tokenizer by what it reconstructs, a generator by what it makes from prompts.

How: the export's kind chooses. The work per object or per batch of samples is a plain class with one method
(`pipelines.evaluate.reconstruct`, `pipelines.evaluate.car`), called in this process or, with `--num-workers`, in Ray actors; the results are
the same. The JSON holds the protocol (box, points, thresholds, mean or sum, seeds) beside the numbers; pictures lie beside it, and
the pictured objects themselves in STEM.meshes (`pipelines.evaluate.gallery`).
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.cli.errors import UsageError, bad_input
from pipelines.cli.failures import on_disk
from pipelines.cli.flags import DryRun, Numbers, OnData, OnRay
from pipelines.cli.main import absolute
from pipelines.cli.progress import Progress, counted
from pipelines.runs.identity import stable_hash
from pipelines.tracking import cards
from pipelines.tracking.cards import Card, DatasetInput, code
from pipelines.tracking.tracked import Outcome, WritePage, logged


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
        _check_sampling(cards.given(self, ("cfg", "top_k", "top_p", "temperature")))
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


def evaluate(flags: EvaluateFlags, page: WritePage | None = None) -> str | None:
    """Run the evaluation that fits the model; gives the path of the JSON."""
    if flags.dry_run:
        print(f"would evaluate {flags.model} on split {flags.split} of {flags.data} and write {flags.output}")
        return None
    from g3pt.data.datasets import open_dataset
    from g3pt.training.exports import check_weights, export_hash, find_export, read_export_config
    from pipelines.evaluate.gallery import folder_of, write_gallery
    from pipelines.preprocess.credits import write_credits
    from pipelines.runs.environment import environment

    output = Path(absolute(flags.output))
    if "://" in flags.output:
        raise UsageError(f"{flags.output}: evaluation writes local files only, object stores are not built yet")
    with bad_input():
        export = find_export(flags.model).resolve()
        kind = read_export_config(export)["kind"]
        check_weights(export)
        info = open_dataset(flags.data)
        if not info.splits.get(flags.split):
            raise ValueError(f"dataset {info.path} has no object in split {flags.split!r}")
    run = _stage(kind)
    identity = {
        "kind": kind,
        "model": {"path": str(export), "export_sha256": export_hash(export)},
        "dataset": {
            "path": str(info.path),
            "fingerprint": info.fingerprint,
            "shards": stable_hash(info.shards),
            "split": flags.split,
        },
        "flags": {
            name: value
            for name, value in asdict(flags).items()
            if name not in ("num_workers", "ray_address", "dry_run")
        },
    }
    if is_current(output, identity):
        print(f"{output}: finished already", file=sys.stderr)
        return str(output)
    started = time.monotonic()
    data = DatasetInput(name=info.path.name, fingerprint=info.fingerprint, path=str(info.path), context=flags.split)
    with logged(card(flags, output, kind, data, identity["model"]["export_sha256"]), output, page) as outcome:
        with on_disk(lambda: "nothing of an evaluation is kept before its end; what it reads is unchanged"):
            found = run(flags, export, info)
        report = identity | {
            "seconds": round(time.monotonic() - started, 1),
            "protocol": found["protocol"],
            "metrics": found["metrics"],
            **({"seconds_per_object": found["seconds_per_object"]} if found.get("seconds_per_object") else {}),
            "objects": found["objects"],
            **({"image_objects": found["image_objects"]} if found.get("image_objects") else {}),
            "environment": environment(),
        }
        output.parent.mkdir(parents=True, exist_ok=True)
        report["gallery"] = write_gallery(found["gallery"], folder_of(output))
        pictures = draw_pictures(found["pictures"], output.with_suffix(".png"), flags.num_pictures, found["columns"])
        pictures += draw_pictures(
            found.get("worst_pictures", []), output.with_suffix(".worst.png"), flags.num_pictures, found["columns"]
        )
        pictures += [
            write_credits(picture, shown_in(picture, report["gallery"])) for picture in pictures if kind == "cvq"
        ]
        write_report(output, report)
        print_table(found["table"])
        print_protocol(found["protocol"])
        _describe(report, [output, *pictures], outcome)
    return str(output)


def card(flags: EvaluateFlags, output: Path, kind: str, dataset: DatasetInput, model_hash: str) -> Card:
    """What MLflow shows of the evaluation of a model of `kind` cvq or car."""
    names = ("split", "limit", "seed", "resolution", "coarse", "cfg", "top_k", "top_p", "temperature")
    names += ("num_samples", "num_image_samples") if kind == "car" else ("num_queries", "num_detailed")
    what, model = {"cvq": "Reconstruction", "car": "Samples of prompts"}[kind], cards.model_name(flags.model)
    return Card(
        stage="evaluate",
        name=f"{output.stem}-{model}-{flags.split}",
        folder=output,
        dataset=dataset,
        models={"model": Path(flags.model)},
        params={"kind": kind, "model": model, "dataset": cards.label(dataset), **cards.given(flags, names)},
        tags={"g3pt.model_hash": model_hash},
        title=f"**{what}**: {code(model)} on split {code(flags.split)} of {code(dataset.name)}.",
    )


def _describe(report: dict[str, Any], files: list[Path], outcome: Outcome) -> None:
    """What MLflow shows of an evaluation."""
    outcome.metrics |= cards.intervals(report["metrics"]) | {"seconds": report["seconds"]}
    outcome.metrics |= {
        f"seconds_{stage}": value for stage, value in cards.intervals(report.get("seconds_per_object", {})).items()
    }
    outcome.records += cards.by_scale(report["metrics"])
    outcome.artifacts += files


def is_current(output: Path, identity: dict[str, Any]) -> bool:
    """Whether `output` holds the evaluation of this very model, dataset and flags, and its gallery is there."""
    from pipelines.evaluate.gallery import is_whole

    try:
        found = json.loads(output.read_text())
    except (FileNotFoundError, ValueError):
        return False
    same = isinstance(found, dict) and all(found.get(name) == value for name, value in identity.items())
    return same and is_whole(output, found.get("gallery") or [])


def _stage(kind: str) -> Callable[..., dict[str, Any]]:
    if kind == "cvq":
        from pipelines.evaluate.cvq import evaluate_tokenizer

        return evaluate_tokenizer
    if kind == "car":
        from pipelines.evaluate.car import evaluate_generator

        return evaluate_generator
    raise UsageError(f"can't evaluate a model of kind {kind!r}")


def map_work(
    worker: type,
    arguments: Sequence[Any],
    items: Sequence[Any],
    flags: EvaluateFlags,
    what: str,
    unit: str,
    sizes: Sequence[int] | None = None,
    device: str = "auto",
) -> list[Any]:
    """`worker(*arguments).run(item)` for each item, in order; here or in Ray actors, each with a GPU of its own if `device` means GPUs.

    Progress counts `sizes` (default 1 each) in `unit`s under the name `what`.
    """
    sizes = sizes or [1] * len(items)
    with Progress("evaluate", sum(sizes), unit, run=what) as progress:
        results = (
            _results_here(worker, arguments, items)
            if flags.num_workers == 0
            else _results_on_ray(worker, arguments, items, flags, device)
        )
        return list(counted(results, progress, sizes))


def _results_here(worker: type, arguments: Sequence[Any], items: Sequence[Any]) -> Iterator[Any]:
    here = worker(*arguments)
    yield from map(here.run, items)


def _results_on_ray(
    worker: type, arguments: Sequence[Any], items: Sequence[Any], flags: EvaluateFlags, device: str
) -> Iterator[Any]:
    import ray
    from ray.util import ActorPool

    from pipelines.cluster import session

    session.connect(flags.ray_address)
    request, room = session.actor_resources(device)
    count = min(flags.num_workers, len(items), room if "num_gpus" in request else len(items))
    remote = ray.remote(**request)(worker)
    pool = ActorPool([remote.remote(*arguments) for _ in range(count)])
    yield from pool.map(lambda actor, item: actor.run.remote(item), items)


def draw_pictures(items: list[tuple[Any, Any, str]], path: Path, wanted: int, columns: int) -> list[Path]:
    """The contact sheet of (vertices, faces, title)."""
    if not wanted or not items:
        return []
    from g3pt.geometry.render import contact_sheet

    contact_sheet(items, path, columns=columns)
    return [path]


def shown_in(sheet: Path, gallery: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The objects of a tokenizer's contact sheet, in its order: the worst ones, or those spread over the split."""
    if sheet.stem.endswith(".worst"):
        return sorted((entry for entry in gallery if entry.get("worst")), key=lambda entry: entry["worst"])
    return [entry for entry in gallery if entry.get("spread")]


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Strict JSON (no NaN), complete or not at all."""
    from g3pt.data.storage import write_atomic

    write_atomic(path, json.dumps(report, indent=1, allow_nan=False).encode("utf-8"))


def print_table(rows: list[tuple[str, str]]) -> None:
    """Two columns, for people."""
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"  {name:<{width}}  {value}" for name, value in rows))


def print_protocol(protocol: dict[str, Any]) -> None:
    """How the numbers of the table were made, a line each; the dataset's settings stand in the JSON."""
    print("how these numbers were made:")
    print(
        "\n".join(
            f"  {name.replace('_', ' ')}: {words}" for name, words in protocol.items() if not isinstance(words, dict)
        )
    )
