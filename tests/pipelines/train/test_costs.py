"""The hours and the price of a training on stated GPUs."""

import dataclasses
from typing import Any

import pytest

from g3pt.config import car_preset, cvq_preset
from pipelines.cli.errors import UsageError
from pipelines.study.config import SweepFlags
from pipelines.study.cost import Speed, cost_of
from pipelines.study.placement import Placement
from pipelines.study.plan import plan
from pipelines.train.costs import cost_line, hours_of, planned_for
from pipelines.train.devices import GPUS, LAUNCH_S, UTILISATION
from pipelines.train.jobs import TrainCARFlags, TrainCVQFlags
from pipelines.train.plan import evaluation_of

FLAGS = TrainCVQFlags(data="d", output="o", preset="large", on="8xH100", price=2.5)


def of(stage: str, name: str) -> tuple[Any, Any, Any]:
    """(model, training, tokenizer's configuration) of a preset."""
    if stage == "cvq":
        return *cvq_preset(name), None
    return *car_preset(name), cvq_preset("paper")[0]


@pytest.mark.parametrize(("stage", "name", "workers"), [("cvq", "large", 8), ("car", "0.1B", 8), ("car", "1.5B", 64)])
def test_hours_are_operations_over_the_assumed_speed(stage: str, name: str, workers: int) -> None:
    """By hand: operations of an object in a step of the last phase times all objects."""
    from g3pt.training import flops
    from pipelines.train.counts import car_operations

    model, train, codec = of(stage, name)
    found = hours_of(GPUS["H100"], workers, model, train, codec, evaluation_of(model, train, codec))
    object_ = flops.cvq_training(model, "joint") if codec is None else 3 * car_operations(model, codec)
    by_hand = object_ * train.steps * train.batch_size / (workers * UTILISATION * GPUS["H100"].peak) / 3600
    assert by_hand * 0.9 < found.train_s / 3600 <= by_hand * 1.0001  # a tokenizer's first phase costs less
    assert found.wall == pytest.approx((found.train_s + found.evaluate_s) / 3600)


def test_a_study_plans_the_same_seconds() -> None:
    rows = plan(SweepFlags(data="d", tokenizer="t", output="o", sizes="0.1B,0.2B,0.5B", batch_size=256))
    row, codec = next(row for row in rows if row.size == "0.1B"), cvq_preset("paper")[0]
    speed, placed = Speed(rate=UTILISATION * GPUS["H100"].peak, launch_s=LAUNCH_S), Placement(workers=8, micro_batch=32)
    (cost,) = cost_of([row], codec, {"0.1B": placed}, speed, {})
    found = hours_of(GPUS["H100"], 8, row.model, row.train, codec, evaluation_of(row.model, row.train, codec))
    assert found.train_s == pytest.approx(cost.train_s)
    assert found.evaluate_s == pytest.approx(cost.evaluate_s, rel=0.02)


def test_a_small_model_waits_for_its_launches() -> None:
    model, train, _ = of("cvq", "nano")
    found = hours_of(GPUS["H100"], 1, model, train, None, evaluation_of(model, train, None))
    layers = model.encoder_layers + model.decoder_layers + 2 * len(model.scales)
    assert found.train_s == pytest.approx(train.steps * LAUNCH_S * layers)


def test_the_plan_is_for_the_gpus_that_are_named() -> None:
    flags, gpu = planned_for(FLAGS)
    assert (flags.num_workers, flags.gpu_memory, gpu) == (8, GPUS["H100"].memory_gib, GPUS["H100"])
    model, train, codec = of("cvq", "large")
    line = cost_line(flags, gpu, model, train, codec, evaluation_of(model, train, codec))
    hours = hours_of(GPUS["H100"], 8, model, train, codec, evaluation_of(model, train, codec))
    assert f"{hours.wall * 8 * 2.5:,.2f} at 2.5 per hour" in line and "20% of 989 TFLOP/s, assumed" in line


def test_without_gpus_no_time_is_claimed() -> None:
    flags = TrainCARFlags(data="d", tokenizer="t", output="o")
    assert planned_for(flags) == (flags, None)
    model, train, codec = of("car", "nano")
    assert cost_line(flags, None, model, train, codec, None).startswith("time: unknown here")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"on": "8xH9000"}, "--on 8xH9000: give COUNTxKIND"),
        ({"num_workers": 4}, "--on 8xH100 plans for 8 workers: leave out --num-workers"),
        ({"on": "2x4xH100", "parallel": "fsdp"}, "planned for nodes of 8 GPUs"),
    ],
)
def test_what_cannot_be_planned_is_refused(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        planned_for(dataclasses.replace(FLAGS, **changed))
