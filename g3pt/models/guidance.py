"""Classifier-free guidance with a strength of its own for each condition, in as few forward passes as a row needs.

A row may need three passes: with both conditions, with the image alone, and with none. Guided logits are a weighted sum
of the passes' logits; a row's weights sum to one. With t_T for the text and t_I for the image:

    none + (1 + t_I) (image - none) + (1 + t_T) (both - image)  =  (1 + t_T) both + (t_I - t_T) image - t_I none

A pass whose weight is zero at every scale is not run: equal strengths and single conditions cost a second pass,
different strengths a third.

Source: InstructPix2Pix (2211.09800), equation 3, for the nested form with the image inside; VAR (2404.02905) for t =
scale - 1.
Ours: a row without one of the conditions is guided by the other's strength alone; passes of no weight are left out.
Shapes: B batch, K scales, W passes (both, image, none), T tokens of a scale, V values, M image tokens, C condition
width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PASSES = ("both", "image", "none")


def pass_weights(text_K: Sequence[float], image_K: Sequence[float], has_text: bool, has_image: bool) -> Tensor:
    """Weights (K, 3) of one row's passes at each scale, from the guidance of text and image at each scale.

    The first pass is always needed; of a row with one condition it is the pass with that condition.
    """
    if not has_text:
        text_K = image_K
    elif not has_image:
        image_K = text_K
    rows = [
        (1 + text, image - text, -image) if has_text or has_image else (1, 0, 0)
        for text, image in zip(text_K, image_K, strict=True)
    ]
    return torch.tensor(rows, dtype=torch.float64)


def needed_passes(weights_KW: Tensor) -> tuple[int, ...]:
    """Numbers of the passes with a weight at any scale, in any row of the weights (..., K, 3)."""
    return tuple(torch.nonzero(weights_KW.reshape(-1, len(PASSES)).ne(0).any(dim=0)).flatten().tolist())


def spread_passes(
    text_BC: Tensor, image_BMC: Tensor | None, null_text_C: Tensor, null_image_C: Tensor | None, passes: Sequence[int]
) -> tuple[Tensor, Tensor | None]:
    """The conditions of all rows for one pass after the other, (W * B, C) and (W * B, M, C)."""
    texts = [text_BC if PASSES[one] == "both" else null_text_C.expand_as(text_BC) for one in passes]
    if image_BMC is None:
        return torch.cat(texts), None
    return torch.cat(texts), torch.cat(
        [null_image_C.expand_as(image_BMC) if PASSES[one] == "none" else image_BMC for one in passes]
    )


def guided(logits_BTV: Tensor, weights_BW: Tensor) -> Tensor:
    """Logits (W * B, T, V) of all rows, one pass after the other -> their weighted sums (B, T, V)."""
    if weights_BW.shape[1] == 1:
        return logits_BTV
    per_pass_WBTV = logits_BTV.unflatten(0, (weights_BW.shape[1], -1))
    return (weights_BW.T.to(logits_BTV)[:, :, None, None] * per_pass_WBTV).sum(0)
