"""Finds the datasets, runs, studies, generations and evaluations of a folder, in the order of the report.

How: `pipelines.status.inventory` recognises things by their files. Here things inside another thing (a study's runs)
are left to that thing, and runs and evaluations are distinguished by stage. A run's evaluations are found by the hash
of its weights.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from pipelines.status import inventory

ORDER = ("generation", "car evaluation", "cvq evaluation", "study", "cvq run", "car run", "dataset")
STAGES = ("cvq", "car")


@dataclass(frozen=True)
class Item:
    """One thing to report on: its kind (see ORDER) and its folder or file."""

    kind: str
    path: Path


def find(root: Path) -> list[Item]:
    """The Item of `root` itself, or of everything below it, in the order of a report."""
    if root.is_file():
        return [Item(kind, root)] if (kind := evaluation_kind(root)) else []
    found: list[Item] = []
    inner: list[Path] = []
    for place in inventory.walk(root):
        if place.kind == "derived" or any(place.path.is_relative_to(folder) for folder in inner):
            continue
        kind = place.kind
        if kind == "run":
            kind = run_kind(place.path)
        elif kind == "evaluation":
            kind = evaluation_kind(place.path)
        if kind in ORDER:
            found.append(Item(kind, place.path))
            if place.kind != "evaluation":
                inner.append(place.path)
    return sorted(found, key=lambda item: (ORDER.index(item.kind), str(item.path)))


def run_kind(folder: Path) -> str | None:
    """`cvq run` or `car run`, by the stage in config.json.

    A damaged config counts as `cvq run`, whose section reports the damage.
    """
    try:
        stage = json.loads((folder / "config.json").read_bytes())["stage"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "cvq run"
    return f"{stage} run" if stage in STAGES else None


def evaluation_kind(file: Path) -> str | None:
    """`cvq evaluation` or `car evaluation`, by the first bytes of the JSON; None for other files."""
    if not inventory.is_evaluation(file):
        return None
    with open(file, "rb") as opened:
        kind = re.search(rb'"kind"\s*:\s*"(\w+)"', opened.read(200))[1].decode()
    return f"{kind} evaluation" if kind in STAGES else None


def evaluations_of(run: Path, stage: str) -> list[Path]:
    """Evaluations of exactly the run's exported weights, in its folder and up to two levels above."""
    from g3pt.training.exports import export_hash

    if not (run / "_SUCCESS").is_file():
        return []
    near = [
        file
        for folder in (run, run.parent, run.parent.parent)
        for file in sorted(folder.glob("*.json"))
        if evaluation_kind(file) == f"{stage} evaluation"
    ]
    if not near:
        return []
    try:
        wanted = export_hash(run)
    except (OSError, ValueError):
        return []
    return [file for file in near if _export_sha256(file) == wanted]


def _export_sha256(file: Path) -> str | None:
    try:
        return json.loads(file.read_bytes())["model"]["export_sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
