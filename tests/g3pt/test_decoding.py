import numpy as np
import torch

from g3pt import decoding
from g3pt.decoding import decode_mesh, logits
from tests.g3pt.tiny import tiny_g3pt


def test_the_generator_and_the_evaluation_decode_in_one_place(monkeypatch):
    """Points reach the decoder in chunks."""
    model = tiny_g3pt().eval()
    codes_S = model.sample_codes(["a chair"], [None], [0])[0]
    latents_BLD = model.tokenizer.decode_latents(codes_S[None])
    with torch.no_grad():
        model.tokenizer.decoder.head.weight.mul_(20)
        points = np.random.default_rng(0).uniform(-1, 1, (4000, 3)).astype(np.float32)
        model.tokenizer.decoder.head.bias.sub_(float(np.median(logits(model.tokenizer, latents_BLD, points))))
    sizes, original = [], decoding.logits
    monkeypatch.setattr(decoding, "logits", lambda *arguments: sizes.append(len(arguments[2])) or original(*arguments))
    vertices, faces = model.decode_mesh(codes_S, resolution=32)
    assert len(faces) and max(sizes) == decoding.CHUNK_CPU and sum(sizes) == 33**3
    again = decode_mesh(model.tokenizer, latents_BLD, resolution=32, coarse=32)
    assert np.array_equal(again[0], vertices) and np.array_equal(again[1], faces)
