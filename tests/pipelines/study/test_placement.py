"""How runs of each size use a cluster: a table over GPUs and presets, what does not fit, and that names stay."""

import dataclasses
from typing import Any

import pytest

from g3pt.config import CAR_PRESETS, CVQ_PRESETS, CARConfig, TrainConfig
from g3pt.training.memory import Activations
from g3pt.training.parallel import Gathered
from pipelines.cli.errors import UsageError
from pipelines.runs.identity import RunSpec
from pipelines.study import placement
from pipelines.study.config import SweepFlags
from pipelines.study.placement import FITS, Placement, makespan, place, placements, with_placement
from pipelines.train import memory
from pipelines.train.devices import Devices
from pipelines.train.memory import GIB, Needs

PAPER = CVQ_PRESETS["paper"][0]
FLAGS = SweepFlags(data="d", tokenizer="t", output="o")
H100 = round(79.2 * GIB)
# Size -> GiB of a rehearsed step on codes of the paper's tokenizer: whatever the number of objects, per object, and per
# object with recomputed layers; parameters in millions, frozen ones included in the second.
STEPS = {
    "nano": (0.0, 0.081, 0.032, 1, 151),
    "1.5M": (0.0, 0.162, 0.044, 2, 151),
    "micro": (0.0, 0.281, 0.064, 5, 151),
    "10M": (0.02, 0.311, 0.059, 10, 151),
    "small": (0.043, 0.461, 0.084, 23, 151),
    "base": (0.111, 0.881, 0.128, 60, 151),
    "0.1B": (0.194, 1.219, 0.175, 106, 578),
    "0.2B": (0.393, 1.938, 0.247, 213, 578),
    "0.3B": (0.583, 2.51, 0.301, 315, 578),
    "0.5B": (0.969, 3.507, 0.392, 523, 578),
    "0.9B": (1.709, 5.096, 0.531, 921, 578),
    "1.5B": (2.754, 6.981, 0.691, 1483, 578),
}
SIZES = {CAR_PRESETS[size][0].depth * 10_000 + CAR_PRESETS[size][0].width: size for size in STEPS}
# Workers x objects at once on 1, 8 and 64 GPUs of an H100's memory.
EXPECTED = {
    "nano": ("1 x 16", "1 x 16", "1 x 16"),
    "1.5M": ("1 x 32", "1 x 32", "1 x 32"),
    "micro": ("1 x 64", "2 x 32", "2 x 32"),
    "10M": ("1 x 128", "8 x 16", "8 x 16"),
    "small": ("1 x 128", "8 x 32", "32 x 8"),
    "base": ("1 x 64", "8 x 32", "32 x 8"),
    "0.1B": ("1 x 32", "8 x 32", "64 x 4"),
    "0.2B": ("1 x 16", "8 x 16", "64 x 4"),
    "0.3B": ("1 x 16", "8 x 16", "64 x 8"),
    "0.5B": ("1 x 8", "8 x 8", "64 x 8"),
    "0.9B": ("1 x 8", "8 x 8", "64 x 8"),
    "1.5B": ("1 x 4", "8 x 4", "64 x 4"),
}


@pytest.fixture(autouse=True)
def rehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of steps that were rehearsed once, which takes minutes for all presets."""

    def needs(
        model: CARConfig, precision: str, codec: Any = None, encoders: bool = True, narrow: bool = False
    ) -> Needs:
        size = SIZES[model.depth * 10_000 + model.width]
        fixed, per_object, recomputed, trained, frozen = STEPS[size]
        each = recomputed if model.checkpoint_layers else per_object
        return Needs(
            trained=trained * 1_000_000,
            frozen=frozen * 1_000_000,
            gathered=Gathered(block=trained * 1_000_000 // model.depth, outside=0, narrow=narrow),
            precision=precision,
            activations=Activations(fixed=round(fixed * GIB), per_object=round(each * GIB), batch_per_object=500_000),
        )

    monkeypatch.setattr(placement, "needs", needs)
    monkeypatch.setattr(memory, "needs", needs)


def gpus(count: int, memory: float = H100 / GIB) -> Devices:
    return Devices(count=count, per_node=min(count, 8), memory=round(memory * GIB))


@pytest.mark.parametrize(("column", "count"), [(0, 1), (1, 8), (2, 64)])
def test_every_preset_is_placed(column: int, count: int) -> None:
    found = placements([(size, *CAR_PRESETS[size]) for size in STEPS], PAPER, gpus(count), FLAGS)
    for size, got in found.items():
        batch = CAR_PRESETS[size][1].batch_size
        assert batch % (got.workers * got.micro_batch) == 0 and got.at_once == count // got.workers
        assert got.workers <= 8 or got.workers % 8 == 0
        assert got.memory is not None and got.memory <= FITS * H100
    assert {size: f"{got}" for size, got in found.items()} == {
        size: f"{row[column]} ddp" for size, row in EXPECTED.items()
    }


def test_what_one_gpu_cannot_hold_is_sharded_over_several() -> None:
    model, train = CAR_PRESETS["1.5B"]
    got = place(model, train, PAPER, gpus(8, 36))
    assert (got.workers, got.parallel) == (8, "fsdp") and got.memory <= FITS * 36 * GIB
    with pytest.raises(UsageError, match=r"a worker needs at least \d+\.\d GiB, and 85% of a GPU of 22.0 GiB are 18.7"):
        place(model, train, PAPER, gpus(1, 22))
    with pytest.raises(UsageError, match="1.5B cannot be placed: a worker needs at least"):
        placements([("nano", *CAR_PRESETS["nano"]), ("1.5B", model, train)], PAPER, gpus(1, 22), FLAGS)


def test_numbers_that_are_given_are_kept() -> None:
    model, train = CAR_PRESETS["0.1B"]
    assert str(place(model, train, PAPER, gpus(64), workers=4)).startswith("4 x ")
    got = place(model, train, PAPER, gpus(8), workers=2, micro_batch=8)
    assert (got.workers, got.micro_batch, got.parallel) == (2, 8, "ddp")
    assert place(model, train, PAPER, gpus(8), workers=2, micro_batch=128).recompute, "128 fit no other way"
    assert place(model, train, PAPER, gpus(8), workers=16).at_once == 1, "an autoscaler may start what is not there"
    with pytest.raises(UsageError, match="its batch of 256 is not a multiple of 3 workers"):
        place(model, train, PAPER, gpus(8), workers=3)
    three = dataclasses.replace(train, batch_size=48)
    model = CAR_PRESETS["1.5B"][0]
    assert place(model, three, PAPER, gpus(64)).workers == 48, "six whole nodes"
    assert place(model, three, PAPER, Devices(count=12, per_node=4, memory=H100)).workers == 12


def test_on_cpus_a_run_has_one_worker() -> None:
    model, train = CAR_PRESETS["nano"]
    cpus = Devices(count=16, per_node=16)
    assert place(model, train, PAPER, cpus) == Placement(workers=1, micro_batch=16, at_once=16)
    assert place(model, train, PAPER, cpus, workers=4, micro_batch=2) == Placement(workers=4, micro_batch=2, at_once=4)
    assert place(model, train, PAPER, cpus, workers=0).workers == 0


def test_a_placement_changes_no_run_s_name() -> None:
    model, train = CAR_PRESETS["base"]
    config = {"model": dataclasses.asdict(model), "train": dataclasses.asdict(train), "dataset": "d"}
    spec = RunSpec(stage="car", preset="base", seed=0, config=config)
    ways = [Placement(workers=w, micro_batch=m, parallel=p, recompute=r) for w, m, p, r in
            [(1, 256, "ddp", False), (64, 4, "ddp", True), (8, 2, "fsdp", True)]]  # fmt: skip
    placed = [with_placement(spec, way) for way in ways]
    assert {one.name for one in placed} == {spec.name}
    assert placed[2].config["computed"] == {"micro_batch": 2, "workers": 8, "parallel": "fsdp"}
    assert placed[2].config["model"]["checkpoint_layers"] and not placed[2].differences(spec.to_dict())


def test_runs_start_as_soon_as_they_fit() -> None:
    assert makespan([(8, 10.0), (1, 5.0), (1, 5.0), (4, 3.0)], 8) == 15.0
    assert makespan([(1, 5.0)] * 4, 2) == 10.0 and makespan([(2, 4.0), (1, 1.0), (2, 2.0)], 2) == 7.0
    assert makespan([], 8) == 0.0


def test_the_batch_of_a_size_bounds_its_workers() -> None:
    model = CAR_PRESETS["1.5B"][0]
    train = TrainConfig(steps=100, batch_size=4, learning_rate=1e-3, precision="bf16")
    assert place(model, train, PAPER, gpus(64)).workers == 4
