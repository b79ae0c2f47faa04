"""A training run's identity (`RunSpec`) and its ledger on disk (`Ledger`).

How: a `RunSpec` hashes everything that changes the weights; the hash is part of the folder's name. The `Ledger`
(metrics.jsonl) is the source of truth and contains each step once; MLflow is a view of it
(`pipelines.tracking.client`).
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from g3pt.config import FORMAT_VERSION, MODEL_CONFIGS, TrainConfig, without_defaults
from pipelines.cli.paths import REPOSITORY

Record = dict[str, float]
LEDGER_FILE = "metrics.jsonl"
NO_WEIGHTS = {
    "log_every",
    "eval_every",
    "checkpoint_every",
    "checkpoint_layers",
}  # keys of a config that do not change the weights


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One training run. `config` (JSON) is hashed; `paths`, where data and upstream runs are, is not."""

    stage: str
    preset: str
    seed: int
    config: dict[str, Any]
    paths: dict[str, str] = field(default_factory=dict)

    @property
    def hash8(self) -> str:
        """First 8 hex digits of the sha256 of stage, seed and all of the config that changes the weights.

        Fields at their default are left out, so that a new field with a default renames no run.
        """
        config = {name: self._changed(name, value) for name, value in _without(self.config, NO_WEIGHTS).items()}
        return stable_hash({"stage": self.stage, "seed": self.seed, "config": config})[:8]

    def _changed(self, name: str, value: Any) -> Any:
        cls = {"model": MODEL_CONFIGS.get(self.stage), "train": TrainConfig}.get(name)
        return without_defaults(cls, value) if cls else value

    @property
    def name(self) -> str:
        """The folder's name."""
        return f"{self.stage}-{self.preset}-s{self.seed}-{self.hash8}"

    def differences(self, stored: Mapping[str, Any]) -> list[str]:
        """What changes the weights and is another value in `stored`, the config.json of a run of the same name:
        "model.width 64, not 32".

        That happens if a field's default was changed in the code. A field that one of the two lacks is no difference.
        """
        mine, theirs = (_flat(_without(config, NO_WEIGHTS)) for config in (self.config, stored["config"]))
        return [
            f"{key} {theirs[key]}, not {mine[key]}" for key in mine.keys() & theirs.keys() if mine[key] != theirs[key]
        ]

    def to_dict(self) -> dict[str, Any]:
        """The content of config.json; version, name and hash are added for readers."""
        return {"format_version": FORMAT_VERSION, **dataclasses.asdict(self), "name": self.name, "hash": self.hash8}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunSpec":
        """The inverse of `to_dict`."""
        return cls(**{f.name: values[f.name] for f in dataclasses.fields(cls)})


def stable_hash(value: Any) -> str:
    """Hex sha256 of the value as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _without(value: Any, keys: set[str]) -> Any:
    if isinstance(value, Mapping):
        return {k: _without(v, keys) for k, v in value.items() if k not in keys}
    return value


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Values as JSON, by their dotted names."""
    found: dict[str, str] = {}
    for key, inner in value.items():
        found |= (
            _flat(inner, f"{prefix}{key}.") if isinstance(inner, Mapping) else {f"{prefix}{key}": json.dumps(inner)}
        )
    return found


class Ledger:
    """A JSON-lines file of flat records. A torn last line, left by a kill, is ignored.

    A record's key `step` is the number of samples seen, which increases from record to record: MLflow and other readers
    of the file call the horizontal axis "step". Everywhere else a step is an optimiser step, and objects seen are
    "samples".
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._last: float | None = None  # the last step that was written; read from the file at the first append

    @classmethod
    def of(cls, run_dir: Path) -> "Ledger":
        """The ledger of a run's folder."""
        return cls(run_dir / LEDGER_FILE)

    def read(self) -> list[Record]:
        """All complete records, in order."""
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")[:-1]  # the rest after the last newline is torn or empty
        return [json.loads(line) for line in lines if line]

    def tail(self, max_bytes: int) -> list[Record]:
        """The complete records in the last `max_bytes`, in order; unreadable lines are left out."""
        try:
            with open(self.path, "rb") as file:
                file.seek(max(0, self.path.stat().st_size - max_bytes))
                lines = file.read().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            with contextlib.suppress(ValueError):  # the first of the tail, or damaged
                record = json.loads(line)
                if isinstance(record, dict) and isinstance(record.get("step"), (int, float)):
                    found.append(record)
        return found

    def append(self, records: Iterable[Record]) -> None:
        """Append records and wait until they are on disk. A record that does not advance is a bug in the caller."""
        records = list(records)
        last = self._last if self._last is not None else self.last_samples()
        for record in records:
            assert last is None or record["step"] > last, f"{record['step']} samples after {last} in {self.path}"
            last = record["step"]
        with open(self.path, "ab") as file:
            file.write("".join(json.dumps(r, sort_keys=True) + "\n" for r in records).encode())
            file.flush()
            os.fsync(file.fileno())
        self._last = last

    def truncate_after(self, samples: float) -> int:
        """Drop the records after `samples` and a torn line; return how many complete records were dropped."""
        records = self.read()
        kept = [r for r in records if r["step"] <= samples]
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.write_text("".join(json.dumps(r, sort_keys=True) + "\n" for r in kept))
        os.replace(temporary, self.path)
        self._last = None
        return len(records) - len(kept)

    def last_samples(self) -> float | None:
        """Samples seen at the last record; None if there is none."""
        records = self.read()
        return records[-1]["step"] if records else None


def git_commit() -> str:
    """Commit of the repository that contains this code, with `-dirty` if tracked files differ; `unknown` outside a
    repository.
    """
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


class Periodic:
    """Calls `work` every `interval_s` seconds in its own thread until the block ends, and once more at the end."""

    def __init__(self, work: Callable[[], None], interval_s: float = 2.0) -> None:
        self.work, self.interval_s = work, interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> "Periodic":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=60)
        self.work()

    def _loop(self) -> None:
        while not self._stop.wait(self.interval_s):
            self.work()
