"""Storage of a training state (weights, optimiser, average): written by one worker or by all, read by any number.

How: the tensors go into safetensors files, one per worker that writes. Of a sharded state
torch.distributed.checkpoint decides which worker writes what (a whole tensor that all hold is written once), with each
slice's place in the file's header. `state.json` contains everything that is no tensor, and the tensors' shapes.
`SHA256SUMS`, which `sha256sum -c` reads, is written last: a folder that lacks a part or has a changed byte is refused
before anything is loaded. Reading fills the tensors that a model already has, whole or sharded, with the slices that
overlap: no worker holds more than its own.

Source: torch.distributed.checkpoint with its HuggingFace storage.
Ours: safetensors and JSON instead of its default files, whose metadata is a pickle: nothing here is ever unpickled.
A worker's file of a sharded state is assembled in main memory, which takes twice its share while it is written.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STATE_FILE, SUMS_FILE = "state.json", "SHA256SUMS"
TENSORS_FILE = "model.safetensors"  # of a state that one worker writes whole
SLOT = "tensor"  # {SLOT: name} takes the place of the tensor `name` in state.json
Like = Callable[[str, torch.Size, torch.dtype], Tensor]  # the tensor to fill, by its name (the path of its keys)


def write_whole(folder: Path, state: dict[str, Any]) -> None:
    """Write `state`, whose tensors are whole, to the empty folder `folder`. Keys become strings, tuples lists."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    rest = _without_tensors(state, "", tensors)
    save_file(_unshared(tensors), folder / TENSORS_FILE)
    _sync(folder / TENSORS_FILE)
    _complete(folder, rest, tensors, sums_of([folder / TENSORS_FILE]))


def write_sharded(folder: Path, state: dict[str, Any], rank: int = 0, group: Any = None) -> None:
    """Write `state`, whose tensors are whole or sharded; every worker of the process group calls it.

    The folder is complete when rank 0 returns.

    `folder` must exist and be empty. Keys become strings, tuples lists. The first error of any worker is raised on all.
    """
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    tensors: dict[str, Tensor] = {}
    rest = _without_tensors(state, "", tensors)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process may write alone
            writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
            dcp.save(tensors, storage_writer=writer, process_group=group)
    except CheckpointException as error:  # a BaseException, around what each worker met
        raise next(iter(error.failures.values()))[0] from None
    sums = _of_all(sums_of(folder.glob(f"shard-{rank + 1:05d}-*")), rank, group)  # each worker reads its own file
    if rank == 0:
        _complete(folder, rest, tensors, sums)


class StoredState:
    """A folder written by `write_whole` or `write_sharded`. ValueError or OSError if any part of it is missing."""

    def __init__(self, folder: Path) -> None:
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

        self.folder = folder
        found = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        self.rest, self.shapes = found["state"], {name: torch.Size(shape) for name, shape in found["shapes"].items()}
        self._stored = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
        wrong = sorted(
            name for name, shape in self.shapes.items() if name not in self._stored or self._stored[name].size != shape
        )
        if wrong:
            raise ValueError(f"{folder} lacks parts of {len(wrong)} tensors, {wrong[0]} first")

    def read(self, part: str, like: Like | None = None) -> Any:
        """The state under the key `part`, read into the tensors that `like` returns; by default new whole ones
        in main memory.

        `like` receives names below `part`, shape and type.
        """
        from torch.distributed import checkpoint as dcp
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

        make = like or (lambda _, shape, dtype: torch.empty(shape, dtype=dtype))
        shapes = {name: shape for name, shape in self.shapes.items() if name.startswith(f"{part}/")}
        dtypes = {name: self._stored[name].properties.dtype for name in shapes}
        tensors = {
            name: make(name.removeprefix(f"{part}/"), shape, dtypes[name]).detach() for name, shape in shapes.items()
        }
        for name, tensor in tensors.items():
            if tensor.shape != self.shapes[name]:
                raise ValueError(f"{self.folder}: {name} is {tuple(self.shapes[name])}, not {tuple(tensor.shape)}")
        with warnings.catch_warnings():
            # each worker knows which slices it needs
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(self.folder)), no_dist=True)
        return _with_tensors(self.rest[part], tensors)


def check_sums(folder: Path, part: int = 0, parts: int = 1) -> None:
    """ValueError or OSError if a file is missing or has other bytes than were written.

    Several workers check each file once: each of them takes one of `parts` parts of the files.
    """
    stored = [line.split(maxsplit=1) for line in (folder / SUMS_FILE).read_text(encoding="utf-8").splitlines()]
    if STATE_FILE not in [name for _, name in stored]:
        raise ValueError(f"{folder / SUMS_FILE} is cut short")
    for known, name in stored[part::parts]:
        if sums_of([folder / name])[name] != known:
            raise ValueError(f"{folder / name} has another checksum than when it was written")


def sums_of(paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of each file, by its name."""
    found = {}
    for path in paths:
        with open(path, "rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _of_all(sums: dict[str, str], rank: int, group: Any) -> dict[str, str]:
    """The checksums of all workers' files, on rank 0."""
    if not torch.distributed.is_initialized():
        return sums
    everyone: list[Any] = [{}] * torch.distributed.get_world_size(group)
    torch.distributed.gather_object(sums, everyone if rank == 0 else None, group=group)
    return {name: known for one in everyone for name, known in one.items()}


def _complete(folder: Path, rest: Any, tensors: dict[str, Tensor], sums: dict[str, str]) -> None:
    """Write what is no tensor, then the checksums."""
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    _write_synced(folder / STATE_FILE, json.dumps({"state": rest, "shapes": shapes}))
    sums = {**sums, **sums_of([folder / STATE_FILE])}
    _write_synced(folder / SUMS_FILE, "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with memory of their own, as safetensors wants them; copied only where they share it."""
    seen, found = set[int](), {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        found[name] = tensor.clone() if storage.data_ptr() in seen else tensor
        found[name] = found[name].contiguous()
        seen.add(storage.data_ptr())
    return found


def _without_tensors(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """`value` with each tensor moved into `tensors`, by its path, and replaced by a slot."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach()
        return {SLOT: path}
    if isinstance(value, dict):
        return {str(key): _without_tensors(inner, f"{path}/{key}".lstrip("/"), tensors) for key, inner in value.items()}
    return value


def _with_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if value.keys() == {SLOT}:
        return tensors[value[SLOT]]
    return {key: _with_tensors(inner, tensors) for key, inner in value.items()}


def _write_synced(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    _sync(path)


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
