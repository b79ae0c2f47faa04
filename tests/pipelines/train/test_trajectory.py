"""A run that starts from another's checkpoint is the run that it would be by itself."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from g3pt.config import TrainConfig, from_dict
from pipelines.runs.identity import RunSpec
from pipelines.study.ladder import ladder, steps_taken
from pipelines.train import run as train
from pipelines.train.checkpoints import checkpoints, samples_of
from pipelines.train.trajectory import (
    BRANCH_FILE,
    branch_samples,
    branched_from,
    furthest_start,
    start_from_another,
    trajectory,
)
from pipelines.train.worker import Speed
from tests.pipelines.train.test_run import TOY, ledger_steps, records_of, weights_hash

BASE = {
    "batch_size": 4, "learning_rate": 0.01, "schedule": "wsd", "warmup_samples": 8, "log_every": 2, "eval_every": 4,
    "checkpoint_every": 6,
}  # fmt: skip


def spec_of(steps: int, cooldown_share: float = 0.25, seed: int = 0, **changed: object) -> RunSpec:
    fit = {**BASE, "steps": steps, "cooldown_share": cooldown_share, **changed}
    return RunSpec(stage="car", preset="toy", seed=seed, config={"toy": {"width": 8}, "train": fit}, paths={})


def train_one(spec: RunSpec, output: Path, keep: tuple[int, ...] = ()) -> Path:
    return train.train_run(spec, output, num_workers=0, build=TOY, speed=Speed(keep_samples=keep))


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 steps that kept checkpoints after 14 (where 18 steps begin to cool down), and at its own cooldown."""
    run_dir = train_one(spec_of(40), tmp_path_factory.mktemp("trunk"), keep=(56, 120))
    assert {samples_of(path) for path in checkpoints(run_dir / "checkpoints")} == {56, 120}, "all else is removed"
    return run_dir


def config_of(spec: RunSpec) -> TrainConfig:
    return from_dict(TrainConfig, spec.config["train"])


@pytest.mark.parametrize("steps", [18, 60])
def test_a_branch_has_the_weights_and_ledger_of_a_run_of_its_own(steps: int, trunk: Path, tmp_path: Path) -> None:
    """One shorter than its trunk, one longer."""
    spec = spec_of(steps)
    alone = train_one(spec, tmp_path)
    run_dir = train.prepare_run(spec, trunk.parent)
    assert start_from_another(spec, run_dir) == trunk.name
    started = 56 if steps == 18 else 120
    assert [samples_of(path) for path in checkpoints(run_dir / "checkpoints")] == [started]
    assert ledger_steps(run_dir)[-1] == started - started % 8
    branch = train_one(spec, trunk.parent)
    assert branch == run_dir and branched_from(branch) == trunk.name and branched_from(alone) == ""
    assert weights_hash(branch) == weights_hash(alone) and records_of(branch) == records_of(alone)
    assert json.loads((branch / BRANCH_FILE).read_text()) == {"from": trunk.name, "samples": started}


def test_only_the_cooldown_s_steps_are_taken(trunk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spec = spec_of(18)
    shutil.copytree(trunk, tmp_path / trunk.name)
    start_from_another(spec, train.prepare_run(spec, tmp_path))
    train_one(spec, tmp_path)
    assert "resumes at 56 samples" in capfd.readouterr().out


def test_checkpoints_past_the_cooldown_s_begin_are_not_taken(trunk: Path, tmp_path: Path) -> None:
    """The newest one of an unfinished trunk is cooled down, the next is too late for 18 steps."""
    shutil.copytree(trunk, tmp_path / trunk.name)
    for samples in (144, 160):
        (tmp_path / trunk.name / "checkpoints" / f"samples-{samples:012d}.dcp").mkdir()
    assert branch_samples(config_of(spec_of(18))) == 56 and branch_samples(config_of(spec_of(40))) == 120
    for spec, start in ((spec_of(18), 56), (spec_of(60), 120)):
        assert furthest_start(spec, tmp_path / spec.name)[0] == start


@pytest.mark.parametrize(
    "other",
    [
        spec_of(18, seed=1), spec_of(18, learning_rate=0.02), spec_of(18, warmup_samples=12), spec_of(18, batch_size=8),
        spec_of(18, schedule="cosine"), spec_of(18, warmup_samples=None), dataclasses.replace(spec_of(18), stage="cvq"),
        dataclasses.replace(spec_of(18), config=spec_of(18).config | {"model": {"progressive_share": 0.3}}),
    ],
    ids=["seed", "rate", "warm-up", "batch", "cosine", "warm-up as a share", "tokenizer", "progressive"],
)  # fmt: skip
def test_a_run_of_another_trajectory_starts_from_nothing(other: RunSpec, trunk: Path, tmp_path: Path) -> None:
    assert trajectory(other) != trajectory(spec_of(40))
    run_dir = trunk.parent / other.name
    assert start_from_another(other, run_dir) == "" and not run_dir.exists()


def test_a_run_that_is_further_itself_is_left_alone(trunk: Path, tmp_path: Path) -> None:
    spec = spec_of(24)
    run_dir = train.prepare_run(spec, trunk.parent)
    (run_dir / "checkpoints" / "samples-000000000072.pt").touch()
    assert start_from_another(spec, run_dir) == "" and branched_from(run_dir) == ""


def test_a_ladder_takes_the_trunk_s_steps_once() -> None:
    """4k to 128k samples: .61 of the steps of separate runs."""
    base = TrainConfig(steps=1, batch_size=8, learning_rate=1e-3, warmup_share=0.0)
    rungs = ladder(base, [4096 * 2**k for k in range(6)], warmup_samples=512)
    assert [rung.steps for rung in rungs] == [512 * 2**k for k in range(6)]
    assert steps_taken(rungs) / sum(rung.steps for rung in rungs) == pytest.approx(0.61, abs=0.005)
    assert all(trajectory(spec_of(r.steps, r.cooldown_share)) == trajectory(spec_of(40)) for r in rungs)
    short = ladder(base, [1600], warmup_samples=8)[0]
    assert (short.steps, short.cooldown_steps) == (200, 50), "a fifth would be 40"


@pytest.mark.parametrize(
    ("samples", "warmup", "said"),
    [
        ([4099], 8, "4099 samples are no whole number of steps of 8"),
        ([400], 8, "400 samples are 50 steps: too few for a cooldown of 50"),
        ([4096], 1024, "a warm-up of 1024 samples is more than 0.125 of the 4096 samples of a run"),
    ],
)
def test_a_ladder_that_would_tell_nothing_is_refused(samples: list[int], warmup: int, said: str) -> None:
    base = TrainConfig(steps=1, batch_size=8, learning_rate=1e-3, warmup_share=0.0)
    with pytest.raises(ValueError, match=said):
        ladder(base, samples, warmup)


def test_another_placement_is_the_same_trajectory() -> None:
    """A study that grows on a larger cluster starts from the checkpoints of the smaller one."""
    spec = spec_of(40)
    model = {"depth": 1, "width": 8, "num_heads": 1, "checkpoint_layers": False}
    here = dataclasses.replace(spec, config=spec.config | {"model": model, "computed": {"micro_batch": 4}})
    there = dataclasses.replace(
        here,
        config=here.config
        | {
            "model": model | {"checkpoint_layers": True},
            "computed": {"micro_batch": 1, "workers": 4, "parallel": "fsdp"},
        },
    )
    assert trajectory(here) == trajectory(there) != ""
    assert trajectory(dataclasses.replace(here, config=here.config | {"model": model | {"width": 16}})) != trajectory(
        here
    )
