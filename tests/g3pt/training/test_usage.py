"""The collapse alarm: silent for lively codes, however few objects there are; each way to collapse is seen,
by the measure meant for it.
"""

import itertools
import math

import pytest
import torch
from torch import Tensor

from g3pt.config import TrainConfig
from g3pt.metrics.entropy import digit_entropies, entropy_bits, expected_distinct, expected_entropy
from g3pt.models.quantizer import LFQ, build_quantizer
from g3pt.models.tokenizer import CVQ
from g3pt.training.alarm import Alarm, alarm_line, faults, in_words
from g3pt.training.fit import fit
from g3pt.training.statistics import update_statistics
from g3pt.training.usage import CodeUsage, hashed
from tests.g3pt.models.test_tokenizer import TINY, SurfaceBatches, dataclasses, spheres

SCALES = (1, 4, 32)
LEVELS = {"fsq": (8, 8, 5, 5, 5), "lfq": (2,) * 13}


def window(
    codes_BS: Tensor, levels: tuple[int, ...] = LEVELS["fsq"], num_objects: int | None = None
) -> dict[str, float]:
    """The numbers of a window that saw these codes in batches of 16."""
    usage = CodeUsage(SCALES, levels)
    usage.num_objects = num_objects
    for part_BS in codes_BS.split(16):
        usage.add(list(part_BS.split(SCALES, dim=1)))
    return usage.take()


def test_a_window_goes_on_from_a_checkpoint() -> None:
    codes_BS = random_codes(96, 8000)
    first, second = (CodeUsage(SCALES, LEVELS["fsq"]) for _ in range(2))
    first.add(list(codes_BS[:32].split(SCALES, dim=1)))
    second.load(first.state(), True, codes_BS.device)
    second.add(list(codes_BS[32:].split(SCALES, dim=1)))
    assert second.take() == window(codes_BS)
    second.load(first.state(), False, codes_BS.device)
    second.add(list(codes_BS[:16].split(SCALES, dim=1)))
    assert second.take() == window(codes_BS[:16]), "another worker counts its own alone"
    assert CodeUsage(SCALES, LEVELS["fsq"]).state() == {}


def random_codes(samples: int, num_codes: int, seed: int = 0) -> Tensor:
    return torch.randint(num_codes, (samples, sum(SCALES)), generator=torch.Generator().manual_seed(seed))


def kinds(record: dict[str, float]) -> set[str]:
    return {fault.kind for fault in faults(record)}


@pytest.mark.parametrize("kind", LEVELS)
@pytest.mark.parametrize("samples", [64, 320, 2000])
def test_free_codes_are_at_the_top_of_every_measure(kind: str, samples: int) -> None:
    record = window(random_codes(samples, math.prod(LEVELS[kind])), LEVELS[kind])
    assert record["alarm"] == 0 and faults(record) == [] and alarm_line([record], finished=True) == ""
    for scale in (1, 2, 3):
        assert record[f"utilisation_scale_{scale}"] == pytest.approx(1.0, abs=0.05)
        assert record[f"information_scale_{scale}"] == pytest.approx(1.0, abs=0.05)
        assert record[f"entropy_gap_scale_{scale}"] < 1.0 and record[f"digit_balance_scale_{scale}"] > 0.85


def test_few_objects_shown_again_and_again_are_no_collapse() -> None:
    codes_BS = random_codes(20, 8000).repeat(16, 1)
    assert window(codes_BS, num_objects=20)["alarm"] == 0
    assert kinds(window(codes_BS)) >= {"utilisation"}, "320 different objects would be another matter"


def test_too_small_a_window_is_not_judged() -> None:
    few, alike = window(random_codes(63, 8000)), window(random_codes(64, 8000), num_objects=15)
    assert "utilisation_scale_1" in few and "alarm" not in few and "alarm" not in alike


def test_two_workers_count_what_one_would(monkeypatch: pytest.MonkeyPatch) -> None:
    codes_BS = random_codes(128, 8000) // 7
    whole = window(codes_BS)
    mine, other = CodeUsage(SCALES, LEVELS["fsq"]), CodeUsage(SCALES, LEVELS["fsq"])
    mine.add(list(codes_BS[::2].split(SCALES, dim=1)))
    other.add(list(codes_BS[1::2].split(SCALES, dim=1)))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(
        torch.distributed,
        "all_reduce",
        lambda x: x.add_(other.counts_KV if x.shape == other.counts_KV.shape else other.hashed_SH),
    )
    assert mine.take() == whole


COLLAPSES = {
    "constant": (lambda free: free * 0 + 7, {"utilisation", "information", "digit_balance"}),
    "antipodal": (lambda free: torch.where(free % 2 == 0, 0, 8191), {"utilisation", "information", "entropy_gap"}),
    "antipodal in groups": (lambda free: free % 4 // 2 * 127 + free % 2 * 8064, {"utilisation", "entropy_gap"}),
    "position only": (lambda free: random_codes(1, 8192).expand_as(free), {"utilisation", "information"}),
    "one bit stuck": (lambda free: free & ~1, {"digit_balance"}),
}


@pytest.mark.parametrize("name", COLLAPSES)
def test_every_collapse_is_seen(name: str) -> None:
    make, expected = COLLAPSES[name]
    record = window(make(random_codes(320, 8192)), LEVELS["lfq"])
    found = [fault for fault in faults(record) if fault.scale == 3]
    assert {fault.kind for fault in found} >= expected
    assert record["alarm"] == len(faults(record)) and in_words(found).count("scale 3: ") == len(found)


def test_codes_that_name_their_position_pass_every_pooled_measure() -> None:
    """Why the entropy at a fixed position is measured: with many positions
    and some noise the pooled numbers look healthy.
    """
    scales, samples = (2304,), 64
    own_S = torch.randint(8192, (1, 2304), generator=torch.Generator().manual_seed(0))
    noise_BS = (torch.rand(samples, 2304, generator=torch.Generator().manual_seed(1)) < 0.03) * torch.randint(
        8192, (samples, 2304), generator=torch.Generator().manual_seed(2)
    )
    usage = CodeUsage(scales, LEVELS["lfq"])
    usage.add([own_S ^ noise_BS])
    assert kinds(usage.take()) == {"information"}


def test_measures_have_known_values() -> None:
    assert (
        float(entropy_bits(torch.full((16,), 3))) == pytest.approx(4.0)
        and float(entropy_bits(torch.tensor([5, 0, 0]))) == 0.0
    )
    assert expected_distinct(1, 100) == pytest.approx(1.0) and 99.9 < expected_distinct(2000, 100) <= 100
    draws = torch.randint(256, (400, 320), generator=torch.Generator().manual_seed(0))
    measured = torch.stack([entropy_bits(torch.bincount(row, minlength=256)) for row in draws]).mean()
    assert expected_entropy(320, 256) == pytest.approx(float(measured), abs=0.02)


@pytest.mark.parametrize("kind", LEVELS)
def test_digit_entropies_are_those_of_the_digits(kind: str) -> None:
    quantizer = build_quantizer(kind, LEVELS[kind])
    codes = torch.randint(8000, (5000,), generator=torch.Generator().manual_seed(0)) // 3
    digits = quantizer.codes_to_digits(codes)
    expected = [float(entropy_bits(torch.bincount(digits[:, c], minlength=n))) for c, n in enumerate(LEVELS[kind])]
    assert digit_entropies(torch.bincount(codes, minlength=math.prod(LEVELS[kind])), LEVELS[kind]) == pytest.approx(
        expected
    )


def test_hashing_keeps_apart_what_few_codes_there_are() -> None:
    for levels in LEVELS.values():
        some = torch.randint(math.prod(levels), (200, 4), generator=torch.Generator().manual_seed(0))
        distinct = [len(set(row)) for row in hashed(some).tolist()]
        assert hashed(some).min() >= 0 and hashed(some).max() < 256 and sum(distinct) > 0.95 * some.numel()


# ------------------------------------------------------------------------------------------------------- in a tokenizer


def trained_window(model: CVQ, batches: int = 6) -> dict[str, float]:
    """The record after so many batches, without the first ones, whose statistics settle scale by scale."""
    model.set_phase(5, 10)  # joint
    stream = SurfaceBatches(spheres(32), model.config, 16, seed=0)(0)
    for index, batch in enumerate(itertools.islice(stream, model.config.num_scales + batches)):
        if index == model.config.num_scales:
            model.take_window()
        model.train()(batch)
        update_statistics(model)
    return model.take_window()


@pytest.mark.parametrize("quantizer", ["fsq", "lfq"])
def test_a_dead_encoder_sets_every_scale_off(quantizer: str) -> None:
    model = CVQ(dataclasses.replace(TINY, quantizer=quantizer))
    model.encoder.forward = lambda surface_BP6, sharp=None: torch.zeros(len(surface_BP6), 8, 16).requires_grad_()
    record = trained_window(model)
    assert {fault.scale for fault in faults(record) if fault.kind == "information"} == {1, 2, 3, 4}


def test_lfq_without_centring_names_positions_only() -> None:
    config = dataclasses.replace(TINY, quantizer="lfq", lfq_bits=13)
    model = CVQ(config)
    for norm in model.cqt.norms:
        norm.forward = lambda z_BTC, frozen: z_BTC
    for linear in model.cqt.to_code:
        torch.nn.init.normal_(linear.bias, std=3.0)
    assert "information" in kinds(trained_window(model))


def test_only_quantised_training_steps_count() -> None:
    model = CVQ(TINY)
    batch = next(SurfaceBatches(spheres(16), TINY, 16, seed=0)(0))
    model.set_phase(0, 10)
    model.train()(batch)
    model.set_phase(9, 10)
    model.eval()(batch)
    assert model.take_window() == {}
    model.train()(batch)
    assert "utilisation_scale_4" in model.take_window() and model.take_window() == {}
    assert not [name for name in model.state_dict() if "usage" in name]


def test_a_resumed_run_reports_the_windows_of_an_uninterrupted_one() -> None:
    config = TrainConfig(steps=8, batch_size=4, learning_rate=1e-3, log_every=2, eval_every=8, checkpoint_every=4)
    batches = SurfaceBatches(spheres(8), TINY, 4, seed=0)

    def run(resume: dict | None = None) -> tuple[list[dict], list[dict]]:
        reports: list[dict] = []
        states: list[dict] = []

        def keep(state: dict, step: int) -> None:
            states.append(torch.utils._pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, state))

        fit(model=CVQ(TINY), batches=batches, config=config, report=reports.append, save=keep, resume=resume)
        return [{k: v for k, v in r.items() if k != "samples_per_second"} for r in reports], states

    whole, states = run()
    assert run(states[0])[0] == whole[2:]
    assert "entropy_gap_scale_4" in whole[-1] and "entropy_gap_scale_4" not in whole[0]


# ------------------------------------------------------------------------------------------------------------- the
# alarm


def test_an_alarm_is_told_once_when_it_has_lasted() -> None:
    free, stuck = random_codes(320, 8192), random_codes(320, 8192) & ~1
    good, bad = window(free, LEVELS["lfq"]), window(stuck, LEVELS["lfq"])
    alarm, loss = Alarm(), {"loss": 1.0}
    heard = [len(alarm.update(record)) for record in [*[bad] * 9, good, *[bad] * 9, loss, bad, bad, good, *[bad] * 10]]
    assert [k for k, count in enumerate(heard) if count] == [20, 32] and heard[20] == 3
    words = "codes collapse at scales 1, 2, 3: a digit's entropy is 0.00, 0.00, 0.00 of its maximum (floor 0.25)"
    assert alarm_line([bad] * 10 + [loss]) == words and alarm_line([bad] * 9) == "" == alarm_line(
        [bad] * 20 + [good], finished=True
    )
    assert alarm_line([good, bad], finished=True) == words, "what a run ends with is not passing"


def test_not_a_number_is_a_fault() -> None:
    record = window(random_codes(320, 8192), LEVELS["lfq"]) | {"entropy_gap_scale_2": math.nan}
    assert [fault.key for fault in faults(record)] == [(2, "entropy_gap")]


def test_antipodal_codes_of_a_real_quantiser_are_seen() -> None:
    """LFQ on a vector that moves along one direction only: each bit is balanced, and all flip together."""
    z_BTC = torch.randn(320, sum(SCALES), 1, generator=torch.Generator().manual_seed(0)) * torch.ones(13)
    record = window(LFQ(LEVELS["lfq"])(z_BTC)[1], LEVELS["lfq"])
    assert record["digit_balance_scale_3"] > 0.99 and record["entropy_gap_scale_3"] == pytest.approx(12.0, abs=0.1)
    assert "entropy_gap" in kinds(record)
