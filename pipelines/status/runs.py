"""The state of a training run, a study and the demo, from `_SUCCESS`, the tail of the ledger, and the run's inputs.

A run is stale if its dataset or tokenizer has changed. The same command then makes a new run beside it, since the run's
name contains a hash of its inputs. The stale run is left as it is.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from g3pt.training.alarm import alarm_line, skipped_line
from pipelines.runs.ledger import LEDGER_FILE, Ledger
from pipelines.runs.notes import FAILURE_FILE, read_note
from pipelines.status.inputs import Inputs, Verdict, export_folder
from pipelines.status.items import Item, Place, activity, note_of, read_object
from pipelines.study.shown import STUDY_FILES

TAIL_BYTES = 2**18  # of a ledger: a few dozen records
RECENT = 20  # newest records, from whose speed the rest is estimated


def describe_run(place: Place, inputs: Inputs) -> Item:
    """The state of a run."""
    spec = read_object(place.path / "config.json")
    train = spec["config"]["train"]
    total, records = train["steps"] * train["batch_size"], Ledger.of(place.path).tail(TAIL_BYTES)
    done = min(total, int(records[-1]["step"]) if records else 0)
    command, skipped = inputs.command(place.path), skipped_line(records)
    common: dict[str, Any] = {
        "kind": "run",
        "path": place.path,
        "total": total,
        "unit": "samples",
        "alarm": alarm_line(records, "_SUCCESS" in place.names),
    }
    if "_SUCCESS" in place.names:
        if export_folder(place.path / "export") is None:
            return Item(**common, state="failed", done=done, reason="export/ is missing although the run is finished")
        changed, note = changed_inputs(spec, inputs)
        found = {"state": "stale", "reason": changed, "next": command} if changed else {"state": "done"}
        return Item(**common, **found, done=total, notes=tuple(said for said in (note, skipped) if said))
    failure = read_note(place.path, FAILURE_FILE)
    if failure:
        return Item(**common, state="failed", done=done, reason=str(failure.get("error")), next=command)
    speed = statistics.median(
        [r["samples_per_second"] for r in records[-RECENT:] if r.get("samples_per_second")] or [0.0]
    )
    about = activity(
        place.path,
        note_of(place.path),
        place.path / LEDGER_FILE,
        place.path / "checkpoints",
        interval_s=interval(records),
    )
    left = (total - done) / speed if speed and done < total else None
    changed, _ = changed_inputs(spec, inputs)
    notes = ("its export is missing",) * (done == total) + (skipped,) * bool(skipped)
    notes += (f"resuming needs its original input: {changed}",) * bool(changed)
    return Item(
        **common,
        state="partial",
        done=done,
        seconds_left=left,
        notes=notes,
        next=None if about["working"] else command,
        **about,
    )


def interval(records: list[dict[str, Any]]) -> float:
    """Seconds from one record to the next."""
    times = [record["time"] for record in records[-RECENT:] if isinstance(record.get("time"), (int, float))]
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0


def changed_inputs(spec: dict[str, Any], inputs: Inputs) -> Verdict:
    """Whether a run's dataset, tokenizer or start weights have changed."""
    config, paths = spec["config"], spec["paths"]
    data = inputs.dataset(str(paths["data"]), config["dataset"], config["shards"]) if "data" in paths else Verdict()
    found = [data]
    for name, what in (("tokenizer", "tokenizer"), ("init_from", "start")):
        if name in config:
            found.append(inputs.export(str(paths[name]), config[name], what))
    return Verdict(
        changed=next((v.changed for v in found if v.changed), ""), note=next((v.note for v in found if v.note), "")
    )


# -------------------------------------------------------------------------------------------------------------- study


def describe_study(place: Place, inputs: Inputs, found: Mapping[Path, Item]) -> list[Item]:
    """The Items of the study and of its runs. Runs of another plan in the same folder are not part of it."""
    names = [str(run["name"]) for run in read_object(place.path / "study.json")["runs"]]
    runs = [
        dataclasses.replace(found[path], parent=place.path)
        for path in (place.path / "runs" / name for name in names)
        if path in found
    ]
    done = sum(run.state in ("done", "stale") for run in runs)
    common: dict[str, Any] = {"kind": "study", "path": place.path, "done": done, "total": len(names), "unit": "runs"}
    command, failure = inputs.command(place.path), read_note(place.path, FAILURE_FILE)
    missing = [name for name in (*STUDY_FILES, "_SUCCESS") if name not in place.names]
    failed = [run for run in runs if run.state == "failed"]
    stale = [run for run in runs if run.state == "stale"]
    if failure or failed:
        reason = str(failure.get("error")) if failure else f"{failed[0].path.name}: {failed[0].reason}"
        notes = (f"{len(stale)} of its runs are stale: {stale[0].reason}",) if stale else ()
        study = Item(**common, state="failed", reason=reason, notes=notes, next=command)
    elif missing or done < len(names):
        about = activity(place.path, note_of(place.path))
        about["working"] = about["working"] or any(run.working for run in runs)
        notes = (f"lacks {', '.join(missing)}",) if done == len(names) else ()
        study = Item(
            **common,
            state="partial",
            seconds_left=study_seconds_left(runs, len(names)),
            notes=notes,
            next=None if about["working"] else command,
            **about,
        )
    elif stale:
        study = Item(**common, state="stale", reason=stale[0].reason, next=command)
    else:
        study = Item(**common, state="done")
    return [study, *runs]


def study_seconds_left(runs: list[Item], planned: int) -> float | None:
    """Estimated seconds left: the rest of the running runs, and their mean duration for each waiting run.

    None while no speed is known.
    """
    under_way = [run for run in runs if run.state == "partial" and run.seconds_left is not None and run.done]
    if not under_way:
        return None
    whole = statistics.mean(run.seconds_left * run.total / max(1, run.total - run.done) for run in under_way)
    waiting = planned - sum(run.state in ("done", "stale") for run in runs) - len(under_way)
    return (sum(run.seconds_left for run in under_way) + waiting * whole) / max(
        1, sum(bool(run.working) for run in under_way)
    )


# --------------------------------------------------------------------------------------------------------------- demo


def describe_demo(place: Place, inputs: Inputs, found: Mapping[Path, Item]) -> list[Item]:
    """The state of the demo by its finished stages. Its parts have Items of their own."""
    seconds = read_object(place.path / "seconds.json")
    titles = planned_stages(place, seconds)
    done = sum(title in seconds for title in titles)
    common: dict[str, Any] = {"kind": "demo", "path": place.path, "unit": "stages"}
    if "all" in seconds:
        return [Item(**common, state="done", done=done, total=done)]
    parts = [item for path, item in found.items() if place.path in path.parents]
    command = next((inputs.command(part.path) for part in parts if inputs.command(part.path)), None)
    broken = next((part for part in parts if part.state == "failed"), None)
    if broken:
        reason = f"{broken.path.relative_to(place.path)}: {broken.reason}"
        return [Item(**common, state="failed", done=done, total=len(titles), reason=reason, next=command)]
    about = activity(place.path, note_of(place.path / "shapes"))
    about["working"] = about["working"] or any(part.working for part in parts)
    waits = next((f"next stage: {title}" for title in titles if title not in seconds), "its summary is missing")
    return [
        Item(
            **common,
            state="partial",
            done=done,
            total=len(titles),
            notes=(waits,),
            next=None if about["working"] else command,
            **about,
        )
    ]


def planned_stages(place: Place, seconds: Mapping[str, Any]) -> list[str]:
    """The titles of the demo's stages from its stages.json; without that file, those with recorded seconds."""
    if "stages.json" in place.names:
        return [str(title) for title in read_object(place.path / "stages.json")["stages"]]
    return [title for title in seconds if title != "all"]
