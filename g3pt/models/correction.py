"""Bit-flip self-correction: training on coarse codes that are partly wrong, towards finer codes that make up for it.

In teacher forcing the generator only ever sees coarse codes as the tokenizer wrote them; when it samples, it sees its own mistakes. So
a share of the input digits is changed at random, scale by scale, and the targets of the finer scales become what the tokenizer would have
written after these changes: the codes of the *changed* residual. The generator learns to correct, not to ignore, what is coarser.

The residual needs the object's continuous latents, which are not stored (2.4 MB an object at the paper's size). The sum of all
its codes stands for them. Quantising that anew gives other codes even where nothing was changed (3 to 30 % equal, nano), because the
small rest that the codes leave is gone. So only the *difference* that the changes make to a scale's scores is taken from it, and added
to the centre of the stored code's cell: without changes the targets are exactly the stored codes (LOG.md has both beside the true latents).

Source: Infinity (2412.04431), bitwise self-correction: a rate a object, uniform up to `bit_flip`; recomputed residuals as targets.
Ours: targets from stored codes alone; for FSQ a changed digit takes any other of its values.
Shapes: B batch, S tokens of all scales, T tokens of a scale, C digits of a code, A width of the aligned tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from g3pt.models.tokenizer import CVQ


def change_digits(
    digits_BTC: Tensor, levels_C: Tensor, chance_BTC: Tensor, rate_B: Tensor, choice_BTC: Tensor
) -> Tensor:
    """Digits, of which those with `chance` below their object's `rate` take another value, which `choice` in [0, 1) picks."""
    other_BTC = (digits_BTC + 1 + (choice_BTC * (levels_C - 1)).long()) % levels_C
    return torch.where(chance_BTC < rate_B[:, None, None], other_BTC, digits_BTC)


@torch.no_grad()
def corrected(
    tokenizer: CVQ, codes_BS: Tensor, rate_B: Tensor, chance_BSC: Tensor, choice_BSC: Tensor, num_scales: int
) -> tuple[Tensor, Tensor]:
    """Whole codes -> inputs of scales 2, 3, ... (B, T, A) with changed digits, and targets (B, T) of the first `num_scales` scales.

    `chance_BSC` and `choice_BSC` are uniform in [0, 1), one a digit (see `change_digits`); the last scale is no input and keeps its digits.
    """
    quantizer, scales = tokenizer.cqt.quantizer, tokenizer.config.scales[:num_scales]
    whole_BLD = tokenizer.canvas(codes_BS)
    true_BLD = seen_BLD = tokenizer.canvas_start(
        len(codes_BS)
    )  # canvases of the stored codes, and of what the generator sees
    aligned, targets = [], []
    for scale, num_tokens in enumerate(scales):
        start = sum(scales[:scale])
        code_BT = codes_BS[:, start : start + num_tokens]
        if scale > 0:
            aligned.append(tokenizer.align(seen_BLD, scale))
            moved_BTC = tokenizer.cqt.scores(whole_BLD - seen_BLD, scale) - tokenizer.cqt.scores(
                whole_BLD - true_BLD, scale
            )
            target_BT = quantizer(quantizer.centres(code_BT) + moved_BTC)[1]
        else:
            target_BT = code_BT
        targets.append(target_BT)
        if scale < len(scales) - 1:
            part = slice(start, start + num_tokens)
            digits_BTC = change_digits(
                quantizer.codes_to_digits(target_BT),
                quantizer.levels_C,
                chance_BSC[:, part],
                rate_B,
                choice_BSC[:, part],
            )
            seen_BLD = tokenizer.canvas_add(seen_BLD, quantizer.digits_to_codes(digits_BTC), scale)
            true_BLD = tokenizer.canvas_add(true_BLD, code_BT, scale)
    return torch.cat(aligned, dim=1) if aligned else whole_BLD[:, :0], torch.cat(targets, dim=1)
