import math

import pytest
import torch

from g3pt import sampling
from g3pt.sampling import SampleConfig, draw_uniforms, filter_logits, inverse_cdf, sample_codes
from tests.g3pt.tiny import tiny_g3pt


def naive_filter(logits, top_k, top_p):
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


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.7), (6, 0.8), (1, 0.5), (0, 0.01), (50, 0.9)])
def test_filter_agrees_with_a_naive_one(top_k, top_p):
    logits = torch.randn(20, 11, generator=torch.Generator().manual_seed(3)) * 2
    got = filter_logits(logits, top_k, top_p)
    for row, want in zip(got, (naive_filter(row, top_k, top_p) for row in logits), strict=True):
        assert row.tolist() == want


def test_inverse_cdf_draws_the_distribution_and_never_a_forbidden_value():
    logits = torch.tensor([float("-inf"), 0.0, 1.0, float("-inf"), 2.0, float("-inf")])
    uniform = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    drawn = inverse_cdf(logits.expand(100_000, -1), uniform)
    share = torch.bincount(drawn, minlength=6) / 100_000
    torch.testing.assert_close(share, logits.softmax(-1), atol=1e-4, rtol=0)
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert inverse_cdf(logits.expand(2, -1), edges).tolist() == [1, 4]


def test_uniforms_belong_to_their_seed():
    both, one = draw_uniforms([3, 9], 5, 2), draw_uniforms([9], 5, 2)
    assert torch.equal(both[1], one[0]) and not torch.equal(both[0], both[1])


@pytest.mark.parametrize("image_encoder", ["small", "none"])
@pytest.mark.parametrize(("cfg", "head"), [(0.0, "digits"), (2.0, "digits"), (2.0, "joint")])
def test_cached_sampling_equals_uncached(image_encoder, cfg, head):
    model = tiny_g3pt(image_encoder=image_encoder, head=head).eval()
    image = None if image_encoder == "none" else torch.randn(3, 28, 28, generator=torch.Generator().manual_seed(0))
    text_BC, image_BMC = model.encode_prompts(["a chair", "a table", None], [image, None, image])
    settings = SampleConfig(cfg=cfg, top_p=0.95, temperature=1.1)
    cached = sample_codes(model, text_BC, image_BMC, [0, 1, 2], settings)
    uncached = sample_codes(model, text_BC, image_BMC, [0, 1, 2], settings, cached=False)
    assert torch.equal(cached, uncached)
    assert len(cached.unique()) > 10


def test_cached_hidden_states_equal_teacher_forcing():
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


def test_each_token_passes_the_transformer_once():
    model = tiny_g3pt().eval()
    seen = []
    model.car.blocks[0].register_forward_hook(lambda block, args, out: seen.append(out.shape[1]))
    model.sample_codes(["a chair"], [None], [0], SampleConfig(cfg=1.0), batch=1)
    assert seen == [model.image.num_tokens, *model.scales]


def test_a_sample_does_not_depend_on_its_batch():
    model = tiny_g3pt().eval()
    texts = ["a chair", "a table with four legs", None, "a boat", "a car"]
    settings = SampleConfig(cfg=1.5)
    together = model.sample_codes(texts, [None] * 5, range(5), settings, batch=4)
    for i, text in enumerate(texts):
        alone = model.sample_codes([text], [None], [i], settings, batch=4)
        assert torch.equal(alone[0], together[i])
    assert not torch.equal(together, model.sample_codes(texts, [None] * 5, range(1, 6), settings, batch=4))


def test_guidance_schedules():
    ramp = SampleConfig(cfg=3.0)
    assert [ramp.guidance(k, 4) for k in range(4)] == [0, 1, 2, 3]
    assert SampleConfig(cfg=3.0, cfg_schedule="constant").guidance(0, 4) == 3


def test_guidance_of_zero_equals_no_guidance_and_more_moves_the_logits():
    model = tiny_g3pt().eval()
    head, hidden = model.car.head, torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    uniform = draw_uniforms([0], 3, len(head.factors))
    plain = sampling.choose_codes(model, hidden[:1], uniform, 0.0, SampleConfig(cfg=0))
    same = sampling.choose_codes(model, hidden, uniform, 0.0, SampleConfig(cfg=1))
    assert torch.equal(plain, same)
    with torch.no_grad():
        logits = head.logits(hidden, [])
    greedy = sampling.choose_codes(model, hidden, uniform, 5.0, SampleConfig(cfg=5, top_k=1))
    assert torch.equal(greedy % head.factors[0], (6 * logits[:1] - 5 * logits[1:]).argmax(-1))


@pytest.mark.parametrize(
    "bad",
    [{"top_p": 0}, {"top_p": 1.5}, {"top_k": -1}, {"temperature": 0}, {"temperature": math.inf}, {"cfg": -1}, {"cfg": math.inf},
     {"cfg": math.nan}, {"cfg_schedule": "up"}],
)  # fmt: skip
def test_impossible_settings_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
        SampleConfig(**bad)


def test_known_coarse_codes_are_kept_and_the_rest_is_what_they_lead_to():
    model = tiny_g3pt().eval()
    text_BC, image_BMC = model.encode_prompts(["a chair", "a table"], [None, None])
    whole = sample_codes(model, text_BC, image_BMC, [0, 1], SampleConfig())
    first = model.scales[0] + model.scales[1]
    assert torch.equal(sample_codes(model, text_BC, image_BMC, [0, 1], SampleConfig(), known_BS=whole[:, :first]), whole), "the same draws go on"
    other = (whole[:, :first] + 1) % model.tokenizer.config.num_codes
    again = sample_codes(model, text_BC, image_BMC, [0, 1], SampleConfig(), known_BS=other)
    assert torch.equal(again[:, :first], other) and not torch.equal(again[:, first:], whole[:, first:])
    with pytest.raises(ValueError, match="no whole number"):
        sample_codes(model, text_BC, image_BMC, [0, 1], SampleConfig(), known_BS=whole[:, : first - 1])
