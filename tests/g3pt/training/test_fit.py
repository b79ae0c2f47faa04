"""Batches follow from (seed, samples seen); the loop averages weights, reports each step once
and stops on a bad loss.
"""

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from g3pt.config import TrainConfig
from g3pt.data.batches import SurfaceBatches, batch_indices, copy_bits, copy_window, unpack_rows, window_start
from g3pt.training.best import Best
from g3pt.training.fit import AskedToStop, WeightAverage, fit
from g3pt.training.skipped import MAX_SKIPPED, WINDOW, NonFiniteLoss, check_skipped, with_skipped
from tests.g3pt.models.test_tokenizer import TINY, spheres

CONFIG = TrainConfig(steps=10, batch_size=2, learning_rate=0.1, log_every=5, eval_every=5, checkpoint_every=5)


def take(count: int, **arguments: object) -> np.ndarray:
    stream = batch_indices(**arguments)
    return np.concatenate([indices for _, indices in itertools.islice(stream, count)])


def test_each_epoch_shows_each_object_once_in_its_own_order() -> None:
    shown = take(12, num_objects=8, batch_size=4, seed=0, start_sample=0)
    epochs = shown.reshape(-1, 8)
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])


def test_starting_at_a_sample_continues_the_same_order() -> None:
    whole = take(10, num_objects=7, batch_size=4, seed=3, start_sample=0)
    assert np.array_equal(whole[20:], take(5, num_objects=7, batch_size=4, seed=3, start_sample=20))


def test_two_workers_share_the_batch_of_one() -> None:
    whole = take(3, num_objects=9, batch_size=4, seed=0, start_sample=0)
    halves = [
        take(3, num_objects=9, batch_size=4, seed=0, start_sample=0, rank=r, world_size=2).reshape(3, 2)
        for r in range(2)
    ]
    assert np.array_equal(whole.reshape(3, 4), np.stack(halves, axis=-1).reshape(3, 4))


def test_bad_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 3"):
        next(batch_indices(9, 4, 0, 0, world_size=3))
    with pytest.raises(ValueError, match="no object"):
        next(batch_indices(0, 4, 0, 0))
    with pytest.raises(ValueError, match="9 points of 8"):
        window_start(8, 9, np.random.default_rng(0))


def test_query_points_are_windows_of_the_stored_order_with_their_labels() -> None:
    config = dataclasses.replace(TINY, num_volume_queries=48, num_near_queries=24)
    arrays = spheres(3, num_queries=64)
    batch = next(SurfaceBatches(arrays, config, 3, seed=0)(0))
    (_, rows) = next(batch_indices(3, 3, 0, 0))
    starts = []
    for row, points_Q3, inside_Q in zip(rows, batch["points_BQ3"], batch["occupancy_BQ"], strict=True):
        for pool, part in (("volume", slice(0, 48)), ("near", slice(48, 72))):
            stored = torch.from_numpy(arrays[f"{pool}_points"][row].astype(np.float32))
            labels = np.unpackbits(arrays[f"{pool}_occupancy"][row], bitorder="little").astype(bool)
            start = int(torch.all(stored == points_Q3[part][0], dim=1).nonzero()[0])
            assert torch.equal(points_Q3[part], stored.roll(-start, 0)[: part.stop - part.start])
            assert np.array_equal(inside_Q[part], np.roll(labels, -start)[: part.stop - part.start])
            starts.append(start)
    assert len(set(starts)) > 3, "at random offsets"
    with pytest.raises(ValueError, match="65 points of 64"):
        next(SurfaceBatches(arrays, dataclasses.replace(config, num_near_queries=65), 3, seed=0)(0))


def test_packed_bits_come_back() -> None:
    bits = np.random.default_rng(0).random(64) > 0.5
    rows = np.array([0, 7, 8, 63, 13])
    packed = np.packbits(bits, bitorder="little")
    assert np.array_equal(unpack_rows(packed, rows), bits[rows])
    for start in (0, 7, 13, 40, 63):
        for count in (1, 9, 24, 64):
            drawn, copied = np.zeros(count, bool), np.zeros((count, 2))
            copy_bits(packed, start, drawn)
            copy_window(np.stack([bits, ~bits], -1), start, copied)
            expected = np.roll(bits, -start)[:count]
            assert np.array_equal(drawn, expected) and np.array_equal(copied, np.stack([expected, ~expected], -1))


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 2))

    def forward(self, batch: dict, step: int) -> tuple:
        loss = (self.weight - batch["target"]).square().mean()
        return loss, {"error": loss.detach()}


def constant(value: float) -> Callable[[int], Iterator[dict[str, Tensor]]]:
    def batches(start_sample: int) -> Iterator[dict[str, Tensor]]:
        while True:
            yield {"target": torch.full((2, 2), value)}

    return batches


def test_records_come_at_their_steps_and_the_average_is_kept() -> None:
    records: list[dict] = []
    saved: list[int] = []
    model = fit(
        model=Line(), batches=constant(1.0), config=CONFIG, report=records.append,
        save=lambda state, step: saved.append(step), evaluate=lambda m: {"val_weight": m.weight.mean().item()},
    )  # fmt: skip
    assert [record["step"] for record in records] == [10, 20] == saved
    assert records[-1]["val_weight"] == pytest.approx(float(model.weight.mean()))
    assert 0 < float(model.weight.mean()) < 1, "the exponential average lags behind the weights"


def test_the_averaged_weights_are_evaluated_and_given_back_and_the_raw_ones_train_on() -> None:
    """The average is worked out here from the weights after each step."""
    raw: list[float] = []
    seen: list[float] = []
    config = dataclasses.replace(CONFIG, eval_every=1, log_every=1, checkpoint_every=1, ema_decay=0.5)
    model = fit(
        model=Line(), batches=constant(1.0), config=config, report=lambda _: None,
        save=lambda state, _: raw.append(float(state["model"]["weight"].mean())),
        evaluate=lambda m: seen.append(float(m.weight.mean())) or {},
    )  # fmt: skip
    average, expected = 0.0, []
    for n, weight in enumerate(raw):
        decay = min(0.5, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * weight
        expected.append(average)
    assert seen == pytest.approx(expected, rel=1e-5)
    assert float(model.weight.mean()) == pytest.approx(expected[-1], rel=1e-5)
    assert abs(raw[-1] - expected[-1]) > 1e-3, "raw weights and their average can be told apart"


def test_frozen_tensors_have_no_average_and_an_evaluation_makes_no_copy_of_the_model() -> None:
    class Partly(Line):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = nn.Parameter(torch.full((3,), 2.0), requires_grad=False)

    made, states, model = list[WeightAverage](), list[dict](), Partly()

    class Recorded(WeightAverage):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)  # type: ignore[arg-type]
            made.append(self)

    def evaluate(held: nn.Module) -> dict[str, float]:
        ((average,), parameters) = made, dict(held.named_parameters())
        assert set(average.tensors) == {"weight"} and set(parameters) == {"weight", "frozen"}
        return {"val_held": float(parameters["weight"].mean()), "val_aside": float(average.tensors["weight"].mean())}

    records: list[dict] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("g3pt.training.fit.WeightAverage", Recorded)
        found = fit(
            model=model, batches=constant(1.0), config=CONFIG, report=records.append, evaluate=evaluate,
            save=lambda state, _: states.append({"weight": float(state["model"]["weight"].mean())}),
        )  # fmt: skip
    assert [record["val_aside"] for record in records] == [state["weight"] for state in states], (
        "the weights themselves"
    )
    assert records[-1]["val_held"] == float(found.weight.mean()) != states[-1]["weight"]
    assert found.frozen.tolist() == [2.0] * 3


def test_gradients_are_clipped_to_their_norm_and_the_record_has_it_before() -> None:
    records: list[dict] = []
    config = dataclasses.replace(CONFIG, steps=1, clip_norm=0.01)
    model = fit(model=Line(), batches=constant(1.0), config=config, report=records.append)
    assert float(model.weight.grad.norm()) == pytest.approx(0.01, rel=1e-3)
    assert records[0]["grad_norm"] == pytest.approx(1.0), "the gradient of the mean of four squares at distance 1"


def test_the_best_average_is_kept_beside_the_last_and_raw_weights_are_evaluated_too() -> None:
    """The validation loss is lowest on the way; a run that resumes before or after that keeps the same weights."""
    config = dataclasses.replace(CONFIG, eval_every=2, log_every=2, checkpoint_every=2)

    def run(resume: dict | None = None) -> tuple[list[dict], dict[int, dict], Best, nn.Module]:
        best, model = Best(lambda record: record.get("val_loss")), Line()
        records, states = states_of(
            model, config, constant(1.0), resume=resume, best=best,
            evaluate=lambda m: {"val_loss": abs(float(m.weight.detach().mean()) - 0.35)},
            evaluate_raw=lambda m: {"val_loss_raw": abs(float(m.weight.detach().mean()) - 0.35)},
        )  # fmt: skip
        return records, states, best, model

    records, states, best, model = run()
    losses = [record["val_loss"] for record in records]
    first = losses.index(min(losses))
    assert 0 < first < len(records) - 1 and best.value == losses[first] and best.samples == records[first]["step"]
    assert torch.equal(best.weights["weight"], states[2 * first + 2]["average"]["weight"])
    assert not torch.equal(best.weights["weight"], model.weight), "the last ones are returned"
    for record, state in zip(records, states.values(), strict=True):
        assert record["val_loss_raw"] == pytest.approx(abs(float(state["model"]["weight"].mean()) - 0.35), abs=1e-6)
    for done in (2, 8):
        again = run(states[done])[2]
        assert (again.value, again.samples) == (best.value, best.samples)
        assert torch.equal(again.weights["weight"], best.weights["weight"])


class Tracked(Line):
    """With one running mean that is updated in place and one that is replaced, as a tokenizer's are."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(()))

    def forward(self, batch: dict, step: int) -> tuple:
        self.mean.lerp_(batch["target"].mean(), 0.5)
        self.replaced = self.replaced + batch["target"].mean()
        return super().forward(batch, step)


def bad_at(*steps: int) -> Callable[[int], Iterator[dict[str, Tensor]]]:
    """Batches of one object per two samples, with targets that are not finite at these steps."""

    def batches(start_sample: int) -> Iterator[dict[str, Tensor]]:
        for step in itertools.count(start_sample // CONFIG.batch_size):
            yield {"target": torch.full((2, 2), float("nan") if step in steps else 1.0)}

    return batches


def states_of(
    model: nn.Module, config: TrainConfig, batches: Callable, **given: object
) -> tuple[list, dict[int, dict]]:
    """The records of a training, without their speed, and its states by number of steps."""
    records: list[dict] = []
    states: dict[int, dict] = {}
    save = lambda state, samples: states.setdefault(samples // config.batch_size, copy.deepcopy(state))  # noqa: E731
    fit(model=model, batches=batches, config=config, report=records.append, save=save, **given)
    return [{k: v for k, v in record.items() if k != "samples_per_second"} for record in records], states


def same_bits(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a.view(torch.uint8) if a.ndim else a, b.view(torch.uint8) if b.ndim else b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_bits(a[key], b[key]) for key in a)
    return a == b


@pytest.mark.parametrize("bad", [0, 3])
def test_a_step_that_is_not_finite_changes_no_bit_and_the_next_record_names_it(bad: int) -> None:
    every = dataclasses.replace(CONFIG, checkpoint_every=1)
    records, states = states_of(Tracked(), every, bad_at(bad))
    start = dict(Tracked().state_dict())
    before, after = states.get(bad), states[bad + 1]
    assert same_bits(before["model"] if before else start, after["model"]), "weights and running statistics"
    assert same_bits(before["average"] if before else {"weight": start["weight"]}, after["average"])
    if before:
        assert same_bits(before["optimizer"]["state"], after["optimizer"]["state"])
    assert not same_bits(after["model"], states[bad + 2]["model"]), "the step after it trains"
    assert [(r.get("skipped_steps"), r.get("skipped_step_1")) for r in records] == [(1.0, float(bad)), (None, None)]
    assert all(np.isfinite(list(record.values())).all() for record in records), "no mean contains the skipped step"


def test_a_run_with_skipped_steps_resumes_with_the_same_bits_and_records() -> None:
    """Stopped right after the bad step, between two records."""
    every = dataclasses.replace(CONFIG, checkpoint_every=1)
    records, states = states_of(Tracked(), every, bad_at(6))
    resumed, later = states_of(Tracked(), every, bad_at(6), resume=states[7])
    assert states[7]["skipped"] == [6] and states[7]["begun"] == [[5, states[7]["begun"][0][1]], [6, {}]]
    assert resumed == records[1:]
    assert same_bits(later[10], states[10])


def test_more_than_ten_skipped_steps_in_a_thousand_stop_the_run_and_save_nothing_more() -> None:
    config = dataclasses.replace(CONFIG, steps=40, checkpoint_every=10)
    saved: list[int] = []
    with pytest.raises(NonFiniteLoss, match=r"11 of 1,000 steps .*: steps 5, 6, .*, 14, 24;") as raised:
        fit(
            model=Line(), batches=bad_at(*range(5, 5 + MAX_SKIPPED), 24, 26), config=config, report=lambda _: None,
            save=lambda _, samples: saved.append(samples // config.batch_size),
        )  # fmt: skip
    assert raised.value.step == 24 and saved == [10, 20]


def test_the_thousand_steps_are_counted_exactly_wherever_records_begin() -> None:
    def last_of(eleventh: int) -> list[int]:
        skipped: list[int] = []
        for start in range(0, 2 * WINDOW, 20):
            steps = range(start, start + 20)
            taken = [(step, 5 <= step < 5 + MAX_SKIPPED or step == eleventh) for step in steps]
            skipped = with_skipped(skipped, taken)
            check_skipped(skipped)
        return skipped

    assert last_of(5 + WINDOW) == [5 + WINDOW], "of the steps 5 to 1004 ten were skipped"
    with pytest.raises(NonFiniteLoss):
        last_of(4 + WINDOW)


def test_skipped_steps_before_a_checkpoint_count_after_it() -> None:
    config = dataclasses.replace(CONFIG, steps=40, log_every=5, eval_every=40, checkpoint_every=5)
    bad = tuple(range(1, 2 * MAX_SKIPPED + 3, 2))
    _, states = states_of(Line(), dataclasses.replace(config, steps=20), bad_at(*bad))
    with pytest.raises(NonFiniteLoss, match="11 of 1,000 steps"):
        states_of(Line(), config, bad_at(*bad), resume=states[20])


def test_a_run_without_any_finite_step_does_not_finish() -> None:
    config = dataclasses.replace(CONFIG, steps=4)
    with pytest.raises(NonFiniteLoss, match="4 of 4 steps"):
        fit(model=Line(), batches=bad_at(*range(4)), config=config, report=lambda _: None)


def test_asked_to_stop_it_saves_that_step_and_the_next_record_misses_none() -> None:
    """Stopped between two records; resumed, every record and weight is that of an uninterrupted run."""

    def run(
        stop_after: int | None = None, resume: dict | None = None
    ) -> tuple[list[dict], dict[int, dict], nn.Module | None]:
        records: list[dict] = []
        states: dict[int, dict] = {}
        asked = itertools.count(1)
        given = {"save": lambda state, step: states.setdefault(step, copy.deepcopy(state)), "resume": resume}
        given |= {"stop": lambda: next(asked) == stop_after} if stop_after else {}
        try:
            model = fit(model=Line(), batches=constant(1.0), config=CONFIG, report=records.append, **given)
        except AskedToStop as stopped:
            assert stopped.step == stop_after
            model = None
        return [{k: v for k, v in record.items() if k != "samples_per_second"} for record in records], states, model

    whole, _, expected = run()
    before, states, nothing = run(stop_after=7)
    assert nothing is None and before == whole[:1] and list(states) == [10, 14]
    after, _, model = run(resume=states[14])
    assert after == whole[1:]
    assert torch.equal(model.weight, expected.weight)


def test_a_checkpoint_of_another_batch_size_is_refused() -> None:
    states: list[dict] = []
    fit(model=Line(), batches=constant(1.0), config=CONFIG, report=lambda _: None, save=lambda s, n: states.append(s))
    other = TrainConfig(steps=10, batch_size=4, learning_rate=0.1)
    with pytest.raises(ValueError, match="global batch of 2"):
        fit(model=Line(), batches=constant(1.0), config=other, report=lambda _: None, resume=states[0])


def test_the_average_forgets_where_it_started() -> None:
    """A short run, and a part that starts late, must not export their random start."""
    model = Line()
    model.weight.data.fill_(100.0)
    average = WeightAverage(model, decay=0.999)
    model.weight.data.fill_(1.0)
    for _ in range(60):
        average.update(model)
    assert average.tensors["weight"].mean().item() == pytest.approx(1.0, abs=1e-3)


def test_a_gradient_that_is_not_finite_is_skipped_too() -> None:
    class Root(Line):
        def forward(self, batch: dict, step: int) -> tuple:
            loss = self.weight.abs().sqrt().sum()  # finite at zero, its gradient is not
            return loss, {}

    with pytest.raises(NonFiniteLoss, match="10 of 10 steps"):
        fit(model=Root(), batches=constant(1.0), config=CONFIG, report=lambda _: None)
