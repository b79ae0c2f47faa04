"""RunSpec, the identity of a training run.

How: it hashes everything that changes the weights. The hash is part of the name of the run's folder.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from g3pt.config import FORMAT_VERSION, MODEL_CONFIGS, TrainConfig, without_defaults

NO_WEIGHTS = {
    "log_every",
    "eval_every",
    "checkpoint_every",
    "checkpoint_layers",
    "computed",
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
