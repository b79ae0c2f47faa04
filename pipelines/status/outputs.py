"""The state of generated meshes and of evaluations: how many are done, which failed, and whether their model is
unchanged.
"""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.cli.paths import REPOSITORY
from pipelines.runs.notes import FAILURE_FILE, read_note
from pipelines.status.inputs import Inputs, typed
from pipelines.status.items import (
    Item,
    Place,
    Unreadable,
    activity,
    changed_at,
    note_of,
    rate_since,
    read_object,
    spread,
    started_at,
)

MANIFEST = "manifest.parquet"

# --------------------------------------------------------------------------------------------------------- generation


def describe_generation(place: Place, inputs: Inputs) -> Item:
    """The state of a folder of generated meshes, from its manifest if that is newer than the last start."""
    note, failure = note_of(place.path), read_note(place.path, FAILURE_FILE)
    if MANIFEST in place.names and changed_at(place.path / MANIFEST) >= started_at(note):
        found = finished_generation(place, note, inputs)
    else:
        found = unfinished_generation(place, note, inputs)
    if failure:
        found |= {"state": "failed", "reason": str(failure.get("error")), "next": inputs.command(place.path)}
    return Item(kind="generation", path=place.path, unit="samples", **found)


def finished_generation(place: Place, note: dict[str, Any], inputs: Inputs) -> dict[str, Any]:
    """Fields of the Item from manifest.parquet."""
    try:
        rows = pq.read_table(
            place.path / MANIFEST, columns=["status", "error", "file", "model", "model_hash"]
        ).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise Unreadable(f"{MANIFEST} is damaged: {error}") from None
    failures = Counter(reason(row) for row in rows if row["status"] != "ok")
    ok = [row for row in rows if row["status"] == "ok"]
    lost = [
        row["file"]
        for row in ok
        if row["file"] not in place.names and not ("/" in row["file"] and (place.path / row["file"]).is_file())
    ]
    common = {"done": len(rows), "total": len(rows), "failures": dict(failures), "next": inputs.command(place.path)}
    if not ok:
        return common | {"state": "failed", "done": 0, "reason": "all samples failed"}
    if lost:
        return common | {
            "state": "failed",
            "done": len(rows) - len(lost),
            "reason": f"{len(lost)} of {len(ok)} meshes missing, the first is {lost[0]}",
        }
    model = Path(str(note.get("working_dir") or "."), str(ok[0]["model"])).expanduser()
    changed, unseen = inputs.export(str(model), str(ok[0]["model_hash"]), "model")
    if changed:
        return common | {"state": "stale", "reason": changed}
    return common | {"state": "done", "next": None, "notes": (unseen,) if unseen else ()}


def unfinished_generation(place: Place, note: dict[str, Any], inputs: Inputs) -> dict[str, Any]:
    """Fields of the Item from evenly spaced records of samples; records of earlier settings count too."""
    folder = place.path / "samples"
    names = record_names(folder)
    times, failures = [], Counter[str]()
    for name in spread(names):
        times.append(changed_at(folder / name))
        try:
            record = read_object(folder / name)
        except Unreadable:
            continue
        if record.get("status") != "ok":
            failures[reason(record)] += 1
    total = note["total"] if isinstance(note.get("total"), int) else None
    done = len(names) if total is None else min(len(names), total)
    about = activity(place.path, note, folder, *{(folder / name).parent for name in names})
    per_second = rate_since(times, len(names), started_at(note), max([*times, 0.0]))
    left = (total - done) / per_second if per_second and total is not None else None
    command = None if about["working"] else inputs.command(place.path)
    notes = (
        (f"failures were counted in {len(times)} of {len(names)} samples",)
        if failures and len(times) < len(names)
        else ()
    )
    return {
        "state": "partial",
        "done": done,
        "total": total,
        "failures": dict(failures),
        "seconds_left": left,
        "next": command,
        "notes": notes,
        **about,
    }


def reason(row: dict[str, Any]) -> str:
    """`bad-prompt` of `bad-prompt: neither text nor image`."""
    return str(row.get("error") or row.get("status")).split(":", 1)[0]


def record_names(folder: Path) -> list[str]:
    """Names of the samples' records, relative to their folder; a large job has them in subfolders."""
    found = names_in(folder)
    found += [f"{name}/{inner}" for name in found if len(name) == 2 for inner in names_in(folder / name)]
    return [name for name in found if name.endswith(".json") and not name.rpartition("/")[2].startswith(".")]


def names_in(folder: Path) -> list[str]:
    """Names of a folder's entries; empty if it is missing."""
    try:
        return [entry.name for entry in folder.iterdir()]
    except OSError:
        return []


# --------------------------------------------------------------------------------------------------------- evaluation


def describe_evaluation(place: Place, inputs: Inputs) -> Item:
    """The state of an evaluation's JSON."""
    found = read_object(place.path)
    model, dataset = found["model"], found["dataset"]
    objects = found.get("objects")
    common: dict[str, Any] = {"kind": "evaluation", "path": place.path, "unit": "objects"}
    common |= {"done": len(objects), "total": len(objects)} if isinstance(objects, (list, dict)) else {}
    by_model = inputs.export(str(model["path"]), model["export_sha256"], "model")
    by_data = inputs.dataset(str(dataset["path"]), dataset["fingerprint"], dataset["shards"])
    changed = by_model.changed or by_data.changed
    if changed:
        return Item(**common, state="stale", reason=changed, next=evaluate_command(place.path, found))
    notes = tuple(filter(None, (by_model.note, by_data.note)))
    return Item(**common, state="done", notes=notes)


def evaluate_command(file: Path, found: dict[str, Any]) -> str:
    """The command that made an evaluation, from the flags in its JSON."""
    from dataclasses import fields

    from pipelines.evaluate.config import EvaluateFlags

    model = Path(found["model"]["path"])
    parts = ["python", "jobs/evaluate.py", "--model", str(model.parent if model.name == "export" else model)]
    parts += ["--data", found["dataset"]["path"], "--output", str(file)]
    for field in fields(EvaluateFlags):
        value = found["flags"].get(field.name, field.default)
        if field.name not in ("model", "data", "output") and value != field.default:
            parts += [f"--{field.name.replace('_', '-')}", str(value)]
    return typed(shlex.join(parts), str(REPOSITORY))
