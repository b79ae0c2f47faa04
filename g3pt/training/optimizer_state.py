"""Storage of a sharded training state (weights, optimiser, average): all workers write it, any number
of workers reads it.

How: torch.distributed.checkpoint decides which worker writes what (a whole tensor that all hold is written once) into
safetensors files, one per worker, with each slice's place in the file's header. `state.json` is written last. It
contains everything that is no tensor, the tensors' shapes, and each file's size, so that a folder that lacks a part is
refused before anything is loaded. Reading fills the tensors that a model already has, whole or sharded, with the slices
that overlap: no worker holds more than its own.

Source: torch.distributed.checkpoint with its HuggingFace storage.
Ours: safetensors and JSON instead of its default files, whose metadata is a pickle: nothing here is ever unpickled.
A worker's file is assembled in main memory, which takes twice its share of the state while it is written.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STATE_FILE = "state.json"
SLOT = "tensor"  # {SLOT: name} takes the place of the tensor `name` in state.json
Like = Callable[[str, torch.Size, torch.dtype], Tensor]  # the tensor to fill, by its name (the path of its keys)


def write_sharded(folder: Path, state: dict[str, Any], is_first: bool = True, group: Any = None) -> None:
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
    if is_first:
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        files = {path.name: path.stat().st_size for path in sorted(folder.glob("*.safetensors"))}
        _write_synced(folder / STATE_FILE, json.dumps({"state": rest, "shapes": shapes, "files": files}))


class ShardedState:
    """A folder written by `write_sharded`. ValueError or OSError if any part of it is missing or cut short."""

    def __init__(self, folder: Path) -> None:
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

        self.folder = folder
        found = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        self.rest, self.shapes = found["state"], {name: torch.Size(shape) for name, shape in found["shapes"].items()}
        for name, size in found["files"].items():
            if (folder / name).stat().st_size != size:
                raise ValueError(f"{folder / name} has {(folder / name).stat().st_size} bytes, not {size}")
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
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
