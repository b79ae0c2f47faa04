"""The planned memory of a worker is what real training steps hold; micro-batch and recomputation follow from it."""

import dataclasses
import itertools
from typing import Any

import pytest
import torch

from g3pt.config import CAR_PRESETS, CVQ_PRESETS, CARConfig, CVQConfig, TrainConfig
from g3pt.models.car import G3PT
from g3pt.models.tokenizer import CVQ
from g3pt.training import memory as training_memory
from g3pt.training.fit import fit
from g3pt.training.memory import Activations, LiveBytes, as_on_gpu
from g3pt.training.parallel import Gathered
from pipelines.cli.errors import UsageError
from pipelines.train import memory
from pipelines.train.memory import GIB, MARGIN, Choice, Needs, Workers, choose, needs
from tests.g3pt.tiny import random_batch

OBJECTS = 4
TRAIN = TrainConfig(steps=2, batch_size=OBJECTS, learning_rate=1e-4, log_every=2, eval_every=2, checkpoint_every=2)
POINTS = {"num_points": 1024, "num_volume_queries": 256, "num_near_queries": 256}
JOINT = {"continuous_share": 0.0, "pyramid_share": 0.0}  # the phase that needs most, from the first step on
WIDE = CVQConfig(scales=(1, 8, 96), width=256, num_heads=4, encoder_layers=2, decoder_layers=2, **POINTS)
TOKENIZERS = {
    "nano": CVQ_PRESETS["nano"][0],
    "micro": dataclasses.replace(CVQ_PRESETS["micro"][0], scales=(1, 16, 128), encoder_layers=1, **POINTS),
    "wide": WIDE,
    "wide lfq": dataclasses.replace(WIDE, quantizer="lfq", num_sharp_points=256),
}
GENERATORS = {
    "nano": CAR_PRESETS["nano"][0],
    "micro joint": dataclasses.replace(CAR_PRESETS["micro"][0], head="joint"),
    "wide bits": CARConfig(depth=3, width=384, num_heads=6, head="bits", image_encoder="none"),
}


def held_at_most(model: torch.nn.Module, batch: dict[str, Any], train: TrainConfig, micro_batch: int | None) -> int:
    """Bytes of all tensors that exist at once in two steps of `fit`: its model, its batch, and what it makes."""
    before = sum(t.nbytes for t in (*model.parameters(), *(t for t in batch.values() if isinstance(t, torch.Tensor))))
    with LiveBytes() as live:
        fit(
            model=model, batches=lambda _: itertools.repeat(batch), config=train, report=lambda _: None,
            micro_batch=micro_batch,
        )  # fmt: skip
    return before + live.peak


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision", "recompute", "micro_batch"),
    [
        ("nano", "bf16", False, 2),
        ("micro", "fp32", False, None),
        ("wide lfq", "bf16", True, None),
    ],
)
def test_a_tokenizer_s_plan_is_what_its_steps_hold(
    name: str, precision: Any, recompute: bool, micro_batch: int | None
) -> None:
    config = dataclasses.replace(TOKENIZERS[name], checkpoint_layers=recompute, **JOINT)
    batch = {key: value + 1 for key, value in memory.cvq_step(config)[1](OBJECTS).items()}  # all points are near
    batch["near_BQ"] = torch.arange(batch["near_BQ"].shape[1]).remainder(2).bool().expand(OBJECTS, -1).contiguous()
    planned = needs(config, precision).memory(micro_batch or OBJECTS, Workers(share=OBJECTS))
    found = held_at_most(CVQ(config), batch, dataclasses.replace(TRAIN, precision=precision), micro_batch)
    assert planned.total == pytest.approx(found, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision", "recompute", "micro_batch"),
    [
        ("nano", "fp32", True, 2),
        ("micro joint", "bf16", False, 2),
        ("wide bits", "bf16", False, None),
    ],
)
def test_a_generator_s_plan_is_what_its_steps_hold(
    name: str, precision: Any, recompute: bool, micro_batch: int | None
) -> None:
    config, codec = dataclasses.replace(GENERATORS[name], checkpoint_layers=recompute), TOKENIZERS[name.split()[0]]
    model = G3PT(config, CVQ(codec))
    planned = needs(config, precision, codec).memory(micro_batch or OBJECTS, Workers(share=OBJECTS))
    found = held_at_most(
        model, random_batch(model, OBJECTS), dataclasses.replace(TRAIN, precision=precision), micro_batch
    )
    assert planned.total == pytest.approx(found, rel=0.1)


def test_views_are_counted_once_and_what_is_freed_no_more() -> None:
    given = torch.ones(100)
    with LiveBytes() as live:
        made = given * 2
        kept = (made.view(10, 10), given.view(10, 10), made[3:])
        assert live.now == live.peak == made.nbytes
        del made, kept
        assert live.now == 0 and live.peak == given.nbytes
        given.add_(1)
    assert live.peak == given.nbytes


def test_a_rehearsal_computes_norms_as_a_gpu_does_and_gives_them_back() -> None:
    layer_norm, narrow = torch.nn.functional.layer_norm, torch.ones(2, 4, dtype=torch.bfloat16)
    with as_on_gpu():
        functions = torch.nn.functional
        assert functions.normalize(narrow, dim=-1).dtype == torch.bfloat16
        assert torch.equal(functions.normalize(narrow, dim=-1), torch.full((2, 4), 0.5, dtype=torch.bfloat16))
        with torch.autocast("cpu", torch.bfloat16):
            assert functions.normalize(narrow, dim=-1).dtype == torch.float32
            assert torch.nn.LayerNorm(4)(narrow).dtype == torch.float32
            assert torch.nn.GroupNorm(1, 4)(narrow).dtype == torch.float32
    assert torch.nn.functional.layer_norm is layer_norm


def test_weights_are_counted_by_shards_and_without_a_second_copy_of_gradients() -> None:
    plan = training_memory.training_memory
    assert plan(1000, 0).total == 20_000 and plan(1000, 7, frozen=10, batch=5).total == 20_000 + 40 + 7 + 5
    assert plan(1000, 5000, accumulates=False).total == 21_000, "its gradients come while its activations go"
    assert plan(1000, 3000, accumulates=False).total == 20_000
    blocks = Gathered(block=100, outside=200, narrow=True)
    fp32, bf16 = (plan(1000, 0, shards=4, gathered=blocks, precision=kind) for kind in ("fp32", "bf16"))
    assert (fp32.weights, fp32.gradients) == (1000 + 2 * 400 + 800, 1000 + 2 * 400 + 800)
    assert (bf16.weights, bf16.gradients) == (1000 + 2 * 200 + 800, 1000 + (200 + 400) + 800)
    assert (bf16.optimizer, bf16.average, bf16.best) == (2000, 1000, 1000)
    assert plan(1000, 0, gathered=blocks) == plan(1000, 0)


def a_run(per_object: int, recomputed: int) -> Any:
    """`needs` of a run with 10 GiB of state, by the recomputation that is asked for."""

    def found(model: Any, precision: str, **_: Any) -> Needs:
        size = recomputed if model.checkpoint_layers else per_object
        activations = Activations(fixed=0, per_object=size, batch_per_object=0)
        return Needs(trained=10 * GIB // 20, frozen=0, gathered=None, precision=precision, activations=activations)

    return found


@pytest.mark.parametrize(
    ("share", "gib", "expected"),
    [
        (32, 80, Choice(micro_batch=16, recompute=False)),  # 72 - 10 GiB of room, 3 per object
        (32, 30, Choice(micro_batch=4, recompute=False)),
        (36, 30, Choice(micro_batch=4, recompute=False)),
        (32, 20, Choice(micro_batch=8, recompute=True)),  # two objects without: too few
        (2, 20, Choice(micro_batch=2, recompute=False)),  # the whole share
        (7, 30, Choice(micro_batch=7, recompute=True)),  # a divisor: 1 without
    ],
)
def test_as_many_objects_as_fit_are_computed_at_once(
    share: int, gib: int, expected: Choice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "needs", a_run(per_object=3 * GIB, recomputed=GIB))
    assert choose(TOKENIZERS["nano"], "bf16", Workers(share=share, count=8), gib * GIB) == expected
    always = dataclasses.replace(TOKENIZERS["nano"], checkpoint_layers=True)
    assert choose(always, "bf16", Workers(share=share, count=8), gib * GIB).recompute, "the model says so"


def test_what_does_not_fit_at_all_is_refused_with_both_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "needs", a_run(per_object=3 * GIB, recomputed=GIB))
    with pytest.raises(UsageError, match=r"one object at once needs 11.0 GiB .* a GPU of 12.0 GiB has 10.8 to give"):
        choose(TOKENIZERS["nano"], "bf16", Workers(share=4, count=8), 12 * GIB)
    assert MARGIN == 0.1


def test_a_sharded_model_s_casts_are_those_of_the_blocks_that_are_gathered() -> None:
    model, codec = GENERATORS["wide bits"], TOKENIZERS["wide"]
    whole, narrow = (needs(model, "bf16", codec, narrow=narrow) for narrow in (False, True))
    blocks = model.depth * whole.gathered.block
    assert whole.activations.fixed - narrow.activations.fixed == pytest.approx(2 * blocks, rel=0.1)
    assert whole.activations.per_object == pytest.approx(narrow.activations.per_object, rel=0.05)


@pytest.mark.parametrize("recompute", [False, True])
def test_each_further_layer_adds_the_same(recompute: bool) -> None:
    """The rehearsal of all six layers of `micro` is what two and three of them give."""
    model, codec = dataclasses.replace(CAR_PRESETS["micro"][0], checkpoint_layers=recompute), TOKENIZERS["nano"]
    whole = training_memory.rehearse(*memory.car_step(model, codec), "bf16")
    assert needs(model, "bf16", codec).activations == whole
