"""Exports: what their hash covers, and that files of another format are refused in one line."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from g3pt.config import FORMAT_VERSION, CVQConfig
from g3pt.training import exports
from g3pt.training.exports import export_hash, read_export_config
from tests.g3pt.tiny import tiny_tokenizer


@pytest.fixture
def export(tmp_path: Path) -> Path:
    return tiny_tokenizer().save_pretrained(tmp_path / "export")


def changed(export: Path, **values: Any) -> Path:
    """The export with top-level entries of config.json replaced; None removes one."""
    file = export / "config.json"
    found = json.loads(file.read_text()) | values
    file.write_text(json.dumps({name: value for name, value in found.items() if value is not None}))
    return export


@pytest.mark.parametrize(("version", "said"), [(99, "has format version 99"), (None, "has no format version")])
def test_another_format_is_refused_in_one_line_with_file_versions_and_remedy(
    export: Path, version: int | None, said: str
) -> None:
    changed(export, format_version=version)
    for read in (read_export_config, export_hash, type(tiny_tokenizer()).from_pretrained):
        with pytest.raises(ValueError) as error:
            read(export)
        message = str(error.value)
        assert message.startswith(f"{export / 'config.json'} {said}; this g3pt reads version {FORMAT_VERSION}: ")
        assert "use the g3pt that wrote it" in message and "\n" not in message


def test_a_new_field_with_a_default_and_notes_for_the_record_change_no_hash(
    export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, model = export_hash(export), read_export_config(export)["model"]
    new = dataclasses.make_dataclass("New", [("twist", float, 0.5)], bases=(CVQConfig,), frozen=True, kw_only=True)
    monkeypatch.setitem(exports.MODEL_CONFIGS, "cvq", new)
    assert export_hash(changed(export, model=model | {"twist": 0.5}, trained_on=[], run={"train": {}})) == before
    assert export_hash(changed(export, model=model | {"twist": 0.6})) != before
    assert export_hash(changed(export, model=model | {"anchor_blur": 0.3})) != before


def test_the_hash_covers_every_byte_of_the_weights(export: Path) -> None:
    before = export_hash(export)
    data = bytearray((export / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (export / "model.safetensors").write_bytes(bytes(data))
    assert export_hash(export) != before
