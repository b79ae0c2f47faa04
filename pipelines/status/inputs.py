"""The present state of inputs: dataset fingerprints and export hashes, and the command recorded in each folder.

Each answer is looked up once. An input that moved together with the rest is found by its content. A missing input makes
nothing stale, since the result is unchanged: it becomes a note. Weights are hashed up to a budget, or all of them with
`verify`.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from g3pt.training.exports import CONFIG_NAME, WEIGHTS_NAME, export_hash
from pipelines.runs.identity import stable_hash
from pipelines.status.items import Place, Unreadable, note_of, read_object

HASHED_BYTES = 2 * 2**30  # of weights read without --verify, over all exports: about two seconds


class Verdict(NamedTuple):
    """Which input changed ("" if none), and a note on what could not be checked."""

    changed: str = ""
    note: str = ""


class Inputs:
    """The inputs of everything below one root. `verify` reads contents where the default checks names and times."""

    def __init__(self, places: Sequence[Place], *, verify: bool = False) -> None:
        self.verify = verify
        self.datasets = [place.path for place in places if place.kind == "dataset"]
        self.runs = [place.path for place in places if place.kind == "run"]
        self._budget = float("inf") if verify else HASHED_BYTES
        self.identity = cache(self._identity)
        self.hash_of = cache(self._hash_of)
        self.config = cache(self._config)

    def dataset(self, path: str, fingerprint: str, shards: str) -> Verdict:
        """Whether the dataset at `path` still has this fingerprint and this hash over its shards."""
        now = self.identity(Path(path))
        if now == (fingerprint, shards) or (
            now is None and any(self.identity(other) == (fingerprint, shards) for other in self.datasets)
        ):
            return Verdict()
        if now is None:
            return Verdict(note=f"its dataset {path} is missing or unfinished")
        what = "other objects or settings" if now[0] != fingerprint else "its shards were rewritten with other bytes"
        return Verdict(changed=f"dataset {path} changed: {what}")

    def export(self, path: str, sha256: str, what: str) -> Verdict:
        """Whether the export at `path` (a run or an export) still has this hash. `what` names it in messages."""
        folder = export_folder(Path(path))
        if folder is None:
            moved = any(self.hash_of(run / "export") == sha256 for run in self.runs)
            return Verdict() if moved else Verdict(note=f"its {what} {path} is missing or unfinished")
        now = self.hash_of(folder)
        if now is None:
            return Verdict(note=f"its {what} {path} is too large to compare without --verify")
        return Verdict() if now == sha256 else Verdict(changed=f"{what} {path} changed: another export")

    def tokenizers(self) -> dict[str, Path]:
        """Export hash -> run, of every finished tokenizer below the root or named by a run there."""
        named = {
            Path(str(self.config(run).get("paths", {}).get("tokenizer")))
            for run in self.runs
            if self.config(run).get("stage") == "car"
        }
        own = {run for run in self.runs if self.config(run).get("stage") == "cvq"}
        found = {}
        for path in sorted(own | named):
            folder = export_folder(path)
            sha256 = self.hash_of(folder) if folder else None
            if sha256:
                found[sha256] = path
        return found

    def users(self, hash8: str) -> list[Path]:
        """Runs below the root that are trained on the codes of the tokenizer with this hash."""
        return [
            run for run in self.runs if str(self.config(run).get("config", {}).get("tokenizer", "")).startswith(hash8)
        ]

    def command(self, folder: Path) -> str | None:
        """The command that continues a folder's work, from its command.json or that of the study around a run; None if
        unknown.
        """
        for place in (folder, folder.parent.parent):
            note = note_of(place) if place == folder or (place / "study.json").exists() else {}
            if isinstance(note.get("command"), str):
                return typed(note["command"], note.get("working_dir"))
        return None

    def _identity(self, path: Path) -> tuple[str, str] | None:
        try:
            found = read_object(path / "dataset.json")
            return str(found["fingerprint"]), stable_hash(
                {int(index): sha256 for index, sha256 in found["shards"].items()}
            )
        except (Unreadable, KeyError, ValueError, AttributeError):
            return None

    def _hash_of(self, folder: Path) -> str | None:
        try:
            size = (folder / WEIGHTS_NAME).stat().st_size
            if size > self._budget:
                return None
            self._budget -= size
            return export_hash(folder)
        except (OSError, ValueError):
            return None

    def _config(self, run: Path) -> dict[str, Any]:
        try:
            return read_object(run / CONFIG_NAME)
        except Unreadable:
            return {}


def export_folder(path: Path) -> Path | None:
    """The folder of the finished export at `path`, which may be a run; None without one."""
    for folder in (path, path / "export"):
        if (folder / CONFIG_NAME).is_file() and (folder / WEIGHTS_NAME).is_file():
            return folder
    return None


def typed(command: str, working_dir: object) -> str:
    """The command with a `cd` to the folder it was started in, if that is another one and still exists."""
    if isinstance(working_dir, str) and Path(working_dir) != Path.cwd() and Path(working_dir).is_dir():
        return f"cd {shlex.quote(working_dir)} && {command}"
    return command
