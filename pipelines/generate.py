"""Prompts to meshes: a Ray Data batch job that writes one mesh and one small record per sample, and a manifest at the end.

A sample is a prompt with a seed and settings; their hash, with the model's, is its identity. Its mesh is renamed into
place, then its record (`samples/<name>.json`); a run started again skips the samples whose record has the same
identity and whose mesh has the recorded sha256, so nothing is made twice. Batches of samples go to a pool of actors that
hold the model. A bad prompt is a failed row of `manifest.parquet`, never the end of the job.

Ours: samples of one batch share the guidance; a sample's codes do not depend on its batch (`G3PT.sample_codes`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from g3pt.checkpoint import export_hash, read_export_config, write_json
from g3pt.conditions import NONE
from g3pt.datasets import parquet_bytes
from g3pt.sampling import SampleConfig
from g3pt.storage import write_atomic
from pipelines import cards
from pipelines.errors import UsageError, bad_input, one_line
from pipelines.failures import doing, on_disk
from pipelines.flags import DryRun, OnRay
from pipelines.notes import working_in
from pipelines.progress import Progress
from pipelines.tracked import Outcome, logged

BATCH = 8  # samples that pass through the model together
COARSE_CELLS = 32  # of the first grid of the iso-surface: the resolution is this times a power of two
MAX_NUM = 100_000
MIN_FACES = 16  # nothing but a box survives fewer
MANIFEST = pa.schema(
    [("sample", pa.string()), ("id", pa.string()), ("text", pa.string()), ("image", pa.string()), ("seed", pa.int64())]
    + [("cfg", pa.float64()), ("cfg_schedule", pa.string()), ("top_k", pa.int64()), ("top_p", pa.float64())]
    + [("temperature", pa.float64()), ("resolution", pa.int64()), ("max_faces", pa.int64()), ("model", pa.string()), ("model_hash", pa.string())]
    + [("file", pa.string()), ("sha256", pa.string()), ("vertices", pa.int64()), ("faces", pa.int64())]
    + [("seconds", pa.float64()), ("tokens_per_s", pa.float64()), ("status", pa.string()), ("error", pa.string())]
    + [("note", pa.string())]  # of a good mesh: why it has more faces than asked for
)


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(DryRun, OnRay):
    """Generate meshes from a text, an image, or a file of prompts.

    Starting the same command again makes only what is missing.
    """

    model: str
    """finished run of jobs/train_car.py, or its export"""
    output: str
    """folder for meshes and manifest.parquet"""
    text: str | None = None
    """what to make, in words; default none; may be given together with --image"""
    image: str | None = None
    """picture of what to make (alpha, or an even border, is background); default none"""
    prompts: str | None = None
    """file of prompts, .jsonl or .parquet, with id, text, image, seed, cfg, n (image paths are relative to it and stay in its folder); default none"""
    num: int = 1
    """samples per prompt, with seeds rising by one"""
    seed: int = 0
    """seed of a prompt's first sample"""
    cfg: float = SampleConfig.cfg
    """strength of guidance; 0 is none"""
    cfg_schedule: Literal["ramp", "constant"] = "ramp"
    """guidance rises from 0 at the coarsest scale, or is the same at all"""
    top_k: int = SampleConfig.top_k
    """keep the K likeliest values of each code digit; 0 keeps all"""
    top_p: float = SampleConfig.top_p
    """keep the likeliest values that together have this probability"""
    temperature: float = SampleConfig.temperature
    """below 1 sharpens, above 1 flattens the choice"""
    resolution: int = 128
    """cells along the box of the extracted surface: 32, 64, 128, 256, ..."""
    max_faces: int = 0
    """simplify each mesh to at most this many faces if it stays closed; 0 keeps all"""
    format: Literal["glb", "obj", "ply", "stl"] = "glb"
    """mesh file format"""
    num_workers: int | None = None
    """batches made at a time; default the cluster's GPUs, or its CPUs where it has none"""

    def __post_init__(self) -> None:
        if self.prompts is not None and (self.text is not None or self.image is not None):
            raise ValueError("--prompts cannot be combined with --text or --image")
        if self.prompts is None and self.text is None and self.image is None:
            raise ValueError("one of --text, --image, --prompts is required")
        if self.prompts is not None and Path(self.prompts).suffix not in (".jsonl", ".parquet"):
            raise ValueError(f"--prompts must be a .jsonl or .parquet file, got {self.prompts!r}")
        if self.text is not None and not self.text.strip():
            raise ValueError("--text is empty")
        if not 1 <= self.num <= MAX_NUM:
            raise ValueError(f"--num must be 1 to {MAX_NUM}, got {self.num}")
        if not 0 <= self.seed < 2**62:
            raise ValueError(f"--seed must be 0 to 2^62, got {self.seed}")
        cells = self.resolution // COARSE_CELLS
        if cells < 1 or COARSE_CELLS * (1 << (cells.bit_length() - 1)) != self.resolution:
            raise ValueError(f"--resolution must be {COARSE_CELLS} times a power of two, got {self.resolution}")
        if self.max_faces != 0 and self.max_faces < MIN_FACES:
            raise ValueError(f"--max-faces must be 0 (keep all) or at least {MIN_FACES}, got {self.max_faces}")
        if self.num_workers is not None and self.num_workers < 1:
            raise ValueError(f"--num-workers must be positive, got {self.num_workers}")
        self.sampling  # noqa: B018 (checks its own numbers)

    @property
    def sampling(self) -> SampleConfig:
        """How codes are drawn."""
        return SampleConfig(**{f.name: getattr(self, f.name) for f in dataclasses.fields(SampleConfig)})


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One mesh to make; `error` is set where the prompt cannot be used."""

    id: str
    text: str | None
    image: str | None  # as the prompt has it
    image_path: str | None = None  # absolute
    image_sha256: str | None = None
    seed: int = 0
    cfg: float = 0.0
    error: str | None = None

    @property
    def name(self) -> str:
        """File name without suffix: the id made safe, and the seed."""
        safe = re.sub(r"[^A-Za-z0-9._-]+", "_", self.id).strip("._")[:80]
        if safe != self.id:
            safe += "-" + hashlib.sha256(self.id.encode()).hexdigest()[:8]
        return f"{safe}-s{self.seed}"


def generate(config: GenerateConfig, *, use_ray: bool = True) -> str | None:
    """Run the job; gives the output folder (None for a dry run). Without Ray the batches are made here, in turn."""
    if "://" in config.output:
        raise UsageError(f"{config.output}: object stores are not built yet, give a local path")
    samples = plan(config)
    good = [s for s in samples if s.error is None]
    if config.dry_run:
        print(f"plan: {len(good)} samples of {len({s.id for s in samples})} prompts ({len(samples) - len(good)} bad rows)")
        print(f"      model {config.model}, {config.sampling}, resolution {config.resolution}, to {config.output}/*.{config.format}")
        return None
    if not good:
        raise UsageError(f"no usable prompt: {samples[0].error}" if samples else f"{config.prompts}: no prompts in it")
    with bad_input():
        values = read_export_config(config.model)
        if values["kind"] != "car":
            raise ValueError(f"{config.model}: holds a {values['kind']!r} model, not a generator (car)")
        if config.image is not None and values["model"]["image_encoder"] == NONE:
            raise ValueError(f"{config.model}: this generator was trained without images")
        model_hash = export_hash(config.model)
    output = Path(config.output).expanduser().resolve()
    for folder in (output, output / "samples"):
        folder.mkdir(parents=True, exist_ok=True)
    todo = [s for s in good if not is_done(output, s, identity(config, s, model_hash))]
    print(f"generate: {len(good)} samples, {len(good) - len(todo)} made before, {len(samples) - len(good)} bad rows", file=sys.stderr)
    started = time.perf_counter()
    def made() -> str:
        done = sum((read_record(output, s) or {}).get("identity") == identity(config, s, model_hash) for s in good)
        return f"{done} of {len(good)} samples are made ({output})"

    note = working_in(output, total=len(samples), unit="samples", flags=dataclasses.asdict(config))
    with note, on_disk(made), logged(cards.generation(config, output, model_hash), output) as outcome:
        _make(config, output, todo, model_hash, use_ray)
        rows = manifest_rows(config, output, samples, model_hash)
        write_atomic(output / "manifest.parquet", parquet_bytes(pa.Table.from_pylist(rows, schema=MANIFEST)))
        _finish(output, rows, len(todo), time.perf_counter() - started, outcome)
    return str(output)


# ---------------------------------------------------------------------------------------------------------------- plan


def plan(config: GenerateConfig) -> list[Sample]:
    """All samples in order; rows of a prompts file that cannot be used are samples with an `error`."""
    if config.prompts is None:
        with bad_input():
            path = None if config.image is None else Path(config.image).expanduser().resolve(strict=True)
            _check_utf8(text=config.text, image=config.image)
            return _repeat(_sample(config, "sample", config.text, config.image, path, config.seed, config.cfg), config.num)
    samples = [s for number, row in enumerate(read_prompts(config.prompts)) for s in _row_samples(config, number, row)]
    repeated = [name for name, count in Counter(s.name for s in samples if s.error is None).items() if count > 1]
    if repeated:
        raise UsageError(f"{config.prompts}: {repeated[0]!r} comes more than once (same id and seed)")
    return samples


def read_prompts(path: str) -> Iterator[dict[str, Any]]:
    """Rows of a prompts file; a line that is no JSON object comes as {'_error': reason}."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise UsageError(f"{path}: no such file")
    if file.suffix == ".parquet":
        try:
            yield from pq.read_table(file).to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            raise UsageError(f"{path}: not a readable parquet file: {one_line(error)}") from error
        return
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # JSON strings may hold the other line ends that splitlines knows
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text: {error}") from error
    for line in filter(str.strip, lines):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            row = {"_error": f"not JSON: {error}"}
        yield row if isinstance(row, dict) else {"_error": f"not a JSON object: {line[:60]}"}


def _row_samples(config: GenerateConfig, number: int, row: dict[str, Any]) -> list[Sample]:
    """The samples of one row, or one failed sample that says what is wrong with it."""
    object_id, seed = f"prompt-{number:05d}", config.seed
    try:
        if row.get("_error"):
            raise ValueError(row["_error"])
        object_id = str(object_id if row.get("id") in (None, "") else row["id"])
        text, image = row.get("text") or None, row.get("image") or None
        if not all(isinstance(v, str) for v in (text or "", image or "")):
            raise ValueError("text and image must be strings")
        _check_utf8(id=object_id, text=text, image=image)
        seed = _integer(row, "seed", config.seed, 0, 2**62)
        count = _integer(row, "n", config.num, 1, MAX_NUM)
        cfg = config.cfg if row.get("cfg") is None else float(row["cfg"])
        dataclasses.replace(config.sampling, cfg=cfg)
        if text is None and image is None:
            raise ValueError("neither text nor image")
        path = None if image is None else inside_folder(Path(config.prompts or "").expanduser().parent, image)
        return _repeat(_sample(config, object_id, text, image, path, seed, cfg), count)
    except (ValueError, TypeError, OverflowError, OSError) as error:
        shown = {name: printable(str(row.get(name) or "")) for name in ("text", "image")}
        return [Sample(id=printable(object_id), **shown, seed=seed, cfg=config.cfg, error=f"bad-prompt: {printable(one_line(error))}")]


def _check_utf8(**values: str | None) -> None:
    """A ValueError for text that no file can hold: JSON and command lines can bring half of a surrogate pair."""
    for name, value in values.items():
        if value is not None and printable(value) != value:
            raise ValueError(f"{name} is not valid Unicode: {printable(value)!r}")


def printable(text: str) -> str:
    """The text with what UTF-8 cannot encode written out."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def _integer(row: dict[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = default if row.get(name) is None else row[name]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, got {value!r}")
    return value


def inside_folder(folder: Path, image: str) -> Path:
    """The file that `image` names relative to `folder`; a ValueError if it is missing or lies outside, links included."""
    folder = folder.resolve()
    path = (folder / image).resolve()
    if not path.is_relative_to(folder):
        raise ValueError(f"image {image!r} leaves the folder of the prompts")
    if not path.is_file():
        raise ValueError(f"image {image!r} is missing")
    return path


def _sample(config: GenerateConfig, object_id: str, text: str | None, image: str | None, path: Path | None, seed: int, cfg: float) -> Sample:
    digest = None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()
    return Sample(id=object_id, text=text, image=image, image_path=path and str(path), image_sha256=digest, seed=seed, cfg=cfg)


def _repeat(sample: Sample, count: int) -> list[Sample]:
    return [dataclasses.replace(sample, seed=sample.seed + i) for i in range(count)]


def identity(config: GenerateConfig, sample: Sample, model_hash: str) -> str:
    """sha256 of all that fixes a sample's mesh."""
    values = {"prompt": [sample.text, sample.image_sha256], "seed": sample.seed, "model": model_hash, "resolution": config.resolution,
              "format": config.format, "sampling": dataclasses.asdict(dataclasses.replace(config.sampling, cfg=sample.cfg))}  # fmt: skip
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


# ---------------------------------------------------------------------------------------------------------------- work


def _make(config: GenerateConfig, output: Path, todo: list[Sample], model_hash: str, use_ray: bool) -> None:
    if not todo:
        return
    model = str(Path(config.model).resolve())
    arguments = (dataclasses.asdict(config) | {"output": str(output), "model": model}, model_hash)
    tokens = sum(read_export_config(model)["tokenizer"]["scales"])
    with Progress("generate", len(todo), "samples", tokens_per_unit=tokens) as progress:
        done = failed = 0
        for row in _made_on_ray(config, todo, arguments) if use_ray else _made_here(todo, arguments):
            done, failed = done + int(row["made"]), failed + int(row["failed"])
            progress.show(done, failed=failed)


def _made_here(todo: list[Sample], arguments: tuple[dict[str, Any], str]) -> Iterator[dict[str, int]]:
    """Counts of each batch, made in this process."""
    maker = SampleMaker(*arguments)
    yield from (maker.make(batch) for batch in batches(todo, BATCH))


def _made_on_ray(config: GenerateConfig, todo: list[Sample], arguments: tuple[dict[str, Any], str]) -> Iterator[dict[str, int]]:
    """Counts of each batch, made by actors that hold the model."""
    import ray

    from pipelines import cluster

    cluster.connect(config.ray_address)
    request, room = cluster.actor_resources()
    workers = min(config.num_workers or room, room if "num_gpus" in request else MAX_NUM)
    size = max(1, min(BATCH, -(-len(todo) // workers)))
    items = [{"samples": json.dumps([dataclasses.asdict(s) for s in batch])} for batch in batches(todo, size)]
    workers = min(workers, len(items))
    # One block each from the start: tasks that split them would wait for ever for a CPU that an actor holds.
    made = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        SampleMaker, fn_constructor_args=arguments, batch_size=1, compute=ray.data.ActorPoolStrategy(size=workers), **request
    )
    yield from made.iter_rows()


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


# -------------------------------------------------------------------------------------------------------------- result


def manifest_rows(config: GenerateConfig, output: Path, samples: list[Sample], model_hash: str) -> list[dict[str, Any]]:
    """A row per sample, from the records."""
    settings = dataclasses.asdict(config.sampling)
    shared = {"resolution": config.resolution, "max_faces": config.max_faces, "model": config.model, "model_hash": model_hash}
    empty = {"file": "", "sha256": "", "vertices": 0, "faces": 0, "seconds": 0.0, "tokens_per_s": 0.0, "note": ""}
    rows = []
    for sample in samples:
        prompt = {"sample": sample.name, "id": sample.id, "text": sample.text or "", "image": sample.image or "", "seed": sample.seed}
        found = {"status": "failed", "error": sample.error}
        if sample.error is None:
            record = read_record(output, sample)
            if record is None or record["identity"] != identity(config, sample, model_hash):
                record = {"status": "failed", "error": "lost: the worker that had it left no record"}
            found = {name: value for name, value in record.items() if name != "identity"}
        rows.append(prompt | settings | shared | {"cfg": sample.cfg} | empty | found)
    return rows


def _finish(output: Path, rows: list[dict[str, Any]], made: int, seconds: float, outcome: Outcome) -> None:
    """Summary on stderr, what MLflow shows if anything was made now, and an error if nothing came out."""
    ok = [row for row in rows if row["status"] == "ok"]
    reasons = Counter(row["error"].split(":")[0] for row in rows if row["status"] != "ok")
    why = f" ({', '.join(f'{name} {count}' for name, count in reasons.items())})" if reasons else ""
    print(f"generate: {len(ok)} ok, {len(rows) - len(ok)} failed{why}, {seconds:.1f} s", file=sys.stderr)
    notes = [row for row in ok if row["note"]]
    if notes:
        print(f"generate: {len(notes)} of {len(ok)} meshes keep their faces, the first {notes[0]['sample']}: {notes[0]['note']}", file=sys.stderr)
    outcome.nothing_done = not made
    outcome.metrics |= {"samples_ok": float(len(ok)), "samples_not_ok": float(len(rows) - len(ok)), "samples_made": float(made), "seconds": seconds,
                        "seconds_per_sample": sum(r["seconds"] for r in ok) / max(1, len(ok)),
                        "tokens_per_s": sum(r["tokens_per_s"] for r in ok) / max(1, len(ok))}  # fmt: skip
    picture = _picture(output, ok)
    outcome.artifacts += [output / "manifest.parquet"] + ([picture] if picture else [])
    if not ok:
        raise RuntimeError(f"no sample came out; the first failed with {rows[0]['error']}")


def _picture(output: Path, ok: list[dict[str, Any]]) -> Path | None:
    """A contact sheet of the first meshes."""
    if not ok:
        return None
    import trimesh

    from g3pt.geometry.render import contact_sheet

    shown = []
    for row in ok[:16]:
        mesh = trimesh.load(output / row["file"], force="mesh", process=False)
        shown.append((mesh.vertices, mesh.faces, f"{row['text'] or row['image']} s{row['seed']}"[:40]))
    contact_sheet(shown, output / "samples.png", columns=4)
    return output / "samples.png"
