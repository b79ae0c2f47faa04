"""Speed of a generator's training step by preset: samples/s, tokens/s, utilisation, memory.

    python benchmarks/generator_step.py [--presets nano,micro] [--scales paper] [--device auto] [--micro-batch N]
        [--batch-size N] [--steps 5] [--precision fp32|bf16] [--compile] [--peak-tflops 989] [--count-only]
        [--output generator_step.json]

Needs only torch and numpy. The transformer reads random aligned tokens, text vectors and image tokens of the preset's
sizes, so no dataset and no encoders are needed or measured. `--scales` names the tokenizer preset whose scales are
predicted: by default the preset of the same name, otherwise the paper's 2408 tokens. A step is that of `fit`: forward,
backward, clipping, AdamW and averaged weights over `--batch-size` objects (default: one micro-batch), in micro-batches
of `--micro-batch` objects (default: 1 above 0.1B, otherwise the preset's batch). With `--compile` each block is
compiled by itself, once for all of them. `kernels` are those that one step launches on a GPU; on a CPU, the operators
it calls.

Utilisation is model operations per second, divided by the rate of one large matrix product in the same precision and by
--peak-tflops (989 for dense bf16 on an H100 or H200). Model operations are three times the forward pass of
g3pt/training/flops.py; operations that checkpointing repeats are not counted. `--count-only` measures no time: it
counts the operators of a step on torch's meta device and compares them with the formulas. Times are wall time on a GPU
and CPU seconds of one thread on a CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.tokenizer import COMPILE, Timer, begin, commit, count_kernels, hardware, matrix_rate
from g3pt.config import CVQ_PRESETS, CARConfig, CVQConfig, TrainConfig, car_preset, cvq_preset
from g3pt.models.transformer import CAR
from g3pt.training import fit, flops
from g3pt.training.compiled import compile_blocks
from g3pt.training.memory import training_memory
from g3pt.training.optimizer import make_optimizer
from g3pt.training.parallel import SingleProcess
from pipelines.train.counts import condition_widths
from pipelines.train.memory import Workers, needs

LARGE = 0.1e9  # from this number of parameters on, the default micro-batch is 1


class Generator(nn.Module):
    """CAR with its loss on ready inputs, as `fit` calls it."""

    def __init__(self, config: CARConfig, codec: CVQConfig) -> None:
        super().__init__()
        text, image, image_tokens = condition_widths(config)
        self.car = CAR(config, codec, text_width=text, image_width=image, image_tokens=image_tokens)
        self.widths = {"aligned_BTA": (codec.num_tokens - codec.scales[0], codec.width), "text_BC": (text,)}
        if image:
            self.widths["image_BMC"] = (image_tokens, image)
        self.tokens, self.num_codes = codec.num_tokens, codec.num_codes

    def forward(self, batch: dict[str, Tensor], step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy of all tokens."""
        hidden_BSD = self.car(batch["aligned_BTA"], batch["text_BC"], batch.get("image_BMC"))
        return self.car.head.cross_entropy(hidden_BSD, batch["codes_BS"]).mean(), {}

    def batch(self, objects: int, device: torch.device | str) -> dict[str, Tensor]:
        """Random inputs and codes."""
        made = {name: torch.randn(objects, *shape, device=device) for name, shape in self.widths.items()}
        made["codes_BS"] = torch.randint(self.num_codes, (objects, self.tokens), device=device)
        return made | {"row_B": torch.arange(objects, device=device)}


class Trainer:
    """`fit`'s step on one batch."""

    def __init__(self, model: Generator, train: TrainConfig, parts: int, backend: str | None) -> None:
        self.model, self.train, self.parts = model.train(), train, parts
        if backend:
            compile_blocks(model, backend)
        self.optimizer = make_optimizer(model, train)
        self.average = fit.WeightAverage(model, train.ema_decay)
        self.alone = SingleProcess()

    def step(self, batch: dict[str, Tensor]) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        fit.backward(self.model, self.model, batch, 0, self.parts, self.train, self.alone)
        torch.nn.utils.clip_grad_norm_(fit.trained_parameters(self.model), self.train.clip_norm)
        self.optimizer.step()
        self.average.update(self.model)


def count(name: str, config: CARConfig, codec: CVQConfig) -> dict[str, Any]:
    """Operations of a step of one object, counted and by formula; bytes of the state and of saved activations."""
    with torch.device("meta"):
        model = Generator(config, codec).train()
    batch, counter = model.batch(1, "meta"), FlopCounterMode(display=False)
    with counter:
        loss, _ = model(batch)
    forward = counter.get_total_flops()
    with counter:  # the second step starts with gradients of zero
        loss.backward()
    parameters = sum(p.numel() for p in model.parameters())
    memory = training_memory(parameters, 0)
    return {
        "preset": name, "tokens": model.tokens, "parameters": parameters,
        "forward_flop": forward, "forward_formula": model.car.flops_per_object,
        "step_flop": forward + counter.get_total_flops(),
        "step_formula": flops.car_training(model.car.flops_per_object, config),
        "weights_bytes": memory.weights, "gradient_bytes": memory.gradients, "optimizer_bytes": memory.optimizer,
        "average_bytes": memory.average,
    }  # fmt: skip


def measure(
    name: str, config: CARConfig, codec: CVQConfig, train: TrainConfig, flags: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """One row of the table."""
    timer, on_gpu = Timer(device, flags.threads), device.type == "cuda"
    with device:
        model = Generator(config, codec)
    parameters = sum(p.numel() for p in model.parameters())
    at_once = flags.micro_batch or (1 if parameters > LARGE else train.batch_size)
    train = dataclasses.replace(train, batch_size=flags.batch_size or at_once)
    parts = fit.count_parts(train.batch_size, at_once)
    trainer, batch = Trainer(model, train, parts, flags.compile), model.batch(train.batch_size, device)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    seconds = timer.seconds(lambda: trainer.step(batch), flags.steps) / train.batch_size
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else None
    objects = train.batch_size // parts
    rate, work = matrix_rate(device, train.precision, timer), 3 * model.car.flops_per_object / seconds
    return {
        "preset": name, "precision": train.precision, "batch_size": train.batch_size, "micro_batch": objects,
        "compiled": flags.compile, "kernels": count_kernels(lambda: trainer.step(batch), device),
        "parameters": parameters, "tokens": model.tokens, "samples_per_s": 1 / seconds,
        "tokens_per_s": model.tokens / seconds,
        "clock": "wall" if on_gpu or flags.threads > 1 else "cpu",
        "model_flop_per_object": 3 * model.car.flops_per_object,
        "utilisation_of_product": work / rate, "matrix_flop_per_s": rate,
        "utilisation_of_peak": work / (1e12 * flags.peak_tflops) if flags.peak_tflops else None,
        "peak_bytes": peak, "estimated_bytes": estimate(config, codec, train, objects),
    }  # fmt: skip


def estimate(config: CARConfig, codec: CVQConfig, train: TrainConfig, objects: int) -> int | None:
    """The memory that `--dry-run` plans for a step of `objects` at once, without the tokenizer; None for a preset with
    small encoders where transformers is missing.
    """
    try:
        planned = needs(config, train.precision, codec, encoders=False)
    except ImportError:
        return None
    return planned.memory(objects, Workers(share=train.batch_size)).total - 4 * planned.frozen


def show_count(row: dict[str, Any]) -> None:
    """Print what was counted."""
    gib = {key: value / 2**30 for key, value in row.items() if "bytes" in key}
    print(
        f"{row['preset']}: {row['parameters'] / 1e6:.1f} M parameters, {row['tokens']} tokens; an object's forward "
        f"pass {row['forward_flop'] / 1e12:.4g} TFLOP (formula {row['forward_formula'] / 1e12:.4g}), its step "
        f"{row['step_flop'] / 1e12:.4g} (formula {row['step_formula'] / 1e12:.4g})\n  GiB: weights "
        f"{gib['weights_bytes']:.2f}, gradients {gib['gradient_bytes']:.2f}, AdamW {gib['optimizer_bytes']:.2f}, "
        f"averages {gib['average_bytes']:.2f}",
        flush=True,
    )


def show(row: dict[str, Any]) -> None:
    """Print the figures of one preset."""
    peak = f", {row['utilisation_of_peak']:.0%} of the peak" if row["utilisation_of_peak"] else ""
    bytes_of = {"peak": row["peak_bytes"], "estimated": row["estimated_bytes"]}
    memory = ", ".join(f"{name} {value / 2**30:.2f} GiB" for name, value in bytes_of.items() if value)
    print(
        f"{row['preset']} {row['precision']} batch {row['batch_size']} by {row['micro_batch']}: "
        f"{row['samples_per_s']:.3g} samples/s, {row['tokens_per_s']:.4g} tokens/s ({row['clock']} time), "
        f"{row['model_flop_per_object'] / 1e9:.4g} GFLOP an object, {row['utilisation_of_product']:.0%} of a matrix "
        f"product's {row['matrix_flop_per_s'] / 1e12:.3g} TFLOP/s{peak}; {memory}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", default="nano,micro", help="comma-separated")
    parser.add_argument("--scales", help="tokenizer preset; default of the same name, else paper")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--batch-size", type=int, help="objects a step")
    parser.add_argument("--micro-batch", type=int, help="objects at once")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default the preset's")
    parser.add_argument("--compile", nargs="?", const="inductor", metavar="BACKEND", help=COMPILE)
    parser.add_argument("--peak-tflops", type=float, help="the hardware's, in that precision")
    parser.add_argument("--count-only", action="store_true", help="count on the meta device")
    parser.add_argument("--steps", type=int, default=5, help="timed")
    parser.add_argument("--threads", type=int, default=1, help="of torch on a CPU")
    parser.add_argument("--output", type=Path, default=Path("generator_step.json"))
    flags = parser.parse_args()
    device = begin(flags.device, flags.threads)
    rows = []
    for name in flags.presets.split(","):
        config, train = car_preset(name)
        codec, _ = cvq_preset(flags.scales or (name if name in CVQ_PRESETS else "paper"))
        if flags.count_only:
            rows.append(count(name, config, codec))
            show_count(rows[-1])
        else:
            train = dataclasses.replace(train, precision=flags.precision or train.precision)
            rows.append(measure(name, config, codec, train, flags, device))
            show(rows[-1])
        flags.output.write_text(
            json.dumps({"commit": commit(), "hardware": hardware(device, flags.threads), "rows": rows}, indent=1)
            + "\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
