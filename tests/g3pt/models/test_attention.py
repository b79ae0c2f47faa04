"""Attention by levels, and FlexAttention's structure, against softmax under a dense mask."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from g3pt.models import attention
from g3pt.models.attention import (
    Causal,
    Levels,
    attended_pairs,
    block_mask,
    compiled_flex,
    level_by_level,
    level_of_tokens,
)

LEVELS = [
    (5,),
    (1, 3, 6, 8),
    (17, 1, 4, 9),
    (3, 3, 3),
    (130, 1, 200),
]  # the last spans several of FlexAttention's blocks


def tensors(levels: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 2, sum(levels), 16, generator=generator, requires_grad=True) for _ in range(3)]


def naive(query: Tensor, key: Tensor, value: Tensor, levels: Sequence[int]) -> Tensor:
    level_N = level_of_tokens(levels)
    scores = (query @ key.transpose(-1, -2)).masked_fill(level_N[:, None] < level_N[None, :], -torch.inf)
    return scores.softmax(-1) @ value


def gradients(out: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad((out * torch.arange(out.numel()).view_as(out).sin()).sum(), inputs)


@pytest.mark.parametrize("levels", LEVELS)
def test_level_by_level_equals_a_dense_mask_forward_and_backward(levels: Sequence[int]) -> None:
    inputs = tensors(levels)
    got, want = level_by_level(*inputs, levels), naive(*inputs, levels)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    for a, b in zip(gradients(got, inputs), gradients(want, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("levels", LEVELS[1:])
def test_flex_attention_equals_a_dense_mask_forward_and_backward(
    levels: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uncompiled: on a CPU FlexAttention refuses gradients, although its own formulas for them run there;
    the refusal is taken away.
    """
    from torch.nn.attention import flex_attention as module

    monkeypatch.setattr(module, "_validate_device", lambda *tensors: None)
    inputs, mask = tensors(levels), block_mask(levels, torch.device("cpu"))
    got, want = module.flex_attention(*inputs, block_mask=mask, scale=1.0), naive(*inputs, levels)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    for a, b in zip(gradients(got, inputs), gradients(want, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("levels", LEVELS[1:])
def test_the_last_level_alone_and_the_others_by_flex_equal_a_dense_mask(levels: Levels) -> None:
    """What a GPU computes, here uncompiled and without gradients."""
    from torch.nn.attention.flex_attention import flex_attention

    inputs = [one.detach() for one in tensors(levels)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "compiled_flex", lambda: flex_attention)
        got = attention.block_causal(*inputs, Causal(levels, block_mask(levels[:-1], torch.device("cpu"))))
    torch.testing.assert_close(got, naive(*inputs, levels), rtol=1e-4, atol=1e-5)


def test_flex_attention_skips_whole_blocks() -> None:
    mask = block_mask((128, 256, 128), torch.device("cpu"))
    assert mask.to_dense().int().tolist() == [[[[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]]]


def test_pairs_are_those_of_the_dense_mask() -> None:
    for levels in LEVELS:
        level_N = level_of_tokens(levels)
        assert attended_pairs(levels) == int((level_N[:, None] >= level_N[None, :]).sum())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("levels", LEVELS[1:])
def test_the_compiled_kernel_equals_a_dense_mask(levels: Sequence[int]) -> None:
    inputs = [t.detach().cuda().requires_grad_() for t in tensors(levels)]
    got = compiled_flex()(*inputs, block_mask=block_mask(levels, inputs[0].device), scale=1.0)
    want = level_by_level(*inputs, levels)
    torch.testing.assert_close(got, want, rtol=2e-3, atol=2e-3)
    for a, b in zip(torch.autograd.grad(got.sum(), inputs), torch.autograd.grad(want.sum(), inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=5e-3, atol=5e-3)
