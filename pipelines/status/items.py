"""Item, one thing as `jobs/status.py` shows it, and the bounded reads by which its state is determined."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipelines.runs.locks import LOCK_FILE, is_held, process_lives
from pipelines.runs.notes import COMMAND_FILE, read_note

STATES = ("done", "partial", "stale", "failed")
SAMPLED = 200  # sidecars or records per folder that are opened
MAX_JSON_BYTES = 512 * 2**20
QUIET_S = 120.0  # time without a change after which a thing counts as idle
LONGEST_PAUSE_S = 86400.0  # no running command leaves its folder unchanged for longer


@dataclass(frozen=True, kw_only=True)
class Item:
    """A dataset, derived table, run, study, generation, evaluation or demo.

    `done` of `total` are counted in `unit`s. `reason` says why it is stale or failed; `notes` apply to any state.
    `alarm` reports collapsing codes in a tokenizer's run. `failures` counts rows that are not ok by reason; a finished
    thing may have some. `next` is the command that continues it, None if there is none. `working` says whether a
    command is running; it is None for finished things.
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
    """A folder (or an evaluation's file) with its kind and the names of its files."""

    kind: str
    path: Path
    names: frozenset[str]


class Unreadable(ValueError):
    """A file is missing or damaged; the message names it."""


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Unreadable for anything else."""
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
    """At most `count` of the sorted names, evenly spaced."""
    ordered = sorted(names)
    return ordered if len(ordered) <= count else [ordered[i * len(ordered) // count] for i in range(count)]


def changed_at(*files: Path) -> float:
    """Modification time of the newest of these files or folders; 0 if none exists."""
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
    """Start time of the recorded command; 0 if unknown."""
    started = note.get("started")
    return float(started) if isinstance(started, (int, float)) else 0.0


def activity(folder: Path, note: Mapping[str, Any], *files: Path, interval_s: float = 0.0) -> dict[str, Any]:
    """`working` and `idle_seconds` of an unfinished thing.

    It is certainly idle if its command ran on this machine, the process has ended and the lock is free. Otherwise
    recent changes decide; `interval_s` is the usual time between changes.
    """
    idle_s = max(0.0, time.time() - changed_at(folder, folder / COMMAND_FILE, *files))
    if is_held(folder / LOCK_FILE):
        working = True
    elif note.get("host") == socket.gethostname() and isinstance(note.get("pid"), int):
        working = process_lives(note["pid"]) and idle_s < LONGEST_PAUSE_S  # process ids are reused
    else:
        working = idle_s < max(QUIET_S, 3 * interval_s)
    return {"working": working, "idle_seconds": round(idle_s, 1)}


def counted(counts: Mapping[str, int], shown: int = 3) -> str:
    """`failed/corrupt 12, timeout 3 and 2 other reasons`, most frequent first."""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    more = f" and {len(ordered) - shown} other reasons" if len(ordered) > shown else ""
    return ", ".join(f"{name} {count}" for name, count in ordered[:shown]) + more


def rate_since(times: Sequence[float], total: int, started: float, last: float) -> float:
    """Files per second since `started`, estimated from the times of an evenly spaced sample of `total` files; 0 without
    new files.
    """
    new = sum(time_ >= started for time_ in times)
    if not new or not started or last <= started:
        return 0.0
    return new / len(times) * total / (last - started)
