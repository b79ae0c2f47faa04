"""Speed of sampling by preset and batch, with and without the cache; parts of an object's time; memory; operations.

    python benchmarks/sampling.py [--presets nano,micro] [--model RUN] [--batches 1,8] [--cfg 2] [--resolution 64]
        [--device auto]
                                  [--precision fp32|bf16] [--repeats 3] [--output sampling.json]

Needs torch and numpy, and for meshes scikit-image, numba and trimesh; a part whose package is missing is skipped and
named. Without --model the weights are untrained. The decoder is evaluated as usual, but its answer is replaced by a
ball, because noise has no surface. Conditions are random vectors: an encoder runs once per prompt and is not measured.
Times are CPU seconds of one thread, or wall time on a GPU. Without a cache each scale recomputes the tokens of all
scales before it; "allowed" is the speed-up that follows from the token counts alone.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import machine
from benchmarks.tokenizer import Parts, Timer, commit, hardware
from g3pt.config import CAR_PRESETS, CARConfig, CVQConfig, car_preset, cvq_preset
from g3pt.models import decoding, sampling
from g3pt.models.car import G3PT
from g3pt.models.sampling import SampleConfig, sample_codes
from g3pt.models.tokenizer import CVQ
from g3pt.models.transformer import CAR
from pipelines.train.counts import condition_widths

CODECS = {
    "micro": "micro",
    "small": "small",
    "base": "base",
}  # tokenizer presets of generator presets without a tokenizer of the same name
SMALL_CODEC, LARGE_CODEC = "nano", "paper"
RADIUS = 0.6


class Bare(G3PT):
    """A generator without its encoders: the parts that `sample_codes` and `decode_mesh` use."""

    def __init__(self, config: CARConfig, codec: CVQConfig) -> None:
        nn.Module.__init__(self)
        self.config, self.frozen = config, {}
        self.tokenizer = CVQ(codec).requires_grad_(False).eval()
        self.car = CAR(config, codec, *condition_widths(config))


def build(preset: str, model: str | None) -> G3PT:
    """The run that --model names, or the preset with untrained weights."""
    if model:
        return G3PT.from_pretrained(model).eval()
    torch.manual_seed(0)
    large = list(CAR_PRESETS).index(preset) > list(CAR_PRESETS).index("base")
    return Bare(car_preset(preset)[0], cvq_preset(CODECS.get(preset, LARGE_CODEC if large else SMALL_CODEC))[0]).eval()


def conditions(model: G3PT, batch: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Random text and image vectors."""
    generator = torch.Generator().manual_seed(batch)
    text_BC = torch.randn(batch, model.car.text.in_features, generator=generator).to(device)
    if not model.car.num_prefix:
        return text_BC, None
    return text_BC, torch.randn(batch, model.car.num_prefix, model.car.image.in_features, generator=generator).to(
        device
    )


class Bench:
    """One model on one device."""

    def __init__(self, model: G3PT, flags: argparse.Namespace) -> None:
        self.device = torch.device(flags.device)
        self.model, self.flags, self.trained = model.to(self.device), flags, bool(flags.model)
        self.timer, self.settings = Timer(self.device, 1), SampleConfig(cfg=flags.cfg)

    def sample(self, batch: int, cached: bool = True, settings: SampleConfig | None = None) -> Tensor:
        """Sample codes (B, S)."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.flags.precision == "bf16"):
            return sample_codes(
                self.model,
                *conditions(self.model, batch, self.device),
                range(batch),
                settings or self.settings,
                cached=cached,
            )

    def rates(self, batch: int, cached: bool) -> dict[str, Any]:
        """Speed and memory of sampling."""
        peak = self._peak(lambda: self.sample(batch, cached))
        seconds = self.timer.seconds(lambda: self.sample(batch, cached), self.flags.repeats)
        tokens = batch * sum(self.model.scales)
        return {
            "batch": batch,
            "cached": cached,
            "seconds": seconds,
            "objects_per_s": batch / seconds,
            "tokens_per_s": tokens / seconds,
            "peak_mb": peak,
        }

    def _peak(self, work: Callable[[], Any]) -> float:
        """Peak memory of a call in MB, beyond what was allocated before it."""
        if self.device.type == "cuda":
            before = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            work()
            return (torch.cuda.max_memory_allocated(self.device) - before) / 2**20
        before = machine.reset_peak()
        work()
        return machine.peak_mb() - before

    def first_mesh(self) -> float:
        """Seconds from the condition vectors of one prompt to a mesh file."""
        with tempfile.TemporaryDirectory() as folder:
            return self.timer.seconds(
                lambda: self.mesh(self.sample(1)[0], Path(folder) / "mesh.glb"), self.flags.repeats
            )

    def mesh(self, codes_S: Tensor, file: Path) -> None:
        """Decode codes to a mesh file, as far as the installed packages allow."""
        if missing("skimage") or missing("numba"):
            return
        vertices, faces = self.model.decode_mesh(codes_S, self.flags.resolution)
        if not missing("trimesh"):
            from g3pt.geometry.files import write_mesh

            write_mesh(file, vertices, faces)

    def parts(self, batch: int) -> dict[str, float]:
        """Seconds per object of each part, from conditions to mesh files."""
        parts = Parts(self.timer)
        with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
            for owner, names in self._watched().items():
                for name, part in names.items():
                    stack.callback(setattr, owner, name, getattr(owner, name))
                    parts.watch(owner, name, part)
            for repeat in range(self.flags.repeats + 1):
                with parts.part("rest"):
                    for row, codes_S in enumerate(self.sample(batch)):
                        self.mesh(codes_S, Path(folder) / f"{row}.glb")
                if repeat == 0:
                    parts.seconds.clear()
        return {
            name: seconds / self.flags.repeats / batch
            for name, seconds in sorted(parts.seconds.items(), key=lambda pair: -pair[1])
        }

    def _watched(self) -> dict[Any, dict[str, str]]:
        """Part -> the functions that are timed for it."""
        model = self.model
        found: dict[Any, dict[str, str]] = {
            model.car: dict.fromkeys(("condition", "run_prefix", "run_scale"), "transformer"),
            model: {"next_input": "alignment (CQT)"},
            sampling: {"choose_codes": "head and drawing"},
            decoding: {"packed_logits": "decoder at points", "decode_meshes": "search"},
        }
        if not missing("skimage") and not missing("numba"):
            from g3pt.geometry import cleanup, files, isosurface

            found |= {
                isosurface: {"marching_cubes": "marching cubes"},
                cleanup: {"clean": "cleaning"},
                files: {"write_mesh": "export"},
            }
        return found

    def operations(self) -> dict[str, float]:
        """Transformer operations per object without guidance: with cache, without, and of one teacher-forced pass."""
        plain, found = dataclasses.replace(self.settings, cfg=0.0), {}
        for name, cached in (("cached", True), ("uncached", False)):
            found[name] = counted(lambda cached=cached: self.sample(1, cached, plain))
        codes_BS = self.sample(1, True, plain)
        with torch.no_grad():
            aligned_BTA = self.model.aligned_inputs(codes_BS)
            alignment = counted(lambda: self.model.aligned_inputs(codes_BS))
            forced = counted(lambda: self.model.car(aligned_BTA, *conditions(self.model, 1, self.device)))
            head = counted(
                lambda: self.model.car.head.cross_entropy(
                    aligned_BTA.new_zeros(1, codes_BS.shape[1], self.model.config.width), codes_BS
                )
            )
        return {name: float(count - alignment - head) for name, count in found.items()} | {
            "teacher_forced": float(forced)
        }


def counted(work: Callable[[], Any]) -> int:
    """Operations in the matrix products of a call; a multiply-add counts as two."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def allowed(model: G3PT) -> float:
    """Ratio of the tokens computed without a cache to those computed with one."""
    ends = np.cumsum(model.scales) + model.car.num_prefix
    return float(ends.sum() / ends[-1])


def missing(package: str) -> bool:
    """True if the package is not installed."""
    return importlib.util.find_spec(package) is None


def draw_a_ball() -> None:
    """Make the decoder return the field of a ball after computing its own answer."""
    asked = decoding.packed_logits

    def ball(tokenizer: CVQ, latents_BLD: Tensor, wanted: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        asked(tokenizer, latents_BLD, wanted)
        return {
            number: (RADIUS - np.linalg.norm(points, axis=1)).astype(np.float32) for number, points in wanted.items()
        }

    decoding.packed_logits = ball


def measure(preset: str, flags: argparse.Namespace) -> dict[str, Any]:
    """Measure one model and print each figure when it is known."""
    bench = Bench(build(preset, flags.model), flags)
    model = bench.model
    print(
        f"\n{flags.model or preset}: {sum(p.numel() for p in model.car.parameters()):,} parameters, scales "
        f"{model.scales}, {model.car.num_prefix} image tokens, cfg {flags.cfg}"
    )
    rows = [bench.rates(batch, cached) for batch in flags.batches for cached in (True, False)]
    print(f"{'batch':>6} {'':>9} {'s':>9} {'objects/s':>10} {'tokens/s':>10} {'peak MB':>8}")
    for row in rows:
        print(
            f"{row['batch']:6d} {'cached' if row['cached'] else 'uncached':>9} {row['seconds']:9.4f} "
            f"{row['objects_per_s']:10.2f} {row['tokens_per_s']:10.0f} {row['peak_mb']:8.1f}"
        )
    flops, may = bench.operations(), allowed(model)
    speedups = {
        f"{fast['batch']}": slow["seconds"] / fast["seconds"] for fast, slow in zip(rows[::2], rows[1::2], strict=True)
    }
    print(
        "cached is faster by "
        + ", ".join(f"{value:.2f} (batch {batch})" for batch, value in speedups.items())
        + f"; the schedule allows {may:.2f}"
    )
    print(
        f"operations of the transformer: cached {flops['cached']:.4g}, "
        f"{flops['cached'] / flops['teacher_forced']:.4f} of a teacher-forced pass; uncached "
        f"{flops['uncached'] / flops['cached']:.2f} times that"
    )
    first, parts = bench.first_mesh(), bench.parts(flags.batches[-1])
    whole = sum(parts.values())
    print(
        f"first mesh after {first:.3f} s; an object in a batch of {flags.batches[-1]} takes {whole:.4f} s at "
        f"{flags.resolution} cells:"
    )
    print("  " + ", ".join(f"{name} {seconds / whole:.1%}" for name, seconds in parts.items()))
    return {
        "model": flags.model or preset,
        "rows": rows,
        "speedups": speedups,
        "allowed": may,
        "operations": flops,
        "first_mesh_s": first,
        "parts_s": parts,
    }


def main() -> None:
    """Measure all presets; print a table for each and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", default="nano")
    parser.add_argument("--model", default="")
    parser.add_argument("--batches", type=lambda text: [int(part) for part in text.split(",")], default=[1, 8])
    parser.add_argument("--cfg", type=float, default=2.0)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", default="")
    flags = parser.parse_args()
    flags.device = ("cuda" if torch.cuda.is_available() else "cpu") if flags.device == "auto" else flags.device
    torch.set_num_threads(1)
    absent = [package for package in ("skimage", "numba", "trimesh") if missing(package)]
    if absent:
        print(
            f"not installed: {', '.join(absent)}; meshes are {'not made' if absent != ['trimesh'] else 'not written'}"
        )
    if not flags.model:
        draw_a_ball()
    about = hardware(torch.device(flags.device), 1) | {"commit": commit(), "precision": flags.precision}
    print(about)
    presets = [""] if flags.model else flags.presets.split(",")
    report = {
        "hardware": about,
        "resolution": flags.resolution,
        "cfg": flags.cfg,
        "rows": [measure(preset, flags) for preset in presets],
    }
    if flags.output:
        Path(flags.output).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"result: {flags.output}")


if __name__ == "__main__":
    main()
