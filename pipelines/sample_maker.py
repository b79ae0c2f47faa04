"""Samples to meshes: the worker that holds a generator, and the small record that it leaves of each sample.

A sample's settings and prompt, with the model's hash, are its identity. Its mesh is renamed into place, then its record
(`samples/<name>.json`); it is done if its record has the same identity and its mesh the recorded sha256.

Ours: samples of one batch share the guidance; a sample's codes do not depend on its batch (`G3PT.sample_codes`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from g3pt.checkpoint import write_json
from pipelines.errors import one_line
from pipelines.failures import doing
from pipelines.generate_config import GenerateConfig
from pipelines.prompts import Sample

BATCH = 8  # samples that pass through the model together


def identity(config: GenerateConfig, sample: Sample, model_hash: str) -> str:
    """sha256 of all that fixes a sample's mesh."""
    values = {"prompt": [sample.text, sample.image_sha256], "seed": sample.seed, "model": model_hash, "resolution": config.resolution,
              "format": config.format, "sampling": dataclasses.replace(config.sampling, cfg=sample.cfg).as_dict()}  # fmt: skip
    if config.max_faces:  # else as it was before there was this flag
        values["max_faces"] = config.max_faces
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def is_done(output: Path, sample: Sample, wanted: str) -> bool:
    """Whether this very sample was made before and its mesh is as it was."""
    record = read_record(output, sample)
    if record is None or record["identity"] != wanted or record["status"] != "ok":
        return False
    file = output / record["file"]
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == record["sha256"]


def read_record(output: Path, sample: Sample) -> dict[str, Any] | None:
    """The record of a sample made before; None if there is none that can be read."""
    try:
        return json.loads((output / "samples" / f"{sample.name}.json").read_text())
    except (FileNotFoundError, ValueError):
        return None


def batches(samples: list[Sample], size: int) -> Iterator[list[Sample]]:
    """Consecutive samples of one guidance, at most `size` together."""
    batch: list[Sample] = []
    for sample in samples:
        if batch and (len(batch) == size or sample.cfg != batch[0].cfg):
            yield batch
            batch = []
        batch.append(sample)
    if batch:
        yield batch


class SampleMaker:
    """A generator held by one worker; makes batches of samples and writes their meshes and records."""

    def __init__(self, config: dict[str, Any], model_hash: str) -> None:
        import torch

        from g3pt.car import G3PT
        from pipelines.cluster import torch_device

        torch.set_num_threads(1)
        self.config, self.model_hash = GenerateConfig(**config), model_hash
        self.output = Path(self.config.output)
        self.model = G3PT.from_pretrained(self.config.model).to(torch_device())

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Ray Data's interface: {'samples': JSON lists} -> {'made': counts, 'failed': counts}."""
        counts = [self.make([Sample(**s) for s in json.loads(text)]) for text in batch["samples"]]
        return {name: [count[name] for count in counts] for name in ("made", "failed")}

    def make(self, samples: list[Sample]) -> dict[str, int]:
        """Make one batch; how many samples have a record now, and how many of those say that it failed."""
        with doing(f"making {samples[0].name}" + (f" to {samples[-1].name}" if len(samples) > 1 else "")):
            return self._make(samples)

    def _make(self, samples: list[Sample]) -> dict[str, int]:
        import torch

        started, encoded, kept = time.perf_counter(), [], []
        for sample in samples:
            try:
                encoded.append(self.model.encode_prompts([sample.text], [sample.image_path]))
                kept.append(sample)
            except (ValueError, OSError) as error:  # PIL's UnidentifiedImageError is an OSError
                self._record(sample, status="failed", error=f"bad-prompt: {one_line(error)}")
        if kept:
            settings = dataclasses.replace(self.config.sampling, cfg=kept[0].cfg)
            text_BC = torch.cat([text for text, _ in encoded])
            image_BMC = torch.cat([image for _, image in encoded]) if encoded[0][1] is not None else None
            codes_BS = self.model.sample_encoded(text_BC, image_BMC, [s.seed for s in kept], settings, BATCH)
            seconds = time.perf_counter() - started
            for sample, codes_S in zip(kept, codes_BS, strict=True):
                self._decode(sample, codes_S, seconds / len(kept))
        failed = [s for s in samples if (read_record(self.output, s) or {}).get("status") != "ok"]
        return {"made": len(samples), "failed": len(failed)}

    def _decode(self, sample: Sample, codes_S: Any, sampling_seconds: float) -> None:
        """Codes to the sample's mesh file and record."""
        from g3pt.geometry.cleanup import simplify
        from g3pt.geometry.files import write_mesh
        from g3pt.geometry.isosurface import NoSurface

        started, file = time.perf_counter(), f"{sample.name}.{self.config.format}"
        speed = {"tokens_per_s": len(codes_S) / sampling_seconds}
        try:
            vertices, faces = self.model.decode_mesh(codes_S, self.config.resolution)
        except NoSurface as error:
            seconds = sampling_seconds + time.perf_counter() - started
            self._record(sample, status="failed", error=f"{error.status}: {one_line(error)}", seconds=seconds, **speed)
            return
        note = ""
        if self.config.max_faces:
            vertices, faces, note = simplify(vertices, faces, self.config.max_faces)
        write_mesh(self.output / file, vertices, faces)
        digest = hashlib.sha256((self.output / file).read_bytes()).hexdigest()
        seconds = sampling_seconds + time.perf_counter() - started
        self._record(sample, status="ok", error="", note=note, file=file, sha256=digest, vertices=len(vertices), faces=len(faces),
                     seconds=seconds, **speed)  # fmt: skip

    def _record(self, sample: Sample, **found: Any) -> None:
        values = {"identity": identity(self.config, sample, self.model_hash), **found}
        write_json(self.output / "samples" / f"{sample.name}.json", values)
