"""Block-causal attention of the generator: ways to compute it, seconds and differences.

    python benchmarks/attention.py [--presets 0.1B] [--scales paper] [--batch-size 4] [--device auto]
                                   [--output attention.json]

Needs torch. Each way is timed forward and backward in bf16, at the heads of a preset and the tokens of a tokenizer,
after the prefix of the conditions. `dense`: one call with a mask. `levels`: one call without a mask per level, over
the keys up to its end (`level_by_level`, which a CPU uses). `flex`: FlexAttention with the structure of the levels,
compiled. `split`: the last level by one call without a mask, since it sees all keys, the levels before by `flex`
(`block_causal` on a GPU). Differences are from the output of `dense` in fp32.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.tokenizer import Timer, begin, commit, hardware
from g3pt.config import car_preset, cvq_preset
from g3pt.models.attention import (
    Causal,
    Levels,
    block_causal,
    block_mask,
    compiled_flex,
    level_by_level,
    level_of_tokens,
)
from pipelines.train.counts import condition_widths

Way = Callable[[Tensor, Tensor, Tensor, Levels], Tensor]


def dense(query: Tensor, key: Tensor, value: Tensor, levels: Levels) -> Tensor:
    """One call with a mask of all pairs."""
    level_N = level_of_tokens(levels).to(query.device)
    mask_NN = level_N[:, None] >= level_N[None]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask_NN, scale=1.0)


def flex(query: Tensor, key: Tensor, value: Tensor, levels: Levels) -> Tensor:
    """FlexAttention over all levels."""
    return compiled_flex()(query, key, value, block_mask=block_mask(levels, query.device), scale=1.0)


def split(query: Tensor, key: Tensor, value: Tensor, levels: Levels) -> Tensor:
    """The last level without a mask, the others by FlexAttention."""
    return block_causal(query, key, value, Causal(levels, block_mask(levels[:-1], query.device)))


WAYS: dict[str, Way] = {"dense": dense, "levels": level_by_level, "flex": flex, "split": split}


def measure(preset: str, scales: str, batch: int, steps: int, device: torch.device) -> dict[str, Any]:
    """The row of a preset."""
    config, codec = car_preset(preset)[0], cvq_preset(scales)[0]
    prefix = condition_widths(config)[2]
    levels = (prefix + codec.scales[0], *codec.scales[1:])
    shape = (batch, config.num_heads, sum(levels), config.width // config.num_heads)
    torch.manual_seed(0)
    parts = [torch.randn(shape, device=device) for _ in range(3)]
    query, key = (F.normalize(one, dim=-1) * 2 for one in parts[:2])
    lower = [one.to(torch.bfloat16).requires_grad_(True) for one in (query, key, parts[2])]
    row: dict[str, Any] = {"preset": preset, "scales": scales, "batch_size": batch, "tokens": sum(levels), "ways": {}}
    timer = Timer(device, 1)
    exact = dense(query, key, parts[2], levels)
    for name, way in WAYS.items():
        try:
            seconds = timer.seconds(lambda way=way: way(*lower, levels).sum().backward(), steps)
            with torch.no_grad():
                gap = float((way(*lower, levels).float() - exact).abs().max())
            row["ways"][name] = {"ms": 1e3 * seconds, "difference": gap}
        except (RuntimeError, NotImplementedError) as error:  # one way that a device cannot take leaves the others
            row["ways"][name] = {"error": str(error).strip().splitlines()[0][:300]}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", default="0.1B", help="comma-separated")
    parser.add_argument("--scales", default="paper", help="tokenizer preset")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10, help="timed")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--output", type=Path, default=Path("attention.json"))
    flags = parser.parse_args()
    device = begin(flags.device)
    rows = [measure(name, flags.scales, flags.batch_size, flags.steps, device) for name in flags.presets.split(",")]
    for row in rows:
        shown = (
            f"{name} {way['ms']:.3g} ms (difference {way['difference']:.2g})"
            if "ms" in way
            else f"{name}: {way['error']}"
            for name, way in row["ways"].items()
        )
        print(f"{row['preset']}, {row['tokens']} tokens, batch {row['batch_size']}: {', '.join(shown)}")
    found = {"commit": commit(), "hardware": hardware(device, 1), "rows": rows}
    flags.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
