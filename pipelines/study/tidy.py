"""`--finish`: a finished study gives up the checkpoints from which further runs could branch.

A trajectory's runs keep a checkpoint where each of them begins to cool down (`pipelines.train.trajectory`), so that a
study can grow. `finish` removes them and notes which in finish.json. Runs added later start from nothing; `say_lost`
says so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from g3pt.config import TrainConfig, from_dict
from pipelines.cli.errors import UsageError
from pipelines.cli.progress import say
from pipelines.runs.identity import RunSpec
from pipelines.runs.locks import alone_in
from pipelines.train import follow
from pipelines.train.checkpoints import checkpoints, remove_finished, samples_of
from pipelines.train.trajectory import branch_samples, furthest_start, trajectory

FINISH_FILE = "finish.json"


def finish(study: Path) -> Path:
    """Remove all checkpoints of the study's finished runs; returns the folder.

    UsageError for a study that is not finished. Unfinished runs in the folder, such as those of another plan, keep
    theirs.
    """
    from g3pt.training.exports import write_json

    if not (study / "_SUCCESS").exists():
        raise UsageError(f"--finish: {study} is no finished study; the command without --finish continues it")
    with alone_in(study):
        removed, sizes = removed_before(study), dict[tuple[int, int], int]()
        folders = [folder for folder in sorted((study / "runs").iterdir()) if follow.is_finished(folder)]
        for folder in folders:
            old = checkpoints(folder / "checkpoints")
            for path in old:
                sizes |= _bytes_by_file(path)
            if old:
                removed[folder.name] = sorted({*removed.get(folder.name, ()), *map(samples_of, old)})
        write_json(study / FINISH_FILE, {"removed": removed})  # first, so that none is removed without a note
        for folder in folders:
            remove_finished(folder)
    print(f"{study}: {len(sizes)} checkpoint files of {len(folders)} runs removed, {sum(sizes.values()):,} bytes")
    return study


def removed_before(study: Path) -> dict[str, list[int]]:
    """Run -> samples of the checkpoints that `finish` removed."""
    try:
        found: dict[str, list[int]] = json.loads((study / FINISH_FILE).read_text(encoding="utf-8"))["removed"]
    except FileNotFoundError:
        return {}
    return found


def _bytes_by_file(path: Path) -> dict[tuple[int, int], int]:
    """Bytes of the files of a checkpoint by their place on the disk: runs of a trajectory share them."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    stats = [file.stat() for file in files]
    return {(stat.st_dev, stat.st_ino): stat.st_size for stat in stats}


def say_lost(specs: Sequence[RunSpec], study: Path) -> None:
    """Say which of the runs that are to be trained could have started from a checkpoint that `finish` removed."""
    removed = removed_before(study)
    for spec in specs:
        run_dir = study / "runs" / spec.name
        if removed and trajectory(spec) and not follow.is_finished(run_dir):
            lost, there = lost_start(spec, study, removed), furthest_start(spec, run_dir)[0]
            if lost > there:
                say(f"  {spec.name}: starts at {there:,} samples; --finish removed a checkpoint at {lost:,}")


def lost_start(spec: RunSpec, study: Path, removed: dict[str, list[int]]) -> int:
    """Samples of the furthest removed checkpoint on the run's trajectory; 0 if there was none."""
    mine, found = branch_samples(from_dict(TrainConfig, spec.config["train"])), 0
    for name, samples in removed.items():
        try:
            other = RunSpec.from_dict(json.loads((study / "runs" / name / "config.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            continue
        if trajectory(other) == trajectory(spec):
            common = min(mine, branch_samples(from_dict(TrainConfig, other.config["train"])))
            found = max([found, *(one for one in samples if one <= common)])
    return found
