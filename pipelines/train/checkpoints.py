"""Checkpoints of a run, complete or not at all.

A run resumes from the newest readable one, with any number of DDP or FSDP workers. Once it is finished its driver
removes them: the exports remain, and the checkpoints from which other runs of a study may start.

A checkpoint is a folder `samples-<n>.dcp` of safetensors, JSON and checksums (g3pt/training/stored_state.py). Rank 0
writes the state of one process or of DDP, whose workers all hold the whole; of a sharded run (FSDP) each worker writes
its own slices. The folder appears by a rename once all is on disk.

Ours: our own files instead of Ray's, so that a run has one format with and without Ray, and a resumed run needs only
its folder. Nothing is unpickled. Files `samples-<n>.pt`, which one process and DDP wrote before, are read with torch's
`weights_only`.
"""

import functools
import os
import shutil
import sys
import zipfile
from collections.abc import Container
from pathlib import Path
from typing import Any

PATTERNS = ("samples-*.dcp", "samples-*.pt")


def save_checkpoint(
    folder: Path,
    state: dict[str, Any],
    num_to_keep: int,
    kept: Container[int] = (),
    *,
    is_sharded: bool = False,
    rank: int = 0,
    group: Any = None,
) -> Path:
    """Write `samples-<n>.dcp` and return its path. Keep the newest `num_to_keep` checkpoints and those at the samples
    `kept`.

    A sharded state is written by every worker of the process group, each with its own slices; what is no tensor is
    taken from rank 0. Any other state is written by one caller.
    """
    from g3pt.training.stored_state import write_sharded, write_whole

    target = folder / f"samples-{state['samples']:012d}.dcp"
    temporary = folder / f".{target.name}"
    if rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    if is_sharded:
        from torch.distributed import barrier

        barrier(group)
        write_sharded(temporary, state, rank, group)
    else:
        write_whole(temporary, state)
    if rank == 0:
        _sync_folder(temporary)
        remove(target)  # an unreadable one that was skipped
        temporary.rename(target)
        _sync_folder(folder)
        keep_newest(folder, num_to_keep, kept)
    return target


def keep_newest(folder: Path, num_to_keep: int, kept: Container[int] = ()) -> None:
    """Delete older checkpoints, without those at the samples `kept`."""
    for old in checkpoints(folder)[num_to_keep:]:
        if samples_of(old) not in kept:
            remove(old)


def remove_finished(run_dir: Path, kept: Container[int] = ()) -> None:
    """Delete the checkpoints of a run that has its `_SUCCESS`, without those at the samples `kept`, from which other
    runs may start. All else reads its exports.
    """
    if (run_dir / "_SUCCESS").exists():
        keep_newest(run_dir / "checkpoints", 0, kept)


def remove_unfinished(folder: Path) -> None:
    """Delete what a killed worker left unfinished. Only for the holder of the run's lock."""
    for left in [*folder.glob(".samples-*"), *folder.glob(".gone-*")]:
        remove(left)


def agreed_checkpoint(folder: Path, rank: int, world_size: int, device: Any = "cpu") -> dict[str, Any] | None:
    """The state from which all workers resume: the newest one that all can read.

    Rank 0, which holds the run's lock, lists the checkpoints: a worker of a killed start may still write one. Workers
    share the reading of a checkpoint's bytes for its checksums.
    """
    if world_size == 1:
        return newest_checkpoint(folder)[1]
    import torch
    from torch.distributed import all_reduce, broadcast_object_list

    box = [[path.name for path in checkpoints(folder)] if rank == 0 else []]
    broadcast_object_list(box, src=0, device=torch.device(device))
    for name in box[0]:
        state = _read_if_sound(folder / name, rank, world_size)
        failed = torch.tensor(float(state is None), device=device)
        all_reduce(failed)
        if not failed.item():
            return state
    return None


def newest_checkpoint(folder: Path) -> tuple[str | None, dict[str, Any] | None]:
    """(name, state) of the newest readable checkpoint.

    An unreadable one (after a full disk, for example), or one with a changed byte, is skipped with a warning.
    """
    for path in checkpoints(folder):
        if (state := _read_if_sound(path)) is not None:
            return path.name, state
    return None, None


def _read_if_sound(path: Path, part: int = 0, parts: int = 1) -> dict[str, Any] | None:
    """The checkpoint; None, with a warning, if it cannot be read or a byte has changed in this worker's part of it."""
    try:
        check_bytes(path, part, parts)
        return read_checkpoint(path)
    except Exception as error:  # torch raises whatever it met: RuntimeError, EOFError, SafetensorError, ...
        print(f"warning: skipped the unreadable checkpoint {path.name}: {type(error).__name__}", file=sys.stderr)
        return None


def check_bytes(path: Path, part: int = 0, parts: int = 1) -> None:
    """An error for a checkpoint whose bytes are not those that were written, which torch would load as they are.

    Reads one of `parts` parts of a folder's files.
    """
    if path.suffix == ".dcp":
        from g3pt.training.stored_state import check_sums

        check_sums(path, part, parts)
    elif part == 0:
        with zipfile.ZipFile(path) as members:
            if broken := members.testzip():
                raise ValueError(f"{path}: {broken} has another checksum than when it was written")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """One checkpoint: `samples` and `held` as saved, and `fit` for `g3pt.training.fit.fit`, which reads a folder's
    tensors in place. An older file's tensors stay on disk until they are read (mmap).
    """
    if path.suffix == ".dcp":
        from g3pt.training.stored_state import StoredState

        stored = StoredState(path)
        return {
            "samples": stored.rest["samples"],
            "held": stored.rest["held"],
            "fit": functools.partial(stored.read, "fit"),
        }
    import torch

    found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return found


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


def remove(path: Path) -> None:
    """Delete a file, a link or a folder.

    A folder is renamed first, so that a partly deleted one is not taken for a checkpoint.
    """
    if not path.is_dir() or path.is_symlink():
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
