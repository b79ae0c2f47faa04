"""The meshes that variations start from: converted in the sandbox like any mesh, then encoded.

A converted mesh's points are kept in the output folder (`sources/`) under the hashes of its files and of the
conversion, so that a mesh is converted once per job, whichever process needs it first.

Shapes: P surface points, Ps sharp points, S tokens of all scales.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from g3pt.config import CVQConfig
from g3pt.data.datasets import parquet_bytes
from g3pt.data.storage import Location, open_parquet, write_atomic
from g3pt.models.encoding import encode, encoded_columns, source_conversion
from pipelines.preprocess.config import CODE_VERSION, FILL_VERSION
from pipelines.preprocess.sandbox import Sandbox
from pipelines.runs.identity import stable_hash

WARM_UP = "pipelines.preprocess.shards:warm_up"


def converted(path: str, config: dict[str, Any]) -> pa.Table:
    """A mesh file's points in one row: the columns that a tokenizer reads. Runs in the sandbox's child."""
    from g3pt.geometry.convert import ConvertConfig, convert_mesh
    from g3pt.geometry.load import load_mesh
    from g3pt.geometry.quality import quality_faults
    from g3pt.geometry.reading import MeshError

    mesh = load_mesh(path)
    found = convert_mesh(mesh.vertices, mesh.faces, ConvertConfig(**config))
    if faults := quality_faults(found, num_queries=0):
        raise MeshError(*faults[0])
    points = {name: found[name] for name in ("surface", "sharp") if name in found}
    return pa.table({name: pa.array([values.ravel()], pa.list_(pa.float16())) for name, values in points.items()})


@dataclass(kw_only=True)
class Sources:
    """Converts the meshes of a job. `close` ends the child process that converts, if there is one."""

    folder: Location
    tokenizer: CVQConfig
    sandbox: Sandbox = field(default_factory=lambda: Sandbox(warm_up=WARM_UP))
    _last: tuple[str, Any] | None = None

    def points(self, path: str, sha256: str) -> dict[str, np.ndarray]:
        """The points (P, 6) and (Ps, 6) of a mesh file. ValueError, with the reason, if it has no solid."""
        wanted = source_conversion(self.tokenizer)
        how = stable_hash({"code_version": CODE_VERSION, "filling": FILL_VERSION, **asdict(wanted)})[:8]
        file = self.folder / "sources" / f"{sha256}-{how}.parquet"
        if not file.is_file():
            result = self.sandbox.call(f"{__name__}:converted", {"path": path, "config": asdict(wanted)})
            if result.table is None:
                raise ValueError(result.error)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, parquet_bytes(result.table))
        with open_parquet(file) as stored:
            table = stored.read()
        return {name: np.asarray(table[name][0].values).reshape(-1, 6) for name in encoded_columns(self.tokenizer)}

    def codes(self, model: Any, path: str, sha256: str) -> Any:
        """Codes int64 (S,) of a mesh file, by the generator's tokenizer."""
        import torch

        if self._last is None or self._last[0] != sha256:
            row = self.points(path, sha256)
            self._last = sha256, torch.from_numpy(encode(model.tokenizer, [row])[0])
        return self._last[1]

    def close(self) -> None:
        """End the child process. The next conversion starts another."""
        self.sandbox.close()
