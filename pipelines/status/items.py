"""One thing of a pipeline's folder as `jobs/status.py` shows it, and the small bounded reads that its state comes from."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipelines.runs.locks import LOCK_FILE, is_held
from pipelines.runs.notes import COMMAND_FILE, read_note

STATES = ("done", "partial", "stale", "failed")
SAMPLED = 200  # sidecars or samples of one folder that are opened
MAX_JSON_BYTES = 512 * 2**20
QUIET_S = 120.0  # after this long without a change nobody seems to work on a thing
LONGEST_PAUSE_S = 86400.0  # nothing that lives leaves its folder unchanged for longer


@dataclass(frozen=True, kw_only=True)
class Item:
    """A dataset, derived table, run, study, generation, evaluation, or a demo around them.

    `done` of `total` are counted in `unit`s. `reason` says why it is stale or failed; `notes` are worth knowing in any state.
    `alarm` tells of codes that collapse in a tokenizer's run. `failures` counts rows that are not ok by reason (they don't make a finished thing unfinished). `next` is the command that
    brings it further, None where there is nothing to type. `working` is known of unfinished things only.
    """

    kind: str
    path: Path
    state: Literal["done", "partial", "stale", "failed"]
    done: int | None = None
    total: int | None = None
    unit: str = ""
    seconds_left: float | None = None
    working: bool | None = None
    idle_seconds: float | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()
    alarm: str = ""
    failures: Mapping[str, int] = field(default_factory=dict)
    next: str | None = None
    parent: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Place:
    """A folder (or an evaluation's file) that is something, and the names of its files."""

    kind: str
    path: Path
    names: frozenset[str]


class Unreadable(ValueError):
    """A file that is not what it should be; the message names it."""


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object; Unreadable for anything else."""
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise Unreadable(f"{file.name} is larger than {MAX_JSON_BYTES >> 20} MiB")
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Unreadable(f"{file.name} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise error if isinstance(error, Unreadable) else Unreadable(f"{file.name} is damaged: {error}") from None
    if not isinstance(found, dict):
        raise Unreadable(f"{file.name} is damaged: not a JSON object")
    return found


def spread(names: Collection[str], count: int = SAMPLED) -> list[str]:
    """At most `count` of the names, evenly spread."""
    ordered = sorted(names)
    return ordered if len(ordered) <= count else [ordered[i * len(ordered) // count] for i in range(count)]


def changed_at(*files: Path) -> float:
    """When the newest of these files or folders changed; 0 if none is there."""
    times = [0.0]
    for file in files:
        try:
            times.append(file.stat().st_mtime)
        except OSError:
            continue
    return max(times)


def note_of(folder: Path) -> dict[str, Any]:
    """The folder's command.json; empty if it has none."""
    return read_note(folder, COMMAND_FILE) or {}


def started_at(note: Mapping[str, Any]) -> float:
    """When the noted command started; 0 if that is not known."""
    started = note.get("started")
    return float(started) if isinstance(started, (int, float)) else 0.0


def activity(folder: Path, note: Mapping[str, Any], *files: Path, interval_s: float = 0.0) -> dict[str, Any]:
    """`working` and `idle_seconds` of an unfinished thing.

    Surely nobody works if the command ran on this machine and its process is gone and the run's lock is free; else what
    changed lately tells, where `interval_s` is the usual time from one change to the next.
    """
    idle_s = max(0.0, time.time() - changed_at(folder, folder / COMMAND_FILE, *files))
    if is_held(folder / LOCK_FILE):
        working = True
    elif note.get("host") == socket.gethostname() and isinstance(note.get("pid"), int):
        working = process_lives(note["pid"]) and idle_s < LONGEST_PAUSE_S  # numbers of processes come again
    else:
        working = idle_s < max(QUIET_S, 3 * interval_s)
    return {"working": working, "idle_seconds": round(idle_s, 1)}


def process_lives(pid: int) -> bool:
    """Whether a process of this machine has this number."""
    try:
        os.kill(pid, 0) if pid > 0 else None
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return pid > 0


def counted(counts: Mapping[str, int], shown: int = 3) -> str:
    """`failed/corrupt 12, timeout 3 and 2 other reasons`: the commonest first."""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    more = f" and {len(ordered) - shown} other reasons" if len(ordered) > shown else ""
    return ", ".join(f"{name} {count}" for name, count in ordered[:shown]) + more


def rate_since(times: Sequence[float], total: int, started: float, last: float) -> float:
    """Things a second since `started`, from the times of an evenly spread part of `total` files; 0 if none is as new."""
    new = sum(time_ >= started for time_ in times)
    if not new or not started or last <= started:
        return 0.0
    return new / len(times) * total / (last - started)
