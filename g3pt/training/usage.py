"""How the codes of training batches are spread, counted batch by batch: what the collapse alarm reads
(limits: `alarm.py`).

How: a window opens at the first quantised step after a ledger record and closes with the next record. Two tables are
counted: codes per scale, (K, V), which give the entropies and digits exactly; and per token position the codes hashed
into HASHED buckets, (S, 256). Whole codes at every position would take 2408 x 8192 cells at the paper's size instead of
0.6 million. Merging codes at random can only lower an entropy, and lowers small ones least, so a collapse stays
visible. Workers add up their tables when the window closes. Steps without a quantiser are not counted.

The tables are neither parameters nor buffers, and no export holds them. Checkpoints are written where windows end
(pipelines/train/jobs.py); that of a run which is asked to stop contains the tables.

Ours: all of it. The entropy that n draws can reach is corrected for repetition: a window longer than the dataset has
only `num_objects` different draws.

Shapes: B batch, T tokens of a scale, S tokens of all scales, K scales, V codes, H hash buckets, C digits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from g3pt.metrics.entropy import digit_entropies, entropy_bits, expected_distinct, expected_entropy
from g3pt.training.alarm import faults
from g3pt.training.parallel import sum_over_workers

HASHED = 256  # buckets a position's codes are hashed into
MIN_SAMPLES, MIN_OBJECTS = 64, 16  # below these a window is reported but not judged


class CodeUsage:
    """Tables of one window. `num_objects` is the number of objects trained on, where it is known."""

    def __init__(self, scales: tuple[int, ...], levels: tuple[int, ...]) -> None:
        self.scales, self.levels, self.num_codes = scales, levels, math.prod(levels)
        self.num_objects: int | None = None
        self.counts_KV: Tensor | None = None
        self.hashed_SH: Tensor | None = None
        self.starts_2S: Tensor | None = None  # where a token's counts begin in either table, flat

    @torch.no_grad()
    def add(self, codes_BT: list[Tensor]) -> None:
        """Count a batch's codes, one tensor per scale. Does not synchronise a GPU."""
        # latents that are not finite have codes of any value, and an index that is out of range would end the run
        codes_BS = torch.cat(codes_BT, dim=1).clamp(0, self.num_codes - 1)
        if self.counts_KV is None or self.hashed_SH is None or self.starts_2S is None:
            self._open(codes_BS.device)
        ones = torch.ones((), dtype=torch.int32, device=codes_BS.device).expand(codes_BS.numel())
        self.counts_KV.view(-1).scatter_add_(0, (codes_BS + self.starts_2S[0]).flatten(), ones)
        self.hashed_SH.view(-1).scatter_add_(0, (hashed(codes_BS) + self.starts_2S[1]).flatten(), ones)

    def _open(self, device: torch.device) -> None:
        num_tokens = sum(self.scales)
        self.counts_KV = torch.zeros(len(self.scales), self.num_codes, dtype=torch.int32, device=device)
        self.hashed_SH = torch.zeros(num_tokens, HASHED, dtype=torch.int32, device=device)
        if self.starts_2S is None or self.starts_2S.device != device:  # once: a copy to a GPU waits for it
            scale_S = torch.tensor([scale for scale, count in enumerate(self.scales) for _ in range(count)])
            self.starts_2S = torch.stack([scale_S * self.num_codes, torch.arange(num_tokens) * HASHED]).to(device)

    def take(self) -> dict[str, float]:
        """Close the window and return its figures over all workers, who must all call it; empty
        if no step was counted.
        """
        if self.counts_KV is None or self.hashed_SH is None:
            return {}
        counts_KV, hashed_SH = sum_over_workers(self.counts_KV).cpu(), sum_over_workers(self.hashed_SH).cpu()
        self.counts_KV = self.hashed_SH = None
        samples = int(hashed_SH[0].sum())
        different = min(samples, self.num_objects or samples)
        found: dict[str, float] = {}
        for scale, (counts_V, hashed_TH) in enumerate(zip(counts_KV, hashed_SH.split(self.scales), strict=True)):
            found |= {
                f"{name}_scale_{scale + 1}": value
                for name, value in self._of_scale(counts_V, hashed_TH, different).items()
            }
        if samples >= MIN_SAMPLES and different >= MIN_OBJECTS:
            found["alarm"] = float(len(faults(found)))
        return found

    def state(self) -> dict[str, Tensor]:
        """The tables of the open window, summed over all workers, who must all call it; empty if none is open."""
        if self.counts_KV is None or self.hashed_SH is None:
            return {}
        return {
            "counts_KV": sum_over_workers(self.counts_KV.clone()),
            "hashed_SH": sum_over_workers(self.hashed_SH.clone()),
        }

    @torch.no_grad()
    def load(self, state: dict[str, Tensor], is_first: bool, device: torch.device) -> None:
        """Open a window with the tables of `state` on the first worker, and an empty one on the others:
        tables are summed later.
        """
        self._open(device)
        if is_first and self.counts_KV is not None and self.hashed_SH is not None:
            self.counts_KV.copy_(state["counts_KV"])
            self.hashed_SH.copy_(state["hashed_SH"])

    def _of_scale(self, counts_V: Tensor, hashed_TH: Tensor, different: int) -> dict[str, float]:
        draws = different * len(hashed_TH)
        joint = float(entropy_bits(counts_V))
        digits = digit_entropies(counts_V, self.levels)
        reachable = expected_entropy(different, min(HASHED, self.num_codes))
        return {
            "utilisation": min(1.0, int((counts_V > 0).sum()) / expected_distinct(draws, self.num_codes)),
            "entropy_pooled": joint,
            "information": min(1.0, float(entropy_bits(hashed_TH).mean()) / reachable) if reachable else 1.0,
            "digit_balance": min(
                entropy / math.log2(levels) for entropy, levels in zip(digits, self.levels, strict=True)
            ),
            # n draws show at most log2(n) bits, however independent the digits are
            "entropy_gap": max(0.0, min(sum(digits), math.log2(draws)) - joint),
        }


def hashed(codes: Tensor) -> Tensor:
    """Buckets below HASHED of codes below 2^16: the top byte of the product with 2^32 over the golden ratio (Knuth)."""
    return (codes * 2654435761 & 0xFFFFFFFF) >> 24
