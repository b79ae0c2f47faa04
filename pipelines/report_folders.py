"""What lies in a folder: datasets, runs, studies, generations and evaluations, told apart by their files.

How: a folder is what its files say (`study.json`, `config.json` with a stage, `dataset.json`, `manifest.parquet`); unfinished ones
are known by the note `command.json` or by their parts. Nothing is searched below what is found, nor in MLflow's copies, and never
deeper than three levels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_DEPTH = 3
SKIPPED = {"mlartifacts", "checkpoints", "derived", "ray", "samples", "export"}
EVALUATION_KEYS = {"kind", "model", "protocol", "metrics", "objects"}
ORDER = ("generation", "car evaluation", "cvq evaluation", "study", "cvq run", "car run", "dataset")


@dataclass(frozen=True)
class Item:
    """One thing to report on: its kind (see ORDER) and its folder or file."""

    kind: str
    path: Path


def find(root: Path) -> list[Item]:
    """What `root` is; else all that it holds, in the order of a report."""
    if root.is_file():
        kind = evaluation_kind(root)
        return [Item(kind, root)] if kind else []
    own = folder_kind(root)
    found = [Item(own, root)] if own else list(_below(root, MAX_DEPTH))
    return sorted(found, key=lambda item: (ORDER.index(item.kind), str(item.path)))


def _below(folder: Path, depth: int) -> Iterator[Item]:
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or entry.is_symlink():
            continue
        if entry.is_file():
            kind = evaluation_kind(entry) if entry.suffix == ".json" else None
            if kind:
                yield Item(kind, entry)
        elif entry.is_dir() and entry.name not in SKIPPED and not entry.name.endswith(".meshes"):
            kind = folder_kind(entry)
            if kind:
                yield Item(kind, entry)
            elif depth > 1:
                yield from _below(entry, depth - 1)


def folder_kind(folder: Path) -> str | None:
    """dataset, study, generation, cvq run, car run; None for any other folder."""
    if (folder / "study.json").is_file():
        return "study"
    if (folder / "dataset.json").is_file() or next(folder.glob("shard-*.json"), None):
        return "dataset"
    if (folder / "manifest.parquet").is_file() or next(folder.glob("samples/*.json"), None):
        return "generation"
    stage = peek(folder / "config.json").get("stage")
    if stage in ("cvq", "car"):
        return f"{stage} run"
    flags = peek(folder / "command.json").get("flags")
    if isinstance(flags, dict):  # started, and nothing finished yet
        return "dataset" if "watertight" in flags else "generation" if "prompts" in flags else "study" if "sizes" in flags else None
    return None


def evaluation_kind(file: Path) -> str | None:
    """`cvq evaluation` or `car evaluation` if the JSON file is one."""
    found = peek(file)
    known = set(found) >= EVALUATION_KEYS and found["kind"] in ("cvq", "car") and isinstance(found["model"], dict)
    return f"{found['kind']} evaluation" if known else None


def evaluations_of(run: Path) -> list[Path]:
    """Evaluations in the run's parent folders, two levels up, of the very weights that the run exported."""
    from g3pt.checkpoint import export_hash

    if not (run / "_SUCCESS").is_file():
        return []
    kind = peek(run / "config.json").get("stage")
    near = [file for folder in (run, run.parent, run.parent.parent) for file in sorted(folder.glob("*.json")) if evaluation_kind(file) == f"{kind} evaluation"]
    if not near:
        return []
    try:
        wanted = export_hash(run)
    except (OSError, ValueError):
        return []
    return [file for file in near if peek(file)["model"].get("export_sha256") == wanted]


def peek(file: Path) -> dict[str, Any]:
    """A JSON object, empty where there is none: for telling kinds apart, not for showing."""
    try:
        if file.stat().st_size > 256 * 2**20:
            return {}
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
