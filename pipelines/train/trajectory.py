"""Runs that take the same first steps: a run starts from the checkpoint of another where both would be at that step.

A generator's run with schedule wsd, a warm-up in samples and all scales from the start does not depend on its length
until its cooldown begins. So every shorter or longer run of the same settings can start from its checkpoint, and has
the weights and the ledger that it would have by itself (to the bit on a CPU), under the same name. `branch.json` in its
folder says where it started.

Source: Hägele et al. 2024 (arXiv 2405.18392): many cooldowns from one constant trajectory.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from g3pt.config import CARConfig, TrainConfig, from_dict, without_defaults
from pipelines.runs.identity import RunSpec, stable_hash
from pipelines.runs.ledger import Ledger
from pipelines.train.checkpoints import checkpointed, checkpoints, samples_of

LENGTH = ("steps", "cooldown_share")  # what a trajectory's runs may differ by
HOW = ("computed", "checkpoint_layers")  # how a run is computed, which another machine may change
BRANCH_FILE = "branch.json"


def trajectory(spec: RunSpec) -> str:
    """A hash of all that the steps before a run's cooldown depend on; "" if they depend on its length."""
    train, model = spec.config.get("train", {}), spec.config.get("model", {})
    apart = train.get("schedule") != "wsd" or train.get("warmup_samples") is None or model.get("progressive_share")
    if spec.stage != "car" or apart:
        return ""
    parts = {
        "train": without_defaults(TrainConfig, _without(train, LENGTH)),  # fields added later are no difference
        "model": without_defaults(CARConfig, _without(model, HOW)),
    }
    return stable_hash({"seed": spec.seed, "config": _without(spec.config, HOW) | parts})


def _without(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def branch_samples(config: TrainConfig) -> int:
    """Samples seen when the cooldown of a run begins: so many are its trajectory's."""
    return (config.steps - config.cooldown_steps) * config.batch_size


def start_from_another(spec: RunSpec, run_dir: Path) -> str:
    """Give the run the furthest checkpoint that a run beside it has on their common trajectory, with the records up to
    it; returns that run's name. "" if there is none, or the run is as far itself.
    """
    from g3pt.training.exports import write_json

    samples, found = furthest_start(spec, run_dir)
    if found is None:
        return ""
    other_dir = found.parent.parent
    ledger = Ledger.of(run_dir)
    ledger.truncate_after(-1)
    ledger.append(record for record in Ledger.of(other_dir).read() if record["step"] <= samples)
    write_json(run_dir / BRANCH_FILE, {"from": other_dir.name, "samples": samples})
    _link(found, run_dir / "checkpoints" / found.name)  # last: without it the run starts from nothing
    return other_dir.name


def furthest_start(spec: RunSpec, run_dir: Path) -> tuple[int, Path | None]:
    """(samples, the furthest checkpoint that a run beside it has on the common trajectory); None in its place, and the
    run's own samples, if it is as far itself.
    """
    key = trajectory(spec)
    best: tuple[int, Path | None] = (checkpointed(run_dir), None)
    if not key:
        return best
    mine = branch_samples(from_dict(TrainConfig, spec.config["train"]))
    for folder in sorted(run_dir.parent.iterdir()):
        other = _spec_of(folder) if folder != run_dir else None
        if other is None or trajectory(other) != key:
            continue
        common = min(mine, branch_samples(from_dict(TrainConfig, other.config["train"])))
        for path in checkpoints(folder / "checkpoints"):
            if best[0] < samples_of(path) <= common:
                best = (samples_of(path), path)
    return best


def branched_from(run_dir: Path) -> str:
    """The run that a run started from; "" if it started from nothing."""
    return str(_branch(run_dir).get("from", ""))


def branched_at(run_dir: Path) -> int:
    """Samples of the checkpoint that a run started from; 0 if it started from nothing."""
    return int(_branch(run_dir).get("samples", 0))


def _branch(run_dir: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((run_dir / BRANCH_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found


def _spec_of(folder: Path) -> RunSpec | None:
    try:
        return RunSpec.from_dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError):
        return None


def _link(source: Path, target: Path) -> None:
    """The checkpoint under another name; a hard link of its files where the file system has them:
    none is ever changed.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, temporary, copy_function=_link_file)
    else:
        _link_file(str(source), str(temporary))
    os.replace(temporary, target)


def _link_file(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
