"""A folder with one finished output of each kind that jobs/status.py distinguishes, written in milliseconds."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from g3pt.data import datasets, derived, reading, records
from g3pt.training.exports import export_hash
from pipelines.derive.tokens import codes_table
from pipelines.runs.identity import stable_hash
from tests.pipelines.toy_data import TOY, toy_row, write_toy_dataset

STEPS, BATCH = 50, 4
CAR_STEPS = {"steps": STEPS, "batch_size": BATCH}


def write_everything(root: Path, export: Path) -> Path:
    """Write root/{data, runs/cvq-.., runs/car-.., study, meshes, car.json};
    all models share the toy tokenizer `export`.
    """
    data = write_toy_dataset(root / "data", count=14, num_shards=2)
    note(root / "data", f"python jobs/preprocess.py --output {root}/data", total=14, unit="objects")
    cvq = write_run(root / "runs" / "cvq-toy-s0-11111111", data, export)
    for index in data.shards:
        rows = list(reading.read_rows(data, ["id"], shards=[index]))
        codes_NS = np.zeros((len(rows), 3), np.uint16)
        derived.write_derived(
            data, f"tokens-{export_hash(cvq)[:8]}", index, codes_table([row["id"] for row in rows], codes_NS)
        )
    car = write_run(root / "runs" / "car-toy-s0-22222222", data, export, tokenizer=cvq)
    write_study(root / "study", data, export, cvq)
    write_generation(root / "meshes", car)
    write_evaluation(root / "car.json", car, data)
    return root


def write_run(run: Path, data: datasets.DatasetInfo, export: Path, tokenizer: Path | None = None) -> Path:
    """A finished run on `data`."""
    config: dict[str, Any] = {"train": CAR_STEPS, "dataset": data.fingerprint, "shards": stable_hash(data.shards)}
    paths = {"data": str(data.path)}
    if tokenizer is not None:
        config["tokenizer"], paths["tokenizer"] = export_hash(tokenizer), str(tokenizer)
    stage = "cvq" if tokenizer is None else "car"
    (run / "checkpoints").mkdir(parents=True)
    write(
        run / "config.json",
        {"stage": stage, "preset": "toy", "seed": 0, "name": run.name, "config": config, "paths": paths},
    )
    write_ledger(run, STEPS)
    shutil.copytree(export, run / "export")
    note(run, f"python jobs/train_{stage}.py --output {run.parent}", total=STEPS * BATCH, unit="samples")
    (run / "_SUCCESS").touch()
    return run


def write_ledger(run: Path, steps: int, interval_s: float = 1.0) -> None:
    """Write a ledger with a record every ten steps, 40 samples per second, the last one now."""
    made = [
        {
            "step": step * BATCH,
            "loss": 1.0,
            "samples_per_second": 40.0,
            "time": time.time() - (steps - step) / 10 * interval_s,
        }
        for step in range(10, steps + 1, 10)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in made))


def write_study(study: Path, data: datasets.DatasetInfo, export: Path, cvq: Path) -> Path:
    """A finished study of two runs."""
    names = ["car-5k-s0-33333333", "car-20k-s0-44444444"]
    for name in names:
        run = write_run(study / "runs" / name, data, export, tokenizer=cvq)
        (run / "command.json").unlink()  # a study notes its command once, for all of its runs
    write(study / "study.json", {"runs": [{"name": name} for name in names], "flags": {}})
    for name in ("points.csv", "fit.json", "curve.png", "_SUCCESS"):
        (study / name).touch()
    note(study, f"python jobs/scaling_sweep.py --output {study}", total=2, unit="runs", flags={"sizes": "5k,20k"})
    return study


def write_generation(folder: Path, model: Path, failed: int = 1) -> Path:
    """Four samples, `failed` of them without a mesh."""
    (folder / "samples").mkdir(parents=True)
    note(
        folder,
        f"python jobs/generate.py --output {folder}",
        total=4,
        unit="samples",
        flags={"prompts": None, "text": "a chair"},
    )
    rows = []
    for number in range(4):
        ok = number >= failed
        found = {
            "status": "ok" if ok else "failed",
            "error": "" if ok else "empty: no surface",
            "file": f"s{number}.glb" if ok else "",
        }
        write(folder / "samples" / f"s{number}.json", {"identity": "x", **found})
        if ok:
            (folder / f"s{number}.glb").touch()
        rows.append({**found, "model": str(model), "model_hash": export_hash(model)})
    pq.write_table(pa.Table.from_pylist(rows), folder / "manifest.parquet")
    return folder


def write_evaluation(file: Path, model: Path, data: datasets.DatasetInfo) -> Path:
    """Write the report of an evaluation, with keys in the order of pipelines.evaluate.job."""
    dataset = {
        "path": str(data.path),
        "fingerprint": data.fingerprint,
        "shards": stable_hash(data.shards),
        "split": "test",
    }
    flags = {
        "model": "car",
        "data": "data",
        "output": "car.json",
        "split": "test",
        "limit": 0,
        "num_samples": 16,
        "seed": 3,
    }
    found = {
        "kind": "car",
        "model": {"path": str(model / "export"), "export_sha256": export_hash(model)},
        "dataset": dataset,
        "flags": flags,
    }
    write(file, found | {"seconds": 1.0, "protocol": {}, "metrics": {}, "objects": [{}, {}, {}]})
    return file


def another_dataset(data: Path) -> datasets.DatasetInfo:
    """Replace the dataset by one of other objects."""
    return write_toy_dataset(data, count=15, num_shards=2)


def other_bytes(data: Path) -> None:
    """Write the first shard again with the same objects and other bytes."""
    info = datasets.open_dataset(data)
    rows = {
        i: sorted(
            (toy_row(n) for n in range(14) if records.shard_index(f"toy/{n:03d}", 2) == i), key=lambda row: row["id"]
        )
        for i in (0, 1)
    }
    rows[0] = [row | {"caption": "another caption"} for row in rows[0]]
    shards = {i: datasets.write_shard(data, i, rows[i], TOY, num_shards=2) for i in rows}
    datasets.write_dataset(data, TOY, info.settings, 2, shards)


def change_export(run: Path) -> None:
    """Replace the run's model by one whose weights have another hash."""
    with open(run / "export" / "model.safetensors", "ab") as file:
        file.write(b" ")


def note(folder: Path, command: str, **more: Any) -> None:
    """Write command.json as a process on another machine would have a second ago."""
    known = {
        "command": command,
        "working_dir": "/nowhere",
        "started": time.time() - 1,
        "host": "another-machine",
        "pid": 1,
    }
    write(folder / "command.json", known | more)


def write(file: Path, values: Any) -> None:
    """JSON with its keys in the order given."""
    file.write_text(json.dumps(values, indent=1))
