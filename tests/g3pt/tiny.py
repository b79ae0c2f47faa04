"""A tokenizer and a generator of a few thousand parameters, and batches of random codes, for tests."""

from __future__ import annotations

import torch
from torch import Tensor

from g3pt.config import CARConfig, CVQConfig
from g3pt.models.car import G3PT
from g3pt.models.tokenizer import CVQ

SCALES = (1, 3, 6, 8)


def tiny_tokenizer(**changes: object) -> CVQ:
    """Scales 1, 3, 6, 8 with random weights and lively statistics."""
    values: dict = dict(
        scales=SCALES, width=16, num_heads=2, encoder_layers=1, decoder_layers=1, num_points=64, num_encode_points=64,
        num_volume_queries=32, num_near_queries=32,
    )  # fmt: skip
    torch.manual_seed(0)
    tokenizer = CVQ(CVQConfig(**(values | changes)))
    for parameter in tokenizer.parameters():
        if parameter.abs().max() == 0:  # e.g. the zero start of the last scale: give every code an effect
            torch.nn.init.normal_(parameter, std=0.3)
    return tokenizer.eval()


def tiny_g3pt(seed: int = 0, **changes: object) -> G3PT:
    """Two layers of width 32 over `tiny_tokenizer`."""
    values: dict = dict(depth=2, width=32, num_heads=2, image_size=28)
    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    return G3PT(CARConfig(**(values | changes)), tokenizer)


def random_batch(model: G3PT, size: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """Random codes and images, texts of different lengths, everything present."""
    generator = torch.Generator().manual_seed(seed)
    ids_BM, mask_BM = model.text.tokenizer(["a chair" + " with legs" * i for i in range(size)])
    present_B = torch.ones(size, dtype=torch.bool)
    codes_BS = torch.randint(model.tokenizer.config.num_codes, (size, sum(model.scales)), generator=generator)
    pixels = model.config.image_size
    return {
        "codes_BS": codes_BS,
        "text_BM": ids_BM,
        "text_mask_BM": mask_BM,
        "has_text_B": present_B,
        "images_B3HW": torch.randn(size, 3, pixels, pixels, generator=generator),
        "has_image_B": present_B.clone(),
    }


def given_conditions(model: G3PT, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """What the transformer is given of a batch: encoded, and dropped at random while training."""
    return model._dropped(batch, *model._encoded(batch))
