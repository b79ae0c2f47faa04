"""An untrained generator of a few thousand parameters whose meshes have a surface."""

from pathlib import Path

import torch

from tests.g3pt.tiny import tiny_g3pt


def write_toy_generator(folder: Path) -> Path:
    """Write its export. The decoder's level is the median of one sample's field, so that every mesh has a surface."""
    made = tiny_g3pt().eval()
    head = made.tokenizer.decoder.head
    with torch.no_grad():
        head.weight.mul_(20)
        codes = made.sample_codes(["a chair"], [None], [0])
        points = torch.rand(1, 4000, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
        head.bias.sub_(made.tokenizer.occupancy_logits(made.tokenizer.decode_latents(codes), points).median())
    return made.save_pretrained(folder)
