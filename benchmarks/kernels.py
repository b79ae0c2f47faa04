"""Kernels of one training step, counted without a GPU.

    python benchmarks/kernels.py [--presets 0.1B,1.5B] [--tokenizers small,base] [--inductor] [--output kernels.json]

Needs only torch and numpy. A step of `fit` has a forward and backward pass in bf16, clipping, AdamW and averaged
weights, here for one object. A generator's runs on fake tensors, which have shapes and no values, so that every preset
fits any machine; a tokenizer is as deep as its preset and narrow. Each operator that makes or changes a tensor counts
as one kernel; views do not. On a CPU autocast casts the same matrix products as on a GPU, and attention is one call
per level.

`in blocks` are those of the transformer blocks, which `--compile` fuses. `--inductor` compiles one block of each kind,
NARROW, and counts what Inductor leaves: fused loops, and calls of libraries (matrix products, attention). Its rules for
a CPU fuse less than those for a GPU. Takes one to two CPU minutes.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import generator_step, tokenizer
from benchmarks.tokenizer import commit
from g3pt.config import CVQ_PRESETS, car_preset, cvq_preset
from g3pt.models.attention import Causal
from g3pt.models.layers import CrossBlock, ModulatedBlock, SelfBlock
from g3pt.training.parallel import ShardUnit

NARROW = 32  # width of what is computed for real
FREE = {
    "detach", "device", "empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "_unsafe_view",
}  # fmt: skip


class Kernels(TorchDispatchMode):
    """Counts the operators called below it that compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = collections.Counter[str]()

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and name not in FREE:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def generator_kernels(preset: str, recompute: bool) -> dict[str, Any]:
    """The row of a generator."""
    config, train = car_preset(preset)
    config = dataclasses.replace(config, checkpoint_layers=recompute)
    codec, _ = cvq_preset(preset if preset in CVQ_PRESETS else "paper")
    train = dataclasses.replace(train, batch_size=1, precision="bf16")
    with FakeTensorMode(allow_non_fake_inputs=True):
        trainer = generator_step.Trainer(generator_step.Generator(config, codec), train, 1, None)
        batch = trainer.model.batch(1, "cpu")
        return row(f"CAR {preset}", trainer.model, lambda: trainer.step(batch), recompute)


def tokenizer_kernels(preset: str, recompute: bool) -> dict[str, Any]:
    """The row of a tokenizer, in the phase that trains all of it."""
    config, train = cvq_preset(preset)
    config = dataclasses.replace(config, width=NARROW, num_heads=2, checkpoint_layers=recompute)
    train = dataclasses.replace(train, batch_size=1, precision="bf16")
    trainer = tokenizer.Trainer(config, train, torch.device("cpu"), None)
    batch = tokenizer.rows_of(next(tokenizer.SurfaceBatches(tokenizer.balls(config, count=1), config, 1, 0)(0)), 1)
    return row(f"CVQ {preset}", trainer.model, lambda: trainer.step(batch), recompute)


def row(name: str, model: nn.Module, step: Callable[[], Any], recompute: bool) -> dict[str, Any]:
    """Kernels of the second step: the first makes AdamW's state."""
    step()
    with Kernels() as found:
        step()
    blocks = collections.Counter(type(m).__name__ for m in model.modules() if isinstance(m, ShardUnit))
    return {"model": name, "recompute": recompute, "kernels": found.total, "blocks": dict(blocks),
            "most": dict(found.counts.most_common(8))}  # fmt: skip


def block_kernels(compiled: bool = False) -> list[dict[str, Any]]:
    """Kernels of the forward and backward pass of one block of each kind, eager and as Inductor leaves them."""
    rows = []
    x_BND, other_BND = (torch.randn(2, 32, NARROW, requires_grad=True) for _ in range(2))
    condition_BD = torch.randn(2, NARROW)
    for block, inputs in (
        (ModulatedBlock(NARROW, 2), (x_BND, condition_BD, Causal((32,)))),
        (SelfBlock(NARROW, 2), (x_BND,)),
        (CrossBlock(NARROW, 2), (x_BND, other_BND)),
    ):
        with Kernels() as found:
            run(block, inputs)
        made = {"block": type(block).__name__, "kernels": found.total}
        rows.append(made | (left_by_inductor(block, inputs) if compiled else {}))
    return rows


def run(block: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Forward and backward pass in bf16."""
    with torch.autocast("cpu", torch.bfloat16):
        out_BND = block(*inputs)
    out_BND.backward(torch.ones_like(out_BND))


def left_by_inductor(block: nn.Module, inputs: tuple[Any, ...]) -> dict[str, int]:
    """{"loops", "calls"}: nodes that Inductor's scheduler has after fusing, over both passes."""
    from torch._inductor import scheduler

    kinds, codegen = collections.Counter[str](), scheduler.Scheduler.codegen

    def counted(self: Any) -> Any:
        for node in self.nodes:
            kind = type(node).__name__
            if "Nop" not in kind:
                is_call = "Extern" in kind
                if not is_call or type(node.node).__name__ != "MultiOutput":  # a result of a call, not another one
                    kinds["calls" if is_call else "loops"] += 1
        return codegen(self)

    with (
        mock.patch.object(scheduler.Scheduler, "codegen", counted),
        torch._inductor.config.patch(force_disable_caches=True),
    ):
        block.compile(fullgraph=True)
        run(block, inputs)
    return {"loops": kinds["loops"], "calls": kinds["calls"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", default="0.1B,1.5B", help="of generators, comma-separated")
    parser.add_argument("--tokenizers", default="small,base", help="presets of tokenizers, comma-separated")
    parser.add_argument("--recompute", action="store_true", help="recompute activations in the backward pass")
    parser.add_argument("--inductor", action="store_true", help="compile a block of each kind and count what is left")
    parser.add_argument("--output", type=Path, default=Path("kernels.json"))
    flags = parser.parse_args()
    torch.set_num_threads(1)
    blocks = block_kernels(compiled=flags.inductor)
    rows = [generator_kernels(name, flags.recompute) for name in flags.presets.split(",")]
    rows += [tokenizer_kernels(name, flags.recompute) for name in flags.tokenizers.split(",")]
    for one in blocks:
        left = f", compiled {one['loops']} loops and {one['calls']} calls" if "loops" in one else ""
        print(f"{one['block']}: {one['kernels']} kernels forward and backward{left}")
    by_kind = {one["block"]: one["kernels"] for one in blocks}
    for one in rows:
        one["in_blocks"] = sum(by_kind[kind] * number for kind, number in one["blocks"].items())
        print(f"{one['model']}: {one['kernels']} kernels per step, about {one['in_blocks']} of them in blocks")
    found = {"commit": commit(), "torch": torch.__version__, "blocks": blocks, "rows": rows}
    flags.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
