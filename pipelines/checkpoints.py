"""Checkpoints of a run: `step-<samples>.pt`, whole or not at all; the newest readable one is gone on from.

Ours: own files instead of Ray's, so that a run has one format with and without Ray, and a resumed run needs nothing but its folder.
They are torch's own format, trusted like code and read with `weights_only`.
"""

import os
import sys
from pathlib import Path
from typing import Any


def save_checkpoint(folder: Path, state: dict[str, Any], num_to_keep: int) -> Path:
    """`step-<samples>.pt`: temporary name, fsync, rename; the newest `num_to_keep` stay."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{state['step']:012d}.pt"
    temporary = folder / f".{target.name}.{os.getpid()}"
    with open(temporary, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, target)
    _sync_folder(folder)
    for old in checkpoints(folder)[num_to_keep:]:
        old.unlink()
    return target


def agreed_checkpoint(folder: Path, rank: int, world_size: int, device: Any = "cpu") -> dict[str, Any] | None:
    """The state that all workers go on from: rank 0, alone with the run, chooses; the others wait for its choice.

    Each choosing for itself could take different files, while a worker of a killed start still writes one.
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
    """Name and state of the newest readable file. An unreadable one (a disk that filled up, say) is named and passed over."""
    for path in checkpoints(folder):
        try:
            return path.name, read_checkpoint(path)
        except Exception as error:  # torch raises whatever its unpickler met: RuntimeError, EOFError, UnpicklingError, ...
            print(f"warning: skipped the unreadable checkpoint {path.name}: {type(error).__name__}", file=sys.stderr)
    return None, None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """One checkpoint's state, on the CPU."""
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint files, newest first."""
    return sorted(folder.glob("step-*.pt"), reverse=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checkpointed(run_dir: Path) -> int:
    """Samples seen at the newest checkpoint, 0 without one."""
    known = checkpoints(run_dir / "checkpoints")
    return int(known[0].stem.rpartition("-")[2]) if known else 0
