import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from g3pt.config import CAR_PRESETS, CVQ_PRESETS, CARConfig
from g3pt.models.attention import Causal
from g3pt.models.car import G3PT
from g3pt.models.heads import BitHead, CodeHead, build_head, code_factors
from g3pt.models.layers import ModulatedBlock
from g3pt.models.sampling import SampleConfig
from g3pt.models.transformer import CAR
from tests.g3pt.tiny import given_conditions, random_batch, tiny_g3pt, tiny_tokenizer


def test_a_later_scale_cannot_change_an_earlier_logit() -> None:
    model = tiny_g3pt().eval()
    batch = random_batch(model)
    scales, changed = model.scales, dict(batch)

    def hidden(codes_BS: Tensor) -> Tensor:
        text_BC, image_BMC = given_conditions(model, batch)
        return model.car(model.aligned_inputs(codes_BS), text_BC, image_BMC)

    with torch.no_grad():
        before = hidden(batch["codes_BS"])
        for scale in range(len(scales)):
            start, end = sum(scales[:scale]), sum(scales[: scale + 1])
            changed = batch["codes_BS"].clone()
            changed[:, start:end] = (changed[:, start:end] + 4001) % 8000
            after = hidden(changed)
            torch.testing.assert_close(after[:, :end], before[:, :end], rtol=0, atol=1e-6)
            if scale + 1 < len(scales):
                assert (after[:, end:] - before[:, end:]).abs().amax() > 1e-4


def test_attention_is_full_inside_a_scale_and_blind_to_the_future() -> None:
    model = tiny_g3pt()
    assert model.car.attended(4) == (model.image.num_tokens, 1, 3, 6, 8) and tiny_g3pt(
        image_encoder="none"
    ).car.attended(2) == (1, 3)
    attention, x_BND = model.car.blocks[0].attention, torch.randn(1, 10, 32)
    with torch.no_grad():
        before = attention(x_BND, Causal((1, 3, 6)))
        for token, level in [(0, 0), (1, 1), (3, 1), (4, 2), (9, 2)]:
            changed_BND = x_BND.clone()
            changed_BND[:, token] += 1
            moved = (attention(changed_BND, Causal((1, 3, 6))) - before).abs().amax(dim=(0, 2)) > 1e-6
            assert moved.tolist() == [other >= level for other in (0, 1, 1, 1, 2, 2, 2, 2, 2, 2)]


def test_text_and_image_change_the_output() -> None:
    model = tiny_g3pt().eval()
    with torch.no_grad():
        batch = random_batch(model)
        both = model(batch)[0]
        no_text = model(batch | {"has_text_B": torch.zeros(4, dtype=torch.bool)})[0]
        no_image = model(batch | {"has_image_B": torch.zeros(4, dtype=torch.bool)})[0]
        other_text = model(
            batch | {"text_BM": batch["text_BM"].flip(0), "text_mask_BM": batch["text_mask_BM"].flip(0)}
        )[0]
        other_image = model(batch | {"images_B3HW": batch["images_B3HW"].flip(0)})[0]
    assert len({round(float(x), 5) for x in (both, no_text, no_image, other_text, other_image)}) == 5


def test_the_mean_image_token_modulates_every_layer() -> None:
    model = tiny_g3pt().eval()
    with torch.no_grad():
        text_BC, image_BMC = given_conditions(model, random_batch(model))
        condition_BD = model.car.condition(text_BC, image_BMC)
        shuffled_BMC = image_BMC.flip(1)  # same mean, other tokens
        torch.testing.assert_close(model.car.condition(text_BC, shuffled_BMC), condition_BD, rtol=1e-4, atol=1e-5)
        assert (model.car.condition(text_BC, image_BMC.flip(0)) - condition_BD).abs().amax() > 1e-3


def test_a_picture_learns_to_say_what_its_caption_says_and_no_caption_the_reverse() -> None:
    model = tiny_g3pt(image_text_weight=1.0).train()
    batch = random_batch(model)
    gap = model._image_text_gap(*model._encoded(batch), torch.ones(4, dtype=torch.bool))
    gap.backward()
    moved = {
        name.split(".")[0] if "encoder" in name else name
        for name, p in model.named_parameters()
        if p.grad is not None and p.grad.abs().max() > 0
    }
    assert moved == {
        "image_encoder",
        "car.image_pool.weight",
        "car.image_pool.bias",
        "car.text.weight",
        "car.text.bias",
        "car.null_text",
    }
    half_B = torch.tensor([True, False, False, False])
    alone = {name: value[:1] for name, value in batch.items()}
    torch.testing.assert_close(
        model._image_text_gap(*model._encoded(batch), half_B),
        model._image_text_gap(*model._encoded(alone), half_B[:1]) / 4,
    )
    loss, logs = model(batch)
    assert logs["image_text_gap"] > 0 and "image_text_gap" not in model.eval()(batch)[1] and torch.isfinite(loss)


@pytest.mark.parametrize("head", ["digits", "joint", "bits"])
def test_every_trained_tensor_moves_within_five_steps_of_mixed_drops(head: str) -> None:
    model = tiny_g3pt(head=head, drop_both=0.3, drop_text=0.3, drop_image=0.3).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(5):
        torch.manual_seed(step)
        loss, _ = model(random_batch(model, seed=step), step)
        optimizer.zero_grad()
        loss.backward()
        missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert missing == []  # what find_unused_parameters would be needed for
        optimizer.step()
    still = [name for name, p in model.named_parameters() if p.requires_grad and torch.equal(p, before[name])]
    assert still == []
    for name, p in model.tokenizer.named_parameters():
        assert torch.equal(p, before[f"tokenizer.{name}"])


def test_one_draw_drops_both_conditions_or_one_of_two() -> None:
    """Shares of 40,000 objects; four standard deviations of the largest are .01."""
    model, count = tiny_g3pt(), 40_000

    def shares(has_text: bool, has_image: bool) -> dict[tuple[bool, bool], float]:
        present = {"has_text_B": torch.full((count,), has_text), "has_image_B": torch.full((count,), has_image)}
        torch.manual_seed(0)
        kept = zip(*(part.tolist() for part in model._kept(present)), strict=True)
        return {pair: found / count for pair, found in Counter(kept).items()}

    model.train()
    expected = {(True, True): 0.65, (True, False): 0.2, (False, True): 0.05, (False, False): 0.1}
    assert shares(True, True) == pytest.approx(expected, abs=0.01)
    assert shares(True, False) == pytest.approx({(True, False): 0.9, (False, False): 0.1}, abs=0.01)
    assert shares(False, True) == pytest.approx({(False, True): 0.9, (False, False): 0.1}, abs=0.01)
    assert shares(False, False) == {(False, False): 1.0}
    model.eval()
    assert shares(True, True) == {(True, True): 1.0}
    with pytest.raises(ValueError, match=r"drop_both, drop_text, drop_image must add up to at most 1, got 1\.1"):
        dataclasses.replace(model.config, drop_text=0.8)


def test_a_model_without_images_loses_its_text_with_the_probability_of_dropping_both() -> None:
    model, count = tiny_g3pt(image_encoder="none", drop_both=0.3).train(), 40_000
    kept_B, _ = model._kept({"has_text_B": torch.ones(count, dtype=torch.bool)})
    assert float(kept_B.float().mean()) == pytest.approx(0.7, abs=0.01)


def test_tokenizer_stays_in_evaluation_mode_while_the_generator_trains() -> None:
    model = tiny_g3pt().train()
    assert model.training and not any(m.training for m in model.tokenizer.modules())


@pytest.mark.parametrize(
    ("kind", "factors"),
    [
        (CodeHead, (8000,)),
        (CodeHead, (8, 8, 5, 5, 5)),
        (CodeHead, (128, 64)),
        (BitHead, (8, 5, 5)),
        (BitHead, (2,) * 13),
    ],
)
def test_head_splits_and_joins_codes_and_sums_to_one(kind: str, factors: Any) -> None:
    torch.manual_seed(0)
    head = kind(16, factors)
    codes_BT = torch.randint(math.prod(factors), (2, 7))
    assert torch.equal(head.join(head.split(codes_BT)), codes_BT)
    every = torch.arange(math.prod(factors))[None]
    hidden = torch.randn(1, 1, 16).expand(-1, every.shape[1], -1)
    probability = (-head.cross_entropy(hidden, every).double()).exp()
    assert probability.sum().item() == pytest.approx(1, abs=1e-4)


def test_factors_number_codes_as_the_quantiser_does() -> None:
    for quantizer in ("fsq", "lfq"):
        tokenizer = tiny_tokenizer(quantizer=quantizer)
        config = CARConfig(depth=1, width=8, num_heads=1, factor_values=2 if quantizer == "lfq" else 8)
        head = CodeHead(8, code_factors(config, tokenizer.config))
        codes = torch.arange(0, tokenizer.config.num_codes, 37)[None]
        assert torch.equal(torch.stack(head.split(codes), -1), tokenizer.cqt.quantizer.codes_to_digits(codes))
    wide = dataclasses.replace(config, factor_values=128)
    assert code_factors(wide, tiny_tokenizer(quantizer="lfq").config) == (128, 64)


def test_independent_bits_are_one_logit_each_and_their_entropies_add() -> None:
    torch.manual_seed(0)
    head = build_head(CARConfig(depth=1, width=16, num_heads=1, head="bits"), tiny_tokenizer(quantizer="lfq").config)
    assert head.factors == (2,) * 13 and sum(p.numel() for p in head.parameters()) == 13 * 17
    hidden, codes = torch.randn(3, 5, 16), torch.randint(2**13, (3, 5))
    bits = torch.stack(head.split(codes), -1).float()
    want = F.binary_cross_entropy_with_logits(head.outs[0](hidden), bits, reduction="none").sum(-1)
    torch.testing.assert_close(head.cross_entropy(hidden, codes), want)
    chained = sum(
        F.cross_entropy(
            head.logits(hidden, head.split(codes)[:i]).flatten(0, 1), bits[..., i].long().flatten(), reduction="none"
        )
        for i in range(13)
    )
    torch.testing.assert_close(chained.view(3, 5), want)


def test_loss_weighs_scales_as_stated() -> None:
    model = tiny_g3pt(scale_loss_power=0.5)
    entropy_BS = torch.cat([torch.full((2, t), float(k)) for k, t in enumerate(model.scales)], dim=1)
    loss, logs = model._loss(entropy_BS)
    weights = [t * t**-0.5 for t in model.scales]
    assert loss.item() == pytest.approx(sum(k * w for k, w in enumerate(weights)) / sum(weights))
    assert [logs[f"ce_scale_{k + 1}"].item() for k in range(4)] == [0, 1, 2, 3]
    assert logs["ce"].item() == pytest.approx(entropy_BS.mean().item())


def test_each_token_has_the_embedding_of_its_level_and_of_its_position() -> None:
    car = tiny_g3pt(image_encoder="none").car
    aligned_BTA = torch.zeros(1, 17, 16)
    with torch.no_grad():
        before_SD = car.embed(aligned_BTA, 1, 0, 4)[0]
        car.levels[2] += 1
        assert torch.nonzero(
            (car.embed(aligned_BTA, 1, 0, 4)[0] - before_SD).abs().amax(-1) > 0.5
        ).flatten().tolist() == list(range(4, 10))
        car.levels[2] -= 1
        car.positions[5] += 1
        assert torch.nonzero(
            (car.embed(aligned_BTA, 1, 0, 4)[0] - before_SD).abs().amax(-1) > 0.5
        ).flatten().tolist() == [5]
        assert torch.equal(car.embed(aligned_BTA[:, :6], 1, 2, 3)[0], car.embed(aligned_BTA, 1, 0, 4)[0, 4:10]), (
            "a scale alone is embedded as in the whole"
        )


def test_the_condition_modulates_what_without_it_is_a_plain_pre_norm_block() -> None:
    block, x_BND, condition_BD = ModulatedBlock(16, 2), torch.randn(2, 5, 16), torch.randn(2, 16)
    with torch.no_grad():
        assert not torch.allclose(block(x_BND, condition_BD), block(x_BND, condition_BD.flip(0)))
        nn.init.zeros_(block.modulation.weight), nn.init.zeros_(block.modulation.bias)
        hidden_BND = x_BND + block.attention(F.layer_norm(x_BND, (16,)))
        torch.testing.assert_close(block(x_BND, condition_BD), hidden_BND + block.mlp(F.layer_norm(hidden_BND, (16,))))


def test_query_key_scale_is_capped() -> None:
    block = ModulatedBlock(16, 2)
    with torch.no_grad():
        x, c = torch.randn(1, 5, 16), torch.randn(1, 16)
        block.attention.log_scale_H.fill_(math.log(100))
        at_cap = block(x, c)
        block.attention.log_scale_H.fill_(50)
        assert torch.equal(block(x, c), at_cap)


def test_progressive_training_starts_with_the_coarser_half() -> None:
    model = tiny_g3pt(progressive_share=0.5).train()
    assert model.set_phase(0, 10) is False
    _, logs = model(random_batch(model))
    assert "ce_scale_2" in logs and "ce_scale_3" not in logs
    model.set_phase(5, 10)
    assert "ce_scale_4" in model(random_batch(model))[1]


def test_cached_inputs_give_the_loss_of_inputs_made_on_the_way() -> None:
    model = tiny_g3pt().eval()
    batch = random_batch(model)
    stored = batch | {"aligned_BTA": model.aligned_inputs(batch["codes_BS"])}
    assert model(batch)[0].item() == pytest.approx(model(stored)[0].item(), abs=1e-6)


def test_a_small_model_memorises_codes_from_captions() -> None:
    model = tiny_g3pt(depth=2, width=64, num_heads=2, image_encoder="none", drop_both=0.0).train()
    captions = ["a round table", "a tall chair", "a red car", "a long boat"]
    batch = random_batch(model, 4)
    batch["text_BM"], batch["text_mask_BM"] = model.text.tokenizer(captions)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(120):
        loss, _ = model(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    drawn = model.sample_codes(captions, [None] * 4, [5, 6, 7, 8], SampleConfig(cfg=0, top_k=1))
    assert (drawn == batch["codes_BS"]).float().mean() > 0.98


@pytest.mark.parametrize("image_encoder", ["small", "none"])
def test_export_brings_back_the_same_model(tmp_path: Path, image_encoder: str) -> None:
    model = tiny_g3pt(image_encoder=image_encoder).eval()
    model.save_pretrained(tmp_path / "export")
    assert {f.name for f in (tmp_path / "export").iterdir()} == {"config.json", "model.safetensors"}
    again = G3PT.from_pretrained(tmp_path / "export")
    assert again.config == model.config
    texts, images = ["a chair", None], [None, None]
    settings = SampleConfig(cfg=2.0)
    assert torch.equal(
        again.sample_codes(texts, images, [1, 2], settings), model.sample_codes(texts, images, [1, 2], settings)
    )


def test_presets_have_the_sizes_they_are_named_for() -> None:
    codec = CVQ_PRESETS["paper"][0]
    wanted = {"0.1B": 0.1e9, "0.5B": 0.5e9, "1.5B": 1.5e9}
    counts = {}
    with torch.device("meta"):
        for name, (config, _) in CAR_PRESETS.items():
            counts[name] = CAR(config, codec, text_width=768, image_width=1024, image_tokens=257).num_params_no_embed
    for name, size in wanted.items():
        assert counts[name] == pytest.approx(size, rel=0.05), f"{name} has {counts[name]}"
    small = [
        counts[name] for name in ("5k", "20k", "80k", "150k", "nano", "micro", "small", "base", "0.1B", "0.5B", "1.5B")
    ]
    assert small == sorted(small)


@pytest.mark.parametrize(("image_encoder", "head"), [("small", "digits"), ("none", "digits"), ("none", "bits")])
def test_flops_equal_those_that_torch_counts(image_encoder: str, head: str) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = tiny_g3pt(image_encoder=image_encoder, head=head).eval()
    batch = random_batch(model, 1)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        text_BC, image_BMC = given_conditions(model, batch)
        aligned_BTA = model.aligned_inputs(batch["codes_BS"])
        with FlopCounterMode(display=False) as counter:
            model.car.head.cross_entropy(model.car(aligned_BTA, text_BC, image_BMC), batch["codes_BS"])
    assert counter.get_total_flops() == model.car.flops_per_object


def test_one_block_at_full_width_runs_forward_and_backward() -> None:
    config = CAR_PRESETS["1.5B"][0]
    block = ModulatedBlock(config.width, config.num_heads)
    x = torch.randn(1, 6, config.width, requires_grad=True)
    block(x, torch.randn(1, config.width)).square().mean().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all() and x.grad.abs().max() > 0
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in block.parameters())


def test_attention_agrees_with_the_formula() -> None:
    torch.manual_seed(0)
    block = ModulatedBlock(8, 2)
    x = torch.randn(2, 5, 8)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    q, k, v = (t.view(2, 5, 2, 4).transpose(1, 2) for t in block.attention.to_qkv(x).split(8, dim=-1))
    score = 4 * F.cosine_similarity(q[..., :, None, :], k[..., None, :, :], dim=-1)
    weights = score.masked_fill(~mask, -torch.inf).softmax(-1)
    want = block.attention.to_out((weights @ v).transpose(1, 2).reshape(2, 5, 8))
    torch.testing.assert_close(block.attention(x, Causal((1,) * 5)), want, rtol=1e-5, atol=1e-5)
    assert isinstance(block.attention.to_qkv, nn.Linear)
