"""Uploaded meshes: a bounded number of bytes, converted in the sandbox, kept as codes.

An upload is written to an empty folder of its own under a fixed name, so that whatever it refers to is missing; the
folder is removed after the conversion. Only the codes stay, under the sha256 of the content.

Shapes: S tokens of all scales.
"""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from g3pt.geometry.reading import MESH_ENDINGS
from pipelines.generate.source import Sources
from pipelines.serve.engine import Busy

KEPT = 256  # meshes whose codes are kept
MAX_WAITING = 4  # uploads that wait for their conversion


class Uploads:
    """Converts uploads one at a time. `close` ends the child process that converts."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._codes: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._sources = Sources(folder=Path(), tokenizer=model.tokenizer.config)
        self._places = threading.BoundedSemaphore(MAX_WAITING)
        self._one = threading.Lock()

    def add(self, content: bytes, ending: str) -> str:
        """Convert and encode a mesh file's content; return its id. ValueError, with the reason, if it has no solid."""
        ending = f".{ending.lower().removeprefix('.')}"
        if ending not in MESH_ENDINGS:
            raise ValueError(f"a mesh is one of {', '.join(MESH_ENDINGS)}, not {ending!r}")
        digest = hashlib.sha256(ending.encode() + content).hexdigest()
        if not self._places.acquire(blocking=False):
            raise Busy(f"{MAX_WAITING} meshes are being converted; try again later")
        try:
            with self._one:
                if digest not in self._codes:
                    self._codes[digest] = self._converted(content, ending, digest)
                self._codes.move_to_end(digest)
                if len(self._codes) > KEPT:
                    self._codes.popitem(last=False)
        finally:
            self._places.release()
        return digest

    def codes(self, source: str) -> torch.Tensor | None:
        """Codes int64 (S,) of an upload; None if it is unknown or was forgotten."""
        return self._codes.get(source)

    def close(self) -> None:
        """End the child process."""
        with self._one:
            self._sources.close()

    def _converted(self, content: bytes, ending: str, digest: str) -> torch.Tensor:
        with tempfile.TemporaryDirectory(prefix="g3pt-upload-") as folder:
            file = Path(folder, f"mesh{ending}")
            file.write_bytes(content)
            self._sources.folder = Path(folder)
            return self._sources.codes(self.model, str(file), digest)
