"""GPUs that a plan can be made for without having them: `--on 8xH100`.

Memory is about what CUDA reports; the peak is that of dense bf16 matrix products. A plan assumes a share of the peak
(UTILISATION; a study's `--utilisation`): .2 is the upper bound of a roofline of the uncompiled model of 704 to 1728
channels, which waits for memory most of the time (.20 to .24); it was not measured. A step takes at least as long as
its kernels take to launch. Presets in fp32 (below 10M) are slower than planned.
Source: NVIDIA's data sheets of A100, H100, H200, B200, L4, L40S and the Ada whitepaper (RTX 4090).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipelines.train.memory import GIB

PER_NODE = 8
UTILISATION = 0.2  # share of the peak
LAUNCH_S = 260 * 7e-6  # of the kernels of a layer, forward and backward


@dataclass(frozen=True, kw_only=True)
class Devices:
    """The GPUs of a cluster, or its CPUs if `memory` is None."""

    count: int
    per_node: int
    memory: int | None = None  # bytes of one

    def __str__(self) -> str:
        if self.memory is None:
            return f"{self.count} CPUs"
        nodes = -(-self.count // self.per_node)
        gpus = f"{self.count} GPU{'s' * (self.count != 1)} of {self.memory / GIB:.1f} GiB"
        return f"{gpus} on {nodes} node{'s' * (nodes != 1)}"


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A kind of GPU."""

    memory_gib: float
    peak: float  # operations per second


GPUS = {
    "L4": Gpu(memory_gib=22.0, peak=121e12),
    "RTX4090": Gpu(memory_gib=23.5, peak=165e12),
    "A100-40GB": Gpu(memory_gib=39.4, peak=312e12),
    "L40S": Gpu(memory_gib=44.4, peak=362e12),
    "A100-80GB": Gpu(memory_gib=79.2, peak=312e12),
    "H100": Gpu(memory_gib=79.2, peak=989e12),
    "H200": Gpu(memory_gib=139.0, peak=989e12),
    "B200": Gpu(memory_gib=178.0, peak=2250e12),
}


def devices_named(text: str) -> tuple[Devices, Gpu]:
    """The devices of COUNTxKIND on nodes of eight, or of NODESxCOUNTxKIND. ValueError for another text."""
    found = re.fullmatch(r"(?:([1-9]\d*)x)?([1-9]\d*)x([\w-]+)", text.strip())
    kind = next((name for name in GPUS if found and name.lower() == found[3].lower()), None)
    if found is None or kind is None:
        raise ValueError(f"--on {text}: give COUNTxKIND or NODESxCOUNTxKIND of {', '.join(GPUS)}, such as 8xH100")
    nodes, count = int(found[1] or 0), int(found[2])
    per_node = count if nodes else min(PER_NODE, count)
    memory = round(GPUS[kind].memory_gib * GIB)
    return Devices(count=count * max(1, nodes), per_node=per_node, memory=memory), GPUS[kind]
