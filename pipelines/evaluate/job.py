"""Evaluation of a finished run: a tokenizer by its reconstructions, a generator by its samples of prompts.

How: the export's kind decides. The work per object or per batch of samples is a plain class with one method
(`pipelines.evaluate.reconstruct`, `pipelines.evaluate.generator_samples`), called in this process or, with
`--num-workers`, in Ray actors, with the same results. The JSON contains the numbers with their protocol (box, points,
thresholds, mean or sum, seeds). Pictures are beside it, and the pictured objects in STEM.meshes
(`pipelines.evaluate.gallery`).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.cli.errors import UsageError, bad_input
from pipelines.cli.failures import on_disk
from pipelines.cli.main import absolute
from pipelines.cluster.storage import join
from pipelines.evaluate.config import EvaluateFlags
from pipelines.evaluate.work import is_on_ray
from pipelines.runs.identity import stable_hash
from pipelines.runs.locks import alone_in
from pipelines.runs.settings import changes, check_unchanged, flag
from pipelines.tracking import cards
from pipelines.tracking.cards import Card, DatasetInput, code
from pipelines.tracking.tracked import Outcome, WritePage, logged

if TYPE_CHECKING:
    from g3pt.data.datasets import DatasetInfo


def evaluate(flags: EvaluateFlags, page: WritePage | None = None) -> str | None:
    """Run the evaluation for the model's kind; return the path of the JSON."""
    if flags.dry_run:
        print(f"would evaluate {flags.model} on split {flags.split} of {flags.data} and write {flags.output}")
        return None
    from g3pt.data.datasets import open_dataset
    from g3pt.data.storage import is_remote
    from g3pt.training.exports import check_weights, export_hash, find_export, read_export_config

    output = Path(absolute(flags.output))
    if "://" in flags.output:
        raise UsageError(f"{flags.output}: object stores are not supported yet, evaluations write local files")
    with bad_input():
        folder = find_export(flags.model).resolve()
        export = flags.model if is_remote(flags.model) else str(folder)
        kind = read_export_config(export)["kind"]
        check_weights(export)
        info = open_dataset(flags.data)
        if not info.splits.get(flags.split):
            raise ValueError(f"dataset {info.path} has no object in split {flags.split!r}")
    _stage(kind)
    identity = {
        "kind": kind,
        "model": {"path": str(export), "export_sha256": export_hash(export)},
        "dataset": {
            "path": str(info.path),
            "fingerprint": info.fingerprint,
            "shards": stable_hash(info.shards),
            "split": flags.split,
            **({"limited_by": "sha256(id)"} if flags.limit else {}),  # 0.1.0 took the first ids
        },
        "flags": {
            name: value
            for name, value in asdict(flags).items()
            if name not in ("num_workers", "ray_address", "dry_run", "replace")
        },
    }
    if is_current(output, identity):
        print(f"{output}: finished already", file=sys.stderr)
        return str(output)
    check_settings(output, identity, replace=flags.replace)
    with alone_in(output, is_file=True):
        if is_on_ray(flags):
            local = [] if is_remote(export) else [folder / "config.json"]
            join(flags.ray_address, reads=[*local, str(info.path / "dataset.json")])
        _evaluate(flags, output, export, info, identity, page)
    return str(output)


def _evaluate(
    flags: EvaluateFlags,
    output: Path,
    export: str,
    info: DatasetInfo,
    identity: dict[str, Any],
    page: WritePage | None,
) -> None:
    """The body of `evaluate`, once its input and output were checked."""
    from pipelines.evaluate.gallery import folder_of, write_gallery
    from pipelines.preprocess.credits import write_credits
    from pipelines.runs.environment import environment

    kind, run = identity["kind"], _stage(identity["kind"])
    started = time.monotonic()
    data = DatasetInput(name=info.path.name, fingerprint=info.fingerprint, path=str(info.path), context=flags.split)
    with logged(card(flags, output, kind, data, identity["model"]["export_sha256"]), output, page) as outcome:
        with on_disk(lambda: "an evaluation keeps nothing before its end; its inputs are unchanged"):
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
        models=cards.models(model=flags.model),
        params={"kind": kind, "model": model, "dataset": cards.label(dataset), **cards.given(flags, names)},
        tags={"g3pt.model_hash": model_hash},
        title=f"**{what}**: {code(model)} on split {code(flags.split)} of {code(dataset.name)}.",
    )


def _describe(report: dict[str, Any], files: list[Path], outcome: Outcome) -> None:
    """Fill in what MLflow shows of an evaluation."""
    outcome.metrics |= cards.intervals(report["metrics"]) | {"seconds": report["seconds"]}
    outcome.metrics |= {
        f"seconds_{stage}": value for stage, value in cards.intervals(report.get("seconds_per_object", {})).items()
    }
    outcome.metrics |= cards.by_thickness(report["metrics"])
    outcome.records += cards.by_scale(report["metrics"])
    outcome.artifacts += files


def is_current(output: Path, identity: dict[str, Any]) -> bool:
    """Whether `output` is the evaluation of exactly this model, dataset and flags, with a complete gallery."""
    from pipelines.evaluate.gallery import is_whole

    try:
        found = json.loads(output.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    same = isinstance(found, dict) and all(found.get(name) == value for name, value in identity.items())
    return same and is_whole(output, found.get("gallery") or [])


def check_settings(output: Path, identity: dict[str, Any], *, replace: bool) -> None:
    """UsageError if `output` is the evaluation with other flags, or another file, unless --replace is given.

    Changed weights or data at the same path are changed inputs: the evaluation is made again.
    """
    if not output.exists():
        return
    try:
        known = json.loads(output.read_text(encoding="utf-8"))
        found = changes(_named(known), _named(identity))
        for name, content in (("model", "export_sha256"), ("dataset", "fingerprint")):
            if known[name][content] != identity[name][content]:
                shown = flag("data" if name == "dataset" else name)
                found += changes({shown: known[name]["path"]}, {shown: identity[name]["path"]})
    except (ValueError, KeyError, TypeError, AttributeError):
        found = ["something else than this command"]
    check_unchanged(f"--output {output}", found, replace=replace)


def _named(identity: dict[str, Any]) -> dict[str, Any]:
    """The settings of an evaluation by their flags."""
    return {flag(name): value for name, value in identity["flags"].items() if name not in ("model", "data", "output")}


def _stage(kind: str) -> Callable[..., dict[str, Any]]:
    if kind == "cvq":
        from pipelines.evaluate.cvq import evaluate_tokenizer

        return evaluate_tokenizer
    if kind == "car":
        from pipelines.evaluate.car import evaluate_generator

        return evaluate_generator
    raise UsageError(f"cannot evaluate a model of kind {kind!r}")


def draw_pictures(items: list[tuple[Any, Any, str]], path: Path, wanted: int, columns: int) -> list[Path]:
    """Draw a contact sheet of (vertices, faces, title); return its path in a list, empty if nothing is drawn."""
    if not wanted or not items:
        return []
    from g3pt.geometry.render import contact_sheet

    contact_sheet(items, path, columns=columns)
    return [path]


def shown_in(sheet: Path, gallery: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The objects of a tokenizer's contact sheet in order: the worst ones, or those spread over the split."""
    if sheet.stem.endswith(".worst"):
        return sorted((entry for entry in gallery if entry.get("worst")), key=lambda entry: entry["worst"])
    return [entry for entry in gallery if entry.get("spread")]


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write strict JSON (no NaN), complete or not at all."""
    from g3pt.data.storage import write_atomic

    write_atomic(path, json.dumps(report, indent=1, allow_nan=False).encode("utf-8"))


def print_table(rows: list[tuple[str, str]]) -> None:
    """Print two columns."""
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"  {name:<{width}}  {value}" for name, value in rows))


def print_protocol(protocol: dict[str, Any]) -> None:
    """Print the protocol, one line per entry; the dataset's settings are in the JSON only."""
    print("how these numbers were made:")
    print(
        "\n".join(
            f"  {name.replace('_', ' ')}: {words}" for name, words in protocol.items() if not isinstance(words, dict)
        )
    )
