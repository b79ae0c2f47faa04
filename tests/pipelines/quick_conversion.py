"""The conversion of a variation's source on a coarse grid and in this process, without a child that must start."""

import dataclasses
from typing import Any

import pytest

from g3pt.config import CVQConfig
from g3pt.geometry.convert import ConvertConfig
from g3pt.geometry.reading import MeshError
from g3pt.models import encoding
from pipelines.generate import source
from pipelines.preprocess import sandbox

SOURCE_CONVERSION = encoding.source_conversion


def coarse(config: CVQConfig) -> ConvertConfig:
    return dataclasses.replace(SOURCE_CONVERSION(config), resolution=32)


def convert_here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Convert so until the test ends; returns the paths that were converted, which grow."""
    done: list[str] = []
    for module in (encoding, source):
        monkeypatch.setattr(module, "source_conversion", coarse)

    def call(_: sandbox.Sandbox, function: str, arguments: dict[str, Any]) -> sandbox.Result:
        done.append(arguments["path"])
        try:
            return sandbox.Result(status="ok", table=sandbox.resolve(function)(**arguments))
        except MeshError as error:
            status, text = sandbox.describe(error)
            return sandbox.Result(status=status, error=text)

    monkeypatch.setattr(sandbox.Sandbox, "call", call)
    return done
