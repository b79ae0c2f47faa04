"""A forecast of runs that do not exist yet, as a file that is written before they start, and its comparison with them.

The file holds the hash of the points, the law and, per rung, the loss that a new run is expected to have with its 95 %
interval. Its own hash covers all of it, so that a later change shows.

Ours: all of it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from g3pt.scaling.intervals import Errors
from g3pt.scaling.points import Points
from g3pt.scaling.sections import beyond
from g3pt.scaling.study import described

VERSION = 1


def forecast(parts: Errors, points: Points, rungs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The forecast of rungs, each a run with `run` (its name), `size`, `params` and `samples`, sealed by its hash."""
    found = []
    for rung in rungs:
        params, samples = float(rung["params"]), float(rung["samples"])
        low, high = parts.loss(params, samples, new_run=True)
        mean = float(parts.fit(params, samples))
        words = beyond(points, params, samples)
        found.append(
            {**rung, "loss": mean, "interval_95": [low, high], "half_width": (high - low) / 2 / mean, "beyond": words}
        )
    body = {
        "version": VERSION, "points_sha256": points.sha256, "count": points.count, "loss": points.column,
        "law": described(parts.fit, parts), "rungs": found,
    }  # fmt: skip
    return body | {"sha256": seal(body)}


def seal(body: Mapping[str, Any]) -> str:
    """sha256 of a forecast without its own hash."""
    rest = {name: value for name, value in body.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write_forecast(body: Mapping[str, Any], path: Path | str) -> None:
    """Write a new forecast. FileExistsError if there is one: a forecast is never replaced."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    try:
        os.link(temporary, path)  # fails if it exists, unlike a rename
    finally:
        temporary.unlink()


def read_forecast(path: Path | str) -> dict[str, Any]:
    """A forecast. ValueError if its hash is not that of its content."""
    try:
        body = json.loads(Path(path).read_text(encoding="utf-8"))
        ok = body["version"] == VERSION and body["sha256"] == seal(body)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no forecast: {error!r}") from error
    if not ok:
        raise ValueError(
            f"{path} was changed after it was written, or is of another version: its hash is not that of its content"
        )
    return body


def compared(body: Mapping[str, Any], losses: Mapping[str, float]) -> list[dict[str, Any]]:
    """Each rung of a forecast beside the loss of its run, where that was measured; `losses` are those
    of runs by name.
    """
    found = []
    for rung in body["rungs"]:
        row = dict(rung)
        if rung["run"] in losses:
            loss, (low, high) = losses[rung["run"]], rung["interval_95"]
            row |= {"measured": loss, "miss": rung["loss"] / loss - 1, "inside": bool(low <= loss <= high)}
        found.append(row)
    return found
