import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from g3pt.models.car import G3PT
from g3pt.models.sampling import (
    MAX_CFG,
    MIN_TEMPERATURE,
    SampleConfig,
    draw_uniforms,
    filter_logits,
    inverse_cdf,
    sample_codes,
)
from tests.g3pt.tiny import tiny_g3pt


def naive_filter(logits: Sequence[float], top_k: int, top_p: float) -> list[float]:
    """Top-k then top-p of one row, by the book."""
    values = logits.tolist()
    order = sorted(range(len(values)), key=lambda i: -values[i])
    kept = order[:top_k] if top_k else order
    weights = {i: torch.tensor(values[i]).double().exp().item() for i in kept}
    total, mass, nucleus = sum(weights.values()), 0.0, []
    for i in kept:
        if mass >= top_p and top_p < 1:
            break
        nucleus.append(i)
        mass += weights[i] / total
    return [v if i in nucleus else float("-inf") for i, v in enumerate(values)]


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.7), (6, 0.8), (1, 0.5), (0, 0.01), (50, 0.9), (0, 1e-50)]
)
def test_filter_agrees_with_a_naive_one(top_k: int, top_p: float) -> None:
    logits = torch.randn(20, 11, generator=torch.Generator().manual_seed(3)) * 2
    got = filter_logits(logits, top_k, top_p)
    for row, want in zip(got, (naive_filter(row, top_k, top_p) for row in logits), strict=True):
        assert row.tolist() == want


def test_inverse_cdf_draws_the_distribution_and_never_a_forbidden_value() -> None:
    logits = torch.tensor([float("-inf"), 0.0, 1.0, float("-inf"), 2.0, float("-inf")])
    uniform = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    drawn = inverse_cdf(logits.expand(100_000, -1), uniform)
    share = torch.bincount(drawn, minlength=6) / 100_000
    torch.testing.assert_close(share, logits.softmax(-1), atol=1e-4, rtol=0)
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert inverse_cdf(logits.expand(2, -1), edges).tolist() == [1, 4]


def test_uniforms_belong_to_their_seed() -> None:
    both, one = draw_uniforms([3, 9], 5, 2), draw_uniforms([9], 5, 2)
    assert torch.equal(both[1], one[0]) and not torch.equal(both[0], both[1])


@pytest.mark.parametrize("image_encoder", ["small", "none"])
@pytest.mark.parametrize(("cfg", "head"), [(0.0, "digits"), (2.0, "digits"), (2.0, "joint"), (2.0, "bits")])
def test_cached_sampling_equals_uncached(image_encoder: str, cfg: Any, head: str) -> None:
    model = tiny_g3pt(image_encoder=image_encoder, head=head).eval()
    image = None if image_encoder == "none" else torch.randn(3, 28, 28, generator=torch.Generator().manual_seed(0))
    text_BC, image_BMC = model.encode_prompts(["a chair", "a table", None], [image, None, image])
    settings = SampleConfig(cfg=cfg, top_p=0.95, temperature=1.1)
    cached = sample_codes(model, text_BC, image_BMC, [0, 1, 2], settings)
    uncached = sample_codes(model, text_BC, image_BMC, [0, 1, 2], settings, cached=False)
    assert torch.equal(cached, uncached)
    assert len(cached.unique()) > 10


def test_cached_hidden_states_equal_teacher_forcing() -> None:
    model = tiny_g3pt().eval()
    with torch.no_grad():
        text_BC, image_BMC = model.encode_prompts(["a chair", "a table"], [None, None])
        codes_BS = sample_codes(model, text_BC, image_BMC, [0, 1], SampleConfig(cfg=0))
        want = model.car(model.aligned_inputs(codes_BS), text_BC, image_BMC)
        condition, caches = model.car.condition(text_BC, image_BMC), model.car.new_caches(2)
        model.car.run_prefix(image_BMC, condition, caches)
        aligned = model.aligned_inputs(codes_BS).split(list(model.scales[1:]), dim=1)
        got = [model.car.run_scale(a, k, condition, caches) for k, a in enumerate([None, *aligned])]
    torch.testing.assert_close(torch.cat(got, dim=1), want, rtol=1e-4, atol=1e-5)


def test_each_token_passes_the_transformer_once() -> None:
    model = tiny_g3pt().eval()
    seen = []
    model.car.blocks[0].register_forward_hook(lambda block, args, out: seen.append(out.shape[1]))
    model.sample_codes(["a chair"], [None], [0], SampleConfig(cfg=1.0), batch=1)
    assert seen == [model.image.num_tokens, *model.scales]


def operations(work: Callable[[], Any]) -> int:
    """Counted by torch, multiply-adds as two; its fused attention on the CPU it doesn't know."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("image_encoder", ["small", "none"])
def test_cached_sampling_costs_one_teacher_forced_pass(image_encoder: str) -> None:
    model = tiny_g3pt(image_encoder=image_encoder).eval()
    text_BC, image_BMC = model.encode_prompts(["a chair"], [None])
    codes_BS = sample_codes(model, text_BC, image_BMC, [0], SampleConfig(cfg=0))
    aligned_BTA = model.aligned_inputs(codes_BS)
    forced = operations(lambda: model.car(aligned_BTA, text_BC, image_BMC))
    others = operations(lambda: model.aligned_inputs(codes_BS))
    others += operations(lambda: model.car.head.cross_entropy(torch.zeros(1, codes_BS.shape[1], 32), codes_BS))
    cached, uncached = (
        operations(lambda c=c: sample_codes(model, text_BC, image_BMC, [0], SampleConfig(cfg=0), cached=c)) - others
        for c in (True, False)
    )
    assert cached == pytest.approx(forced, rel=0.05) and uncached > 1.5 * cached


def test_a_sample_does_not_depend_on_its_batch() -> None:
    model = tiny_g3pt().eval()
    texts = ["a chair", "a table with four legs", None, "a boat", "a car"]
    settings = SampleConfig(cfg=1.5)
    together = model.sample_codes(texts, [None] * 5, range(5), settings, batch=4)
    for i, text in enumerate(texts):
        alone = model.sample_codes([text], [None], [i], settings, batch=4)
        assert torch.equal(alone[0], together[i])
    assert not torch.equal(together, model.sample_codes(texts, [None] * 5, range(1, 6), settings, batch=4))


def test_guidance_schedules() -> None:
    ramp = SampleConfig(cfg=3.0, cfg_schedule="ramp")
    assert ramp.guidance("text", 4) == ramp.guidance("image", 4) == [0, 1, 2, 3]
    assert SampleConfig(cfg=3.0).guidance("text", 2) == [3, 3]
    own = SampleConfig(cfg=3.0, cfg_text=6.0, cfg_image=(1, 0, 2), cfg_schedule="ramp")
    assert own.guidance("text", 3) == [0, 3, 6] and own.guidance("image", 3) == [1, 0, 2]
    assert SampleConfig(cfg=1.5).guidance("text", 1) == [1.5]


def test_the_coldest_temperature_and_the_strongest_guidance_still_draw_the_likeliest() -> None:
    """Below and above, float32 overflows and every code is 0; the settings that would are refused."""
    model = tiny_g3pt().eval()
    codes = [model.sample_codes(["a chair"] * 2, [None] * 2, [0, 1], settings, batch=2) for settings in (
        SampleConfig(cfg=MAX_CFG, temperature=MIN_TEMPERATURE, top_p=1.0),
        SampleConfig(cfg=MAX_CFG, top_k=1))]  # fmt: skip
    assert torch.equal(*codes) and len(codes[0].unique()) > 3
    for name, value in (
        ("temperature", 1e-40),
        ("temperature", 0),
        ("temperature", math.nan),
        ("cfg", 1e38),
        ("top_k", math.inf),
        ("top_k", (1, 1.5)),
        ("top_p", math.nan),
    ):
        with pytest.raises(ValueError, match=f"^{name} must be "):
            SampleConfig(**{name: value})


def guided_by_hand(
    model: G3PT, text_BC: Tensor, image_BMC: Tensor, codes_BS: Tensor, scale: int, text: Any, image: Any
) -> Tensor:
    """The nested form of InstructPix2Pix, from three separate teacher-forced passes."""
    nulls = model.car.null_text.expand_as(text_BC), model.car.null_image.expand_as(image_BMC)
    start, end = sum(model.scales[:scale]), sum(model.scales[: scale + 1])

    def logits(text_BC: Tensor, image_BMC: Tensor) -> Tensor:
        hidden_BSD = model.car(model.aligned_inputs(codes_BS), text_BC, image_BMC)
        return model.car.head.logits(hidden_BSD[:, start:end], [])

    none, seen, both = logits(*nulls), logits(nulls[0], image_BMC), logits(text_BC, image_BMC)
    return none + (1 + image) * (seen - none) + (1 + text) * (both - seen)


@pytest.mark.parametrize(("text", "image"), [("a chair", True), ("a chair", False), (None, True)])
@pytest.mark.parametrize(
    "cfg",
    [
        {"cfg_text": 3.0, "cfg_image": 1.0},
        {"cfg_text": 0.0, "cfg_image": 2.0},
        {"cfg": 2.0, "cfg_image": 0.0},
        {"cfg": 1.0},
        {"cfg": 0.0},
    ],
)
def test_text_and_image_are_guided_by_their_own_scales(text: Any, image: Any, cfg: Any) -> None:
    model = tiny_g3pt().eval()
    picture = torch.randn(3, 28, 28, generator=torch.Generator().manual_seed(0)) if image else None
    text_BC, image_BMC = model.encode_prompts([text], [picture])
    settings = SampleConfig(**cfg, cfg_schedule="constant", top_k=1)
    codes_BS = sample_codes(model, text_BC, image_BMC, [0], settings)
    want_text, want_image = settings.guidance("text", 4)[0], settings.guidance("image", 4)[0]
    with torch.inference_mode():
        for scale in range(4):
            want = guided_by_hand(model, text_BC, image_BMC, codes_BS, scale, want_text, want_image).argmax(-1)
            start, end = sum(model.scales[:scale]), sum(model.scales[: scale + 1])
            assert torch.equal(codes_BS[:, start:end] % model.car.head.factors[0], want)


def test_only_the_passes_that_have_a_weight_are_run() -> None:
    model, seen = tiny_g3pt().eval(), []
    model.car.blocks[0].register_forward_hook(lambda block, args, out: seen.append(len(out)))
    picture = torch.randn(3, 28, 28, generator=torch.Generator().manual_seed(0))

    def passes(text: Any, image: Any, **cfg: Any) -> int:
        seen.clear()
        model.sample_codes([text], [image], [0], SampleConfig(**cfg), batch=1)
        assert len(set(seen)) == 1
        return seen[0]

    assert passes(None, None, cfg=3.0) == 1
    assert passes("a chair", picture, cfg=0.0) == 1
    assert passes("a chair", None, cfg=3.0) == passes(None, picture, cfg=3.0) == 2
    assert passes("a chair", picture, cfg=3.0) == 2
    assert passes("a chair", picture, cfg=3.0, cfg_image=0.0) == 2
    assert passes("a chair", picture, cfg_text=3.0, cfg_image=1.0) == 3
    assert passes("a chair", None, cfg_text=0.0, cfg_image=1.0) == 1
    assert passes("a chair", picture, cfg_text=(1, 0, 0, 2), cfg_image=(1, 0, 0, 2)) == 2


def test_rows_of_different_settings_share_a_batch_and_keep_their_codes() -> None:
    model = tiny_g3pt().eval()
    picture = torch.randn(3, 28, 28, generator=torch.Generator().manual_seed(0))
    rows = [
        ("a chair", None, SampleConfig(cfg=0.0)),
        ("a chair", None, SampleConfig(cfg=4.0, top_p=0.5)),
        ("a chair", picture, SampleConfig(cfg_text=1.0, cfg_image=5.0, temperature=0.7)),
        (None, picture, SampleConfig(cfg=3.0, cfg_schedule="constant", top_k=2)),
        ("a table", picture, SampleConfig(cfg_text=5.0, cfg_image=1.0, top_k=(1, 2, 3, 4))),
        (None, None, SampleConfig()),
    ]
    texts, images, settings = zip(*rows, strict=True)
    together = model.sample_codes(texts, images, range(6), settings, batch=3)
    for i, (text, image, one) in enumerate(rows):
        assert torch.equal(model.sample_codes([text], [image], [i], one, batch=3)[0], together[i]), one
        plain = model.sample_codes([text], [image], [i], SampleConfig(cfg=0.0, top_p=1.0), batch=3)[0]
        assert i in (0, 5) or not torch.equal(plain, together[i]), "the settings must matter"
    mixed = sample_codes(model, *model.encode_prompts(texts, images), range(6), settings)
    assert torch.equal(mixed, together), "rows also run through passes that only others need"
    with pytest.raises(ValueError, match="2 settings for 1 seeds"):
        model.sample_codes(["a chair"], [None], [0], [SampleConfig()] * 2)


@pytest.mark.parametrize(
    ("name", "listed", "single"),
    [
        ("temperature", (1.0, 0.2, 3.0, 0.5), 0.5),
        ("top_k", (0, 1, 2, 5), 5),
        ("top_p", (1, 0.1, 0.5, 0.2), 0.2),
        ("cfg", (0, 3.0, 1.0, 2.0), 2.0),
    ],
)
def test_a_list_gives_each_scale_its_own_setting(name: str, listed: Any, single: Any) -> None:
    model = tiny_g3pt().eval()
    conditions = model.encode_prompts(["a chair"] * 4, [None] * 4)
    plain = {"cfg": 1.0, "cfg_schedule": "constant", "top_p": 1.0}
    drawn = sample_codes(model, *conditions, range(4), SampleConfig(**plain | {name: list(listed)}))
    coarse = drawn[:, : sum(model.scales[:3])]
    last = sample_codes(model, *conditions, range(4), SampleConfig(**plain | {name: single}), known_BS=coarse)
    assert torch.equal(last, drawn)
    other = sample_codes(
        model, *conditions, range(4), SampleConfig(**plain | {name: (*listed[:3], listed[0])}), known_BS=coarse
    )
    assert not torch.equal(other, drawn)


@pytest.mark.parametrize("name", ["cfg", "cfg_text", "cfg_image", "top_k", "top_p", "temperature"])
def test_a_list_of_another_length_is_refused_by_name(name: str) -> None:
    model = tiny_g3pt().eval()
    settings = SampleConfig(**{name: (1, 1, 1)})
    with pytest.raises(ValueError, match=f"^{name} has 3 numbers, but the model has 4 scales"):
        model.sample_codes(["a chair"], [None], [0], settings)


def test_settings_as_json_name_a_guidance_of_its_own_only_where_there_is_one() -> None:
    assert set(SampleConfig().as_dict()) == {"cfg", "cfg_schedule", "top_k", "top_p", "temperature"}
    assert SampleConfig(**SampleConfig(cfg_text=[1, 2.5]).as_dict()) == SampleConfig(cfg_text=(1, 2.5))


def test_limits_may_differ_by_row() -> None:
    logits = torch.randn(4, 3, 11, generator=torch.Generator().manual_seed(3)) * 2
    top_k, top_p = torch.tensor([0, 3, 0, 50])[:, None, None], torch.tensor([1.0, 1.0, 0.6, 0.9])[:, None, None]
    got = filter_logits(logits, top_k, top_p)
    for row in range(4):
        assert torch.equal(got[row], filter_logits(logits[row], int(top_k[row]), float(top_p[row])))


@pytest.mark.parametrize(
    "bad",
    [{"top_p": 0}, {"top_p": 1.5}, {"top_k": -1}, {"top_k": 1.5}, {"temperature": 0}, {"temperature": math.inf},
     {"cfg": -1}, {"cfg": math.inf},
     {"cfg": math.nan}, {"cfg_schedule": "up"}, {"cfg_text": -1}, {"cfg_image": math.nan}, {"top_p": (0.9, 0)},
     {"cfg": ()}, {"temperature": [1.0, -1]}],
)  # fmt: skip
def test_impossible_settings_are_refused_by_name(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
        SampleConfig(**bad)


def test_known_coarse_codes_are_kept_and_the_rest_is_what_they_lead_to() -> None:
    model = tiny_g3pt().eval()
    with torch.no_grad():
        for out in model.car.head.outs:  # untrained, all digits are about as likely whatever came before
            out.weight *= 20
    text_BC, image_BMC = model.encode_prompts(["a chair", "a table"], [None, None])
    whole = sample_codes(model, text_BC, image_BMC, [0, 1], SampleConfig())
    first = model.scales[0] + model.scales[1]
    assert torch.equal(
        sample_codes(model, text_BC, image_BMC, [0, 1], SampleConfig(), known_BS=whole[:, :first]), whole
    ), "the same draws go on"
    other = (whole[:, :first] + 1) % model.tokenizer.config.num_codes
    again = sample_codes(model, text_BC, image_BMC, [0, 1], SampleConfig(), known_BS=other)
    assert torch.equal(again[:, :first], other) and not torch.equal(again[:, first:], whole[:, first:])
    with pytest.raises(ValueError, match="do not end at the end of one"):
        sample_codes(model, text_BC, image_BMC, [0, 1], SampleConfig(), known_BS=whole[:, : first - 1])


def lively_g3pt() -> G3PT:
    """A tiny generator whose draws depend on what came before; untrained, all digits are about as likely."""
    model = tiny_g3pt().eval()
    with torch.no_grad():
        for out in model.car.head.outs:
            out.weight *= 20
    return model


def test_rows_may_keep_different_numbers_of_scales() -> None:
    model = lively_g3pt()
    source = model.sample_codes(["a boat"], [None], [9])[0]
    known = [model.kept_codes(source, keep) for keep in range(len(model.scales) + 1)]
    seeds, texts = list(range(len(known))), ["a chair"] * len(known)
    together = model.sample_codes(texts, [None] * len(known), seeds, known=known)
    plain = model.sample_codes(texts, [None] * len(known), seeds)
    for keep, kept in enumerate(known):
        assert torch.equal(together[keep, : len(kept)], kept)
        alone = model.sample_codes(["a chair"], [None], [keep], known=[kept])
        assert torch.equal(alone[0], together[keep]), "a row depends on the others"
    assert torch.equal(together[0], plain[0]) and torch.equal(together[-1], source)
    assert not torch.equal(together[1], plain[1])


@pytest.mark.parametrize("keep", [-1, 5, 1.0, True])
def test_a_number_of_scales_that_the_model_lacks_is_refused(keep: Any) -> None:
    model = tiny_g3pt()
    with pytest.raises(ValueError, match="keep_scales must be 0 to 4, the model's number of scales"):
        model.kept_codes(torch.zeros(18, dtype=torch.int64), keep)


def test_scales_are_watched_as_they_are_drawn() -> None:
    model = lively_g3pt()
    seen: list[tuple[int, Tensor]] = []
    conditions = model.encode_prompts(["a chair", "a table"], [None, None])
    codes = model.sample_encoded(*conditions, [0, 1], watch=lambda row, codes_T: seen.append((row, codes_T.clone())))
    assert [(row, len(codes_T)) for row, codes_T in seen] == [(r, n) for n in (1, 4, 10, 18) for r in (0, 1)]
    assert all(torch.equal(codes[row, : len(codes_T)], codes_T) for row, codes_T in seen)
