"""The table of generator sizes has every preset, and the sizes are spaced for a scaling study;
tests/test_docs.py compares the page.
"""

import dataclasses

import pytest
import torch

from g3pt.config import CAR_PRESETS, CVQ_PRESETS, PRETRAINED
from g3pt.models.sampling import SampleConfig
from pipelines.train import counts as counting
from pipelines.train import memory, presets
from tests.g3pt.tiny import tiny_g3pt


def test_the_command_prints_a_row_per_preset(capsys: pytest.CaptureFixture[str]) -> None:
    presets.presets(presets.PresetsFlags())
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split()[1] for row in rows] == list(CAR_PRESETS)


def test_sizes_are_spaced_evenly_enough_for_a_power_law() -> None:
    codec = CVQ_PRESETS["nano"][0]
    counts = [counting.meta_car(model, codec).num_params_no_embed for model, _ in CAR_PRESETS.values()]
    study = counts[list(CAR_PRESETS).index("nano") :]
    ratios = [larger / smaller for smaller, larger in zip(study, study[1:], strict=False)]
    assert len(study) >= 10 and study[-1] / study[0] > 1000 and all(1.4 < ratio < 3 for ratio in ratios), ratios


def test_the_cache_that_is_counted_is_the_one_that_sampling_fills() -> None:
    model = tiny_g3pt().eval()
    made, original = [], model.car.new_caches
    model.car.new_caches = lambda batch: made.append(original(batch)) or made[-1]
    model.sample_codes(["a chair"], [None], [0], SampleConfig(cfg=2.0), batch=1)
    ((first, *_),) = made
    assert presets.cache_bytes(model.car) == sum(cache.keys.nbytes + cache.values.nbytes for cache in made[0])
    assert first.keys.shape[0] == 2 and first.filled == sum(model.scales) + model.car.num_prefix


def test_pretrained_encoders_have_as_many_parameters_as_counted() -> None:
    from transformers import CLIPTextConfig, CLIPTextModel, Dinov2Config, Dinov2Model

    assert "large-patch14" in PRETRAINED["text_encoder"] and "dinov2-large" in PRETRAINED["image_encoder"]
    with torch.device("meta"):
        clip = CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        )
        dino = Dinov2Model(Dinov2Config(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, image_size=518))
    assert sum(p.numel() for p in clip.parameters()) == memory.CLIP_PARAMETERS
    assert sum(p.numel() for p in dino.parameters()) == memory.DINO_PARAMETERS
    assert (clip.config.hidden_size, dino.config.hidden_size) == (counting.CLIP_WIDTH, counting.DINO_WIDTH)


@pytest.mark.parametrize("preset", ["nano", "0.1B"])
def test_parameters_are_counted_three_ways(preset: str) -> None:
    codec, (model, _) = CVQ_PRESETS["small"][0], CAR_PRESETS[preset]
    sizes = {name: p.numel() for name, p in counting.meta_car(model, codec).named_parameters()}
    found = counting.count_car(model, codec)
    embeddings = (
        "start",
        "levels",
        "positions",
        "prefix_level",
        "null_",
        "input.",
        "text.",
        "image.",
        "image_pool.",
        "head.",
    )
    bare = {name: count for name, count in sizes.items() if not name.startswith(embeddings)}
    assert {name.split(".")[0] for name in bare} == {"blocks", "modulation"}
    assert found["parameters_total"] == sum(sizes.values())
    assert found["parameters_no_embed"] == sum(bare.values())
    assert found["parameters_no_adaln"] == sum(n for name, n in bare.items() if "modulation" not in name)
    width, heads = model.width, model.num_heads
    assert found["parameters_no_adaln"] == model.depth * (12 * width**2 + 6 * width + heads)


def test_heads_are_64_wide_where_a_gpu_is_meant_and_large_is_the_paper_s_size() -> None:
    for table in (CVQ_PRESETS, CAR_PRESETS):
        widths = {name: model.width // model.num_heads for name, (model, _) in table.items()}
        first = list(table).index("micro")
        assert {name for name in list(table)[first:] if widths[name] != 64} <= {"10M"}, widths
        assert table["small"][1].batch_size == 256
    (paper, its_training), (large, training) = CVQ_PRESETS["paper"], CVQ_PRESETS["large"]
    changed = {"latent_queries": "learned", "quantizer": "lfq", "num_sharp_points": 0}
    assert dataclasses.replace(large, **changed) == paper and training == its_training
    assert (large.latent_queries, large.quantizer, large.num_sharp_points) == ("anchored", "fsq", 4096)
