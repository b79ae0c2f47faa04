"""The released tokenizer: it loads, rebuilds shapes that it never saw, and owes nothing that may not be given away."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from g3pt.geometry.convert import ConvertConfig, mesh_to_tensors
from g3pt.records import split_of, unpack_occupancy
from g3pt.shapes import make_shape, shape_ids
from g3pt.tokenizer import CVQ
from pipelines.release import check_sources
from pipelines.trained_on import read

WEIGHTS = Path(__file__).resolve().parents[1] / "weights" / "g3pt-nano-cvq"


def unseen_shapes(count: int) -> Iterator[dict[str, np.ndarray]]:
    """Shapes of the test split, as a dataset's rows hold them."""
    ids = [i for i in shape_ids() if split_of(i) == "test"]
    for k in np.linspace(0, len(ids) - 1, count).astype(int):
        shape = make_shape(ids[k])
        yield mesh_to_tensors(shape.vertices, shape.faces, ConvertConfig(resolution=64, num_surface=4096, num_sharp=8, num_queries=4096), seed=0)


def test_it_rebuilds_unseen_shapes() -> None:
    model, found = CVQ.from_pretrained(WEIGHTS), []
    for row in unseen_shapes(8):
        codes_BS = model.encode(torch.from_numpy(row["surface"].astype(np.float32))[None])
        logits_BQ = model.occupancy_logits(model.decode_latents(codes_BS), torch.from_numpy(row["volume_points"].astype(np.float32))[None])
        inside, guess = unpack_occupancy(row["volume_occupancy"]), logits_BQ[0].detach().numpy() > 0
        found.append((inside & guess).sum() / (inside | guess).sum())
    assert np.mean(found) > 0.75, found


def test_all_that_it_was_trained_on_may_be_given_away() -> None:
    owed = read(WEIGHTS)
    assert len(owed) > 1000
    check_sources(owed, WEIGHTS)  # a licence outside the list, or an unconfirmed source, is refused
    card = (WEIGHTS / "README.md").read_text()
    named = {row["author"] for row in owed if row["license"].startswith("CC-BY")}
    assert named and all(re.split(r"[^A-Za-z]", name)[0] in card for name in named)


def test_its_card_tells_the_run_s_own_figures() -> None:
    card = (WEIGHTS / "README.md").read_text()
    assert "volume IoU" in card and "3,600 steps" in card
    assert json.loads((WEIGHTS / "config.json").read_text())["kind"] == "cvq"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "README.md", "CREDITS.md"])
def test_no_file_is_large(name: str) -> None:
    assert (WEIGHTS / name).stat().st_size < 5e6
