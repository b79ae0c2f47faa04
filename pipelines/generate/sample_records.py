"""Where a job keeps its samples, and the small record of each: what it was made from and what came out.

A sample's identity is the hash of its prompt, seed, settings and model. Its mesh is renamed into place, then its record. A sample is
done if its record has its identity, and its mesh the recorded sha256; one without a surface is done as well, it would have none again.
Up to FLAT samples lie side by side, meshes in the output folder and records in samples/. A folder begun for more keeps both in 256
subfolders, chosen by a hash of the sample's name, whatever later jobs add to it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from g3pt.training.exports import write_json
from pipelines.generate.config import GenerateConfig
from pipelines.generate.prompts import BAD_PROMPT, Sample

FLAT = 1000  # samples: folders of ten thousands of files are slow to list
SUBFOLDERS = [f"{number:02x}" for number in range(256)]


def identity(config: GenerateConfig, sample: Sample, model_hash: str) -> str:
    """sha256 of all that fixes a sample's mesh."""
    values = {"prompt": [sample.text, sample.image_sha256], "seed": sample.seed, "model": model_hash, "resolution": config.resolution,
              "format": config.format, "sampling": sample.settings(config).as_dict()}  # fmt: skip
    if config.max_faces:  # else as it was before there was this flag
        values["max_faces"] = config.max_faces
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class SampleFolder:
    """A job's output folder, as far as its samples go."""

    output: Path
    is_sharded: bool

    @classmethod
    def begin(cls, output: Path, num_samples: int) -> SampleFolder:
        """The folder of a job of so many samples, made if it is missing."""
        records = output / "samples"
        records.mkdir(parents=True, exist_ok=True)
        if num_samples > FLAT and next(records.glob("*.json"), None) is None:
            for name in SUBFOLDERS:
                (output / "meshes" / name).mkdir(parents=True, exist_ok=True)
                (records / name).mkdir(exist_ok=True)
        return cls.of(output)

    @classmethod
    def of(cls, output: Path) -> SampleFolder:
        """A folder that `begin` made."""
        return cls(output, (output / "samples" / SUBFOLDERS[-1]).is_dir())

    def mesh_file(self, sample: Sample, suffix: str) -> str:
        """Where the sample's mesh lies, relative to the output folder."""
        place = f"meshes/{_subfolder(sample.name)}/" if self.is_sharded else ""
        return f"{place}{sample.name}.{suffix}"

    def record_file(self, sample: Sample) -> Path:
        """Where the sample's record lies."""
        place = self.output / "samples"
        return (place / _subfolder(sample.name) if self.is_sharded else place) / f"{sample.name}.json"

    def read(self, sample: Sample) -> dict[str, Any] | None:
        """The record of a sample made before, perhaps with other settings; None if there is none that can be read."""
        try:
            found = json.loads(self.record_file(sample).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def read_of(self, sample: Sample, wanted: str) -> dict[str, Any] | None:
        """The record of this very sample."""
        found = self.read(sample)
        return found if found is not None and found.get("identity") == wanted else None

    def write(self, sample: Sample, wanted: str, **found: Any) -> None:
        """Leave the record of a sample; its mesh must be in place."""
        write_json(self.record_file(sample), {"identity": wanted, **found})

    def is_done(self, sample: Sample, wanted: str) -> bool:
        """Whether nothing is left to do for this very sample."""
        record = self.read_of(sample, wanted)
        if record is None or record["status"] != "ok":
            return record is not None and not record["error"].startswith(BAD_PROMPT)
        try:
            return hashlib.sha256((self.output / record["file"]).read_bytes()).hexdigest() == record["sha256"]
        except FileNotFoundError:
            return False


def _subfolder(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:2]
