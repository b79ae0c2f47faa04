"""Decoding a mesh: seconds, field evaluations and peak memory, coarse-to-fine and dense, at 64 to 512 cells per side.

    python benchmarks/decoding.py --output decoding.json [--model RUN --data DATASET] [--resolutions 64,128,256,512]
        [--dense 256]

Each case runs in its own process, because peak resident memory is counted per process. The field is that of a sphere.
With --model and --data it is that of the dataset's first test object, decoded by the tokenizer. Dense decoding is
measured up to --dense cells.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402

from g3pt.geometry.cleanup import clean  # noqa: E402
from g3pt.geometry.isosurface import default_coarse, extract  # noqa: E402

Field = Callable[[np.ndarray], np.ndarray]


def sphere(points: np.ndarray) -> np.ndarray:
    """Field of a sphere of radius 0.6, off centre."""
    return np.float32(0.6) - np.linalg.norm(points - np.array([0.1, 0.0, -0.2], np.float32), axis=1)


def decoded_object(model: str, data: str) -> tuple[Field, int]:
    """The field of the first test object, and the number of points per call that suits its device."""
    import torch

    from g3pt.data import datasets, reading
    from g3pt.models import decoding
    from g3pt.models.encoding import encode, encoded_columns
    from g3pt.models.tokenizer import CVQ
    from g3pt.training.exports import find_export
    from pipelines.cluster.session import torch_device

    torch.set_num_threads(1)
    tokenizer = CVQ.from_pretrained(find_export(model)).to(torch_device())
    row = next(reading.read_rows(datasets.open_dataset(data), encoded_columns(tokenizer.config), "test"))
    codes_S = torch.from_numpy(encode(tokenizer, [row])).to(torch_device())
    with torch.inference_mode():
        latents = tokenizer.decode_latents(codes_S)
    chunk = decoding.CHUNK_GPU if latents.is_cuda else decoding.CHUNK_CPU
    return lambda points: decoding.logits(tokenizer, latents, points), chunk


def measure(flags: argparse.Namespace, resolution: int, coarse: int) -> dict[str, Any]:
    """Measure one case in this process."""
    field, chunk = decoded_object(flags.model, flags.data) if flags.model else (sphere, 65536)
    evaluations, field_seconds = 0, 0.0

    def counted(points: np.ndarray) -> np.ndarray:
        nonlocal evaluations, field_seconds
        begun = time.perf_counter()
        values = field(points)
        evaluations, field_seconds = evaluations + len(points), field_seconds + time.perf_counter() - begun
        return values

    clean(*extract(counted, 32, 32, chunk=chunk))  # a first call imports and compiles
    evaluations, field_seconds = 0, 0.0
    before, begun, cpu = _peak_mb(), time.perf_counter(), time.process_time()
    vertices, faces = extract(counted, resolution, coarse, chunk=chunk)
    extracted = time.perf_counter()
    kept = clean(vertices, faces)
    return {
        "resolution": resolution,
        "coarse": coarse,
        "seconds": round(time.perf_counter() - begun, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
        "field_seconds": round(field_seconds, 3),
        "clean_seconds": round(time.perf_counter() - extracted, 3),
        "evaluations": evaluations,
        "share_of_dense": evaluations / (resolution + 1) ** 3,
        "peak_mb": round(_peak_mb() - before, 1),
        "vertices": len(vertices),
        "faces_kept": len(kept[1]),
    }


def _peak_mb() -> float:
    """Peak resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def hardware() -> dict[str, Any]:
    """The hardware that the figures were measured on."""
    import torch

    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": names[0] if names else "unknown",
        "cores": os.cpu_count(),
        "gpu": gpu,
        "torch": torch.__version__,
        "load": os.getloadavg(),
    }


def main() -> None:
    """Measure all cases; print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="")
    parser.add_argument("--model", default="")
    parser.add_argument("--data", default="")
    parser.add_argument("--resolutions", default="64,128,256,512")
    parser.add_argument("--dense", type=int, default=256)
    parser.add_argument("--case", default="", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if bool(flags.model) != bool(flags.data):
        parser.error("--model and --data go together")
    if flags.case:
        print(json.dumps(measure(flags, *map(int, flags.case.split(",")))))
        return
    cases = [
        (r, c)
        for r in map(int, flags.resolutions.split(","))
        for c in dict.fromkeys((default_coarse(r), r))
        if c != r or r <= flags.dense
    ]
    print(
        f"{'cells':>6} {'from':>5} {'s':>8} {'cpu s':>8} {'field s':>8} {'clean s':>8} {'evaluations':>12} "
        f"{'of dense':>9} {'peak MB':>8} {'vertices':>9}"
    )
    rows = []
    for resolution, coarse in cases:
        command = [
            sys.executable,
            __file__,
            "--model",
            flags.model,
            "--data",
            flags.data,
            "--case",
            f"{resolution},{coarse}",
        ]
        found = json.loads(
            subprocess.run(
                command, check=True, capture_output=True, text=True, encoding="utf-8", errors="replace"
            ).stdout.splitlines()[-1]
        )
        rows.append(found)
        print(f"{resolution:6d} {coarse:5d} {found['seconds']:8.2f} {found['cpu_seconds']:8.2f} "
              f"{found['field_seconds']:8.2f} {found['clean_seconds']:8.2f} {found['evaluations']:12,d} "
              f"{found['share_of_dense']:9.2%} {found['peak_mb']:8.0f} {found['vertices']:9,d}",
              flush=True)  # fmt: skip
    report = {"field": flags.model or "sphere", "hardware": hardware(), "rows": rows}
    if flags.output:
        Path(flags.output).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"result: {flags.output}")


if __name__ == "__main__":
    main()
