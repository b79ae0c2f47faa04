"""Which runs a study has, what a plan says of them, and what is refused."""

import dataclasses
import json
from pathlib import Path

import pytest

from pipelines.cli.errors import UsageError
from pipelines.study.config import SweepFlags
from pipelines.study.cost import print_plan, steps_taken
from pipelines.study.plan import number, plan

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
        ({"sizes": "nano,micro", "batch_size": None}, "give --batch-size, which one law needs to be equal"),
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
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["size", "parameters", "seeds"]
    assert lines[1].startswith("3x96 (held out)") and lines[2].split()[:5] == [
        "2x64",
        "157,316",
        "0,1",
        "16,000",
        "2,000",
    ]
    assert lines[3].split()[4] == "200", "the cooldown alone"
    total = next(line for line in lines if "runs," in line)
    assert (
        total.startswith("25 runs, ")
        and "hours of one device at 10 GFLOP/s, " in total
        and total.endswith("at 2 per hour")
    )
    assert any(line.startswith("expected 95 % intervals: alpha ± ") and "loss at N 5.2e+05" in line for line in lines)
