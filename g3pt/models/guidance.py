"""Classifier-free guidance with a scale of its own for each condition, at the price of as many forward ways as a row needs.

A *way* is a forward pass of a row with both conditions, with the image alone, or with none. Guided logits are a weighted sum of
the ways' logits, and the weights of a row sum to one. With t_T for the text and t_I for the image:

    none + (1 + t_I) (image - none) + (1 + t_T) (both - image)  =  (1 + t_T) both + (t_I - t_T) image - t_I none

A way whose weight is zero at every scale is not run: equal guidance needs two ways, a row with one condition two, none one.

Source: InstructPix2Pix (2211.09800), equation 3, for the nested form with the image inside; VAR (2404.02905) for t = scale - 1.
Ours: a row without one of the conditions is guided by the other's scale alone; ways left out where they weigh nothing.
Shapes: B batch, K scales, W ways (both, image, none), T tokens of a scale, V values, M image tokens, C condition width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

WAYS = ("both", "image", "none")


def way_weights(text_K: Sequence[float], image_K: Sequence[float], has_text: bool, has_image: bool) -> Tensor:
    """Weights (K, 3) of one row's ways at each scale, from the guidance of text and image at each scale.

    The first way is never left out; for a row with one condition it holds that condition.
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


def needed_ways(weights_KW: Tensor) -> tuple[int, ...]:
    """Numbers of the ways that weigh anything at some scale; rows of weights (..., K, 3) are taken together."""
    return tuple(torch.nonzero(weights_KW.reshape(-1, len(WAYS)).ne(0).any(dim=0)).flatten().tolist())


def spread_ways(
    text_BC: Tensor, image_BMC: Tensor | None, null_text_C: Tensor, null_image_C: Tensor | None, ways: Sequence[int]
) -> tuple[Tensor, Tensor | None]:
    """The conditions of all rows for each way in turn, (W * B, C) and (W * B, M, C)."""
    texts = [text_BC if WAYS[way] == "both" else null_text_C.expand_as(text_BC) for way in ways]
    if image_BMC is None:
        return torch.cat(texts), None
    return torch.cat(texts), torch.cat(
        [null_image_C.expand_as(image_BMC) if WAYS[way] == "none" else image_BMC for way in ways]
    )


def guided(logits_BTV: Tensor, weights_BW: Tensor) -> Tensor:
    """Logits (W * B, T, V) of all rows for each way in turn -> their weighted sums (B, T, V)."""
    if weights_BW.shape[1] == 1:
        return logits_BTV
    per_way_WBTV = logits_BTV.unflatten(0, (weights_BW.shape[1], -1))
    return (weights_BW.T.to(logits_BTV)[:, :, None, None] * per_way_WBTV).sum(0)
