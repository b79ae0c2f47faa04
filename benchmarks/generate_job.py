"""A batch job of many prompts: rates, CPU seconds, memory, start-up; a kill and restart; the scan of 10^5 records.

    python benchmarks/generate_job.py --work FOLDER [--model RUN] [--prompts 1000] [--num-workers 2]
        [--resolution 32] [--kill-at 500]
                                      [--scan 100000] [--output generate_job.json]

FOLDER is scratch space. Output of an earlier call is reused, so a killed benchmark goes on; its rates are then those of
the rest. Without --model, 64 shapes are preprocessed and a nano generator is trained on the released tokenizer's codes
for 100 steps. Its meshes are bad but cost as much as good ones. The job that is killed with SIGKILL has its own new
folder and is compared with the uninterrupted one. Commands run in their own processes. Their wall times are upper
bounds on a shared machine; CPU seconds and memory include their Ray. The scan is what a job does before any work: the
plan, and each sample's identity, record and mesh hash. It is measured in this process in CPU seconds, with meshes of 1
kB; hashing real meshes takes longer by their size over the rate of sha256.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyarrow.parquet as pq

from benchmarks import machine
from g3pt.training.exports import export_hash, read_export_config
from pipelines.generate.config import GenerateConfig
from pipelines.generate.job import manifest_rows
from pipelines.generate.prompts import plan
from pipelines.generate.sample_records import SampleFolder, identity

REPOSITORY = Path(__file__).resolve().parents[1]
TOKENIZER = REPOSITORY / "weights" / "g3pt-nano-cvq"
WORDS = (
    ("a low", "a tall", "a wide", "a narrow", "a small"),
    ("chair", "table", "car", "boat", "lamp", "cup", "plane", "bed"),
)
MESH_BYTES = 1024
ORPHANS_S = 20  # workers of a killed job finish their item and exit within this time


@dataclass(frozen=True, kw_only=True)
class Done:
    """A finished command."""

    path: str  # the last line on stdout
    said: str  # on stderr
    seconds: float
    cpu_s: float  # with those of its Ray
    peak_mb: float


def command(name: str, flags: dict[str, object]) -> list[str]:
    """`python jobs/<name>.py --flag value ...`."""
    pairs = [part for flag, value in flags.items() for part in (f"--{flag.replace('_', '-')}", str(value))]
    return [sys.executable, str(REPOSITORY / "jobs" / f"{name}.py"), *pairs]


def job(name: str, **flags: object) -> Done:
    """Run a command to its end; it must succeed."""
    began = time.time()
    process = subprocess.Popen(
        command(name, flags),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    watch = machine.Watch(process.pid)
    out, err = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"jobs/{name}.py failed:\n{err[-2000:]}")
    return Done(
        path=out.splitlines()[-1].removeprefix("result: "),
        said=err,
        seconds=time.time() - began,
        cpu_s=watch.cpu_s,
        peak_mb=watch.peak_mb,
    )


def small_model(work: Path) -> str:
    """Train a nano generator for a few steps and return its export."""
    data = job("preprocess", source="shapes", limit=64, resolution=32, num_shards=2, output=work / "shapes").path
    return job("train_car", data=data, tokenizer=TOKENIZER, output=work / "runs", preset="nano", steps=100).path


def write_prompts(file: Path, count: int) -> Path:
    """Write prompts from the captions of procedural shapes."""
    adjectives, nouns = WORDS
    rows = (
        {"id": f"p{k:06d}", "text": f"{adjectives[k % 5]} {nouns[k // 5 % 8]}, number {k}", "seed": k}
        for k in range(count)
    )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def whole_job(flags: argparse.Namespace, model: str, work: Path) -> dict[str, Any]:
    """Run the job, then the same command on the finished folder."""
    given = job_flags(flags, model, work, f"job-{flags.prompts}")
    output, began = given["output"], time.time()
    first = job("generate", **given)
    before = int(re.search(r"(\d+) made before", first.said)[1])
    made = sorted(file.stat().st_mtime for file in (output / "samples").rglob("*.json"))[before:]
    rows = pq.read_table(output / "manifest.parquet").to_pylist()
    ok = [row for row in rows if row["status"] == "ok"]
    tokens = sum(read_export_config(model)["tokenizer"]["scales"])
    parts = {
        name: sum(row[name] or 0 for row in rows) / len(rows)
        for name in ("seconds_sampling", "seconds_decoding", "seconds_writing")
    }
    again = job("generate", **given)
    start_up, work_s = made[0] - began, made[-1] - made[0]
    return {"prompts": len(rows), "ok": len(ok), "made_before": before, "seconds": first.seconds, "cpu_s": first.cpu_s,
            "peak_mb": first.peak_mb,
            "start_up_s": start_up, "work_s": work_s, "end_s": first.seconds - start_up - work_s,
            "objects_per_s": (len(made) - 1) / work_s, "tokens_per_s": (len(made) - 1) * tokens / work_s,
            "start_up_share": start_up / first.seconds,
            "again_s": again.seconds, "again_cpu_s": again.cpu_s, "watertight": sum(row["watertight"] for row in ok),
            "mean_faces": sum(row["faces"] for row in ok) / len(ok),
            "mesh_kb": sum((output / row["file"]).stat().st_size for row in ok) / len(ok) / 1024, **parts}  # fmt: skip


def job_flags(flags: argparse.Namespace, model: str, work: Path, folder: str) -> dict[str, Any]:
    """Flags of the job for an output folder below `work`."""
    prompts = write_prompts(work / "prompts.jsonl", flags.prompts)
    return {
        "model": model,
        "prompts": prompts,
        "output": work / folder,
        "num_workers": flags.num_workers,
        "resolution": flags.resolution,
    }


def killed_job(flags: argparse.Namespace, model: str, work: Path) -> dict[str, Any]:
    """Kill the job with SIGKILL after `--kill-at` samples and start it again: samples made twice
    and files that differ.
    """
    given = job_flags(flags, model, work, f"killed-{flags.prompts}")
    output, whole = given["output"], work / f"job-{flags.prompts}"
    shutil.rmtree(output, ignore_errors=True)
    process = subprocess.Popen(command("generate", given), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(found := list((output / "samples").rglob("*.json"))) < flags.kill_at:
        if process.poll() is not None:
            raise SystemExit(f"the job ended with {len(found)} of {flags.prompts} samples, before it was killed")
        time.sleep(0.05)
    process.kill()
    process.wait()
    time.sleep(ORPHANS_S)
    kept = {file: file.stat().st_mtime_ns for file in (output / "samples").rglob("*.json")}
    resumed = job("generate", **given)
    ours, theirs = (
        {
            row["sample"]: (row["status"], row["sha256"])
            for row in pq.read_table(folder / "manifest.parquet").to_pylist()
        }
        for folder in (output, whole)
    )
    ours_files, theirs_files = (
        {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.glb")}
        for folder in (output, whole)
    )
    return {"killed_at": len(found), "made_at_restart": len(kept),
            "made_twice": sum(file.stat().st_mtime_ns != at for file, at in kept.items()),
            "seconds": resumed.seconds, "cpu_s": resumed.cpu_s, "rows": len(ours),
            "rows_that_differ": sum(ours.get(name) != row for name, row in theirs.items()),
            "files": len(ours_files), "files_that_differ": sum(ours_files.get(name) != data for name,
                                                               data in theirs_files.items()),
            "files_more": len(set(ours_files) - set(theirs_files))}  # fmt: skip


def scan(count: int, model: str, work: Path) -> dict[str, Any]:
    """Write a finished folder of this many tiny meshes, and measure what a restart and the manifest read of it."""
    config = GenerateConfig(
        model=model,
        output=str(work / f"scan-{count}"),
        prompts=str(write_prompts(work / f"prompts-{count}.jsonl", count)),
    )
    model_hash, mesh = export_hash(model), bytes(MESH_BYTES)
    folder, found = SampleFolder.begin(Path(config.output), count), {"samples": count}
    began = time.process_time(), time.time()
    samples = plan(config)
    found["plan_cpu_s"] = time.process_time() - began[0]
    if not folder.record_file(samples[-1]).is_file():
        record = {
            "status": "ok",
            "error": "",
            "sha256": hashlib.sha256(mesh).hexdigest(),
            "faces": 2,
            "vertices": 4,
            "seconds": 0.1,
            "note": "",
            "tokens_per_s": 1.0,
        }
        for sample in samples:
            file = folder.mesh_file(sample, "glb")
            (folder.output / file).write_bytes(mesh)
            folder.record_file(sample).write_text(
                json.dumps({"identity": identity(config, sample, model_hash), "file": file, **record}),
                encoding="utf-8",
            )
    began = time.process_time(), time.time()
    assert all(folder.is_done(sample, identity(config, sample, model_hash)) for sample in samples)
    found |= {"scan_cpu_s": time.process_time() - began[0], "scan_s": time.time() - began[1]}
    began = time.process_time(), time.time()
    manifest_rows(config, folder, samples, model_hash)
    return found | {"manifest_cpu_s": time.process_time() - began[0]}


def main() -> None:
    """Measure the job and the scan; print a table of each and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True)
    parser.add_argument("--model", default="")
    parser.add_argument("--prompts", type=int, default=1000, help="0 leaves the job out")
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument(
        "--kill-at", type=int, default=500, help="samples made when the second job is killed; 0 leaves it out"
    )
    parser.add_argument("--scan", type=int, default=100_000, help="0 leaves the scan out")
    parser.add_argument("--output", default="")
    flags = parser.parse_args()
    work = Path(flags.work).resolve()
    work.mkdir(parents=True, exist_ok=True)
    model = str(Path(flags.model).resolve()) if flags.model else small_model(work)
    report: dict[str, Any] = {
        "machine": machine.about("torch", "ray"),
        "model": model,
        "resolution": flags.resolution,
        "num_workers": flags.num_workers,
    }
    parts = {"scan": (flags.scan, lambda: scan(flags.scan, model, work)),
             "job": (flags.prompts, lambda: whole_job(flags, model, work)),
             "killed": (flags.prompts and flags.kill_at, lambda: killed_job(flags, model, work))}  # fmt: skip
    for name, (wanted, part) in parts.items():
        if wanted:
            report[name] = part()
            print(
                f"{name}:", *(f"  {key:18} {value:,.4g}" for key, value in report[name].items()), sep="\n", flush=True
            )
    if flags.output:
        Path(flags.output).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"result: {flags.output}")


if __name__ == "__main__":
    main()
