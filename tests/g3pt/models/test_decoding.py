"""Latents to meshes: a trained field coarse-to-fine as densely, batches of different objects in shared calls,
names for what has no mesh.
"""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from g3pt.geometry.isosurface import EmptyField, cleaned_mesh
from g3pt.models import decoding
from g3pt.models.decoding import Decoded, decode_mesh, decode_meshes, logits, packed_pieces
from g3pt.models.tokenizer import CVQ
from tests.g3pt.tiny import tiny_g3pt, tiny_tokenizer

BALLS = torch.tensor([[0.0, 0.1, 0.0, 0.55], [0.3, 0.0, -0.2, 0.4], [-0.2, 0.1, 0.1, 0.7]])  # centre, radius


def test_the_generator_and_the_evaluation_decode_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points reach the decoder in chunks."""
    model = tiny_g3pt().eval()
    codes_S = model.sample_codes(["a chair"], [None], [0])[0]
    latents_BLD = model.tokenizer.decode_latents(codes_S[None])
    with torch.no_grad():
        model.tokenizer.decoder.head.weight.mul_(20)
        points = np.random.default_rng(0).uniform(-1, 1, (4000, 3)).astype(np.float32)
        model.tokenizer.decoder.head.bias.sub_(float(np.median(logits(model.tokenizer, latents_BLD, points))))
    sizes, original = [], decoding.logits_of_rows
    monkeypatch.setattr(
        decoding, "logits_of_rows", lambda *arguments: sizes.append(len(arguments[2][0])) or original(*arguments)
    )
    vertices, faces = model.decode_mesh(codes_S, resolution=32)
    assert len(faces) and max(sizes) == decoding.CHUNK_CPU and sum(sizes) == 33**3
    again = decode_mesh(model.tokenizer, latents_BLD, resolution=32, coarse=32)
    assert np.array_equal(again[0], vertices) and np.array_equal(again[1], faces)
    parts = cleaned_mesh(pickle.loads(pickle.dumps(model.decode_field(codes_S, resolution=32))))
    assert np.array_equal(parts[0], vertices) and np.array_equal(parts[1], faces), "the same on another machine"
    with pytest.raises(EmptyField, match="nothing"):
        cleaned_mesh(pickle.loads(pickle.dumps(EmptyField("nothing"))))


@pytest.fixture(scope="module")
def trained() -> tuple[CVQ, Tensor]:
    """A tokenizer fitted to three balls for some seconds, and its latents of them."""
    torch.manual_seed(0)
    model = tiny_tokenizer(width=32, decoder_layers=1)
    generator = torch.Generator().manual_seed(0)
    normals = torch.nn.functional.normalize(torch.randn(3, 64, 3, generator=generator), dim=-1)
    surface_BP6 = torch.cat([BALLS[:, None, :3] + BALLS[:, None, 3:] * normals, normals], dim=-1)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(200):
        near_BQ3 = surface_BP6[..., :3] + 0.2 * torch.randn(3, 64, 3, generator=generator)
        points_BQ3 = torch.cat([torch.rand(3, 192, 3, generator=generator) * 2 - 1, near_BQ3], dim=1)
        inside_BQ = (points_BQ3 - BALLS[:, None, :3]).norm(dim=-1) < BALLS[:, None, 3]
        found_BQ = model.occupancy_logits(model.decoder.latents(model.encoder(surface_BP6)), points_BQ3)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(found_BQ, inside_BQ.float())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        return model, model.decoder.latents(model.encoder(surface_BP6))


def test_a_trained_field_decodes_as_densely_closed_and_outward(trained: tuple[CVQ, Tensor]) -> None:
    model, latents_BLD = trained
    sizes = []
    for found, dense, ball in zip(
        decode_meshes(model, latents_BLD, 64, 16), decode_meshes(model, latents_BLD, 64, 64), BALLS.numpy(), strict=True
    ):
        assert found.vertices.shape == dense.vertices.shape and np.array_equal(found.faces, dense.faces)
        np.testing.assert_allclose(found.vertices, dense.vertices, atol=1e-5)
        mesh = trimesh.Trimesh(found.vertices, found.faces, process=False)
        assert mesh.is_watertight and mesh.is_winding_consistent and mesh.volume > 0 and mesh.area_faces.min() > 0
        np.testing.assert_allclose(mesh.center_mass, ball[:3], atol=0.15)  # it learnt the balls
        sizes.append(len(found.vertices))
    assert max(sizes) > 1.5 * min(sizes), "objects of different occupancy"


def analytic(latents_B14: Tensor, points_BQ3: Tensor) -> Tensor:
    """A decoder whose latents are a ball's centre and radius; a radius below 0 is an empty field,
    one above 2 a full one.
    """
    return latents_B14[:, :, 3] - (points_BQ3 - latents_B14[:, :, :3]).norm(dim=-1)


def test_a_batch_shares_calls_and_names_what_has_no_mesh() -> None:
    sizes: list[tuple[int, int]] = []
    tokenizer = SimpleNamespace(
        occupancy_logits=lambda latents, points: sizes.append(points.shape[:2]) or analytic(latents, points)
    )
    latents = torch.cat([BALLS, torch.tensor([[0.0, 0, 0, -1], [0, 0, 0, 9], [0.1, 0, 0, 0.1]])])[:, None]
    found = decode_meshes(tokenizer, latents, resolution=64, coarse=16)
    assert [one.status for one in found] == ["ok", "ok", "ok", "empty-field", "full-field", "ok"]
    assert found[3].vertices.shape == found[4].faces.shape == (0, 3)
    assert any(rows > 1 for rows, _ in sizes) and max(rows * length for rows, length in sizes) <= decoding.CHUNK_CPU
    calls = len(sizes)
    for one, latent in zip(found, latents, strict=True):
        if one.status == "ok":
            vertices, faces = decode_mesh(tokenizer, latent[None], 64, 16)
            np.testing.assert_allclose(vertices, one.vertices, atol=1e-6)
            assert np.array_equal(faces, one.faces)
            assert (
                np.abs(np.linalg.norm(vertices - latent[0, :3].numpy(), axis=1) - float(latent[0, 3])).max()
                < 0.5 * 2 / 64
            )
    assert calls < len(sizes) - calls, "together they need fewer calls than alone"
    with pytest.raises(EmptyField):
        decode_mesh(tokenizer, latents[3:4], 64, 16)
    assert (
        decode_meshes(tokenizer, latents[:0], 64) == [] and Decoded(np.zeros((0, 3)), np.zeros((0, 3))).status == "ok"
    )


def test_pieces_cover_all_points_and_no_call_exceeds_the_chunk() -> None:
    lengths = {0: 10_000, 1: 0, 2: 37, 3: 4096, 4: 1000, 5: 900}
    calls = packed_pieces(lengths, 4096)
    covered = sorted(piece for call in calls for piece in call)
    for number, length in lengths.items():
        spans = [(start, end) for k, start, end in covered if k == number]
        assert sum(end - start for start, end in spans) == length and all(
            a[1] == b[0] for a, b in zip(spans, spans[1:], strict=False)
        )
    assert all(len(call) * max(end - start for _, start, end in call) <= 4096 for call in calls)
    assert sum(len(call) > 1 for call in calls) >= 1
