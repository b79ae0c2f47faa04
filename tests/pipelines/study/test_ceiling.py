"""The loss of the codes' frequencies, at which a study's law may saturate."""

import math
from pathlib import Path

import numpy as np
import pytest

from g3pt.data import datasets, reading
from pipelines.derive import tokens
from pipelines.runs.identity import RunSpec
from pipelines.study.ceiling import ceiling_of, marginal_cross_entropy, usable
from tests.pipelines.toy_data import write_toy_dataset, write_toy_tokenizer


def test_it_is_the_smoothed_cross_entropy_of_each_token_s_frequencies() -> None:
    train_NS = np.array([[0, 3], [0, 2], [1, 3]], np.uint16)
    test_NS = np.array([[0, 3], [2, 3]], np.uint16)
    first = (
        -(math.log(2.5 / 5) + math.log(0.5 / 5)) / 2
    )  # counts 2, 1, 0, 0 of 3, half a count more for each of 4 codes
    second = -math.log(2.5 / 5)
    assert marginal_cross_entropy(train_NS, test_NS, 4) == pytest.approx((first + second) / 2)


def test_of_many_codes_it_is_their_entropy() -> None:
    share, random = np.array([0.5, 0.25, 0.125, 0.125]), np.random.default_rng(0)
    train_NS, test_NS = (random.choice(4, (20_000, 2), p=share) for _ in range(2))
    assert marginal_cross_entropy(train_NS, test_NS, 4) == pytest.approx(-(share * np.log(share)).sum(), rel=0.01)


def test_auto_reads_the_encoded_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info, tokenizer = write_toy_dataset(tmp_path / "data", count=60), write_toy_tokenizer(tmp_path / "tokenizer")
    kind = tokens.encode_dataset(info.path, tokenizer, use_ray=False)
    spec = RunSpec(
        stage="car", preset="toy", seed=0, config={}, paths={"data": str(info.path), "tokenizer": str(tokenizer)}
    )
    codes = tokens.load_codes(datasets.open_dataset(info.path), kind)
    ids = {split: [row["id"] for row in reading.read_rows(info, ["id"], split=split)] for split in ("train", "test")}
    total = 0.0
    for token in range(18):
        seen = [int(codes[name][token]) for name in ids["train"]]
        for name in ids["test"]:
            share = (seen.count(int(codes[name][token])) + 0.5) / (len(seen) + 0.5 * 8000)
            total -= math.log(share) / 18 / len(ids["test"])
    assert ceiling_of("auto", spec) == pytest.approx(total)
    assert f"{total:.4f} nats per token" in capsys.readouterr().err
    assert (ceiling_of(8.5, spec), ceiling_of(None, spec)) == (8.5, None)


def test_a_run_that_is_worse_than_the_frequencies_leaves_the_ceiling_to_the_fit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert usable(8.5, [8.0, 8.49]) == 8.5 and usable(None, [8.0]) is None
    assert usable(8.5, [8.0, 8.6]) is None
    assert "the ceiling of 8.5000 is fitted instead: the loss of a run is 8.6000" in capsys.readouterr().err
