"""Workers share the objects of an evaluation: each returns the numbers of one process, and none waits for another."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from g3pt.config import CAR_PRESETS, CVQ_PRESETS, TrainConfig
from g3pt.models import diagnostics
from g3pt.models.diagnostics import diagnose, validation_loss
from g3pt.models.tokenizer import CVQ
from g3pt.training.fit import evaluates_in_bf16
from g3pt.training.sharing import Shared, joined
from pipelines.runs.identity import RunSpec
from pipelines.train import car
from pipelines.train.object_losses import read_object_losses, write_object_losses
from pipelines.train.plan import AFFORDABLE, evaluation_line, evaluation_of
from pipelines.train.trajectory import trajectory
from tests.g3pt.models.test_tokenizer import TINY, spheres
from tests.gloo import forked
from tests.pipelines.train.test_car import paths, stage  # noqa: F401 (a fixture)

SIZES = (2, 3)
PART = 2  # objects of a part, in these tests


@pytest.mark.parametrize("size", SIZES)
def test_a_generator_s_evaluations_and_test_are_those_of_one_process(
    paths: dict[str, str],  # noqa: F811
    size: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the bit, and so are the losses of single objects. Each worker has read its own objects alone."""
    monkeypatch.setattr(car, "EVAL_BATCH", PART)
    seen: list[int] = []

    def figures(rank: int = 0) -> dict[str, Any]:
        run = stage(paths)
        run.model.register_forward_hook(lambda *_: seen.append(1))
        found = run.evaluate(run.model) | run.evaluate_raw(run.model) | run.final(run.model)
        write_object_losses(run.object_losses(), folder / str(rank))
        held = {split: len(held.data) for split, held in run._splits.items()}
        return {"record": found, "objects": read_object_losses(folder / str(rank)), "passes": len(seen), "held": held}

    folder = tmp_path / "losses"
    for rank in range(size + 1):
        (folder / str(rank)).mkdir(parents=True)
    alone = figures(size)
    for found in forked(size, tmp_path / "workers", lambda rank: (seen.clear(), figures(rank))[1]):
        assert found["record"] == alone["record"] and found["objects"] == alone["objects"]
        assert found["passes"] == pytest.approx(alone["passes"] / size, abs=7), "shared"
        for split, count in alone["held"].items():
            assert found["held"][split] <= -(-count // (PART * size)) * PART < count, split
    assert len(alone["objects"]["id"]) == alone["record"]["test_objects"] > 2 * PART


@pytest.mark.parametrize(("size", "count"), [(2, 5), (3, 4)])  # 3 workers share 2 parts: one has none
def test_a_tokenizer_s_diagnostics_are_those_of_one_process(
    size: int, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnostics, "EVAL_BATCH", PART)
    torch.manual_seed(0)
    model, arrays = CVQ(TINY).eval(), spheres(count)
    passes: list[int] = []
    model.encoder.register_forward_hook(lambda *_: passes.append(1))

    arrays["thickness"] = np.linspace(0.01, 0.9, count)

    def figures(own: bool) -> tuple[dict[str, float], float, int]:
        shared = Shared.between_workers(count, PART) if own else None
        mine = {name: values[shared.objects()] for name, values in arrays.items()} if shared else arrays
        passes.clear()
        return diagnose(model, mine, shared=shared), validation_loss(model, mine, shared=shared), len(passes)

    record, loss, alone = figures(own=False)
    found = forked(size, tmp_path, lambda _: [figures(own=False), figures(own=True)])
    for theirs, their_loss, made in itertools.chain(*found):
        assert theirs.keys() == record.keys() and their_loss == loss
        for name, value in theirs.items():
            near = pytest.approx(value, rel=1e-6) if name.startswith("residual_ratio") else value
            assert record[name] == near, name
        assert made == 3 * -(-(alone // 3) // size), "as many passes on each worker"


def test_objects_are_divided_so_that_each_worker_has_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("g3pt.training.sharing.num_workers", lambda: 64)
    monkeypatch.setattr("g3pt.training.sharing.dist.get_rank", lambda: 3)
    assert [Shared.everywhere(count, 32).size for count in (256, 4096, 0)] == [4, 32, 1]
    share = Shared.between_workers(4096, 32)
    assert share.held == (3, 67) and share.objects() == [*range(96, 128), *range(2144, 2176)]
    assert share.rows(67) == range(32, 64) and share.in_turn(lambda part: part) == {3: 3, 67: 67}
    last = Shared.between_workers(70, 32)  # parts of 2: worker 3 has one
    assert last.objects() == [6, 7] and Shared.between_workers(3, 32).objects() == [2], "a part that it forgets"
    assert Shared.between_workers(3, 32).in_turn(lambda part: part) == {} == Shared.between_workers(0, 32).in_turn(int)
    monkeypatch.setattr("g3pt.training.sharing.num_workers", lambda: 1)
    whole = Shared.between_workers(70, 32)
    assert whole.size == 32 and joined(whole.in_turn(lambda part: len(whole.rows(part)))) == [32, 32, 6]


def test_a_run_chooses_how_many_objects_its_test_has(paths: dict[str, str]) -> None:  # noqa: F811
    """Another number is another run; 4,096, the default, is no part of a name."""
    run = stage(paths)
    run.train_config = dataclasses.replace(run.train_config, test_objects=3)
    assert run.final(run.model)["test_objects"] == 3 and len(run.object_losses()["id"]) == 3
    train = dataclasses.asdict(run.train_config)
    few, default, before = (
        RunSpec(stage="car", preset="x", seed=0, config={"train": values, "model": {}})
        for values in (
            train,
            train | {"test_objects": 4096},
            {name: value for name, value in train.items() if name != "test_objects"},
        )
    )
    assert few.name != default.name == before.name
    wsd = {"schedule": "wsd", "warmup_samples": 8}
    of = [
        dataclasses.replace(spec, config={**spec.config, "train": spec.config["train"] | wsd})
        for spec in (default, before)
    ]
    assert trajectory(of[0]) == trajectory(of[1]) != "", "a study grows from runs of before there was such a field"


def test_a_bf16_run_evaluates_in_bf16_on_a_gpu_alone() -> None:
    bf16 = TrainConfig(steps=1, batch_size=1, learning_rate=1.0, warmup_share=0.0, precision="bf16")
    assert evaluates_in_bf16(bf16, torch.device("cuda", 1)) and not evaluates_in_bf16(bf16, torch.device("cpu"))
    fp32 = TrainConfig(steps=1, batch_size=1, learning_rate=1.0, warmup_share=0.0)
    assert not evaluates_in_bf16(fp32, torch.device("cuda"))


def test_evaluations_take_at_most_a_fiftieth_of_the_steps_from_micro_up() -> None:
    """At every number of workers that divides the batch."""
    codec = CVQ_PRESETS["paper"][0]
    of = {f"cvq {name}": (*preset, None) for name, preset in CVQ_PRESETS.items()}
    of |= {f"car {name}": (*preset, codec) for name, preset in CAR_PRESETS.items()}
    shares = {
        name: max(
            evaluation_of(model, train, codec).share(workers)
            for workers in range(1, train.batch_size + 1)
            if train.batch_size % workers == 0
        )
        for name, (model, train, codec) in of.items()
    }
    names = list(shares)
    dear = {name for name, share in shares.items() if share > AFFORDABLE}
    assert dear == {names[0], *names[len(CVQ_PRESETS) :][: list(CAR_PRESETS).index("micro")]}
    model, train, _ = of["cvq micro"]
    train = dataclasses.replace(train, eval_every=200)
    assert (
        "128 objects each 200 steps, 9.09% of the operations of the steps (--set eval_every=920 for at most 2%); "
        in (evaluation_line(model, train, None, 1))
    )
    found = evaluation_of(model, train, None)
    assert found.share(1, found.affordable(1)) <= AFFORDABLE < found.share(1, found.affordable(1) - train.log_every)
