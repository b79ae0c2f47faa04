"""The released weights load, reconstruct shapes, follow unseen prompts,
and were trained on redistributable data only.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.held_out_captions import held_out
from g3pt.data.records import split_of, unpack_occupancy
from g3pt.geometry.appearance import clay
from g3pt.geometry.convert import ConvertConfig, convert_mesh
from g3pt.geometry.render import render_views
from g3pt.geometry.surface import sample_surface
from g3pt.metrics.pairwise import chamfer
from g3pt.models.car import G3PT
from g3pt.models.decoding import decode_meshes
from g3pt.models.tokenizer import CVQ
from g3pt.shapes import FAMILIES, all_captions, make_shape, shape_ids
from g3pt.shapes.measure import measure_any
from pipelines.generate.config import RELEASED
from pipelines.release.job import check_sources
from pipelines.train.trained_on import read

WEIGHTS = Path(__file__).resolve().parents[1] / "weights" / "g3pt-nano-cvq"


def unseen_shapes(count: int) -> Iterator[dict[str, np.ndarray]]:
    """Shapes of the test split, as rows of a dataset."""
    ids = [i for i in shape_ids() if split_of(i) == "test"]
    for k in np.linspace(0, len(ids) - 1, count).astype(int):
        shape = make_shape(ids[k])
        yield convert_mesh(
            shape.vertices,
            shape.faces,
            ConvertConfig(resolution=64, num_surface=4096, num_sharp=8, num_queries=4096),
            seed=0,
        )


def test_it_rebuilds_unseen_shapes() -> None:
    model, found = CVQ.from_pretrained(WEIGHTS), []
    for row in unseen_shapes(8):
        codes_BS = model.encode(torch.from_numpy(row["surface"].astype(np.float32))[None])
        logits_BQ = model.occupancy_logits(
            model.decode_latents(codes_BS), torch.from_numpy(row["volume_points"].astype(np.float32))[None]
        )
        inside, guess = unpack_occupancy(row["volume_occupancy"]), logits_BQ[0].detach().numpy() > 0
        found.append((inside & guess).sum() / (inside | guess).sum())
    assert np.mean(found) > 0.75, found


def test_autocast_reaches_the_encoder_and_the_decoder_s_blocks_but_no_code() -> None:
    """With the pyramid in bf16 too, .94 .80 .50 .45 of the codes were equal to float32's, scale by scale."""
    model, ids = CVQ.from_pretrained(WEIGHTS).eval(), [i for i in shape_ids() if split_of(i) == "test"]
    clouds = [
        surface_in_the_box(make_shape(ids[k]).vertices, make_shape(ids[k]).faces)
        for k in np.linspace(0, len(ids) - 1, 48).astype(int)
    ]
    surface_BP6, points_BQ3 = torch.from_numpy(np.stack(clouds)), torch.rand(48, 64, 3) * 2 - 1

    def share_by_scale(codes_BS: torch.Tensor) -> list[float]:
        parts = (codes_BS == expected_BS).float().split(model.config.scales, dim=1)
        return [float(part.mean()) for part in parts]

    with torch.no_grad():
        latents_BLD, expected_BS = model.encoder(surface_BP6), model.encode(surface_BP6)
        canvas_BLD = model.canvas(expected_BS[:, :21])
        aligned_BTD = model.align(canvas_BLD, 3)
        with torch.autocast("cpu", torch.bfloat16):
            assert not torch.equal(model.encoder(surface_BP6), latents_BLD), "the encoder does round"
            assert share_by_scale(torch.cat(model.cqt(latents_BLD, frozen=True).codes_BT, dim=1)) == [1.0] * 4
            assert np.all(np.array(share_by_scale(model.encode(surface_BP6))) >= [0.97, 0.96, 0.93, 0.85])
            assert torch.equal(model.canvas(expected_BS[:, :21]), canvas_BLD), "a generator reads the same in training"
            assert torch.equal(model.align(canvas_BLD, 3), aligned_BTD), "and in sampling"
            logits_BQ = model.occupancy_logits(model.decode_latents(expected_BS), points_BQ3)
    assert logits_BQ.dtype == torch.float32 and len(logits_BQ.unique()) > 0.99 * logits_BQ.numel()
    assert not torch.equal(logits_BQ, logits_BQ.bfloat16().float())


def surface_in_the_box(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """4096 points of the surface, (4096, 6) float32, scaled as a dataset's row."""
    low, high = vertices.min(0), vertices.max(0)
    placed = (vertices - (low + high) / 2) * (1.9 / (high - low).max())
    return sample_surface(placed, faces, 4096, np.random.default_rng(0)).astype(np.float32)


def test_the_generator_follows_prompts_that_it_never_saw() -> None:
    captions = {
        family: next(c for c, (f, _) in all_captions().items() if f == family and held_out(c)) for family in FAMILIES
    }
    model = G3PT.from_pretrained(RELEASED).eval()
    codes_BS = model.sample_codes(list(captions.values()), [None] * len(captions), range(len(captions)))
    meshes = decode_meshes(model.tokenizer, model.tokenizer.decode_latents(codes_BS), 64, 16)
    right = []
    for (family, caption), mesh in zip(captions.items(), meshes, strict=True):
        measured = measure_any(family, mesh.vertices, mesh.faces)
        right += [measured.get(slot) == value for slot, value in all_captions()[caption][1].items()]
    assert np.mean(right) > 0.6, np.mean(right)


def test_the_generator_answers_a_short_prompt() -> None:
    (mesh,) = G3PT.from_pretrained(RELEASED).generate(text="a round table with four legs", resolution=64)
    assert mesh.is_watertight and mesh.volume > 0


def test_the_generator_sees_what_a_picture_shows() -> None:
    """A sample is nearest to the pictured object among held-out objects of 16 families (previous release: .375)."""
    ids = {
        family: next(i for i in shape_ids() if i.startswith(f"shapes/{family}-") and split_of(i) == "test")
        for family in FAMILIES
    }
    shapes = [make_shape(i) for i in ids.values()]
    views = [render_views(clay(shape.vertices, shape.faces), 1, 64, 0)[0][0] for shape in shapes]
    model = G3PT.from_pretrained(RELEASED).eval()
    codes_BS = model.sample_codes([None] * len(views), views, range(len(views)))
    meshes = decode_meshes(model.tokenizer, model.tokenizer.decode_latents(codes_BS), 32, 16)
    clouds, samples = (
        [sample_surface(one.vertices, one.faces, 1024, np.random.default_rng(0))[:, :3] for one in part]
        for part in (shapes, meshes)
    )
    nearest = [int(np.argmin([chamfer(sample, cloud) for cloud in clouds])) for sample in samples]
    assert np.mean(nearest == np.arange(len(shapes))) > 0.5, nearest


def test_no_prompt_of_the_test_was_trained_on() -> None:
    rows = [make_shape(row["id"]) for row in read(RELEASED)[::40]]
    assert len(rows) > 80 and not any(held_out(shape.caption) for shape in rows)


@pytest.mark.parametrize(("folder", "least"), [(WEIGHTS, 1000), (RELEASED, 3000)])
def test_all_that_they_were_trained_on_may_be_given_away(folder: Path, least: int) -> None:
    owed = read(folder)
    assert len(owed) > least
    check_sources(owed, folder)


def test_the_tokenizer_s_authors_are_named() -> None:
    owed = read(WEIGHTS)
    card = (WEIGHTS / "README.md").read_text()
    named = {row["author"] for row in owed if row["license"].startswith("CC-BY")}
    assert named and all(re.split(r"[^A-Za-z]", name)[0] in card for name in named)


def test_its_card_tells_the_run_s_own_figures() -> None:
    card = (WEIGHTS / "README.md").read_text()
    assert "volume IoU" in card and "3,600 steps" in card
    assert json.loads((WEIGHTS / "config.json").read_text())["kind"] == "cvq"


@pytest.mark.parametrize("folder", [WEIGHTS, RELEASED])
def test_no_file_is_large(folder: Path) -> None:
    assert all(
        (folder / name).stat().st_size < 8e6 for name in ("model.safetensors", "config.json", "README.md", "CREDITS.md")
    )
