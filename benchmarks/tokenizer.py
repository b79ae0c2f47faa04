"""Speed of the tokenizer by preset: data, encoding, decoding, training; parts of a step; memory; utilisation.

    python benchmarks/tokenizer.py [--presets nano,micro] [--data DATASET] [--device auto] [--batch-size N] [--steps 10]
                                   [--precision fp32|bf16] [--compile] [--output tokenizer.json]

Needs only torch, numpy and pyarrow. Without --data the objects are balls, so no dataset is needed. Each call is timed
after a warm-up. The clock is wall time on a GPU, or on a CPU with several --threads, and CPU seconds with one thread,
because wall time says little on a shared machine. With --compile each block is compiled by itself: a whole compiled
model meets the limit of recompilations in its running statistics. `kernels` are those that one step launches on a GPU;
on a CPU, the operators it calls. Utilisation is the operations per second of a joint training step, as
g3pt/training/flops.py counts them, divided by the rate of one large matrix product in the same precision. The parts of
a step are timed in separate steps that wait for the device after each part.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from g3pt.config import CVQConfig, TrainConfig, cvq_preset
from g3pt.data.batches import SurfaceBatches, prefetched, rows_of
from g3pt.models.tokenizer import CVQ
from g3pt.training import fit, flops
from g3pt.training.compiled import compile_blocks
from g3pt.training.optimizer import make_optimizer

Batch = dict[str, Any]
REPOSITORY = Path(__file__).resolve().parents[1]
STEPS = 10**6  # length of the run: the last phase, which trains everything, is measured
COLUMNS = ("surface", "near_points", "volume_points", "near_occupancy", "volume_occupancy")
COMPILE = "compile each block by itself, by this backend of torch.compile; without a value inductor"
QUERIES = 65536  # query points decoded in one call


def balls(config: CVQConfig, count: int = 32, num_queries: int = 32768) -> dict[str, np.ndarray]:
    """Balls in the arrays and sizes that a dataset has by default."""
    rng = np.random.default_rng(0)
    num_points = max(16384, config.num_points, config.num_encode_points)
    normal = rng.normal(size=(count, num_points, 3))
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    radius = rng.uniform(0.3, 0.9, (count, 1, 1))
    surface = np.concatenate([radius * normal, normal], -1).astype(np.float16)
    arrays = {"surface": surface, "sharp": surface[:, : max(4096, config.num_sharp_points)]}
    for pool in ("near", "volume"):
        points = rng.uniform(-1, 1, (count, num_queries, 3)).astype(np.float16)
        inside = np.linalg.norm(points.astype(np.float32), axis=-1) < radius[..., 0]
        arrays |= {f"{pool}_points": points, f"{pool}_occupancy": np.packbits(inside, axis=-1, bitorder="little")}
    return arrays


def hardware(device: torch.device, threads: int) -> dict[str, Any]:
    """The hardware that the figures were measured on."""
    info, cpu = Path("/proc/cpuinfo"), platform.processor() or platform.machine()
    if info.exists():
        cpu = next(
            (
                line.partition(":")[2].strip()
                for line in info.read_text(encoding="utf-8").splitlines()
                if line.startswith("model name")
            ),
            cpu,
        )
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "gpu": gpu,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": threads,
        "torch": torch.__version__,
        "load_average": os.getloadavg()[0],
    }


def commit() -> str:
    """The checked-out commit, or the value of G3PT_COMMIT outside a checkout."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--exclude=*", "--dirty"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            command, capture_output=True, text=True, timeout=20, check=True, encoding="utf-8", errors="replace"
        ).stdout.strip()
    return os.environ.get("G3PT_COMMIT", "unknown")


class Timer:
    """Times a call until the device has finished."""

    def __init__(self, device: torch.device, threads: int) -> None:
        self.device = device
        self.now = time.perf_counter if device.type == "cuda" or threads > 1 else time.process_time

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], Any], repeats: int) -> float:
        """Mean seconds per call over `repeats` calls, after one warm-up call."""
        work()
        self.wait()
        began = self.now()
        for _ in range(repeats):
            work()
        self.wait()
        return (self.now() - began) / repeats


def count_kernels(work: Callable[[], Any], device: torch.device) -> int:
    """Kernels that a call launches on a GPU; on a CPU, the operators that it calls, with those inside others."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as found:
        work()
    kinds = (DeviceType.CUDA,) if on_gpu else (DeviceType.CPU,)
    return sum(event.device_type in kinds and not event.name.startswith("Mem") for event in found.events())


class Parts:
    """Seconds of named calls, without those of named calls inside them."""

    def __init__(self, timer: Timer) -> None:
        self.timer, self.seconds, self._inner = timer, dict[str, float](), [0.0]

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Replace `owner.method` by a version that is timed under `name`."""
        call = getattr(owner, method)

        def timed(*args: Any, **given: Any) -> Any:
            with self.part(name):
                return call(*args, **given)

        setattr(owner, method, timed)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the block under `name`."""
        self.timer.wait()
        began = self.timer.now()
        self._inner.append(0.0)
        try:
            yield
        finally:
            self.timer.wait()
            whole = self.timer.now() - began
            self.seconds[name] = self.seconds.get(name, 0.0) + whole - self._inner.pop()
            self._inner[-1] += whole


class Trainer:
    """One step of `fit`, cut into parts that can be timed; the arithmetic is the same."""

    def __init__(self, config: CVQConfig, train: TrainConfig, device: torch.device, backend: str | None) -> None:
        self.train, self.device = train, device
        self.model = CVQ(config).to(device).train()
        self.model.set_phase(STEPS - 1, STEPS)
        self.model.statistics_frozen = False
        if backend:
            compile_blocks(self.model, backend)
        self.optimizer = make_optimizer(self.model, train)
        self.average = fit.WeightAverage(self.model, train.ema_decay)
        self.alone = fit.SingleProcess()

    def gradients(self, batch: Batch) -> None:
        """Forward and backward pass."""
        self.optimizer.zero_grad(set_to_none=True)
        fit.backward(self.model, self.model, batch, 0, 1, self.train, self.alone)

    def update(self) -> None:
        """Clip the gradients, take an AdamW step, update the averaged weights."""
        torch.nn.utils.clip_grad_norm_(fit.trained_parameters(self.model), self.train.clip_norm)
        self.optimizer.step()
        self.average.update(self.model)

    def step(self, batch: Batch) -> None:
        self.gradients(batch)
        self.update()


def matrix_rate(device: torch.device, precision: str, timer: Timer) -> float:
    """Operations per second of a large matrix product."""
    size = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = min(timer.seconds(lambda: a @ b, 5) for _ in range(3))
    return 2 * size**3 / seconds


def measure(preset: str, flags: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """One row of the table."""
    config, train = preset_of(preset, flags)
    timer, on_gpu = Timer(device, flags.threads), device.type == "cuda"
    objects = training_objects(flags.data, config)
    make = SurfaceBatches(objects, config, train.batch_size, 0)
    stream = make(0)
    data_s = timer.seconds(lambda: next(stream), flags.steps)
    trainer = Trainer(config, train, device, flags.compile)
    batch = fit.on_device(rows_of(next(stream), train.batch_size), device)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    step_s = timer.seconds(lambda: trainer.step(batch), flags.steps)
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else None
    with contextlib.closing(prefetched(make(0), fit.PREFETCH * on_gpu, pin=on_gpu)) as ahead:
        fed = lambda: trainer.step(fit.on_device(rows_of(next(ahead), train.batch_size), device))  # noqa: E731
        fed_s = timer.seconds(fed, flags.steps)
    rate, done = matrix_rate(device, train.precision, timer), flops.cvq_training(config, "joint") * train.batch_size
    row = {
        "preset": preset, "precision": train.precision, "batch_size": train.batch_size, "compiled": flags.compile,
        "kernels": count_kernels(lambda: trainer.step(batch), device),
        "data_samples_per_s": train.batch_size / data_s,
        "train_samples_per_s": train.batch_size / step_s,
        "train_with_data_samples_per_s": train.batch_size / fed_s,
        "step_ms": 1e3 * step_s, "clock": "wall" if timer.now is time.perf_counter else "cpu",
        "flop_per_object": flops.cvq_training(config, "joint"), "matrix_flop_per_s": rate,
        "utilisation": done / step_s / rate,
        "peak_bytes": peak, "estimated_bytes": estimate(config, train),
        "parts_ms": {} if flags.compile else parts(trainer, make, timer, flags.steps),  # what is compiled is not cut
    }  # fmt: skip
    return row | decoding(trainer.model.eval(), batch, config, train, timer, flags.steps)


def parts(trainer: Trainer, make: SurfaceBatches, timer: Timer, steps: int) -> dict[str, float]:
    """Milliseconds of each part of a step."""
    clock, model, stream = Parts(timer), trainer.model, make(0)
    watched = [
        (model.encoder.embed, "forward", "points"),
        (model.encoder, "_at_anchors", "anchors"),
        (model.encoder.cross, "forward", "encoder cross-attention"),
        (model.encoder, "forward", "encoder"),
        (model.cqt, "forward", "CQT"),
        (model.decoder, "latents", "decoder latents"),
        (model.decoder, "logits", "query cross-attention"),
        (model, "forward", "losses"),
    ]
    for owner, method, name in watched:
        clock.watch(owner, method, name)
    for _ in range(steps):
        with clock.part("data"):
            batch = fit.on_device(rows_of(next(stream), trainer.train.batch_size), trainer.device)
        with clock.part("backward"):
            trainer.gradients(batch)
        with clock.part("optimiser"):
            trainer.update()
    for owner, method, _ in watched:
        delattr(owner, method)
    return {name: 1e3 * seconds / steps for name, seconds in clock.seconds.items()}


@torch.no_grad()
def decoding(
    model: CVQ, batch: Batch, config: CVQConfig, train: TrainConfig, timer: Timer, steps: int
) -> dict[str, float]:
    """Rates of encoding objects, decoding latents, and answering queries of one object."""
    count = min(8, train.batch_size)
    device = batch["surface_BP6"].device
    cloud = batch["surface_BP6"][:count].repeat(1, -(-config.num_encode_points // config.num_points), 1)[
        :, : config.num_encode_points
    ]
    sharp = batch["sharp_BP6"][:count] if "sharp_BP6" in batch else None
    autocast = torch.autocast(device.type, torch.bfloat16) if train.precision == "bf16" else contextlib.nullcontext()
    with autocast:
        codes_BS = model.encode(cloud, sharp)
        latents_BLD, points_BQ3 = model.decode_latents(codes_BS[:1]), torch.rand(1, QUERIES, 3, device=device) * 2 - 1
        encode_s = timer.seconds(lambda: model.encode(cloud, sharp), steps)
        latents_s = timer.seconds(lambda: model.decode_latents(codes_BS), steps)
        queries_s = timer.seconds(lambda: model.occupancy_logits(latents_BLD, points_BQ3), max(1, steps // 5))
    return {
        "encode_objects_per_s": count / encode_s,
        "decode_objects_per_s": count / latents_s,
        "decode_queries_per_s": QUERIES / queries_s,
    }


def preset_of(name: str, flags: argparse.Namespace) -> tuple[CVQConfig, TrainConfig]:
    """The preset with the batch size and precision of the flags."""
    config, train = cvq_preset(name)
    changes = {"batch_size": flags.batch_size, "precision": flags.precision}
    return config, dataclasses.replace(train, **{key: value for key, value in changes.items() if value is not None})


def training_objects(data: str | None, config: CVQConfig) -> Any:
    """The training split, in memory or streamed as training reads it; balls without --data."""
    if data is None:
        return balls(config)
    from g3pt.data import datasets, streaming

    columns = (*COLUMNS, *["sharp"] * bool(config.num_sharp_points))
    return streaming.training_objects(streaming.Reading(dataset=datasets.open_dataset(data), columns=columns))


def estimate(config: CVQConfig, train: TrainConfig) -> int:
    """The memory that `--dry-run` prints."""
    from pipelines.train.memory import Workers, needs

    return needs(config, train.precision).memory(train.batch_size, Workers(share=train.batch_size)).total


def begin(device: str, threads: int = 1) -> torch.device:
    """Set the number of torch threads and return the device that `--device` names."""
    torch.set_num_threads(threads)
    return torch.device(device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")


def show(row: dict[str, Any]) -> None:
    """Print the figures of one preset."""
    peak = f", peak {row['peak_bytes'] / 2**30:.2f} GiB" if row["peak_bytes"] else ""
    print(
        f"{row['preset']} {row['precision']} batch {row['batch_size']}: train {row['train_samples_per_s']:.1f} "
        f"samples/s ({row['train_with_data_samples_per_s']:.1f} with its data; data alone "
        f"{row['data_samples_per_s']:.0f}), step {row['step_ms']:.1f} ms of {row['clock']} time, "
        f"{row['flop_per_object'] / 1e9:.3g} GFLOP an object, utilisation {row['utilisation']:.0%} of "
        f"{row['matrix_flop_per_s'] / 1e12:.3g} TFLOP/s{peak}, estimated {row['estimated_bytes'] / 2**30:.2f} GiB"
    )
    print(
        f"  encode {row['encode_objects_per_s']:.1f} objects/s, decode {row['decode_objects_per_s']:.1f} objects/s "
        f"and {row['decode_queries_per_s'] / 1e6:.3g} M queries/s"
    )
    if not row["parts_ms"]:
        return
    whole = sum(row["parts_ms"].values())
    print(
        "  "
        + ", ".join(
            f"{name} {ms / whole:.0%}" for name, ms in sorted(row["parts_ms"].items(), key=lambda item: -item[1])
        ),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", default="nano,micro", help="comma-separated")
    parser.add_argument("--data", help="dataset; default made balls")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--batch-size", type=int, help="default the preset's")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default the preset's")
    parser.add_argument("--steps", type=int, default=10, help="of each measurement")
    parser.add_argument("--threads", type=int, default=1, help="of torch on a CPU")
    parser.add_argument("--compile", nargs="?", const="inductor", metavar="BACKEND", help=COMPILE)
    parser.add_argument("--output", type=Path, default=Path("tokenizer.json"))
    flags = parser.parse_args()
    device = begin(flags.device, flags.threads)
    rows = []
    for preset in flags.presets.split(","):
        rows.append(measure(preset, flags, device))
        show(rows[-1])
        flags.output.write_text(
            json.dumps({"commit": commit(), "hardware": hardware(device, flags.threads), "rows": rows}, indent=1)
            + "\n",
            encoding="utf-8",
        )
    print(f"wrote {flags.output}")


if __name__ == "__main__":
    main()
