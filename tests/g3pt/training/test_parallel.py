"""One worker and two, DDP and FSDP2, whole batches and micro-batches: one loss curve; a checkpoint
of one goes on under another.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from g3pt.training.fit import count_parts
from g3pt.training.parallel import SingleProcess, make_parallel
from tests.g3pt.two_workers import BAD_STEP, BATCH, CASES, KINDS, STEPS, stored, train_car, train_cvq

pytestmark = pytest.mark.slow  # four processes train tokenizers and generators for all of them
REPOSITORY = Path(__file__).resolve().parents[3]
CURVE = 2e-4  # relative: float noise, which rounding to codes amplifies step by step
LFQ_CURVE = 1e-3  # LFQ's gradients are divided by deviations that few objects gave
RATE = ("samples_per_second",)
COUNTED = (
    "utilisation",
    "information",
    "digit_balance",
    "entropy",
    "alarm",
)  # of codes: in bf16 one code at a border moves them by 10 %


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two workers found, one file a training."""
    folder = tmp_path_factory.mktemp("two")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "tests.g3pt.two_workers", str(folder)]
    workers = [subprocess.Popen([*command, str(rank)], env=environment, cwd=REPOSITORY) for rank in range(2)]
    assert [worker.wait(timeout=600) for worker in workers] == [0, 0]
    return folder


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, Any]]:
    """The same trainings by one process."""
    return {**{case: train_cvq(case, SingleProcess()) for case in CASES}, "car": train_car(SingleProcess())}


def load(folder: Path, name: str) -> dict[str, Any]:
    return torch.load(folder / f"{name}.pt")


def same_curve(
    found: dict[str, Any], expected: dict[str, Any], rel: float = CURVE, aside: tuple[str, ...] = RATE
) -> None:
    """Every record's every number, but those whose names begin like one of `aside`."""
    assert len(found["records"]) == len(expected["records"]) == STEPS
    for ours, theirs in zip(found["records"], expected["records"], strict=True):
        assert ours.keys() == theirs.keys()
        for name in (name for name in ours if not name.startswith(aside)):
            assert ours[name] == pytest.approx(theirs[name], rel=rel, abs=min(rel, LFQ_CURVE) / 20), (
                name,
                ours["step"],
            )


def test_a_request_to_one_worker_stops_both_after_the_next_step(folder: Path) -> None:
    """None waits for the other's answer; one that comes after the last step is too late."""
    assert [torch.load(folder / f"stops-{rank}.pt") for rank in range(2)] == [[3, STEPS]] * 2


@pytest.mark.parametrize("name", ["fsq-ddp", "fsq-fsdp", "lfq-ddp", "car-fsdp", "car-micro-ddp"])
def test_two_workers_give_the_loss_curve_of_one(folder: Path, alone: dict[str, dict[str, Any]], name: str) -> None:
    same_curve(load(folder, name), alone[name.split("-")[0]], rel=LFQ_CURVE if "lfq" in name else CURVE)


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_clipping_averaged_weights_and_recomputed_layers_work_under_both(
    folder: Path, alone: dict[str, dict[str, Any]], kind: str
) -> None:
    found = load(folder, f"bf16-{kind}")
    same_curve(found, alone["bf16"], rel=0.03, aside=(*RATE, *COUNTED))
    assert all(record["grad_norm"] > 0.1 for record in found["records"][:3]), "or nothing was clipped"
    fsq = load(folder, f"fsq-{kind}")
    assert found["records"][0]["loss"] != fsq["records"][0]["loss"], "bf16 rounds"
    assert found["records"][3]["val_norm"] == pytest.approx(alone["bf16"]["records"][3]["val_norm"], rel=1e-4)


def test_a_generator_gathered_in_bf16_learns_as_one_that_computes_in_bf16(folder: Path) -> None:
    found, alone = load(folder, "car-bf16-fsdp"), train_car(SingleProcess(), precision="bf16")
    same_curve(found, alone, rel=0.02)
    assert found["records"][3]["val_norm"] == pytest.approx(alone["records"][3]["val_norm"], rel=1e-3)
    assert all(value.dtype == torch.float32 for name, value in found["weights"].items() if value.is_floating_point()), (
        "the weights themselves stay float32"
    )


@pytest.mark.parametrize(("case", "block_bytes"), [("car-fsdp", 4), ("car-bf16-fsdp", 2)])
def test_a_sharded_generator_is_gathered_a_block_at_a_time(folder: Path, case: str, block_bytes: int) -> None:
    """What the first block finds whole: itself, and what is in no block (the next block, on its way,
    is not yet the model's).
    """
    found = load(folder, case)
    plan = found["gathered"]
    assert plan["narrow"] and found["held_bytes"] == block_bytes * plan["block"] + 4 * plan["outside"]


@pytest.mark.parametrize("kind", KINDS)
def test_running_statistics_are_those_of_all_workers(folder: Path, alone: dict[str, dict[str, Any]], kind: str) -> None:
    ours, theirs = load(folder, f"fsq-{kind}")["weights"], alone["fsq"]["weights"]
    names = [name for name in theirs if ".norms." in name or name.endswith(("sigma", "sigma_calls", "latent_mean_LD"))]
    assert len(names) == 3 * 4 + 3
    for name in names:
        assert torch.allclose(ours[name].float(), theirs[name].float(), rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize("name", ["fsq-ddp", "fsq-fsdp", "resumed-ddp", "resumed-fsdp"])
def test_the_best_weights_are_whole_and_those_of_one_worker(
    folder: Path, alone: dict[str, dict[str, Any]], name: str
) -> None:
    found, expected = load(folder, name)["best"], alone["fsq"]["best"]
    assert found["samples"] == expected["samples"] == BATCH * STEPS // 2, "before the checkpoint that was resumed"
    assert found["weights"].keys() == expected["weights"].keys() == alone["fsq"]["weights"].keys()
    for key, value in expected["weights"].items():
        assert torch.allclose(found["weights"][key].float(), value.float(), rtol=1e-3, atol=1e-4), key


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_is_not_finite_on_one_worker_is_skipped_by_all(
    folder: Path, alone: dict[str, dict[str, Any]], kind: str
) -> None:
    found = load(folder, f"bad-{kind}")
    skipped = {"step": BATCH * (BAD_STEP + 1), "skipped_steps": 1.0, "skipped_step_1": BAD_STEP}
    assert skipped.items() <= found["records"][BAD_STEP].items() and "loss" not in found["records"][BAD_STEP]
    same_curve(found, alone["bad"])
    for name, value in alone["bad"]["weights"].items():
        assert torch.allclose(found["weights"][name].float(), value.float(), rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_goes_on_under_the_other_kind(folder: Path, kind: str) -> None:
    resumed, whole = load(folder, f"resumed-{kind}"), load(folder, f"fsq-{kind}")
    same_curve({"records": whole["records"][: STEPS // 2] + resumed["records"]}, whole)
    for name, value in whole["weights"].items():
        assert torch.allclose(resumed["weights"][name].float(), value.float(), rtol=1e-3, atol=1e-4), name


def test_a_checkpoint_of_two_workers_goes_on_alone(folder: Path) -> None:
    for kind in KINDS:
        whole = load(folder, f"fsq-{kind}")
        assert (whole["state"] is None) == (kind == "fsdp"), "a sharded state is not gathered"
        resumed = train_cvq("fsq", SingleProcess(), resume=whole["state"] or stored(folder))
        same_curve({"records": whole["records"][: STEPS // 2] + resumed["records"]}, whole)


def test_micro_batches_change_a_generator_by_float_noise(alone: dict[str, dict[str, Any]]) -> None:
    same_curve(train_car(SingleProcess(), micro_batch=2), alone["car"])


def test_micro_batches_change_a_tokenizer_by_float_noise(alone: dict[str, dict[str, Any]]) -> None:
    found, whole = train_cvq("fsq", SingleProcess(), micro_batch=2), alone["fsq"]
    same_curve(found, whole)
    for name, value in whole["weights"].items():
        assert torch.allclose(found["weights"][name].float(), value.float(), rtol=1e-3, atol=1e-4), name
    assert int(found["weights"]["cqt.norms.0.calls"]) == 4, "five quantised steps, whose last one is frozen"


def test_gradients_are_views_of_the_buckets_that_are_exchanged(folder: Path, alone: dict[str, dict[str, Any]]) -> None:
    """Otherwise DDP keeps every gradient twice."""
    gradients = load(folder, "fsq-ddp")["gradients"]
    assert len(set(gradients)) == 1 < len(gradients), "the buckets of a tiny model are one storage"
    assert len(set(alone["fsq"]["gradients"])) == len(gradients)


def test_a_step_reduces_all_running_statistics_at_once(folder: Path) -> None:
    for kind in KINDS:
        assert load(folder, f"fsq-{kind}")["reduces"] == [1] * STEPS, "continuous, pyramid and joint alike"


def test_a_batch_that_cannot_be_cut_is_refused() -> None:
    assert count_parts(8, None) == count_parts(8, 8) == count_parts(8, 9) == 1
    assert count_parts(8, 2) == 4
    with pytest.raises(ValueError, match="8 objects, is not a multiple of the micro-batch 3"):
        count_parts(8, 3)
    with pytest.raises(ValueError, match="unknown parallelism 'zero'"):
        make_parallel("zero", 0, 2)
    assert BATCH % 2 == 0
