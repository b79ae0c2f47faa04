"""Finds what the pipeline made below a folder and its state: datasets, derived tables, runs, studies, generations,
evaluations.

How: `find(root)` walks the folder, recognises each thing by the files it always has, and calls one function per kind
for its state (`datasets`, `runs`, `outputs`). `Inputs` compares the recorded inputs with their present state. Only
files are read, and reading is bounded: of many shards or samples an evenly spaced sample is opened, and MLflow's, Ray's
and hidden folders are skipped. An unreadable file makes its thing `failed`; it raises nothing.

`verify` compares the contents of every source mesh, export and derived shard instead of names and times.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from pipelines.runs.ledger import LEDGER_FILE
from pipelines.runs.notes import COMMAND_FILE, read_note
from pipelines.status.datasets import describe_dataset, describe_derived
from pipelines.status.inputs import Inputs
from pipelines.status.items import STATES, Item, Place, Unreadable
from pipelines.status.outputs import describe_evaluation, describe_generation
from pipelines.status.runs import describe_demo, describe_run, describe_study

__all__ = ["STATES", "Item", "find"]

NEVER_ENTERED = {
    "mlartifacts",
    "mlruns",
    "checkpoints",
    "export",
    "export-best",
    "samples",
    "ray",
    "system",
    "derived",
    "node_modules",
    "__pycache__",
}
SIDECAR = re.compile(r"shard-\d+\.json")
OWN_JSON = {
    "config.json",
    "dataset.json",
    "study.json",
    "fit.json",
    "mlflow.json",
    "seconds.json",
    "stages.json",
    "command.json",
    "failure.json",
}
EVALUATION_STARTS = re.compile(rb'\s*\{\s*"kind"\s*:\s*"\w+"\s*,\s*"model"\s*:\s*\{')
MAX_OTHER_JSON = 1000  # JSON files per folder that are opened to check whether they are evaluations
UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError)


def find(root: str | Path, *, verify: bool = False) -> list[Item]:
    """Everything at or below `root` in the order of the pipeline.

    Derived tables follow their dataset, and runs of a study the study.
    """
    places = list(walk(Path(os.path.abspath(root))))
    inputs = Inputs(places, verify=verify)
    found = {place.path: described(place, inputs) for place in places if place.kind in DESCRIBE}
    for place in places:  # things that consist of others come after these
        if place.kind in DESCRIBE_WHOLE:
            found |= {item.path: item for item in described_whole(place, inputs, found)}
    kinds = {item.path: item.kind for item in found.values()}
    items = [with_successor(item, list(found.values()), inputs) for item in found.values()]
    return sorted(
        items, key=lambda item: (ORDER.index(kinds.get(item.parent or item.path, item.kind)), item.path.parts)
    )


def with_successor(item: Item, others: list[Item], inputs: Inputs) -> Item:
    """The item; for a stale run with a note if the same command has made another run from the present inputs."""
    if item.kind != "run" or item.state != "stale" or item.parent is not None:
        return item
    same = [
        o.path.name
        for o in others
        if o.kind == "run"
        and o.state == "done"
        and o.path.parent == item.path.parent
        and inputs.command(o.path) == item.next
    ]
    return (
        dataclasses.replace(
            item, next=None, notes=(*item.notes, f"{same[0]} replaces it: delete it if nobody needs it")
        )
        if item.next and same
        else item
    )


def walk(folder: Path) -> Iterator[Place]:
    """The Place of every folder at or below `folder` that is something. Links to folders are not followed."""
    names, folders = listing(folder)
    kind = kind_of(folder, names, folders)
    if kind is not None:
        yield Place(kind=kind, path=folder, names=names)
    if kind == "dataset" and "derived" in folders:
        for table in sorted(listing(folder / "derived")[1]):
            if not table.startswith("."):
                yield Place(
                    kind="derived", path=folder / "derived" / table, names=listing(folder / "derived" / table)[0]
                )
    others = sorted(
        name for name in names if name.endswith(".json") and name not in OWN_JSON and not SIDECAR.fullmatch(name)
    )
    for name in others[:MAX_OTHER_JSON]:
        if is_evaluation(folder / name):
            yield Place(kind="evaluation", path=folder / name, names=frozenset())
    for name in sorted(folders - NEVER_ENTERED):
        if not name.startswith("."):
            yield from walk(folder / name)


def listing(folder: Path) -> tuple[frozenset[str], frozenset[str]]:
    """(names of files, names of folders); both empty for an unreadable folder."""
    files, folders = set(), set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                (folders if entry.is_dir(follow_symlinks=False) else files).add(entry.name)
    except OSError:
        return frozenset(), frozenset()
    return frozenset(files), frozenset(folders)


def kind_of(folder: Path, names: frozenset[str], folders: frozenset[str]) -> str | None:
    """The kind of a folder, by files that it has from the start; None for other folders."""
    if "study.json" in names:
        return "study"
    if "seconds.json" in names:
        return "demo"
    if "config.json" in names and ("checkpoints" in folders or LEDGER_FILE in names):
        return "run"
    flags = (read_note(folder, COMMAND_FILE) or {}).get("flags") if COMMAND_FILE in names else None
    flags = flags if isinstance(flags, dict) else {}
    if "dataset.json" in names or "source" in flags or any(map(SIDECAR.fullmatch, names)):
        return "dataset"
    if "prompts" in flags or ("manifest.parquet" in names and "samples" in folders):
        return "generation"
    return None


def is_evaluation(file: Path) -> bool:
    """Whether the file begins like an evaluation. The rest, which may be large, is not read."""
    try:
        with open(file, "rb") as opened:
            return EVALUATION_STARTS.match(opened.read(200)) is not None
    except OSError:
        return False


DESCRIBE: dict[str, Callable[[Place, Inputs], Item]] = {
    "dataset": describe_dataset,
    "derived": describe_derived,
    "run": describe_run,
    "generation": describe_generation,
    "evaluation": describe_evaluation,
}
DESCRIBE_WHOLE: dict[str, Callable[[Place, Inputs, Mapping[Path, Item]], list[Item]]] = {
    "study": describe_study,
    "demo": describe_demo,
}
ORDER = ("demo", "dataset", "derived", "run", "study", "generation", "evaluation")


def described(place: Place, inputs: Inputs) -> Item:
    """The thing's state; `failed` with the reason if its files cannot be read."""
    try:
        return DESCRIBE[place.kind](place, inputs)
    except UNREADABLE as error:
        return damaged(place, inputs, error)


def described_whole(place: Place, inputs: Inputs, found: Mapping[Path, Item]) -> list[Item]:
    """The Items of a study or demo and of its parts."""
    try:
        return DESCRIBE_WHOLE[place.kind](place, inputs, found)
    except UNREADABLE as error:
        return [damaged(place, inputs, error)]


def damaged(place: Place, inputs: Inputs, error: BaseException) -> Item:
    """The failed Item of a thing with unreadable files."""
    reason = str(error) if isinstance(error, Unreadable) else f"unreadable: {type(error).__name__}: {error}"
    reason += "; evaluate again" * (place.kind == "evaluation")
    return Item(kind=place.kind, path=place.path, state="failed", reason=reason, next=inputs.command(place.path))
