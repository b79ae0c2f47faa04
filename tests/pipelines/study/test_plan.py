"""Which runs a study has, what a plan says of them, and what is refused."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from g3pt.config import cvq_preset
from pipelines.cli.errors import UsageError
from pipelines.study.config import SweepFlags
from pipelines.study.cost import (
    Speed,
    cost_of,
    operations_of,
    planned_devices,
    print_plan,
    refuse_wide,
    run_table,
    steps_taken,
    trials,
)
from pipelines.study.job import scaling_sweep
from pipelines.study.placement import Placement
from pipelines.study.plan import number, plan, unlike
from pipelines.train.devices import Devices, devices_named

FLAGS = SweepFlags(
    data="d",
    tokenizer="t",
    output="o",
    sizes="1x16,2x32",
    samples="4k,8k,16k",
    batch_size=8,
    seeds="0,1",
    num_workers=0,
)


def test_every_size_has_every_number_of_samples_and_seed() -> None:
    rows = plan(FLAGS)
    assert [(r.size, r.train.seed, r.samples) for r in rows] == [
        (size, seed, samples) for size in ("2x32", "1x16") for seed in (0, 1) for samples in (16_000, 8_000, 4_000)
    ]
    assert {(r.train.schedule, r.train.warmup_samples, r.train.ema_decay) for r in rows} == {("wsd", 500, 0.0)}
    assert [r.train.cooldown_steps for r in rows[:3]] == [400, 200, 100]
    assert len({r.train.learning_rate for r in rows if r.size == "1x16"}) == 1, "one trajectory has one rate"
    assert [steps_taken(r, rows) for r in rows[:3]] == [2000, 200, 100]


def test_runs_to_be_predicted_have_the_first_seed_and_no_part_in_the_ladder() -> None:
    rows = plan(dataclasses.replace(FLAGS, held_out="2x48:16k,1x16:32k"))
    ahead = [(r.size, r.train.seed, r.samples) for r in rows if r.held_out]
    assert ahead == [("2x48", 0, 16_000), ("1x16", 0, 32_000)] and len(rows) == 14
    assert {r.samples for r in rows if r.size == "1x16" and r.train.seed == 1} == {4_000, 8_000, 16_000}


def test_a_rule_gives_the_rates_at_the_middle_of_the_ladder(tmp_path: Path) -> None:
    (tmp_path / "lr.json").write_text(json.dumps({"rule": {"c": -2.0, "a": -0.25, "b": -0.1, "formula": ""}}))
    rows = plan(dataclasses.replace(FLAGS, lr_rule=str(tmp_path / "lr.json")))
    rates = {r.size: r.train.learning_rate for r in rows}
    assert rates["1x16"] == pytest.approx(2.718281828**-2 * 5345**-0.25 * 8000**-0.1, rel=2e-3)
    assert rates["2x32"] < rates["1x16"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"samples": "4k,many"}, "'many' is no count, such as 500, 8k or 1.5M"),
        ({"samples": "4k,4k"}, "--samples names 4000 twice"),
        ({"samples": "4k,4001"}, "4001 samples are no whole number of steps of 8"),
        ({"held_out": "2x48"}, "--held-out takes SIZE:SAMPLES, such as 1.5M:128k, got '2x48'"),
        ({"held_out": "1x16:8k"}, "--held-out 1x16:8000 is one of the runs that are fitted"),
        (
            {"sizes": "nano,micro", "batch_size": None},
            "one law needs one batch, and batch_size is 16, 64: give --batch-size",
        ),
        (
            {"sizes": "0.1B,nano"},
            "the same conditions and losses at all sizes, and image_text_weight is 0.0, 4.0; text_encoder is .*: give "
            "--set, as in --set image_text_weight=4.0,text_encoder=small,image_encoder=small,image_size=56, or",
        ),
        ({"sizes": "1x16,1x20"}, "the width of 1x20 must be a multiple of 8"),
        ({"sizes": "20k,1x32", "set": "num_heads=1"}, "it makes 20k and 1x32 the same model"),
        ({"lr_rule": "nowhere.json"}, "--lr-rule nowhere.json contains no rule: FileNotFoundError"),
        ({"warmup_samples": 1000}, "a warm-up of 1000 samples is more than 0.125 of the 4000 samples of a run"),
    ],
)
def test_a_plan_that_makes_no_study_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan(dataclasses.replace(FLAGS, **changes))


@pytest.mark.parametrize("changes", [{"steps": 7}, {"samples": None, "held_out": "a:1"}])
def test_flags_that_contradict_each_other_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="--samples"):
        dataclasses.replace(FLAGS, **changes)


def test_counts() -> None:
    assert [number(text) for text in ("500", "8k", "1.5M", "0.5k")] == [500, 8000, 1_500_000, 500]
    for text in ("", "k", "1.0001k", "-3", "1e3", "0"):
        with pytest.raises(ValueError):
            number(text)


def test_the_plan_counts_shared_steps_once_and_says_what_it_would_tell(capsys: pytest.CaptureFixture[str]) -> None:
    flags = dataclasses.replace(FLAGS, sizes="1x16,2x32,2x48,2x64", held_out="3x96:16k", flops_per_s=1e10, price=2.0)
    print_plan(plan(flags), flags)
    head, sizes, runs, last = (part.splitlines() for part in divided(capsys.readouterr().out))
    assert head[0].startswith("codes of preset nano, as t does not exist yet, 85 tokens; on ")
    assert sizes[0].split()[:2] == ["size", "parameters"] and sizes[1].split()[:4] == [
        "3x96",
        "519,753",
        "333,513",
        "608,744",
    ]
    assert [line.split()[0] for line in sizes[1:]] == ["3x96", "2x64", "2x48", "2x32", "1x16"]
    assert "0.003, 0.0045 hidden  0 x 8 ddp" in sizes[2], "without workers"
    assert runs[1].startswith("3x96 (held out)  0 ") and runs[2].split()[:4] == ["2x64", "0,1", "16,000", "2,000"]
    assert runs[3].split()[3] == "200", "the cooldown alone"
    assert last[0].startswith("25 runs, 10.2 TFLOP in all; shared steps are counted once; up to ")
    assert " CPU-hours, " in last[1] and " at 2 per hour; " in last[1]
    assert last[2].startswith("expected 95 % intervals: alpha ± ") and "loss at N 5.2e+05" in last[2]
    assert max(map(len, [*sizes, *runs])) <= 160


def divided(text: str) -> list[str]:
    """The line before the tables, the two tables, and the sums."""
    first, _, rest = text.partition("\n")
    return [first, *rest.strip().split("\n\n")]


def test_what_a_run_costs() -> None:
    """By hand: a trunk of 2,000 steps of 8, its cooldowns of 200 and 100, evaluations of 256 objects and the test."""
    flags = dataclasses.replace(FLAGS, sizes="2x64", seeds="0", set="image_encoder=none,eval_every=1000")
    rows = plan(flags)
    codec, each = cvq_preset("nano")[0], operations_of(rows[0], cvq_preset("nano")[0])
    placed = {"2x64": Placement(workers=2, micro_batch=4)}
    objects = {"train": 4000, "val": 100, "test": 500}
    trunk, half, quarter = cost_of(rows, codec, placed, Speed(rate=each * 10.0), objects)
    assert (trunk.steps, half.steps, quarter.steps) == (2000, 200, 100)
    assert trunk.operations == each * 16_000 and trunk.train_s == 2000 * 4 / 10
    assert trunk.evaluate_s == pytest.approx((3 * 100 * 3 + 500 * 2) / 3 / 10 / 2), "shared by two workers"
    assert half.evaluate_s == pytest.approx((1 * 100 * 3 + 500 * 2) / 3 / 10 / 2)
    assert trunk.device_hours == pytest.approx(2 * trunk.seconds / 3600)
    assert trials([trunk, half]) == [(2, trunk.seconds + half.seconds)]
    slow = cost_of(rows, codec, placed, Speed(rate=1e30, launch_s=0.5), objects)[0]
    assert slow.train_s == 2000 * 0.5 * 2, "a step takes as long as the launches of its two layers"
    again = dataclasses.replace(placed["2x64"], recompute=True)
    assert cost_of(rows, codec, {"2x64": again}, Speed(rate=each * 10.0), objects)[0].train_s == pytest.approx(
        4 / 3 * trunk.train_s
    )
    probed = cost_of(rows, codec, placed, Speed(rate=each * 10.0, measured={"2x64": 0.01}), objects)[0]
    assert probed.train_s == 2000 * 4 * 0.01
    assert cost_of(rows, codec, placed, Speed(), objects)[0].seconds is None
    table = run_table([trunk], objects, 3.0)
    assert table[1][5:7] == ("4", "25%") and table[1][10] == f"{trunk.device_hours * 3:.3g}"


def test_gpus_that_are_not_here() -> None:
    assert devices_named("8xH100")[0] == Devices(count=8, per_node=8, memory=round(79.2 * 2**30))
    assert (devices_named("64xh200")[0].count, devices_named("64xh200")[0].per_node) == (64, 8)
    assert devices_named("2x4xA100-40GB")[0].per_node == 4 and devices_named("1xL4")[0].per_node == 1
    for text in ("H100", "8xH1000", "0xH100", "8 x H100", ""):
        with pytest.raises(ValueError, match="give COUNTxKIND or NODESxCOUNTxKIND of L4, RTX4090, A100-40GB"):
            devices_named(text)
    with pytest.raises(UsageError, match="--on 8xTPU: give COUNTxKIND"):
        planned_devices(dataclasses.replace(FLAGS, on="8xTPU"))
    with pytest.raises(UsageError, match="--on 8xH100 has no room for --num-workers 16"):
        planned_devices(dataclasses.replace(FLAGS, on="8xH100", num_workers=16))
    devices, speed = planned_devices(dataclasses.replace(FLAGS, on="8xA100-80GB", utilisation=0.5))
    assert devices.count == 8 and speed.rate == 156e12 and "at 50% of 312 TFLOP/s in bf16, assumed" in speed.said
    with pytest.raises(ValueError, match="--utilisation must be a share of the peak"):
        dataclasses.replace(FLAGS, utilisation=20)


def test_a_plan_that_would_know_too_little_is_refused() -> None:
    found = {"half_width": {"alpha": 0.9, "loss at N 1e+06, D 1e+05": 0.03, "loss at N 2e+06, D 1e+05": 0.04}}
    refuse_wide(found, None)
    refuse_wide(found, 0.05)
    with pytest.raises(
        UsageError, match=r"--max-interval 0.035: the plan would know the loss at N 2e\+06, D 1e\+05 to 0.04"
    ):
        refuse_wide(found, 0.035)
    with pytest.raises(UsageError, match="--max-interval 0.1: no law in N and D: two sizes"):
        refuse_wide("no law in N and D: two sizes", 0.1)
    with pytest.raises(ValueError, match="it needs --held-out"):
        dataclasses.replace(FLAGS, max_interval=0.02)
    too_little = dataclasses.replace(FLAGS, held_out="2x48:16k", max_interval=0.02)
    with pytest.raises(UsageError, match="--max-interval 0.02: no law in N and D"):
        scaling_sweep(too_little)


def test_what_sizes_differ_in_is_said() -> None:
    assert unlike(plan(FLAGS)) == ""
    line = unlike(plan(SweepFlags(data="d", tokenizer="t", output="o", sizes="nano,10M,0.1B")))
    assert line.startswith(
        "sizes differ in more than their shape: image_text_weight is 0.0, 4.0; text_encoder is openai/"
    )
    assert (
        "; batch_size is 256, 128, 16; " in line and "; precision is bf16, fp32" in line and "learning_rate" not in line
    )


def test_the_command_s_help_needs_no_torch() -> None:
    program = "import sys, pipelines.study.job, pipelines.study.plan_file; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout == "False\n", done.stderr
