"""FSQ and LFQ against vector-quantize-pytorch, a development dependency: equal where they mean the same,
and how they differ elsewhere.
"""

import dataclasses

import pytest
import torch
import vector_quantize_pytorch as published

from g3pt.config import cvq_preset
from g3pt.metrics.entropy import entropy
from g3pt.models.quantizer import FSQ, LFQ

LEVELS = [(8, 8, 5, 5, 5), (4, 3, 7), (5,)]
BITS = 8


def some_z(num_digits: int, spread: float = 1.5) -> torch.Tensor:
    return torch.randn(6, 40, num_digits, generator=torch.Generator().manual_seed(0)) * spread


@pytest.mark.parametrize("levels", LEVELS)
def test_fsq_has_the_library_s_values_codes_and_gradient(levels: tuple[int, ...]) -> None:
    ours, theirs = FSQ(levels), published.FSQ(list(levels))
    z_BTC = some_z(len(levels))
    gradients = []
    for quantizer in (ours, theirs):
        z = z_BTC.clone().requires_grad_()
        values, codes = quantizer(z)[:2]
        (values * torch.arange(1, values.numel() + 1).view_as(values) / 1000).sum().backward()
        gradients.append((values.detach(), codes.long(), z.grad))
    assert torch.allclose(gradients[0][0], gradients[1][0], atol=1e-6)
    assert torch.equal(gradients[0][1], gradients[1][1]), "codes are numbered alike, the first digit fastest"
    assert torch.allclose(gradients[0][2], gradients[1][2], atol=1e-5)
    every = torch.arange(int(ours.levels_C.prod()))
    assert torch.allclose(ours.values(every), theirs.indices_to_codes(every[None])[0], atol=1e-6)


def test_neither_takes_a_digit_of_two_levels() -> None:
    """Its border would lie at z = -3.8, so the digit would be stuck: the library refuses it, and
    so does the configuration.
    """
    with pytest.raises(AssertionError, match="preserve_symmetry"):
        published.FSQ([2, 3])
    with pytest.raises(ValueError, match="at least 3"):
        dataclasses.replace(cvq_preset("nano")[0], fsq_levels=(2, 3))
    stuck = FSQ((2, 3))
    assert stuck.codes_to_digits(stuck(some_z(2, spread=1.0))[1])[..., 0].float().mean() > 0.99


def theirs_lfq(**given: float) -> published.LFQ:
    return published.LFQ(dim=BITS, **given).train()


def test_lfq_has_the_library_s_signs_and_gradient_and_numbers_codes_from_the_other_end() -> None:
    z_BTC = some_z(BITS)
    outs = []
    for quantizer in (LFQ((2,) * BITS), theirs_lfq()):
        z = z_BTC.clone().requires_grad_()
        values, codes = quantizer(z)[:2]
        (values * torch.arange(values.numel()).view_as(values)).sum().backward()
        outs.append((values.detach(), codes.long(), z.grad))
    assert torch.allclose(outs[0][0], outs[1][0], atol=1e-6) and torch.equal(outs[0][2], outs[1][2])
    reversed_bits = sum(((outs[1][1] >> bit) & 1) << (BITS - 1 - bit) for bit in range(BITS))
    assert torch.equal(outs[0][1], reversed_bits) and not torch.equal(outs[0][1], outs[1][1])


@pytest.mark.parametrize("inverse_temperature", [0.25, 1.0, 2.5])
def test_lfq_s_entropy_loss_is_the_library_s_when_no_group_splits_the_code(inverse_temperature: float) -> None:
    """Ours is told the slope of a bit's logit; the library's is four times smaller (it scales 2 z c,
    and c is 1 or -1).
    """
    ours = LFQ((2,) * BITS, temperature=4 * inverse_temperature, group_bits=BITS)
    z_BTC = some_z(BITS, spread=0.4)
    _, parts = theirs_lfq()(z_BTC, inv_temperature=inverse_temperature, return_loss_breakdown=True)
    expected = parts.per_sample_entropy - parts.batch_entropy
    assert float(ours._entropy_loss(z_BTC)) == pytest.approx(float(expected), abs=2e-3)


def test_groups_of_bits_only_relax_the_entropy_of_the_mean_code() -> None:
    """A code's own entropy is a sum over bits either way; the mean code's is at most the sum over groups,
    so ours asks for less.
    """
    z_BTC = some_z(1, spread=2.0).expand(-1, -1, BITS) + some_z(BITS, spread=0.1)
    losses = [float(LFQ((2,) * BITS, group_bits=bits)._entropy_loss(z_BTC)) for bits in (BITS, 4, 1)]
    assert losses[0] > losses[1] + 0.5 and losses[1] > losses[2] + 0.5


def test_lfq_s_commitment_is_five_times_the_library_s() -> None:
    z_BTC = some_z(BITS)
    _, parts = theirs_lfq(commitment_loss_weight=1.0)(z_BTC, return_loss_breakdown=True)
    ours = LFQ((2,) * BITS)
    assert float(ours(z_BTC)[2] - ours._entropy_loss(z_BTC)) == pytest.approx(5 * float(parts.commitment), rel=1e-4)


def test_entropy_is_in_nats() -> None:
    assert float(entropy(torch.full((8,), 1 / 8))) == pytest.approx(2.0794415, abs=1e-5)
