import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from g3pt.config import CVQConfig
from g3pt.geometry.convert import ConvertConfig, convert_mesh
from g3pt.geometry.files import write_mesh
from g3pt.geometry.reading import MeshError
from g3pt.models import car, encoding
from g3pt.models.encoding import encode, encode_mesh, source_conversion
from g3pt.shapes import make_shape
from tests.g3pt.tiny import tiny_g3pt, tiny_tokenizer

SHAPE = make_shape("shapes/mug-00007")


def test_a_mesh_has_the_codes_of_a_converted_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(encoding, "source_conversion", coarse)
    tokenizer = tiny_tokenizer()
    row = convert_mesh(SHAPE.vertices, SHAPE.faces, coarse(tokenizer.config))
    wanted = encode(tokenizer, [row])[0]
    write_mesh(tmp_path / "mug.obj", SHAPE.vertices, SHAPE.faces)
    for mesh in (SHAPE, (SHAPE.vertices, SHAPE.faces)):
        np.testing.assert_array_equal(encode_mesh(tokenizer, mesh).numpy(), wanted)
    assert encode_mesh(tokenizer, tmp_path / "mug.obj").shape == wanted.shape
    moved = encode_mesh(tokenizer, (SHAPE.vertices * 3.0 + [1.0, 2.0, 3.0], SHAPE.faces))
    assert (moved.numpy() == wanted).mean() > 0.5, "size and place of the source do not matter"


def coarse(config: CVQConfig) -> ConvertConfig:
    """The conversion of a source on a grid of 32 cells."""
    return dataclasses.replace(source_conversion(config), resolution=32)


def test_the_conversion_has_the_points_that_the_tokenizer_reads() -> None:
    config = tiny_tokenizer(num_encode_points=20_000, num_points=64, num_sharp_points=8).config
    found = source_conversion(config)
    assert (found.num_surface, found.num_sharp, found.num_queries) == (20_000, 4096, 0)
    assert source_conversion(tiny_tokenizer().config).num_sharp == 0


def test_both_ends_of_a_variation(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_g3pt().eval()
    head = model.tokenizer.decoder.head
    codes = torch.randint(model.tokenizer.config.num_codes, (18,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        head.weight.mul_(20)
        points = torch.rand(1, 4000, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
        latents = model.tokenizer.decode_latents(codes[None])
        head.bias.sub_(model.tokenizer.occupancy_logits(latents, points).median())
    monkeypatch.setattr(car, "encode_mesh", lambda tokenizer, mesh: codes)
    (whole,) = model.vary(SHAPE, keep_scales=4, text="a mug", resolution=32)
    np.testing.assert_array_equal(whole.vertices, model.decode_mesh(codes, 32)[0])
    plain = model.generate("a mug", num=2, seed=3, resolution=32)
    none = model.vary(SHAPE, keep_scales=0, text="a mug", num=2, seed=3, resolution=32)
    assert [len(mesh.faces) for mesh in none] == [len(mesh.faces) for mesh in plain]
    for a, b in zip(plain, none, strict=True):
        np.testing.assert_array_equal(a.vertices, b.vertices)


def test_a_mesh_without_a_solid_is_refused() -> None:
    with pytest.raises(MeshError):
        encode_mesh(tiny_tokenizer(), (np.zeros((3, 3)), np.array([[0, 1, 2]])))
