"""Exports: models as safetensors and JSON, written whole or not at all.

Training checkpoints: pipelines/train/checkpoints.py.

An export is a folder with `config.json` (kind, format version, configuration, notes) and `model.safetensors`. Loading
it unpickles nothing.

Ours: the three methods of huggingface_hub's mixin, with the same meaning, so that huggingface_hub is needed only for
hub names.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from g3pt.config import FORMAT_VERSION, MODEL_CONFIGS, check_format, from_dict, without_defaults
from g3pt.data.fetched import fetched
from g3pt.data.storage import Location, RemotePath, is_remote, listing, location, write_atomic

CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"


class Pretrained:
    """Mixin of an `nn.Module` with `kind`, `config_class`, `config`: to and from an export, and to a hub."""

    kind: ClassVar[str]
    config_class: ClassVar[type]
    config: Any

    def export_config(self) -> dict[str, Any]:
        """The entries of `config.json` that describe the model."""
        return {"model": dataclasses.asdict(self.config)}

    @classmethod
    def from_export_config(cls, values: dict[str, Any]) -> Self:
        """An untrained model of the shape that a parsed `config.json` describes."""
        return cls(from_dict(cls.config_class, values["model"]))

    def save_pretrained(self, folder: str | Path, extra: dict[str, Any] | None = None) -> Path:
        """Write the export `folder` (made if missing) and return it; `extra` is added to config.json for the record."""
        from safetensors.torch import save_file

        assert isinstance(self, nn.Module)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.state_dict().items()}
        temporary = folder / f".{WEIGHTS_NAME}.{os.getpid()}"
        save_file(state, temporary)
        os.replace(temporary, folder / WEIGHTS_NAME)
        head = {"kind": self.kind, "format_version": FORMAT_VERSION}
        write_json(folder / CONFIG_NAME, {**head, **self.export_config(), **(extra or {})})
        return folder

    @classmethod
    def from_pretrained(cls, name: str | Path, revision: str | None = None) -> Self:
        """Load an export folder or a finished run's folder, also of a bucket, or a repository of the Hugging Face
        hub, in evaluation mode.
        """
        folder = find_export(name) if is_remote(name) or Path(name).exists() else _download(str(name), revision)
        values = read_export_config(folder)
        if values["kind"] != cls.kind:
            raise ValueError(f"{folder}: contains a {values['kind']!r} model, not a {cls.kind!r} one")
        model = cls.from_export_config(values)
        assert isinstance(model, nn.Module)
        model.load_state_dict(dict(_finite_tensors(folder / WEIGHTS_NAME)))
        return model.eval()

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload the export to the Hugging Face hub; returns its address."""
        import tempfile

        from huggingface_hub import HfApi

        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder))


def check_weights(path: str | Path) -> None:
    """ValueError if the weights of an export or finished run can't be read or are not finite;
    called before workers start.
    """
    for _ in finite_tensors(path):
        pass


def finite_tensors(path: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of an export or finished run, one after the other. ValueError as in `check_weights`."""
    return _finite_tensors(find_export(path) / WEIGHTS_NAME)


def _finite_tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a weights file.

    Weights that are not finite would give the same codes for every prompt, without an error.
    """
    from safetensors import SafetensorError, safe_open

    remedy = "export the run again, or fetch the file anew"
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (safe_open is no mapping)
                tensor = opened.get_tensor(name)
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                    raise ValueError(f"{file}: tensor {name} has values that are not finite; {remedy}")
                yield name, tensor
    except SafetensorError as error:
        raise ValueError(f"{file}: cannot be read ({error}); {remedy}") from error


def find_export(path: str | Path) -> Path:
    """The export folder at `path`: itself, or `export/` of a finished run; of a bucket, a local copy.

    ValueError, with what is wrong, for anything else.
    """
    if is_remote(path):
        return fetched(_remote_export(location(path)))
    path = Path(path)
    if (path / CONFIG_NAME).exists() and (path / WEIGHTS_NAME).exists():
        return path
    if (path / "metrics.jsonl").exists() and not (path / "_SUCCESS").exists():
        raise ValueError(f"{path}: this run is not finished (no _SUCCESS); start its command again to resume it")
    if (path / "export" / CONFIG_NAME).exists():
        return path / "export"
    raise ValueError(f"{path}: neither a finished run nor an exported model (no export/{CONFIG_NAME})")


@functools.cache
def _remote_export(path: RemotePath) -> RemotePath:
    """`find_export` in a bucket."""
    names = listing(path)
    if {CONFIG_NAME, WEIGHTS_NAME} <= names.keys():
        return path
    if "metrics.jsonl" in names and "_SUCCESS" not in names:
        raise ValueError(f"{path}: this run is not finished (no _SUCCESS)")
    if CONFIG_NAME in listing(path / "export"):
        return path / "export"
    raise ValueError(f"{path}: neither a finished run nor an exported model (no export/{CONFIG_NAME})")


def read_export_config(path: str | Path) -> dict[str, Any]:
    """`config.json` of an export or finished run, parsed.

    ValueError for another format version, or without a `kind`.
    """
    file = find_export(path) / CONFIG_NAME
    values = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(values, dict) or "kind" not in values:
        raise ValueError(f"{file}: not a g3pt export (no 'kind')")
    check_format(values, file)
    return values


def export_hash(path: str | Path) -> str:
    """sha256, in hex, of what an export or finished run computes: its weights, and its configuration without defaults.

    The format version, and what config.json holds for the record, are no part of it.
    """
    folder = find_export(path)
    digest = hashlib.sha256(json.dumps(_computed(read_export_config(folder)), sort_keys=True).encode())
    with open(folder / WEIGHTS_NAME, "rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _computed(values: dict[str, Any]) -> dict[str, Any]:
    """The entries of config.json that decide what a model computes, without fields at their default."""
    classes = {"model": MODEL_CONFIGS.get(values["kind"]), "tokenizer": MODEL_CONFIGS["cvq"]}
    found = {name: values[name] for name in ("kind", *classes, "small_encoders") if name in values}
    computed = {name: without_defaults(classes[name], v) if classes.get(name) else v for name, v in found.items()}
    for name in classes.keys() & computed.keys():
        computed[name].pop("checkpoint_layers", None)  # how a training saved memory
    return computed


def write_json(path: str | Location, values: Any) -> None:
    """Write JSON whole or not at all: a reader sees the old file or the new one."""
    write_atomic(location(path), (json.dumps(values, indent=2, sort_keys=True) + "\n").encode("utf-8"))


def _download(repo_id: str, revision: str | None) -> Path:
    if repo_id.count("/") != 1 or repo_id.startswith((".", "/")):
        raise ValueError(f"{repo_id}: no such folder, and not a hub id (owner/name) either")
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repo_id, revision=revision, allow_patterns=["*.json", "*.safetensors"]))
