"""The state of a dataset and of its derived tables, from dataset.json or, until that exists, from some of the sidecars.

A finished dataset is stale if its input changed. By default only the newest files of its input folder, or the content
hash of one shape, are checked, for at most SCAN_SECONDS. `verify` plans the same command again, which reads every
source mesh. A derived shard is current if it names the parquet from which it was made.
"""

from __future__ import annotations

import os
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from g3pt.data.records import is_retried, shard_name
from pipelines.cluster.session import available_cpus
from pipelines.runs.notes import FAILURE_FILE, read_note
from pipelines.status.inputs import Inputs
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

SCAN_SECONDS = 2.0  # per input folder or derived table, without --verify


# ------------------------------------------------------------------------------------------------------------ dataset


def describe_dataset(place: Place, inputs: Inputs) -> Item:
    """The state of a dataset."""
    note, failure = note_of(place.path), read_note(place.path, FAILURE_FILE)
    item = (
        finished_dataset(place, note, inputs)
        if "dataset.json" in place.names
        else unfinished_dataset(place, note, inputs)
    )
    if failure and (item["state"] == "partial" or not item["done"]):
        item |= {"state": "failed", "reason": str(failure.get("error"))}
    return Item(kind="dataset", path=place.path, **item)


def finished_dataset(place: Place, note: dict[str, Any], inputs: Inputs) -> dict[str, Any]:
    """Fields of the Item of a dataset with a dataset.json."""
    found = read_object(place.path / "dataset.json")
    counts, failures = dict(found["counts"]), dict(found["failures"])
    total, lost = (
        sum(counts.values()),
        [i for i in found["shards"] if f"{shard_name(int(i))}.parquet" not in place.names],
    )
    notes = ["--retry-failed retries timeouts, memory and download errors"] if retried(failures) else []
    common = {"done": total, "total": total, "unit": "objects", "failures": failures}
    if lost:
        reason = (
            f"{len(lost)} of {len(found['shards'])} shards are missing, the first is "
            f"{shard_name(int(min(lost, key=int)))}.parquet"
        )
        return common | {"state": "failed", "reason": reason, "next": inputs.command(place.path)}
    if not counts.get("ok"):
        return common | {"state": "failed", "done": 0, "reason": "no object is ok", "next": inputs.command(place.path)}
    command, unseen = inputs.command(place.path), ""
    if changed := changed_version(found):
        command = command and f"{command.removesuffix(' --replace')} --replace"
    else:
        changed, unseen = changed_input(place, note, found, inputs.verify)
    state = {"state": "stale", "reason": changed, "next": command} if changed else {"state": "done"}
    return common | state | {"notes": tuple(notes + [unseen] * bool(unseen))}


def retried(failures: dict[str, int]) -> bool:
    """Whether --retry-failed would do anything."""
    return any(map(is_retried, failures))


def unfinished_dataset(place: Place, note: dict[str, Any], inputs: Inputs) -> dict[str, Any]:
    """Fields of the Item of a dataset without dataset.json, from evenly spaced sidecars."""
    finished = [
        name
        for name in place.names
        if name.startswith("shard-") and name.endswith(".json") and f"{name[:-5]}.parquet" in place.names
    ]
    times, sidecars = readable_sidecars(place.path, spread(finished), expected_config(note))
    share = len(sidecars) / max(1, min(len(finished), len(times)))
    rows = round(sum(sidecar["rows"] for sidecar in sidecars) / max(1, len(sidecars)) * share * len(finished))
    failures: Counter[str] = Counter()
    for sidecar in sidecars:
        failures.update(sidecar["failures"])
    seconds = [second for sidecar in sidecars for second in sidecar["seconds"].values()]
    per_shard_s = sum(seconds) / max(1, len(sidecars))
    found = {"state": "partial", "failures": dict(failures), **activity(place.path, note, interval_s=per_shard_s)}
    if isinstance(note.get("total"), int):
        total, unit, done = note["total"], "objects", min(rows, note["total"])
    else:
        total, unit, done = (
            max((int(sidecar.get("num_shards", 0)) for sidecar in sidecars), default=0),
            "shards",
            len(finished),
        )
    per_second = (
        rate_since(times, len(finished), started_at(note), changed_at(place.path)) * rows / max(1, len(finished))
    )
    if (
        not per_second and seconds
    ):  # nothing new since the last start: estimated from the time per object and this machine's CPUs
        workers = (note.get("flags") or {}).get("num_workers") or available_cpus()
        per_second = workers * len(seconds) / max(1e-9, sum(seconds))
    left = (total - done) * (1 if unit == "objects" else rows / max(1, done)) / per_second if per_second else None
    command = None if found["working"] else inputs.command(place.path)
    notes = (
        (f"failures were counted in {len(times)} of {len(finished)} shards",)
        if failures and len(times) < len(finished)
        else ()
    )
    return found | {
        "done": done,
        "total": total or None,
        "unit": unit,
        "seconds_left": left,
        "next": command,
        "notes": notes,
    }


def readable_sidecars(
    folder: Path, names: list[str], config_sha256: str | None
) -> tuple[list[float], list[dict[str, Any]]]:
    """(times of these sidecars, contents of those that can be read and belong to the present work)."""
    times, sidecars = [], []
    for name in names:
        times.append(changed_at(folder / name))
        try:
            sidecar = read_object(folder / name)
        except Unreadable:
            continue
        whole = isinstance(sidecar.get("rows"), int) and all(
            isinstance(sidecar.get(name), dict) for name in ("failures", "seconds")
        )
        if whole and config_sha256 in (None, sidecar.get("config_sha256")):
            sidecars.append(sidecar)
    return times, sidecars


def expected_config(note: dict[str, Any]) -> str | None:
    """The config hash of the recorded command's shards; None if the note does not contain its flags."""
    from g3pt.data.records import config_hash
    from pipelines.preprocess.config import OF_OLDER_COMMANDS, PreprocessConfig

    try:
        return config_hash(PreprocessConfig(**OF_OLDER_COMMANDS | note["flags"]).settings)
    except (KeyError, TypeError, ValueError):
        return None


# -------------------------------------------------------------------------------------------------------------- input


def changed_version(found: dict[str, Any]) -> str:
    """How the conversion's version differs from that of the dataset; "" if it does not."""
    from pipelines.preprocess.config import CODE_VERSION, FILL_VERSION

    for what, name, now in (("conversion", "code_version", CODE_VERSION), ("filling", "filling", FILL_VERSION)):
        made_by = found["config"].get(name, now)
        if made_by != now:
            return f"the {what} changed from version {made_by} to {now}"
    return ""


def changed_input(place: Place, note: dict[str, Any], found: dict[str, Any], verify: bool) -> tuple[str, str]:
    """(what changed since the dataset was made or "", what could not be checked or "")."""
    flags = note.get("flags") or {}
    if "source" not in flags:
        return "", ""
    if verify:
        return replanned(flags)
    if flags["source"] == "shapes":
        return changed_shapes(place, flags), ""
    if flags["source"] == "objaverse":  # downloads do not change; newer files are other objects
        return "", ""
    return changed_folder(Path(str(flags.get("input"))), started_at(note), flags, note.get("total"))


def replanned(flags: dict[str, Any]) -> tuple[str, str]:
    """What the same command would do now, with every source file read."""
    from pipelines.cli.errors import UsageError
    from pipelines.preprocess.config import OF_OLDER_COMMANDS, PreprocessConfig
    from pipelines.preprocess.plan import make_plan
    from pipelines.preprocess.sources import Listing
    from pipelines.preprocess.sources.objaverse import NotDownloaded

    config = PreprocessConfig(**OF_OLDER_COMMANDS | flags | {"retry_failed": False, "rehash": True, "dry_run": True})
    try:
        plan = make_plan(config, Listing(config))
    except (UsageError, NotDownloaded) as error:
        return "", str(error)
    if not plan.tasks and not plan.extra:
        return "", ""
    return "; ".join(line for line in plan.lines() if "skipped" not in line), ""


def changed_shapes(place: Place, flags: dict[str, Any]) -> str:
    """Whether the generator of shapes has another version now; one object tells."""
    from pipelines.preprocess.sources.shapes import shape_object

    sidecar = next((name for name in sorted(place.names) if name.startswith("shard-") and name.endswith(".json")), None)
    content = read_object(place.path / sidecar)["content"] if sidecar else {}
    for name, sha256 in sorted(content.items())[:1]:
        if sha256 and sha256 != shape_object(name, int(flags["seed"])).content_sha256:
            return "the generator of shapes (g3pt/shapes) changed"
    return ""


def changed_folder(folder: Path, started: float, flags: dict[str, Any], total: object) -> tuple[str, str]:
    """Whether a mesh folder has newer or other files than at the start of the dataset's command."""
    from pipelines.preprocess.sources.folder import MANIFEST

    if not folder.is_dir():
        return "", f"its input {folder} is missing"
    manifest = folder / MANIFEST
    if changed_at(manifest) > started:
        return f"input {manifest} is newer", ""
    count, newer, complete = scanned(folder, started)
    if newer:
        return f"input {newer} is newer", ""
    if not complete:
        return "", f"input checked in part ({count} files): --verify reads all"
    if not manifest.exists() and flags.get("limit") is None and isinstance(total, int) and count != total:
        return f"input {folder} has {count} meshes, it had {total}", ""
    return "", ""


def scanned(folder: Path, since: float) -> tuple[int, Path | None, bool]:
    """(number of mesh files seen, one newer than `since` or None, whether all were seen), within SCAN_SECONDS."""
    from g3pt.geometry.reading import MESH_ENDINGS

    count, deadline = 0, time.monotonic() + SCAN_SECONDS
    for parent, _, names in os.walk(folder):
        for name in names:
            if time.monotonic() > deadline:
                return count, None, False
            if os.path.splitext(name)[1].lower() in (*MESH_ENDINGS, ".bin"):
                count += not name.lower().endswith(".bin")
                if changed_at(Path(parent, name)) > since:
                    return count, Path(parent, name), True
    return count, None, True


# ------------------------------------------------------------------------------------------------------------ derived


def describe_derived(place: Place, inputs: Inputs) -> Item:
    """The state of a derived table: done if all shards exist, were made from the dataset's present shards, and by a
    known export.
    """
    dataset, hash8 = place.path.parents[1], place.path.name.rpartition("-")[2]
    there = {name for name in place.names if name.startswith("shard-") and name.endswith(".parquet")}
    commands = [command for command in map(inputs.command, inputs.users(hash8)) if command]
    common: dict[str, Any] = {
        "kind": "derived",
        "path": place.path,
        "parent": dataset,
        "unit": "shards",
        "next": commands[0] if commands else None,
    }
    if not (dataset / "dataset.json").exists():
        return Item(**common, state="stale", done=len(there), reason="its dataset is not finished")
    shards = {
        f"{shard_name(int(index))}.parquet": str(sha256)
        for index, sha256 in read_object(dataset / "dataset.json")["shards"].items()
    }
    common |= {"done": len(there & shards.keys()), "total": len(shards)}
    known = inputs.tokenizers()
    if known and place.path.name.startswith("tokens-") and not any(sha256.startswith(hash8) for sha256 in known):
        return Item(
            **common | {"next": None},
            state="stale",
            reason="no tokenizer here has this export any more, so nothing reads it",
        )
    seen, older = older_shards(
        place.path, {name: shards[name] for name in sorted(there & shards.keys())}, inputs.verify
    )
    notes = (
        (f"{seen} of {len(there)} shards compared: --verify compares all",) if seen < len(there & shards.keys()) else ()
    )
    if older:
        return Item(
            **common,
            state="stale",
            reason=f"{older[0]} was made from another {older[0]}" + f" (and {len(older) - 1} more)" * (len(older) > 1),
            notes=notes,
        )
    if len(there & shards.keys()) < len(shards):
        about = activity(place.path, {})
        return Item(
            **common | {"next": None if about["working"] else common["next"]}, state="partial", notes=notes, **about
        )
    return Item(**common | {"next": None}, state="done", notes=notes)


def older_shards(folder: Path, made_from: dict[str, str], verify: bool) -> tuple[int, list[str]]:
    """(number of shards compared, those made from another parquet), within SCAN_SECONDS unless `verify`."""
    deadline, older = time.monotonic() + SCAN_SECONDS, []
    names = sorted(
        made_from, key=lambda name: zlib.crc32(name.encode())
    )  # in pseudo-random order, so that a sample is seen if time runs out
    for count, name in enumerate(names):
        if not verify and time.monotonic() > deadline:
            return count, sorted(older)
        try:
            source = (
                (pq.read_schema(folder / name).metadata or {})
                .get(b"g3pt.source_sha256", b"")
                .decode("ascii", errors="replace")
            )
        except (OSError, pa.ArrowException) as error:
            raise Unreadable(f"{name} is damaged: {error}") from None
        if source != made_from[name]:
            older.append(name)
    return len(names), sorted(older)
