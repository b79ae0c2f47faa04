"""torch.compile for training: each transformer block by itself, so that all blocks of one shape share the code.

An eager step calls 2,071 (tokenizer `small`) to 6,116 operators (generator 1.5B; benchmarks/kernels.py) and moves the
residual stream through memory for each norm, modulation and cast; a compiled block fuses these between its matrix
products. What is outside the blocks stays eager: the tokenizer's statistics change there. The compiled code computes
the same up to rounding.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from g3pt.training.parallel import ShardUnit

Compile = Literal["auto", "on", "off"]  # auto: on a GPU, where a block that cannot be compiled stays as it is


def compiles(choice: Compile, device: torch.device) -> bool:
    """Whether training on `device` compiles its blocks."""
    return choice == "on" or (choice == "auto" and device.type == "cuda")


def compile_blocks(model: nn.Module, backend: str = "inductor", whole: bool = False) -> int:
    """Compile the trained transformer blocks of `model` in place; returns how many. State dicts and copies of the
    model are those of the uncompiled one. With `whole`, a block that is not one graph is an error at its first call.
    """
    blocks = [block for block in model.modules() if isinstance(block, ShardUnit)]
    trained = [block for block in blocks if any(p.requires_grad for p in block.parameters())]
    for block in trained:
        block.compile(backend=backend, fullgraph=whole)
    return len(trained)


def prepare(choice: Compile, model: nn.Module, device: torch.device) -> int:
    """Compile as `choice` says; returns the number of compiled blocks."""
    if not compiles(choice, device):
        return 0
    if choice == "auto":
        torch._dynamo.config.suppress_errors = True  # no working compiler on this machine: a warning, and eager blocks
    return compile_blocks(model)
