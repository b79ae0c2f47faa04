"""`--ceiling auto`: the loss of a generator that knows how often each code occurs at each place, and nothing else.

Small and short runs approach it from below, and the saturating form of the law (`g3pt.scaling.forms`) may have it as H.
How: the frequencies of the training objects' codes at each token, smoothed, are the model; its cross-entropy over the
test objects is the ceiling, so that rare codes cost what they would cost a generator.
Ours: all of it. Smoothing: half a count per code (Krichevsky & Trofimov 1981).
Shapes: N objects, S tokens of all scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.cli.progress import say
from pipelines.runs.identity import RunSpec

AUTO = "auto"
PSEUDO_COUNT = 0.5


def ceiling_of(given: float | str | None, spec: RunSpec) -> float | None:
    """The ceiling that --ceiling names, in nats per token; `auto` reads the run's dataset, which must be encoded."""
    if given != AUTO:
        return None if given is None else float(given)
    found = codes_entropy(spec.paths["data"], spec.paths["tokenizer"])
    say(f"  codes by themselves: {found:.4f} nats per token, the ceiling of the law")
    return found


def usable(ceiling: float | None, losses: Sequence[float]) -> float | None:
    """The ceiling if it is above all losses; else None, with a line that says so: a run that has learnt nothing yet can
    be worse than the frequencies.
    """
    if ceiling is None or max(losses) < ceiling:
        return ceiling
    say(f"  the ceiling of {ceiling:.4f} is fitted instead: the loss of a run is {max(losses):.4f}")
    return None


def codes_entropy(data: str, tokenizer: str) -> float:
    """`marginal_cross_entropy` of a dataset's training and test objects, of equal weight per token."""
    from g3pt.config import CVQConfig, from_dict
    from g3pt.data import datasets, reading
    from g3pt.training.exports import read_export_config
    from pipelines.derive import tokens

    info = datasets.open_dataset(data)
    codes = tokens.load_codes(info, tokens.tokens_kind(tokenizer))
    train_NS, test_NS = (
        np.stack([codes[row["id"]] for row in reading.read_rows(info, ["id"], split=split)])
        for split in ("train", "test")
    )
    num_codes = from_dict(CVQConfig, read_export_config(tokenizer)["model"]).num_codes
    return marginal_cross_entropy(train_NS, test_NS, num_codes)


def marginal_cross_entropy(train_NS: np.ndarray, test_NS: np.ndarray, num_codes: int) -> float:
    """Mean over tokens and test objects of -log of the code's smoothed frequency in the training objects, in nats."""
    total: Any = 0.0
    for train_N, test_N in zip(train_NS.T, test_NS.T, strict=True):
        counts = np.bincount(train_N, minlength=num_codes) + PSEUDO_COUNT
        total -= np.log(counts[test_N] / counts.sum()).mean()
    return float(total / train_NS.shape[1])
