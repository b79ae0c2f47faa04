"""FSQ and LFQ: codes round-trip, nearest codes, parity with a naive version; statistics
that see position-only codes.
"""

import itertools

import pytest
import torch

from g3pt.models.quantizer import FSQ, LFQ, RunningNorm, build_quantizer
from g3pt.training.statistics import update_statistics

LEVELS = {"fsq": (8, 5, 3), "lfq": (2,) * 7}


@pytest.mark.parametrize("kind", ["fsq", "lfq"])
def test_values_of_codes_are_those_of_the_forward_pass(kind: str) -> None:
    quantizer = build_quantizer(kind, LEVELS[kind])
    z_BTC = torch.randn(4, 9, quantizer.num_digits) * 2
    values_BTC, codes_BT, _ = quantizer(z_BTC)
    assert torch.allclose(quantizer.values(codes_BT), values_BTC, atol=1e-6)
    assert torch.equal(quantizer.digits_to_codes(quantizer.codes_to_digits(codes_BT)), codes_BT)


@pytest.mark.parametrize("kind", ["fsq", "lfq"])
def test_every_code_can_be_reached_and_has_a_value_of_its_own(kind: str) -> None:
    quantizer = build_quantizer(kind, LEVELS[kind])
    num_codes = int(quantizer.levels_C.prod())
    values = quantizer.values(torch.arange(num_codes)[None])[0]
    assert len(values.unique(dim=0)) == num_codes
    axes = [torch.linspace(-4, 4, 41)] * quantizer.num_digits if kind == "fsq" else [torch.tensor([-1.0, 1.0])] * 7
    _, codes, _ = quantizer(torch.tensor(list(itertools.product(*[a.tolist() for a in axes])))[None])
    assert len(codes.unique()) == num_codes


def test_fsq_rounds_the_bounded_value_as_the_paper_does() -> None:
    """Parity with FSQ's published bound, written out digit by digit."""
    quantizer, z_C = FSQ((8, 5, 3)), torch.tensor([0.3, -1.2, 0.9])
    for c, level in enumerate((8, 5, 3)):
        half, offset = (level - 1) * 1.001 / 2, 0.5 if level % 2 == 0 else 0.0
        bounded = torch.tanh(z_C[c] + torch.atanh(torch.tensor(offset / half))) * half - offset
        expected = float(bounded.round()) / (level // 2)
        assert float(quantizer(z_C[None, None])[0][0, 0, c]) == pytest.approx(expected, abs=1e-6)


def test_the_gradient_passes_straight_through() -> None:
    z_BTC = torch.zeros(1, 1, 7, requires_grad=True)
    LFQ((2,) * 7)(z_BTC)[0].sum().backward()
    assert torch.equal(z_BTC.grad, torch.ones_like(z_BTC))


def test_lfq_entropy_loss_sees_bits_that_flip_together() -> None:
    """Independent bits cost less than bits that are all equal, though each bit alone is balanced in both."""
    quantizer = LFQ((2,) * 7)
    free = torch.randint(0, 2, (1, 4096, 7)).float() * 4 - 2
    tied = free[..., :1].expand(-1, -1, 7)
    assert quantizer._entropy_loss(free) < quantizer._entropy_loss(tied) - 3.0


def test_norm_per_position_removes_a_code_that_only_names_its_position() -> None:
    norm = RunningNorm(5, 3, momentum=0.1)
    place_TC = torch.randn(5, 3) * 10
    for _ in range(20):
        out_BTC = norm(place_TC + torch.randn(64, 5, 3), frozen=False)
        update_statistics(norm)
    assert out_BTC.mean(0).abs().max() < 0.7 and 0.7 < out_BTC.std(0).mean() < 1.3


def test_frozen_or_evaluated_statistics_stand_still() -> None:
    norm = RunningNorm(2, 3, momentum=0.5)
    norm(torch.randn(8, 2, 3), frozen=False)
    update_statistics(norm)
    before = norm.mean_TC.clone()
    norm(torch.randn(8, 2, 3) + 5, frozen=True)
    norm.eval()(torch.randn(8, 2, 3) + 5, frozen=False)
    update_statistics(norm)
    assert torch.equal(norm.mean_TC, before)


def test_statistics_are_constant_within_a_step_and_then_see_all_of_its_parts() -> None:
    """Four micro-batches of 4 give what one batch of 16 gives, and a code depends on no other object of the step."""
    whole, parts, z_BTC = RunningNorm(2, 3, momentum=0.5), RunningNorm(2, 3, momentum=0.5), torch.randn(3, 16, 2, 3) + 5
    for step_BTC in z_BTC:
        expected_BTC = whole(step_BTC, frozen=False)
        found_BTC = torch.cat([parts(part_BTC, frozen=False) for part_BTC in step_BTC.split(4)])
        assert torch.allclose(found_BTC, expected_BTC, atol=1e-5)
        update_statistics(whole), update_statistics(parts)
    assert int(parts.calls) == 3, "a step counts once"
    assert torch.allclose(parts.mean_TC, whole.mean_TC, atol=1e-6) and float(whole.mean_TC.min()) > 4
    assert torch.allclose(parts.square_TC, whole.square_TC, rtol=1e-6)


def test_the_first_steps_of_a_scale_leave_no_trace() -> None:
    norm, z_BTC = RunningNorm(2, 3, momentum=0.1, settling=2), torch.randn(5, 16, 2, 3)
    z_BTC[:2] += 100
    for step_BTC in z_BTC:
        norm(step_BTC, frozen=False)
        update_statistics(norm)
    assert torch.allclose(norm.mean_TC, z_BTC[2:].mean((0, 1)), atol=1e-6), "the exact mean of the other three"


def test_an_unknown_quantizer_is_named() -> None:
    with pytest.raises(ValueError, match="'vq'"):
        build_quantizer("vq", (8, 8))
