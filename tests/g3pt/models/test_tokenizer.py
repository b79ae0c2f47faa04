"""CVQ: codes round-trip, scales build on each other, point order is irrelevant, everything trains,
one batch is learnt.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from g3pt.config import CVQConfig, TrainConfig, cvq_preset, from_dict
from g3pt.data.batches import SurfaceBatches
from g3pt.metrics.pairwise import volume_iou
from g3pt.models.cqt import anchor_spacing
from g3pt.models.diagnostics import diagnose, eval_batch, validation_loss
from g3pt.models.tokenizer import CVQ
from g3pt.training.exports import check_weights
from g3pt.training.fit import fit
from g3pt.training.statistics import update_statistics
from tests.g3pt.tiny import tiny_tokenizer

TINY = CVQConfig(
    scales=(1, 3, 6, 8), width=16, num_heads=2, encoder_layers=1, decoder_layers=1, num_points=128,
    num_encode_points=128,
    num_volume_queries=128, num_near_queries=128,
)  # fmt: skip


def spheres(count: int, num_points: int = 256, num_queries: int = 512) -> dict[str, np.ndarray]:
    """Balls of different radius and centre as the arrays of a split."""
    rng = np.random.default_rng(0)
    radius, centre = rng.uniform(0.3, 0.8, (count, 1, 1)), rng.uniform(-0.15, 0.15, (count, 1, 3))

    def surface() -> np.ndarray:
        normal = rng.normal(size=(count, num_points, 3))
        normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
        return np.concatenate([centre + radius * normal, normal], axis=-1).astype(np.float16)

    arrays = {"surface": surface(), "eval_surface": surface(), "sharp": surface()[:, :64]}
    pools = {
        "volume": rng.uniform(-1, 1, (count, num_queries, 3)),
        "near": surface()[:, rng.integers(num_points, size=num_queries), :3],
    }
    pools["near"] = pools["near"] + rng.normal(0, 0.05, pools["near"].shape)
    for name, points in pools.items():
        arrays[f"{name}_points"] = points.astype(np.float16)
        inside = np.linalg.norm(arrays[f"{name}_points"] - centre, axis=-1) < radius[..., 0]
        arrays[f"{name}_occupancy"] = np.packbits(inside, axis=-1, bitorder="little")
    return arrays


def first_batch(config: CVQConfig, size: int = 4) -> dict[str, torch.Tensor]:
    return next(SurfaceBatches(spheres(size), config, size, seed=0)(0))


@pytest.fixture
def model() -> CVQ:
    torch.manual_seed(0)
    model = CVQ(TINY)
    torch.nn.init.normal_(model.cqt.last_up.weight, std=0.3)
    return model


VARIANTS = [  # each with what it changes
    {"quantizer": "fsq"},
    {"quantizer": "lfq"},
    {"num_sharp_points": 32},
    {"resampling": "pooled"},
    {"resampling": "pooled", "scales": (8, 8)},
    {"resampling": "slices", "scales": (4, 4, 8)},
]


@pytest.mark.parametrize("changes", VARIANTS)
def test_codes_rebuild_the_canvas_that_encoding_ended_with(changes: dict) -> None:
    model = CVQ(dataclasses.replace(TINY, **changes)).eval()
    torch.nn.init.normal_(model.cqt.last_up.weight, std=0.3)
    batch = first_batch(model.config)
    cloud = batch["surface_BP6"], batch.get("sharp_BP6")
    latents_BLD = model.encoder(*cloud)
    output = model.cqt(latents_BLD, frozen=True)
    codes_BS = model.encode(*cloud)
    assert codes_BS.shape == (4, model.config.num_tokens) and int(codes_BS.max()) < model.config.num_codes
    assert latents_BLD.shape == (4, model.config.num_latents, 16)
    assert torch.allclose(model.canvas(codes_BS), output.canvases_BLD[-1], atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"quantizer": "lfq"}, {"resampling": "pooled"}])
def test_each_scale_quantises_what_the_scales_before_it_left(changes: dict) -> None:
    """codes[k] are those of the latents less the canvas after k - 1, which is rebuilt here from the codes alone."""
    model = tiny_tokenizer(**changes)
    latents_BLD = model.encoder(first_batch(model.config)["surface_BP6"])
    codes_BT = model.cqt(latents_BLD, frozen=True).codes_BT
    canvas_BLD = model.canvas_start(len(latents_BLD))
    for scale in range(model.config.num_scales):
        expected_BT = model.cqt.quantize(latents_BLD - canvas_BLD, scale)[1]
        assert torch.equal(codes_BT[scale], expected_BT), scale
        canvas_BLD = model.canvas_add(canvas_BLD, codes_BT[scale], scale)


def test_two_scales_rebuild_what_one_cannot() -> None:
    """Hand-made: one latent; scale 1 adds a coarse digit, scale 2 the rest.

    Latents 0.6 and 0.4 need both, and 0 neither.
    """

    def halves(width: float) -> Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Rounds to the nearest of -width, 0, width: digits 0, 1, 2."""

        def quantize(residual_BLD: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            digit_BT = (residual_BLD[..., 0] / width).round().clamp(-1, 1)
            return digit_BT[..., None] * width, digit_BT.long() + 1, torch.zeros(())

        return quantize

    cqt = tiny_tokenizer(scales=(1, 1), fsq_levels=(3,)).cqt
    by_scale = [halves(0.5), halves(0.1)]
    cqt.quantize = lambda residual_BLD, scale, frozen: by_scale[scale](residual_BLD)
    cqt.spread = lambda values_BTC, scale: values_BTC.expand(-1, -1, cqt.config.width)
    cqt.canvas_start = lambda batch: torch.zeros(batch, 1, cqt.config.width)
    latents_BLD = torch.tensor([0.6, 0.4, 0.0, -0.6])[:, None, None].expand(-1, 1, cqt.config.width)
    output = cqt(latents_BLD, frozen=True)
    first, last = ((canvas_BLD - latents_BLD).abs().amax(dim=(1, 2)) for canvas_BLD in output.canvases_BLD)
    assert last.max() < 1e-6 and first.tolist() == pytest.approx([0.1, 0.1, 0.0, 0.1])
    assert torch.cat(output.codes_BT, dim=1).tolist() == [[2, 2], [2, 0], [1, 1], [0, 0]]


def test_the_first_scales_do_not_depend_on_later_ones(model: CVQ) -> None:
    model.eval()
    codes_BS = model.encode(first_batch(TINY)["surface_BP6"])
    changed_BS = codes_BS.clone()
    changed_BS[:, 4:] = 0
    assert torch.equal(model.decode_latents(codes_BS, num_scales=2), model.decode_latents(changed_BS, num_scales=2))
    assert not torch.equal(model.decode_latents(codes_BS), model.decode_latents(changed_BS))
    assert torch.equal(model.encode(first_batch(TINY)["surface_BP6"], num_scales=2), codes_BS[:, :4])


def test_codes_that_end_inside_a_scale_are_refused(model: CVQ) -> None:
    with pytest.raises(ValueError, match="inside scale 2"):
        model.canvas(torch.zeros(1, 3, dtype=torch.int64))


@pytest.mark.parametrize("latent_queries", ["anchored", "learned"])
def test_the_order_of_the_points_is_irrelevant(latent_queries: str) -> None:
    model = CVQ(dataclasses.replace(TINY, latent_queries=latent_queries)).eval()
    surface_BP6 = first_batch(TINY)["surface_BP6"]
    shuffled_BP6 = surface_BP6[:, torch.randperm(surface_BP6.shape[1])]
    assert torch.allclose(model.encoder(surface_BP6), model.encoder(shuffled_BP6), atol=1e-4)


@pytest.mark.parametrize("changes", [{"quantizer": "lfq", "latent_queries": "learned"}, *VARIANTS])
def test_every_parameter_moves_within_five_steps(changes: dict) -> None:
    config = dataclasses.replace(TINY, **changes, continuous_share=0.0, pyramid_share=0.0)
    model = CVQ(config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train = TrainConfig(steps=5, batch_size=4, learning_rate=1e-3, ema_decay=0.0, warmup_share=0.0, weight_decay=0.0)
    fit(model=model, batches=SurfaceBatches(spheres(8), config, 4, seed=0), config=train, report=lambda _: None)
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert still == []


def test_phases_train_what_they_should() -> None:
    config = dataclasses.replace(TINY, continuous_share=0.5, pyramid_share=0.2)
    model = CVQ(config)
    trained, means = {}, []
    for step in (0, 50, 70):
        model.set_phase(step, 100)
        means.append(model.latent_mean_LD.clone())
        model.zero_grad()
        model(first_batch(config), step)[0].backward()
        update_statistics(model)
        trained[model.phase] = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {
        "continuous": {"encoder", "decoder"},
        "pyramid": {"encoder", "decoder", "cqt"},
        "joint": {"encoder", "decoder", "cqt"},
    }
    assert torch.equal(model.cqt.base.data, means[1]) and bool(means[1].any()) and bool(model.has_base)


def test_a_wide_blur_reads_the_mean_and_a_narrow_one_the_nearest_point() -> None:
    batch = first_batch(TINY)["surface_BP6"].float()
    narrow, wide = (CVQ(dataclasses.replace(TINY, anchor_blur=blur)).encoder for blur in (1e-4, 100.0))
    points = narrow.embed(batch)
    nearest_BL = torch.cdist(narrow.anchors_L3.expand(4, -1, -1), batch[..., :3]).argmin(-1)
    nearest = torch.stack([points[i, nearest_BL[i]] for i in range(4)])
    assert torch.allclose(narrow._at_anchors(points, batch), nearest, atol=1e-3)
    assert torch.allclose(wide._at_anchors(points, batch), points.mean(1, keepdim=True).expand(-1, 8, -1), atol=1e-2)


def test_the_blur_is_attention_with_the_distances_as_bias() -> None:
    """Equal to one call of scaled_dot_product_attention in values and gradients, and without denormal weights."""
    torch.manual_seed(0)
    encoder, width = CVQ(TINY).encoder, TINY.anchor_blur * anchor_spacing(TINY.num_latents)
    surface_BP6, read_BLD = torch.rand(2, 400, 6) * 2 - 1, torch.randn(2, TINY.num_latents, TINY.width)
    surface_BP6[:, 0, :3], surface_BP6[:, 1, :3] = encoder.anchors_L3[0], -encoder.anchors_L3[0]
    points_BPD = torch.randn(2, 400, TINY.width, requires_grad=True)
    bias_BLP = torch.cdist(encoder.anchors_L3.double(), surface_BP6[..., :3].double()).square() / (-2 * width**2)
    zeros_BLD, zeros_BPD = torch.zeros_like(read_BLD), torch.zeros(2, 400, TINY.width)
    found = []
    for values_BLD in (
        encoder._at_anchors(points_BPD, surface_BP6),
        F.scaled_dot_product_attention(zeros_BLD, zeros_BPD, points_BPD, attn_mask=bias_BLP.float()),
    ):
        (gradient,) = torch.autograd.grad((values_BLD * read_BLD).sum(), points_BPD)
        found.append((values_BLD.detach(), gradient))
    for ours, attention in zip(*found, strict=True):
        assert torch.allclose(ours, attention, rtol=0, atol=1e-5) and ours.abs().max() > 0.5
    weights_BLP = encoder._weights(surface_BP6[..., :3])
    assert float(bias_BLP.min()) < -90 and float(weights_BLP.min()) > torch.finfo(torch.float32).tiny


def test_later_groups_of_a_sliced_tokenizer_read_only_the_group_before() -> None:
    model = CVQ(dataclasses.replace(TINY, resampling="slices", scales=(4, 4, 8))).eval()
    canvas = torch.randn(1, 16, 16)
    assert torch.allclose(model.align(canvas, 1), torch.nn.functional.layer_norm(canvas[:, 0:4], (16,)))
    assert torch.allclose(model.align(canvas, 2), torch.nn.functional.layer_norm(canvas[:, 0:8], (16,)))


def test_a_resumed_training_equals_an_uninterrupted_one_in_every_phase() -> None:
    train = TrainConfig(steps=12, batch_size=4, learning_rate=1e-3, checkpoint_every=1, log_every=3, eval_every=6)
    config = dataclasses.replace(TINY, continuous_share=0.34, pyramid_share=0.25)
    arrays, states = spheres(8), {}

    def run(resume: dict | None) -> tuple[CVQ, list[dict]]:
        records: list[dict] = []

        def save(state: dict, step: int) -> None:
            if resume is None:
                states[step] = {
                    k: {n: _copy(v) for n, v in s.items()} if isinstance(s, dict) else s for k, s in state.items()
                }

        model = CVQ(config)
        fit(
            model=model,
            batches=SurfaceBatches(arrays, config, 4, 0),
            config=train,
            report=records.append,
            save=save,
            resume=resume,
        )
        return model, records

    whole, records = run(None)
    for done in (2, 4, 6, 7, 10):
        again, later = run(states[done * 4])
        for (name, a), b in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
            assert torch.equal(a, b), f"{name} differs after resuming at step {done}"
        assert later[-1]["step"] == records[-1]["step"] == 48


@pytest.mark.parametrize("changes", [{}, {"quantizer": "lfq"}])
def test_a_batch_that_is_not_finite_changes_nothing_in_any_phase(changes: dict) -> None:
    """The weights and running statistics of every phase, and the codes of latents that are not finite."""
    train = TrainConfig(steps=12, batch_size=4, learning_rate=1e-3, checkpoint_every=1, log_every=12)
    config = dataclasses.replace(TINY, continuous_share=0.34, pyramid_share=0.25, **changes)
    states: dict[int, dict] = {}
    records: list[dict] = []

    def batches(start_sample: int) -> Iterator[dict]:
        for step, batch in enumerate(SurfaceBatches(spheres(8), config, 4, 0)(start_sample)):
            if step in (2, 5, 9):
                batch["surface_BP6"][1] = float("nan")
            yield batch

    def save(state: dict, samples: int) -> None:
        states[samples // 4] = _copy({name: state[name] for name in ("model", "average")})

    fit(model=CVQ(config), batches=batches, config=train, report=records.append, save=save)
    assert [records[0][f"skipped_step_{i}"] for i in (1, 2, 3)] == [2.0, 5.0, 9.0]
    assert all(np.isfinite(value) for value in records[0].values())
    for step in range(12):
        same = all(
            torch.equal(a, b)
            for part in ("model", "average")
            for a, b in zip(states.get(step, states[1])[part].values(), states[step + 1][part].values(), strict=True)
        )
        assert same == (step in (0, 2, 5, 9)), step


def _copy(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list) else value


@pytest.mark.slow
def test_four_spheres_are_learnt_and_each_scale_helps() -> None:
    """Overfit: codes of all scales rebuild four balls, coarse ones alone do worse, diagnostics are sane."""
    arrays = spheres(4)
    train = TrainConfig(steps=400, batch_size=4, learning_rate=4e-3, ema_decay=0.95)
    model = CVQ(TINY)
    fit(model=model, batches=SurfaceBatches(arrays, TINY, 4, 0), config=train, report=lambda _: None)
    found = diagnose(model, arrays)
    assert found["iou"] > 0.85 and found["iou"] > found["iou_scale_1"] - 0.01
    assert found["residual_ratio_scale_4"] < found["residual_ratio_scale_1"]
    assert found["loss_volume"] < 0.2, "ln 2 is what a coin would have"
    assert 0 < found["utilisation_scale_4"] < 1.1 and 0 < found["agreement_scale_1"] <= 1.0


def test_the_validation_loss_is_the_occupancy_s_binary_cross_entropy() -> None:
    arrays = spheres(3)
    model = CVQ(TINY).eval()
    model.set_phase(0, 10)
    batch = eval_batch(arrays, model, "cpu")
    with torch.no_grad():
        probability_BQ = (
            model.occupancy_logits(
                model.decoder.latents(model.encoder(batch["surface"], batch.get("sharp"))), batch["points"]
            )
            .double()
            .sigmoid()
        )
    expected = -torch.where(batch["inside"], probability_BQ, 1 - probability_BQ).log().mean()
    assert diagnose(model, arrays)["loss_volume"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("phase", ["continuous", "joint"])
def test_ious_of_a_band_are_those_of_its_objects_alone(model: CVQ, phase: str) -> None:
    arrays, model.phase = spheres(40), phase  # more than a batch of the diagnostics
    thickness_N = np.where(np.arange(40) % 3 == 0, 0.05, 0.2)
    found = diagnose(model, arrays | {"thickness": thickness_N})
    for band, chosen in (("thin", thickness_N < 0.1), ("thick", thickness_N > 0.1)):
        alone = diagnose(model, {name: values[chosen] for name, values in arrays.items()})
        assert found[f"iou_continuous_{band}"] == pytest.approx(alone["iou_continuous"], abs=1e-6)
        assert found.get(f"iou_{band}") == (pytest.approx(alone["iou"], abs=1e-6) if "iou" in alone else None)
    assert found["iou_continuous_thin"] != pytest.approx(found["iou_continuous_thick"], abs=1e-4)
    assert not any("middle" in name for name in found), "a band without objects has no key"
    assert diagnose(model, arrays).keys() == {name for name in found if not name.endswith(("_thin", "_thick"))}


@pytest.mark.parametrize("phase", ["continuous", "joint"])
def test_the_validation_loss_alone_is_that_of_the_diagnostics(model: CVQ, phase: str) -> None:
    arrays, model.phase = spheres(5), phase
    arrays["eval_surface"] = arrays["surface"]
    assert validation_loss(model, arrays) == pytest.approx(diagnose(model, arrays)["loss_volume"], rel=1e-6)


def test_the_occupancy_loss_is_the_volume_s_plus_a_share_of_the_near_surface_s() -> None:
    """Worked out here from probabilities at the points of each kind."""
    model = tiny_tokenizer()
    model.set_phase(0, 10)
    batch = first_batch(model.config)
    loss, logs = model(batch)
    with torch.no_grad():
        logits_BQ = model.occupancy_logits(
            model.decoder.latents(model.encoder(batch["surface_BP6"])), batch["points_BQ3"]
        )
    right_BQ = torch.where(batch["occupancy_BQ"], logits_BQ, -logits_BQ).double().sigmoid()
    volume, near = (-right_BQ[:, rows].log().mean() for rows in (slice(0, 32), slice(32, 64)))
    assert float(logs["loss_volume"]) == pytest.approx(float(volume), rel=1e-5)
    assert float(logs["loss_near"]) == pytest.approx(float(near), rel=1e-5)
    assert loss.item() == pytest.approx(float(volume + model.config.near_weight * near), rel=1e-5)
    assert abs(float(volume - near)) > 0.01


def test_in_the_joint_phase_the_decoder_reads_the_canvas_and_the_encoder_gets_its_gradient() -> None:
    """The straight-through step around the pyramid. Without the commitment loss nothing else reaches the encoder."""
    model = CVQ(dataclasses.replace(TINY, commitment_weight=0.0, continuous_share=0.0, pyramid_share=0.0))
    torch.nn.init.normal_(model.cqt.last_up.weight, std=0.3)
    model.set_phase(0, 10)
    model.eval()
    batch = first_batch(TINY)
    loss, logs = model(batch)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.encoder.blocks.parameters())
    with torch.no_grad():
        latents_BLD = model.decode_latents(model.encode(batch["surface_BP6"]))
        logits_BQ = model.occupancy_logits(latents_BLD, batch["points_BQ3"])[:, :128]
    volume = torch.nn.functional.binary_cross_entropy_with_logits(logits_BQ, batch["occupancy_BQ"][:, :128].float())
    assert float(logs["loss_volume"]) == pytest.approx(float(volume), rel=1e-4)


def test_iou_counts_points_whose_probability_is_above_a_half_as_inside() -> None:
    arrays = spheres(3)
    model = tiny_tokenizer()
    model.set_phase(0, 10)
    batch = eval_batch(arrays, model, "cpu")
    with torch.no_grad():
        latents_BLD = model.decoder.latents(model.encoder(batch["surface"]))
        guess_BQ = model.occupancy_logits(latents_BLD, batch["points"]).sigmoid().numpy() > 0.5
    assert 0.02 < guess_BQ.mean() < 0.98, "a guess of one kind alone would hide the threshold"
    ious = [volume_iou(guess, inside) for guess, inside in zip(guess_BQ, batch["inside"].numpy(), strict=True)]
    assert diagnose(model, arrays)["iou_continuous"] == pytest.approx(np.mean(ious), abs=1e-6)


def test_an_export_loads_as_it_was(model: CVQ, tmp_path: Path) -> None:
    model.eval()
    surface_BP6 = first_batch(TINY)["surface_BP6"]
    again = CVQ.from_pretrained(model.save_pretrained(tmp_path / "export"))
    assert torch.equal(again.encode(surface_BP6), model.encode(surface_BP6)) and again.config == model.config
    assert sorted(p.name for p in (tmp_path / "export").iterdir()) == ["config.json", "model.safetensors"]


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    model = tiny_tokenizer()
    with torch.no_grad():
        model.cqt.base.view(-1)[0] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"model.safetensors: tensor cqt.base has values that are not finite; export the run again"
    ):
        CVQ.from_pretrained(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model.safetensors: cannot be read \(.*\); export the run again"):
        check_weights(tmp_path)


def test_from_pretrained_names_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match="not finished"):
        CVQ.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        CVQ.from_pretrained(str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scales": (4, 1)}, "shrink"),
        ({"num_heads": 3}, "16"),
        ({"quantizer": "vq"}, "'vq'"),
        ({"lfq_bits": 17}, "17"),
        ({"anchor_blur": 0.0}, "anchor_blur must be positive"),
    ],
)
def test_configs_refuse_what_they_cannot_mean(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)


def test_presets_are_known_by_name_and_the_papers_adds_up() -> None:
    assert cvq_preset("paper")[0].num_tokens == 2408 and cvq_preset("paper")[0].num_codes == 8192
    with pytest.raises(ValueError, match="nano, micro, small, base, paper"):
        cvq_preset("huge")
    with pytest.raises(ValueError, match="widht"):
        from_dict(CVQConfig, {"widht": 3})
