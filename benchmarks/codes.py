"""Whether bf16 changes a tokenizer's codes: the share of codes equal to those of fp32, by scale.

    python benchmarks/codes.py [--model weights/g3pt-nano-cvq] [--objects 64] [--device auto] [--output codes.json]

Needs torch, numpy and safetensors. The objects are procedural shapes (g3pt/shapes), whose faces are sampled uniformly
over their area: without the conversion to a solid, which needs compiled loops. `bf16` is a tokenizer that is called in
autocast as in training: its encoder computes in bf16, its pyramid and quantiser in fp32. `device` compares fp32 there
with fp32 on the CPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor

from benchmarks.tokenizer import begin, commit, hardware
from g3pt.models.tokenizer import CVQ
from g3pt.shapes import FAMILIES, make_shape

BATCH = 16


def clouds(count: int, points: int) -> Tensor:
    """Points and normals (B, points, 6) of procedural shapes, in the box of a dataset."""
    names = [f"shapes/{FAMILIES[k % len(FAMILIES)]}-{k // len(FAMILIES):05d}" for k in range(count)]
    return torch.stack([_cloud(name, points) for name in names])


def _cloud(name: str, points: int) -> Tensor:
    shape, random = make_shape(name, 0), np.random.default_rng(0)
    low, high = shape.vertices.min(axis=0), shape.vertices.max(axis=0)
    placed = (shape.vertices - (low + high) / 2) * (1.9 / (high - low).max())
    a, b, c = (placed[shape.faces[:, k]] for k in range(3))
    cross = np.cross(b - a, c - a)
    area = np.linalg.norm(cross, axis=1)
    face = random.choice(len(area), points, p=area / area.sum())
    u, v = random.random((2, points, 1))
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    at = a[face] + u * (b - a)[face] + v * (c - a)[face]
    return torch.from_numpy(np.concatenate([at, cross[face] / area[face, None]], axis=1)).half().float()


@torch.no_grad()
def codes(model: CVQ, clouds_BP6: Tensor, device: torch.device, bf16: bool) -> Tensor:
    """Codes (B, S), on the CPU."""
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        parts = [model.encode(part.to(device)).cpu() for part in clouds_BP6.split(BATCH)]
    return torch.cat(parts)


def equal_by_scale(one_BS: Tensor, other_BS: Tensor, scales: tuple[int, ...]) -> list[float]:
    """Share of equal codes of each scale."""
    pairs = zip(one_BS.split(list(scales), dim=1), other_BS.split(list(scales), dim=1), strict=True)
    return [float((one == other).float().mean()) for one, other in pairs]


def measure(path: str, count: int, device: torch.device) -> dict[str, Any]:
    """The row of the table."""
    model = CVQ.from_pretrained(path)
    given = clouds(count, model.config.num_encode_points)
    here = codes(model, given, torch.device("cpu"), bf16=False)
    model = model.to(device)
    exact, lower = (codes(model, given, device, bf16) for bf16 in (False, True))
    scales = model.config.scales
    return {
        "model": path, "objects": count, "scales": list(scales),
        "bf16": equal_by_scale(lower, exact, scales), "device": equal_by_scale(exact, here, scales),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(Path(__file__).resolve().parents[1] / "weights" / "g3pt-nano-cvq"))
    parser.add_argument("--objects", type=int, default=64)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--output", type=Path, default=Path("codes.json"))
    flags = parser.parse_args()
    device = begin(flags.device)
    row = measure(flags.model, flags.objects, device)
    for name in ("bf16", "device"):
        print(f"{name}: {' '.join(f'{share:.3f}' for share in row[name])} of the codes equal, scales coarse to fine")
    found = {"commit": commit(), "hardware": hardware(device, 1), "rows": [row]}
    flags.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
