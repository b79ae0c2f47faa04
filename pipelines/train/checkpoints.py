"""Checkpoints of a run, complete or not at all.

A run resumes from the newest readable one, with any number of DDP or FSDP workers.

`samples-<n>.pt` is one file of whole tensors, written by rank 0: one process, and DDP, whose workers all hold the
whole. A sharded run (FSDP) leaves a folder `samples-<n>.dcp`, to which each worker writes its own slices
(g3pt/training/optimizer_state.py). Both appear by a rename once all is on disk.

Ours: our own files instead of Ray's, so that a run has one format with and without Ray, and a resumed run needs only
its folder. Nothing is unpickled: `.pt` is torch's own format, read with `weights_only`; the folder holds safetensors
and JSON.
"""

import functools
import os
import shutil
import sys
import zipfile
from collections.abc import Container
from pathlib import Path
from typing import Any

PATTERNS = ("samples-*.pt", "samples-*.dcp")


def save_checkpoint(folder: Path, state: dict[str, Any], num_to_keep: int, kept: Container[int] = ()) -> Path:
    """Write `samples-<n>.pt` (temporary name, fsync, rename), keep the newest `num_to_keep` checkpoints and those at
    the samples `kept`, and return its path.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{_stem(state)}.pt"
    temporary = folder / f".{target.name}.{os.getpid()}"
    with open(temporary, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, target)
    _sync_folder(folder)
    keep_newest(folder, num_to_keep, kept)
    return target


def save_sharded(
    folder: Path, state: dict[str, Any], num_to_keep: int, rank: int, kept: Container[int] = (), group: Any = None
) -> Path:
    """Write `samples-<n>.dcp`. Called by every worker of the process group with its own slices.

    Non-tensor values are taken from rank 0, which also renames the finished folder. Returns its path.
    """
    from torch.distributed import barrier

    from g3pt.training.optimizer_state import write_sharded

    target = folder / f"{_stem(state)}.dcp"
    temporary = folder / f".{target.name}"
    if rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    barrier(group)
    write_sharded(temporary, state, rank == 0, group)
    if rank == 0:
        _sync_folder(temporary)
        _remove(target)  # an unreadable one that was skipped
        temporary.rename(target)
        _sync_folder(folder)
        keep_newest(folder, num_to_keep, kept)
    return target


def keep_newest(folder: Path, num_to_keep: int, kept: Container[int] = ()) -> None:
    """Delete older checkpoints, without those at the samples `kept`."""
    for old in checkpoints(folder)[num_to_keep:]:
        if samples_of(old) not in kept:
            _remove(old)


def remove_unfinished(folder: Path) -> None:
    """Delete what a killed worker left unfinished. Only for the holder of the run's lock."""
    for left in [*folder.glob(".samples-*"), *folder.glob(".gone-*")]:
        _remove(left)


def agreed_checkpoint(folder: Path, rank: int, world_size: int, device: Any = "cpu") -> dict[str, Any] | None:
    """The state from which all workers resume.

    Rank 0, which holds the run's lock, chooses it; the others wait for its choice.

    If each worker chose for itself they could choose different files, while a worker of a killed start still writes
    one.
    """
    if world_size == 1:
        return newest_checkpoint(folder)[1]
    import torch
    from torch.distributed import broadcast_object_list

    name, state = newest_checkpoint(folder) if rank == 0 else (None, None)
    box = [name]
    broadcast_object_list(box, src=0, device=torch.device(device))
    if rank > 0 and box[0] is not None:
        state = read_checkpoint(folder / box[0])
    return state


def newest_checkpoint(folder: Path) -> tuple[str | None, dict[str, Any] | None]:
    """(name, state) of the newest readable checkpoint.

    An unreadable one (after a full disk, for example), or a file with a changed byte, is skipped with a warning.
    """
    for path in checkpoints(folder):
        try:
            check_bytes(path)
            return path.name, read_checkpoint(path)
        except (
            Exception
        ) as error:  # torch raises whatever its unpickler met: RuntimeError, EOFError, UnpicklingError, ...
            print(f"warning: skipped the unreadable checkpoint {path.name}: {type(error).__name__}", file=sys.stderr)
    return None, None


def check_bytes(path: Path) -> None:
    """ValueError or BadZipFile for a file whose bytes are not those that were written: torch loads them as they are."""
    if path.suffix == ".pt":
        with zipfile.ZipFile(path) as parts:
            if broken := parts.testzip():
                raise ValueError(f"{path}: {broken} has another checksum than when it was written")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """One checkpoint: `samples` and `held` as saved, and `fit` for `g3pt.training.fit.fit`, which reads a folder's
    tensors in place. A file's tensors stay on disk until they are read (mmap).
    """
    if path.suffix == ".dcp":
        from g3pt.training.optimizer_state import ShardedState

        stored = ShardedState(path)
        return {
            "samples": stored.rest["samples"],
            "held": stored.rest["held"],
            "fit": functools.partial(stored.read, "fit"),
        }
    import torch

    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints, newest first."""
    return sorted((path for pattern in PATTERNS for path in folder.glob(pattern)), reverse=True)


def checkpointed(run_dir: Path) -> int:
    """Samples seen at the newest checkpoint; 0 without one."""
    known = checkpoints(run_dir / "checkpoints")
    return samples_of(known[0]) if known else 0


def samples_of(path: Path) -> int:
    """Samples seen at a checkpoint, by its name."""
    return int(path.stem.rpartition("-")[2])


def _stem(state: dict[str, Any]) -> str:
    return f"samples-{state['samples']:012d}"


def _remove(path: Path) -> None:
    """Delete a file or folder.

    A folder is renamed first, so that a partly deleted one is not taken for a checkpoint.
    """
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    gone = path.with_name(f".gone-{path.name.removeprefix('.gone-')}")
    if path != gone:
        shutil.rmtree(gone, ignore_errors=True)
        path.rename(gone)
    shutil.rmtree(gone)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
