"""States are copied in the step and written by a thread: as they were then, one after the other, all before the end."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from g3pt.config import TrainConfig
from g3pt.models.car import G3PT
from g3pt.training.fit import AskedToStop, fit
from g3pt.training.parallel import SingleProcess
from pipelines.train import checkpoints, saving, worker
from pipelines.train import run as train
from pipelines.train.saving import Saver
from tests.g3pt.tiny import random_batch, tiny_g3pt
from tests.gloo import forked
from tests.pipelines.toy_stage import ToyModel
from tests.pipelines.train.test_run import TOY, records_of, toy_spec, weights_hash

LOOP = TrainConfig(steps=4, batch_size=4, learning_rate=1e-3, log_every=2, eval_every=2, checkpoint_every=2)


def saver(folder: Path, **given: Any) -> Saver:
    return Saver(folder, SingleProcess(), held=lambda: None, num_to_keep=9, **given)


def read(folder: Path, samples: int) -> dict[str, Any]:
    fit = checkpoints.read_checkpoint(folder / f"samples-{samples:012d}.dcp")["fit"]()
    assert isinstance(fit, dict)
    return fit


def test_a_state_is_written_as_it_was_while_training_changes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "SMALL", 0)
    writing, go_on, original = threading.Event(), threading.Event(), saving.save_checkpoint

    def slowly(*given: Any, **named: Any) -> Path:
        writing.set()
        assert go_on.wait(30)
        return original(*given, **named)

    monkeypatch.setattr(saving, "save_checkpoint", slowly)
    save = saver(tmp_path)
    state = {"model": {"w": torch.arange(4.0)}, "average_updates": {"w": 1}, "begun": [[1, {"loss": 2.0}]], "done": 3}
    save(state, 8)
    assert writing.wait(30) and not save.is_due(), "the step goes on while it is written"
    state["model"]["w"].zero_()
    state["average_updates"]["w"] = 2
    go_on.set()
    save(state, 16)  # waits for the first
    assert (tmp_path / "samples-000000000008.dcp").exists()
    save.wait()
    first, second = read(tmp_path, 8), read(tmp_path, 16)
    assert first["model"]["w"].tolist() == [0.0, 1.0, 2.0, 3.0] and second["model"]["w"].tolist() == [0.0] * 4
    assert (first["average_updates"], second["average_updates"]) == ({"w": 1}, {"w": 2})
    assert save.copied_bytes == 16 and save.is_due()


def test_what_went_wrong_in_the_thread_is_raised_where_the_training_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "SMALL", 0)
    monkeypatch.setattr(saving, "save_checkpoint", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
    save = saver(tmp_path)
    save({"model": {"w": torch.zeros(2)}}, 8)
    with pytest.raises(OSError, match="No space left"):
        save({"model": {"w": torch.zeros(2)}}, 16)
    save.close()


def test_states_are_kept_apart_by_time_and_a_stop_saves_at_once(tmp_path: Path) -> None:
    """Ten minutes by a clock that a step moves by one; the state at step 15 is asked for, the stop comes at step 27."""
    steps, saved = [0], list[int]()
    save = saver(tmp_path, minutes=10.0, clock=lambda: 60.0 * steps[0])
    model = ToyModel(2)
    config = TrainConfig(steps=30, batch_size=4, learning_rate=1e-4, log_every=30, eval_every=30, checkpoint_every=1)

    def batches(start: int) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            steps[0] += 1
            yield {"x_BD": torch.ones(4, 2)}

    with pytest.raises(AskedToStop):
        fit(
            model=model, batches=batches, config=config, report=lambda _: None, save_at={60},
            save=lambda state, samples: (saved.append(samples // 4), save(state, samples)), is_due=save.is_due,
            saved=save.wait, stop=lambda: steps[0] == 27,
        )  # fmt: skip
    assert saved == [10, 15, 25, 27]


def test_a_resumed_generator_needs_no_frozen_tensor_and_old_states_that_have_them_are_read() -> None:
    states: list[dict[str, Any]] = []

    def trained(resume: Any = None) -> tuple[G3PT, list[dict[str, float]]]:
        model, records = tiny_g3pt(image_encoder="none"), []
        batch = random_batch(model, 4)
        fit(
            model=model, batches=lambda start: iter([batch] * 9), config=LOOP, report=records.append, resume=resume,
            save=lambda state, _: states.append(copy.deepcopy(state)),
        )  # fmt: skip
        return model, [{k: v for k, v in record.items() if k != "samples_per_second"} for record in records]

    model, records = trained()
    half = states[0]
    parameters = dict(model.named_parameters())
    assert set(half["model"]) & set(parameters) == {name for name, p in parameters.items() if p.requires_grad}
    assert sum(p.nbytes for name, p in parameters.items() if name.startswith("tokenizer")) > 0
    trainable = sum(p.nbytes for p in parameters.values() if p.requires_grad)
    assert trainable == sum(t.nbytes for t in half["average"].values())
    assert 0 <= saving.changing_bytes(half) - 4 * trainable < 20_000, "weights, moments, average; buffers and scalars"
    frozen = {name: p.detach() for name, p in parameters.items() if not p.requires_grad}
    old = {**half, "model": half["model"] | frozen}
    for resume in (half, old, half):  # a state is not changed by the training that goes on from it
        again, theirs = trained(resume)
        assert theirs == records[1:]
        for name, tensor in again.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name]), name


def test_a_run_does_not_keep_the_checkpoint_it_resumed_from() -> None:
    state = {"samples": 8, "held": None, "fit": {"steps_done": 2}}
    assert worker.taken(state, None) == {"steps_done": 2} and "fit" not in state
    assert worker.taken({"fit": lambda like: {"like": like}}, 3) == {"like": 3}, "a folder is read in place"


@pytest.mark.parametrize("size", [1, 2])
def test_runs_that_save_by_a_thread_leave_what_others_leave(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process, and two that share a sharded model: the run is cut at a checkpoint and resumed."""
    spec = toy_spec(dropout=0.0)
    whole = tmp_path / "whole"
    (whole / "checkpoints").mkdir(parents=True)
    worker.work(train.work_config(spec, whole, TOY))
    monkeypatch.setattr(saving, "SMALL", 0)
    failing = toy_spec(dropout=0.0, fail_at=40, paths={"failures": str(tmp_path / "failures")})
    for run_spec in (failing, spec):
        run_dir = tmp_path / "run"
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        config = train.work_config(run_spec, run_dir, TOY, worker.Speed(parallel="fsdp", num_to_keep=9))

        def work(rank: int, config: Any = config) -> str:
            try:
                worker.work(config, rank=rank, world_size=size)
            except ValueError as error:
                return str(error)
            return ""

        said = [work(0)] if size == 1 else forked(size, tmp_path / f"workers-{run_spec is spec}", work)
        assert said == ["" if run_spec is spec else "sample 40\nis bad"] * size
        kinds = {path.name for path in checkpoints.checkpoints(run_dir / "checkpoints")}
        assert "samples-000000000024.dcp" in kinds, "all that was begun is written when a run fails"
        assert not [path for path in (run_dir / "checkpoints").iterdir() if path.name.startswith(".")]
    assert records_of(run_dir)[-1]["step"] == 80
    for ours, theirs in zip(records_of(run_dir), records_of(whole), strict=True):
        assert ours == pytest.approx({**theirs, "micro_batch": ours["micro_batch"]}, rel=1e-4)
    if size == 1:
        assert weights_hash(run_dir) == weights_hash(whole) and records_of(run_dir) == records_of(whole)
