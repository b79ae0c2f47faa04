"""The output folder of a generation job: where meshes are, and a small record per sample of its input and result.

A sample's identity is the hash of its prompt, seed, settings and model. Its mesh is renamed into place, then its
record, which also has the job's settings in words. A sample is done if its record has its identity and its mesh the
recorded size and time of change, or else the recorded sha256; `verify` compares the sha256 of each. A sample without a
surface is also done: another try would give none either. Up to FLAT samples are
kept flat, meshes in the output folder and records in samples/. A folder begun for more samples keeps both in 256
subfolders, chosen by a hash of the sample's name, whatever later jobs add to it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from g3pt.data.storage import Location, is_remote, stamp
from g3pt.training.exports import find_export, write_json
from pipelines.generate.config import GenerateConfig
from pipelines.generate.prompts import BAD_PROMPT, Sample
from pipelines.runs.settings import flag

NOT_MADE = "not-made: "  # how the error of a sample begins that another start tries again: its worker failed

FLAT = 1000  # samples up to which no subfolders are made: folders with tens of thousands of files are slow to list
SUBFOLDERS = [f"{number:02x}" for number in range(256)]


def identity(config: GenerateConfig, sample: Sample, model_hash: str) -> str:
    """sha256 of everything that determines a sample's mesh."""
    values = {"prompt": [sample.text, sample.image_sha256], "seed": sample.seed, "model": model_hash,
              "resolution": config.resolution,
              "format": config.format, "sampling": sample.settings(config).as_dict()}  # fmt: skip
    if config.max_faces:  # otherwise the identity is as before this flag existed
        values["max_faces"] = config.max_faces
    if sample.mesh_sha256:
        values["variation"] = [sample.mesh_sha256, sample.keep_scales]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def job_settings(config: GenerateConfig) -> dict[str, Any]:
    """The settings of a job by the flags that set them; prompts, with what they set for themselves, are its input, and
    so are the weights found at --model.
    """
    sampling = {flag(name): value for name, value in asdict(config.sampling).items()}
    return sampling | {
        "--model": config.model if is_remote(config.model) else str(find_export(config.model).resolve()),
        "--resolution": config.resolution,
        "--format": config.format,
        "--max-faces": config.max_faces,
    }


@dataclass(frozen=True)
class SampleFolder:
    """The samples in a job's output folder."""

    output: Location
    is_sharded: bool

    @classmethod
    def begin(cls, output: Location, num_samples: int) -> SampleFolder:
        """Make the folder for a job of `num_samples` samples, if missing, and return it."""
        records = output / "samples"
        records.mkdir(parents=True, exist_ok=True)
        if isinstance(records, Path) and num_samples > FLAT and next(records.glob("*.json"), None) is None:
            for name in SUBFOLDERS:
                (output / "meshes" / name).mkdir(parents=True, exist_ok=True)
                (records / name).mkdir(exist_ok=True)
        return cls.of(output)

    @classmethod
    def of(cls, output: Location) -> SampleFolder:
        """A folder made by `begin`; a bucket has no subfolders."""
        return cls(output, isinstance(output, Path) and (output / "samples" / SUBFOLDERS[-1]).is_dir())

    def mesh_file(self, sample: Sample, suffix: str) -> str:
        """The path of the sample's mesh, relative to the output folder."""
        place = f"meshes/{_subfolder(sample.name)}/" if self.is_sharded else ""
        return f"{place}{sample.name}.{suffix}"

    def record_file(self, sample: Sample) -> Location:
        """The path of the sample's record."""
        place = self.output / "samples"
        return (place / _subfolder(sample.name) if self.is_sharded else place) / f"{sample.name}.json"

    def read(self, sample: Sample) -> dict[str, Any] | None:
        """The record of a sample, possibly made with other settings; None if it is missing or unreadable."""
        try:
            found = json.loads(self.record_file(sample).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def read_of(self, sample: Sample, wanted: str) -> dict[str, Any] | None:
        """The record of a sample if it has the identity `wanted`, else None."""
        found = self.read(sample)
        return found if found is not None and found.get("identity") == wanted else None

    def write(self, sample: Sample, wanted: str, **found: Any) -> None:
        """Write the record of a sample, whose mesh must be in place. A mesh of another name that it had is removed."""
        before = (self.read(sample) or {}).get("file")
        write_json(self.record_file(sample), {"identity": wanted, **found})
        if before and before != found.get("file"):
            (self.output / before).unlink(missing_ok=True)

    def is_done(self, sample: Sample, wanted: str, *, verify: bool = False) -> bool:
        """Whether the sample with this identity is done."""
        return self.holds(self.read(sample), wanted, verify=verify)

    def holds(self, record: dict[str, Any] | None, wanted: str, *, verify: bool = False) -> bool:
        """Whether a sample is done that has this record, by the identity `wanted`."""
        if record is None or record.get("identity") != wanted:
            return False
        if record["status"] != "ok":
            return not record["error"].startswith((BAD_PROMPT, NOT_MADE))
        mesh = self.output / record["file"]
        try:
            if not verify and stamp(mesh) == record.get("stamp"):
                return True
            return hashlib.sha256(mesh.read_bytes()).hexdigest() == record["sha256"]
        except FileNotFoundError:
            return False


def _subfolder(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:2]
