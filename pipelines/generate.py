"""Prompts to meshes: a Ray Data batch job that writes one mesh and one small record per sample, and a manifest at the end.

Batches of samples go to a pool of actors that hold the model; a run started again skips the samples that are done, so
nothing is made twice. A bad prompt is a failed row of `manifest.parquet`, never the end of the job.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from g3pt.checkpoint import export_hash, read_export_config
from g3pt.conditions import NONE
from g3pt.datasets import parquet_bytes
from g3pt.storage import write_atomic
from pipelines import cards
from pipelines.errors import UsageError, bad_input
from pipelines.failures import on_disk
from pipelines.generate_config import MAX_NUM, GenerateConfig
from pipelines.notes import working_in
from pipelines.progress import Progress
from pipelines.prompts import Sample, plan
from pipelines.sample_maker import BATCH, SampleMaker, batches, identity, is_done, read_record
from pipelines.tracked import Outcome, logged

MANIFEST = pa.schema(
    [("sample", pa.string()), ("id", pa.string()), ("text", pa.string()), ("image", pa.string()), ("seed", pa.int64())]
    + [("cfg", pa.float64()), ("cfg_schedule", pa.string()), ("top_k", pa.int64()), ("top_p", pa.float64())]
    + [("temperature", pa.float64()), ("resolution", pa.int64()), ("max_faces", pa.int64()), ("model", pa.string()), ("model_hash", pa.string())]
    + [("file", pa.string()), ("sha256", pa.string()), ("vertices", pa.int64()), ("faces", pa.int64())]
    + [("seconds", pa.float64()), ("tokens_per_s", pa.float64()), ("status", pa.string()), ("error", pa.string())]
    + [("note", pa.string())]  # of a good mesh: why it has more faces than asked for
)


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


def manifest_rows(config: GenerateConfig, output: Path, samples: list[Sample], model_hash: str) -> list[dict[str, Any]]:
    """A row per sample, from the records."""
    settings = config.sampling.as_dict()
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
