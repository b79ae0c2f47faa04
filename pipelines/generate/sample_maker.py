"""Samples to meshes in two stages: SampleMaker, the worker with the generator, draws codes and decodes them as far as
the model is needed; `write_sample` makes the mesh and writes it with its record, on any CPU.

Batches are consecutive samples; a sample's codes do not depend on its batch (`G3PT.sample_codes`), so that a batch at
which a worker fails is made again in halves. Finished samples of it are not made again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from g3pt.data.storage import Location, RemotePath, location, stamp, written_whole
from pipelines.cli.errors import one_line
from pipelines.cli.failures import doing, remedied
from pipelines.cluster.nodes import node_name
from pipelines.cluster.session import torch_device
from pipelines.cluster.storage import sizes_of
from pipelines.generate.config import GenerateConfig, coarser
from pipelines.generate.prompts import BAD_PROMPT, Sample, naming_picture, output_folder
from pipelines.generate.sample_records import NOT_MADE, SampleFolder, identity, job_settings
from pipelines.generate.source import Sources
from pipelines.preprocess.sources.content import read_content

if TYPE_CHECKING:
    from g3pt.geometry.search import Crossed, NoSurface

BATCH = 8  # samples per batch


@dataclass(frozen=True)
class Drawn:
    """What the first stage leaves of a sample: the cells that its surface crosses, or why there are none."""

    sample: Sample
    field: Crossed | NoSurface | None = None  # None: made before, or failed
    error: str = ""
    note: str = ""
    num_tokens: int = 0
    seconds_sampling: float = 0.0
    seconds_searching: float = 0.0


def batch_size(num_samples: int, num_actors: int) -> int:
    """Samples per batch: BATCH, or fewer if each actor then has work."""
    return max(1, min(BATCH, -(-num_samples // max(1, num_actors))))


def batches(samples: Sequence[Sample], size: int) -> Iterator[list[Sample]]:
    """The samples in consecutive batches of `size`."""
    yield from (list(samples[start : start + size]) for start in range(0, len(samples), size))


def record_failed(config: GenerateConfig, model_hash: str, samples: Sequence[Sample], reason: str) -> None:
    """Write records of samples at which a worker failed; the next start tries them again."""
    folder = SampleFolder.of(output_folder(config))
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
    """A worker with a generator: the first stage of a batch of samples."""

    def __init__(self, config: dict[str, Any], model_hash: str) -> None:
        import torch

        from g3pt.models.car import G3PT

        torch.set_num_threads(1)
        self.config, self.model_hash = GenerateConfig(**config), model_hash
        self.folder = SampleFolder.of(output_folder(self.config))
        self.model = G3PT.from_pretrained(self.config.model).to(torch_device())
        self.sources = Sources(folder=self.folder.output, tokenizer=self.model.tokenizer.config)

    def run(self, samples: list[Sample]) -> Iterator[Drawn]:
        """Yield what each sample of a batch becomes; those that are done already first."""
        what = f"making {samples[0].name}" + (f" to {samples[-1].name}" if len(samples) > 1 else "")
        with doing(what), remedied(lambda: coarser(self.config.resolution)):
            done = [
                s
                for s in samples
                if self.folder.is_done(s, identity(self.config, s, self.model_hash), verify=self.config.verify)
            ]
            yield from map(Drawn, done)
            yield from self._draw([s for s in samples if s not in done])

    def _draw(self, samples: list[Sample]) -> Iterator[Drawn]:
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
                yield Drawn(sample, error=f"{BAD_PROMPT}{one_line(error)}")
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
            begun = time.perf_counter()
            field = self.model.decode_field(codes_S, self.config.resolution)
            yield Drawn(sample, field, "", note, len(codes_S), seconds, time.perf_counter() - begun)

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
        content = location(sample.image_path).read_bytes()
        if hashlib.sha256(content).hexdigest() != sample.image_sha256:
            raise ValueError(f"image {sample.image!r} changed while the job ran")
        with naming_picture(sample.image):
            return cut_out(content, self.model.config.image_size)


def write_sample(config: GenerateConfig, model_hash: str, drawn: Drawn) -> dict[str, Any]:
    """The second stage: write the sample's mesh and record; return whether it `failed`, this node, and its files (path
    -> bytes).
    """
    folder, sample = SampleFolder.of(output_folder(config)), drawn.sample
    with doing(f"writing {sample.name}"):
        if drawn.field is not None or drawn.error:
            found = {"status": "failed", "error": drawn.error} if drawn.error else _made(config, folder, drawn)
            seconds = sum(value for name, value in found.items() if name.startswith("seconds_"))
            settings = job_settings(config)
            folder.write(sample, identity(config, sample, model_hash), settings=settings, seconds=seconds, **found)
        record = folder.read(sample) or {}
    is_ok = record.get("status") == "ok"
    files = [folder.record_file(sample), *([folder.output / record["file"]] if is_ok else [])]
    return {"failed": not is_ok, "node": node_name(), "files": sizes_of(files)}


def _made(config: GenerateConfig, folder: SampleFolder, drawn: Drawn) -> dict[str, Any]:
    """Make and write a sample's mesh; return the record's entries."""
    from g3pt.geometry.cleanup import simplify
    from g3pt.geometry.isosurface import cleaned_mesh
    from g3pt.geometry.quality import is_watertight
    from g3pt.geometry.search import NoSurface

    begun, note, sampling = time.perf_counter(), drawn.note, drawn.seconds_sampling
    seconds = {"seconds_sampling": sampling, "tokens_per_s": drawn.num_tokens / sampling}
    try:
        vertices, faces = cleaned_mesh(drawn.field)
    except NoSurface as error:
        decoding = drawn.seconds_searching + time.perf_counter() - begun
        reason = f"{error.status}: {one_line(error)}"
        return {"status": "failed", "error": reason, "note": note, **seconds, "seconds_decoding": decoding}
    if config.max_faces:
        vertices, faces, kept = simplify(vertices, faces, config.max_faces)
        note = "; ".join(filter(None, (note, kept)))
    watertight = is_watertight(vertices, faces)
    decoded = time.perf_counter()
    file = folder.mesh_file(drawn.sample, config.format)
    digest = put_mesh(folder.output / file, vertices, faces)
    seconds |= {
        "seconds_decoding": drawn.seconds_searching + decoded - begun,
        "seconds_writing": time.perf_counter() - decoded,
    }
    counts = {"vertices": len(vertices), "faces": len(faces), "watertight": watertight}
    written = {"file": file, "sha256": digest, "stamp": stamp(folder.output / file)}
    return {"status": "ok", "error": "", "note": note, **written, **counts, **seconds}


def put_mesh(place: Location, vertices: Any, faces: Any) -> str:
    """Write a mesh file, whole or not at all, and return its sha256."""
    from g3pt.geometry.files import write_mesh

    if isinstance(place, RemotePath):
        with written_whole(place) as file:
            write_mesh(file, vertices, faces)
            return hashlib.sha256(file.read_bytes()).hexdigest()
    write_mesh(place, vertices, faces)
    return hashlib.sha256(place.read_bytes()).hexdigest()
