"""Generation, prompts to meshes: a batch job that writes one mesh and one small record per sample, and a manifest at
the end.

Batches of samples go to a pool of actors that hold the model; if these have GPUs, meshes are made of what they decode
by tasks on CPUs (`pipelines.generate.sample_maker`). A job that is started again skips finished samples. An
invalid prompt is recorded as failed in `manifest.parquet`, and the job continues.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa

from g3pt.config import CVQConfig, from_dict
from g3pt.data.datasets import parquet_bytes
from g3pt.data.storage import PARALLEL_READS, Location, RemotePath, is_remote, location, write_atomic
from g3pt.models.encoders import NONE
from g3pt.models.sampling import SampleConfig
from g3pt.training.exports import check_weights, export_hash, find_export, read_export_config
from pipelines.cli.errors import UsageError, bad_input
from pipelines.cli.failures import on_disk
from pipelines.cli.main import absolute
from pipelines.cli.progress import Progress
from pipelines.cluster.pieces import Lost, halves
from pipelines.cluster.pool import Pool, model_memory, run_items
from pipelines.cluster.storage import check_arrived, join
from pipelines.generate.config import GenerateConfig, naming_flags
from pipelines.generate.prompts import Sample, keep_pictures, output_folder, plan, reasons
from pipelines.generate.sample_maker import SampleMaker, batch_size, batches, record_failed, write_sample
from pipelines.generate.sample_records import SampleFolder, identity, job_settings
from pipelines.generate.source import Sources
from pipelines.runs.locks import alone_in
from pipelines.runs.notes import working_in
from pipelines.runs.settings import changes, check_unchanged
from pipelines.tracking import cards
from pipelines.tracking.cards import Card, DatasetInput, code
from pipelines.tracking.tracked import Outcome, WritePage, logged

Records = dict[Sample, dict[str, Any] | None]
READERS = 8  # threads on a local folder: they wait for the file system, and hashing releases the interpreter
MANIFEST = pa.schema(
    [("sample", pa.string()), ("id", pa.string()), ("text", pa.string()), ("image", pa.string()), ("seed", pa.int64())]
    + [
        ("cfg", pa.float64()),
        ("cfg_text", pa.float64()),
        ("cfg_image", pa.float64()),
        ("cfg_schedule", pa.string()),
        ("top_k", pa.int64()),
        ("top_p", pa.float64()),
    ]
    + [
        ("temperature", pa.float64()),
        ("sampling", pa.string()),
        ("resolution", pa.int64()),
        ("max_faces", pa.int64()),
        ("model", pa.string()),
        ("model_hash", pa.string()),
    ]
    + [
        ("file", pa.string()),
        ("sha256", pa.string()),
        ("vertices", pa.int64()),
        ("faces", pa.int64()),
        ("watertight", pa.bool_()),
    ]
    + [
        (name, pa.float64())
        for name in ("seconds", "seconds_sampling", "seconds_decoding", "seconds_writing", "tokens_per_s")
    ]
    + [("status", pa.string()), ("error", pa.string())]
    + [("mesh", pa.string()), ("keep_scales", pa.int64())]  # of a variation
    + [("note", pa.string())]  # why a mesh has more faces than requested, or its picture was not cut out
)


def generate(config: GenerateConfig, *, use_ray: bool = True, page: WritePage | None = None) -> str | None:
    """Run the job; return the output folder, or None for a dry run.

    Without Ray the batches are made in this process, in turn.
    """
    with bad_input("--output "):
        place = location(config.output)
        if isinstance(place, RemotePath) and not config.dry_run:
            place.check_store()
    if config.dry_run:
        _say_plan(config, plan(config))
        return None
    model_hash, num_scales = _known_model(config)
    samples, output = plan(config, num_scales), output_folder(config)
    good = {sample: identity(config, sample, model_hash) for sample in samples if sample.error is None}
    if not good:
        raise UsageError(f"no usable prompt: {samples[0].error}" if samples else f"{config.prompts}: no prompts in it")
    with alone_in(output):
        return _generate(config, output, samples, good, model_hash, use_ray, page)


def _generate(
    config: GenerateConfig,
    output: Location,
    samples: list[Sample],
    good: dict[Sample, str],
    model_hash: str,
    use_ray: bool,
    page: WritePage | None,
) -> str:
    """The body of `generate`; `good` are the samples with valid prompts, with their identities."""
    folder = SampleFolder.of(output)
    known = in_threads(output, folder.read, good)
    check_settings(config, folder, good, known)
    todo = not_done(folder, good, known, verify=config.verify)
    print(
        f"generate: {len(good)} samples, {len(good) - len(todo)} made before, {len(samples) - len(good)} bad rows",
        *reasons(samples),
        sep="\n  ",
        file=sys.stderr,
    )
    started = time.perf_counter()

    def made() -> str:
        done = sum(folder.read_of(sample, wanted) is not None for sample, wanted in good.items())
        return f"{done} of {len(good)} samples are made ({output})"

    if config.from_mesh is not None and todo:
        _convert_source(config, folder, todo[0])
    if use_ray and todo:
        model = [] if is_remote(config.model) else [find_export(config.model) / "config.json"]
        join(config.ray_address, writes=[str(output)], reads=model)
    folder = SampleFolder.begin(output, len(samples))
    note = working_in(output, total=len(samples), unit="samples", flags=dataclasses.asdict(config))
    with note, on_disk(made), logged(card(config, output, model_hash), output, page) as outcome:
        keep_pictures(config, todo)
        _make(config, output, todo, model_hash, use_ray)
        known |= in_threads(output, folder.read, todo)
        rows = manifest_rows(config, samples, model_hash, known)
        write_atomic(output / "manifest.parquet", parquet_bytes(pa.Table.from_pylist(rows, schema=MANIFEST)))
        _finish(output, rows, len(todo), time.perf_counter() - started, outcome)
    return str(output)


def _convert_source(config: GenerateConfig, folder: SampleFolder, sample: Sample) -> None:
    """Convert the mesh of --from-mesh before any worker starts. UsageError if it has no solid."""
    values = read_export_config(config.model)["tokenizer"]
    sources = Sources(folder=folder.output, tokenizer=from_dict(CVQConfig, values))
    try:
        sources.points(sample.mesh_path, sample.mesh_sha256)
    except ValueError as error:
        raise UsageError(f"--from-mesh {config.from_mesh}: {error}") from error
    finally:
        sources.close()


def not_done(folder: SampleFolder, good: dict[Sample, str], known: Records, *, verify: bool) -> list[Sample]:
    """The samples to make, in order; `known` are their records."""
    done = in_threads(folder.output, lambda sample: folder.holds(known[sample], good[sample], verify=verify), good)
    return [sample for sample in good if not done[sample]]


def in_threads(output: Location, function: Callable[[Sample], Any], samples: Iterable[Sample]) -> dict[Sample, Any]:
    """`function` of each sample, several at a time."""
    samples = list(samples)
    with ThreadPoolExecutor(PARALLEL_READS if isinstance(output, RemotePath) else READERS) as readers:
        return dict(zip(samples, readers.map(function, samples), strict=True))


def check_settings(config: GenerateConfig, folder: SampleFolder, good: dict[Sample, str], known: Records) -> None:
    """UsageError if samples were made with other settings, unless --replace is given.

    A sample whose prompt alone has changed is made again, as is one of a job that did not record its settings.
    """
    wanted = job_settings(config)
    for sample, identity_ in good.items():
        found = known[sample] or {}
        if found.get("identity") != identity_ and folder.holds(found, found.get("identity", "")):
            check_unchanged(
                f"--output {folder.output}: {sample.name}",
                changes(found.get("settings", {}), wanted),
                replace=config.replace,
            )


def _say_plan(config: GenerateConfig, samples: list[Sample]) -> None:
    bad = sum(sample.error is not None for sample in samples)
    print(f"plan: {len(samples) - bad} samples of {len({s.id for s in samples})} prompts ({bad} bad rows)")
    print(
        f"      model {config.model}, {config.sampling}, resolution {config.resolution}, {config.format} meshes to "
        f"{config.output}"
    )
    for line in reasons(samples):
        print(f"      {line}")


def _known_model(config: GenerateConfig) -> tuple[str, int]:
    """(hash of the export, number of scales). UsageError for a model that cannot handle the prompts."""
    with bad_input():
        values = read_export_config(config.model)
        if values["kind"] != "car":
            raise ValueError(f"{config.model}: contains a {values['kind']!r} model, not a generator (car)")
        if config.image is not None and values["model"]["image_encoder"] == NONE:
            raise ValueError(f"{config.model}: this generator was trained without images")
        num_scales = len(values["tokenizer"]["scales"])
        with naming_flags():
            config.sampling.check_scales(num_scales)
        check_weights(config.model)
        return export_hash(config.model), num_scales


def _make(config: GenerateConfig, output: Location, todo: list[Sample], model_hash: str, use_ray: bool) -> None:
    if not todo:
        return
    model = absolute(str(config.model))
    config = dataclasses.replace(config, output=str(output), model=model)
    arguments = (dataclasses.asdict(config), model_hash)
    tokens = sum(read_export_config(model)["tokenizer"]["scales"])
    pool = Pool(
        num_workers=config.num_workers if use_ray else 0,
        ray_address=config.ray_address,
        memory=model_memory(find_export(model)),
    )
    with Progress("generate", len(todo), "samples", tokens_per_unit=tokens) as progress:
        size = batch_size(len(todo), pool.num_actors(len(todo)))
        done = failed = 0
        write = functools.partial(write_sample, config, model_hash)
        work = list(batches(todo, size))
        for _, made in run_items(SampleMaker, arguments, work, pool, "generate", split=halves, finish=write):
            if isinstance(made, Lost):
                record_failed(config, model_hash, made.item, made.reason)
                done, failed = done + len(made.item), failed + len(made.item)
            else:
                for one in made:
                    check_arrived(one["files"], one["node"])
                done, failed = done + len(made), failed + sum(one["failed"] for one in made)
            progress.show(done, failed=failed)


def manifest_rows(
    config: GenerateConfig, samples: list[Sample], model_hash: str, known: Records
) -> list[dict[str, Any]]:
    """The manifest's rows, one per sample, from the records of those with a valid prompt."""
    shared = {
        "resolution": config.resolution,
        "max_faces": config.max_faces,
        "model": config.model,
        "model_hash": model_hash,
    }
    empty = {"file": "", "sha256": "", "vertices": 0, "faces": 0, "seconds": 0.0, "tokens_per_s": 0.0, "note": ""}
    rows = []
    for sample in samples:
        found = {"status": "failed", "error": sample.error}
        if sample.error is None:
            record = known[sample]
            is_its = record is not None and record.get("identity") == identity(config, sample, model_hash)
            found = record if is_its else {"status": "failed", "error": "lost: its worker left no record"}
        prompt = {
            "sample": sample.name,
            "id": sample.id,
            "text": sample.text or "",
            "image": sample.image or "",
            "seed": sample.seed,
            "mesh": sample.mesh or "",
            "keep_scales": sample.keep_scales if sample.mesh else None,
        }
        rows.append(prompt | _settings_columns(sample.settings(config)) | shared | empty | found)
    return rows


def _settings_columns(settings: SampleConfig) -> dict[str, Any]:
    """The settings as columns of the manifest: with the guidance of text and of image, and null if there is one number
    per scale.
    """
    values = dataclasses.asdict(settings)
    values |= {name: settings.cfg for name in ("cfg_text", "cfg_image") if values[name] is None}
    return {name: None if isinstance(value, tuple) else value for name, value in values.items()} | {
        "sampling": json.dumps(settings.as_dict())
    }


def card(config: GenerateConfig, output: Location, model_hash: str) -> Card:
    """What MLflow shows of the job."""
    names = ("num", "seed", "cfg", "cfg_text", "cfg_image", "cfg_schedule", "top_k", "top_p", "temperature")
    names += ("resolution", "max_faces", "format", "keep_scales")
    model, dataset = cards.model_name(config.model), None
    files = (Path(file).name for file in (config.image, config.from_mesh) if file)
    prompts = " + ".join(filter(None, (config.text, *files)))
    if config.prompts:
        path = Path(config.prompts).resolve()
        dataset = DatasetInput(name=path.name, fingerprint=cards.file_hash(path), path=str(path), context="prompts")
        prompts = path.name
    return Card(
        stage="generate",
        name=f"{output.name}-{model}",
        folder=output,
        dataset=dataset,
        models=cards.models(model=config.model),
        params={"model": model, "prompts": prompts, **cards.given(config, names)},
        tags={"g3pt.model_hash": model_hash},
        title=f"**Meshes** made by {code(model)} from {code(prompts)}.",
    )


def _finish(output: Location, rows: list[dict[str, Any]], made: int, seconds: float, outcome: Outcome) -> None:
    """Print a summary on stderr and fill in what MLflow shows. RuntimeError if no sample was successful."""
    ok = [row for row in rows if row["status"] == "ok"]
    reasons = Counter(row["error"].split(":")[0] for row in rows if row["status"] != "ok")
    why = f" ({', '.join(f'{name} {count}' for name, count in reasons.items())})" if reasons else ""
    print(f"generate: {len(ok)} ok, {len(rows) - len(ok)} failed{why}, {seconds:.1f} s", file=sys.stderr)
    for note, count in Counter(note for row in ok for note in row["note"].split("; ") if note).items():
        first = next(row["sample"] for row in ok if note in row["note"])
        print(f"generate: {note} ({count} of {len(ok)}, the first {first})", file=sys.stderr)
    outcome.nothing_done = not made
    outcome.metrics |= {"samples_ok": float(len(ok)), "samples_not_ok": float(len(rows) - len(ok)),
                        "samples_made": float(made), "seconds": seconds,
                        "seconds_per_sample": sum(r["seconds"] for r in ok) / max(1, len(ok)),
                        "tokens_per_s": sum(r["tokens_per_s"] for r in ok) / max(1, len(ok))}  # fmt: skip
    picture = _picture(output, ok)
    outcome.artifacts += [output / "manifest.parquet"] + ([picture] if picture else [])
    if not ok:
        raise RuntimeError(f"all samples failed, the first with {rows[0]['error']}")


def _picture(output: Location, ok: list[dict[str, Any]]) -> Path | None:
    """Draw a contact sheet of the first meshes; None if there are none, and for a bucket."""
    if not ok or isinstance(output, RemotePath):
        return None
    from g3pt.geometry.files import read_mesh
    from g3pt.geometry.render import contact_sheet

    shown = []
    for row in ok[:16]:
        shown.append(
            (*read_mesh(output / row["file"]), f"{row['text'] or row['image'] or row['mesh']} s{row['seed']}"[:40])
        )
    contact_sheet(shown, output / "samples.png", columns=4)
    return output / "samples.png"
