"""What stands in a folder and in which state: datasets, derived tables, runs, studies, generations, evaluations. Files are read, nothing else.

How: `find(root)` walks the folder, knows a thing by the files it always has, and lets one function per kind tell its state
(`inventory_data`, `inventory_runs`, `inventory_outputs`). What things were made from is compared with what lies there now by
`Inputs`. Reading is bounded: of many shards or samples an evenly spread part is opened, and the walk stays out of MLflow's,
Ray's and hidden folders. A file that can't be read makes its thing `failed`, never this function.

`verify` compares contents where a look at names and times is the default: every source mesh, every export, every derived shard.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from pipelines.runs.identity import LEDGER_FILE
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
    "samples",
    "ray",
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
MAX_OTHER_JSON = 1000  # files of one folder that are opened to see whether they are evaluations
UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError)


def find(root: str | Path, *, verify: bool = False) -> list[Item]:
    """Everything at or below `root` in the order of the pipeline; derived tables follow their dataset, a study's runs follow it."""
    places = list(walk(Path(os.path.abspath(root))))
    inputs = Inputs(places, verify=verify)
    found = {place.path: described(place, inputs) for place in places if place.kind in DESCRIBE}
    for place in places:  # what is made of other things comes after these are known
        if place.kind in DESCRIBE_WHOLE:
            found |= {item.path: item for item in described_whole(place, inputs, found)}
    kinds = {item.path: item.kind for item in found.values()}
    items = [with_successor(item, list(found.values()), inputs) for item in found.values()]
    return sorted(
        items, key=lambda item: (ORDER.index(kinds.get(item.parent or item.path, item.kind)), item.path.parts)
    )


def with_successor(item: Item, others: list[Item], inputs: Inputs) -> Item:
    """A stale run, told whether the same command has made another from the inputs as they are now."""
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
        dataclasses.replace(item, next=None, notes=(*item.notes, f"{same[0]} replaces it: delete what nobody needs"))
        if item.next and same
        else item
    )


def walk(folder: Path) -> Iterator[Place]:
    """What each folder at or below `folder` is, with the names in it; links to folders are not followed."""
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
    """(names of files, names of folders); both empty for a folder that may not be read."""
    files, folders = set(), set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                (folders if entry.is_dir(follow_symlinks=False) else files).add(entry.name)
    except OSError:
        return frozenset(), frozenset()
    return frozenset(files), frozenset(folders)


def kind_of(folder: Path, names: frozenset[str], folders: frozenset[str]) -> str | None:
    """What a folder is by the files it has from its first second on; None for a plain folder."""
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
    """Whether the file begins as evaluations do; their rest may be large."""
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
    """The thing's state; `failed` with the reason if its own files can't be read."""
    try:
        return DESCRIBE[place.kind](place, inputs)
    except UNREADABLE as error:
        return damaged(place, inputs, error)


def described_whole(place: Place, inputs: Inputs, found: Mapping[Path, Item]) -> list[Item]:
    """A study or demo, and its parts as they look from it."""
    try:
        return DESCRIBE_WHOLE[place.kind](place, inputs, found)
    except UNREADABLE as error:
        return [damaged(place, inputs, error)]


def damaged(place: Place, inputs: Inputs, error: BaseException) -> Item:
    """A thing whose files are not what they should be."""
    reason = str(error) if isinstance(error, Unreadable) else f"unreadable: {type(error).__name__}: {error}"
    reason += "; evaluate again" * (place.kind == "evaluation")
    return Item(kind=place.kind, path=place.path, state="failed", reason=reason, next=inputs.command(place.path))
