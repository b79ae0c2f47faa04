"""SampleMaker, the worker that makes meshes from samples with a generator.

Batches are consecutive samples; a sample's codes do not depend on its batch (`G3PT.sample_codes`), so that a batch at
which a worker fails is made again in halves. Finished samples of it are not made again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipelines.cli.errors import one_line
from pipelines.cli.failures import doing, remedied
from pipelines.cluster.nodes import node_name
from pipelines.cluster.session import torch_device
from pipelines.cluster.storage import sizes_of
from pipelines.generate.config import GenerateConfig, coarser
from pipelines.generate.prompts import BAD_PROMPT, Sample, naming_picture
from pipelines.generate.sample_records import NOT_MADE, SampleFolder, identity, job_settings
from pipelines.generate.source import Sources
from pipelines.preprocess.sources.content import read_content

BATCH = 8  # samples per batch


def batches(samples: Sequence[Sample], size: int) -> Iterator[list[Sample]]:
    """The samples in consecutive batches of `size`."""
    yield from (list(samples[start : start + size]) for start in range(0, len(samples), size))


def record_failed(config: GenerateConfig, model_hash: str, samples: Sequence[Sample], reason: str) -> None:
    """Write records of samples at which a worker failed; the next start tries them again."""
    folder = SampleFolder.of(Path(config.output))
    for sample in samples:
        folder.write(
            sample,
            identity(config, sample, model_hash),
            settings=job_settings(config),
            status="failed",
            error=f"{NOT_MADE}{reason}",
            seconds=0.0,
        )


class SampleMaker:
    """A worker with a generator. Makes batches of samples and writes their meshes and records."""

    def __init__(self, config: dict[str, Any], model_hash: str) -> None:
        import torch

        from g3pt.models.car import G3PT

        torch.set_num_threads(1)
        self.config, self.model_hash = GenerateConfig(**config), model_hash
        self.folder = SampleFolder.of(Path(self.config.output))
        self.model = G3PT.from_pretrained(self.config.model).to(torch_device())
        self.sources = Sources(folder=self.folder.output, tokenizer=self.model.tokenizer.config)

    def run(self, samples: list[Sample]) -> dict[str, Any]:
        """Make one batch; return how many samples have a record now (made), how many of them failed, this node, and the
        files (path -> bytes) of the batch.
        """
        what = f"making {samples[0].name}" + (f" to {samples[-1].name}" if len(samples) > 1 else "")
        with doing(what), remedied(lambda: coarser(self.config.resolution)):
            self._make([s for s in samples if not self.folder.is_done(s, self._identity(s))])
            records = {sample: self.folder.read(sample) or {} for sample in samples}
        ok = [record for record in records.values() if record.get("status") == "ok"]
        files = [self.folder.record_file(s) for s in samples] + [self.folder.output / each["file"] for each in ok]
        return {
            "made": len(samples),
            "failed": len(samples) - len(ok),
            "node": node_name(),
            "files": sizes_of(files),
        }

    def _make(self, samples: list[Sample]) -> None:
        import torch

        started, encoded, kept, known = time.perf_counter(), [], [], []
        for sample in samples:
            try:
                pixels, note = self._picture(sample)
                codes_T = self._known(sample)
                encoded.append(self.model.encode_prompts([sample.text], [pixels]))
                known.append(codes_T)
                kept.append((sample, note))
            except (ValueError, OSError) as error:  # OSError: the disk's
                self._record(sample, status="failed", error=f"{BAD_PROMPT}{one_line(error)}")
        self.sources.close()
        if not kept:
            return
        text_BC = torch.cat([text for text, _ in encoded])
        image_BMC = torch.cat([image for _, image in encoded]) if encoded[0][1] is not None else None
        settings = [sample.settings(self.config) for sample, _ in kept]
        seeds = [sample.seed for sample, _ in kept]
        codes_BS = self.model.sample_encoded(text_BC, image_BMC, seeds, settings, BATCH, known)
        seconds = (time.perf_counter() - started) / len(kept)
        for (sample, note), codes_S in zip(kept, codes_BS, strict=True):
            self._decode(sample, codes_S, note, seconds)

    def _known(self, sample: Sample) -> Any:
        """The codes that the sample keeps of the mesh it varies; none without a mesh."""
        import torch

        if sample.mesh_path is None:
            return torch.zeros(0, dtype=torch.int64)
        path = Path(sample.mesh_path)
        if read_content(path.parent, path.name).sha256 != sample.mesh_sha256:
            raise ValueError(f"mesh {sample.mesh!r} changed while the job ran")
        try:
            codes_S = self.sources.codes(self.model, sample.mesh_path, sample.mesh_sha256)
        except ValueError as error:
            raise ValueError(f"mesh {sample.mesh!r}: {error}") from error
        return self.model.kept_codes(codes_S, sample.keep_scales)

    def _picture(self, sample: Sample) -> tuple[Any, str]:
        """(input of the image encoder or None without a picture, a note for the record)."""
        from g3pt.data.pictures import cut_out

        if sample.image_path is None:
            return None, ""
        content = Path(sample.image_path).read_bytes()
        if hashlib.sha256(content).hexdigest() != sample.image_sha256:
            raise ValueError(f"image {sample.image!r} changed while the job ran")
        with naming_picture(sample.image):
            return cut_out(content, self.model.config.image_size)

    def _decode(self, sample: Sample, codes_S: Any, note: str, sampling_seconds: float) -> None:
        """Decode codes to the sample's mesh file and write its record."""
        from g3pt.geometry.cleanup import simplify
        from g3pt.geometry.files import write_mesh
        from g3pt.geometry.isosurface import NoSurface
        from g3pt.geometry.quality import is_watertight

        begun = time.perf_counter()
        seconds = {"seconds_sampling": sampling_seconds, "tokens_per_s": len(codes_S) / sampling_seconds}
        try:
            vertices, faces = self.model.decode_mesh(codes_S, self.config.resolution)
        except NoSurface as error:
            seconds |= {"seconds_decoding": time.perf_counter() - begun}
            self._record(sample, status="failed", error=f"{error.status}: {one_line(error)}", note=note, **seconds)
            return
        if self.config.max_faces:
            vertices, faces, kept = simplify(vertices, faces, self.config.max_faces)
            note = "; ".join(filter(None, (note, kept)))
        watertight = is_watertight(vertices, faces)
        decoded = time.perf_counter()
        file = self.folder.mesh_file(sample, self.config.format)
        write_mesh(self.folder.output / file, vertices, faces)
        digest = hashlib.sha256((self.folder.output / file).read_bytes()).hexdigest()
        seconds |= {"seconds_decoding": decoded - begun, "seconds_writing": time.perf_counter() - decoded}
        self._record(sample, status="ok", error="", note=note, file=file, sha256=digest, vertices=len(vertices),
                     faces=len(faces),
                     watertight=watertight, **seconds)  # fmt: skip

    def _identity(self, sample: Sample) -> str:
        return identity(self.config, sample, self.model_hash)

    def _record(self, sample: Sample, **found: Any) -> None:
        seconds = {"seconds": sum(value for name, value in found.items() if name.startswith("seconds_"))}
        settings = job_settings(self.config)
        self.folder.write(sample, self._identity(sample), settings=settings, **seconds, **found)
