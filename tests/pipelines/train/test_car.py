import argparse
import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from g3pt.config import CARConfig, TrainConfig
from g3pt.data import datasets, reading
from g3pt.data.streaming import ShardedObjects
from g3pt.models.car import G3PT
from g3pt.training.exports import read_export_config
from g3pt.training.fit import fit
from pipelines.derive import tokens
from pipelines.runs.identity import RunSpec
from pipelines.study import points
from pipelines.train import car_batches
from pipelines.train.car import CARStage
from pipelines.train.car_batches import ConditionedCodes
from pipelines.train.feed import FEED, Feed
from pipelines.train.object_losses import read_object_losses, write_object_losses
from pipelines.train.plan import samples_line
from tests.g3pt.tiny import tiny_tokenizer
from tests.pipelines.toy_data import TOY, write_encoded_toy, write_toy_dataset

MODEL = CARConfig(depth=1, width=32, num_heads=2, image_size=28)
TRAIN = TrainConfig(
    steps=30, batch_size=8, learning_rate=3e-3, warmup_samples=16, ema_decay=0.8, log_every=10, eval_every=30
)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_encoded_toy(tmp_path_factory.mktemp("car"), count=60)


def stage(paths: dict[str, str], rank: int = 0, world_size: int = 1, feed: Feed = FEED, **changes: Any) -> CARStage:
    config = {"model": dataclasses.asdict(dataclasses.replace(MODEL, **changes)), "train": dataclasses.asdict(TRAIN)}
    return CARStage(RunSpec(stage="car", preset="toy", seed=0, config=config, paths=paths), rank, world_size, feed)


def test_batches_follow_from_the_sample_number(paths: dict[str, str]) -> None:
    one = stage(paths).batches(0)
    first, second = next(one), next(one)
    resumed = next(stage(paths).batches(8))
    assert all(torch.equal(second[name], resumed[name]) for name in second)
    assert not torch.equal(first["codes_BS"], second["codes_BS"])


def test_a_share_of_the_captions_loses_attributes_by_sample_number(paths: dict[str, str]) -> None:
    def texts(run: CARStage, start: int = 0, count: int = 20) -> list[str]:
        batches = run.batches(start)
        rows = [row for _ in range(count) for row in next(batches)["text_BM"]]
        return [run.model.text.tokenizer.decode(row) for row in rows]

    full, half, always = (texts(stage(paths, drop_phrases=share)) for share in (0.0, 0.5, 1.0))
    cut = [sum(len(a) < len(b) for a, b in zip(some, full, strict=True)) for some in (half, always)]
    assert 0.2 * len(full) < cut[0] < cut[1] <= len(full)
    assert all(set(a.split()) <= set(b.split()) | {"an"} for a, b in zip(always, full, strict=True))
    assert texts(stage(paths, drop_phrases=0.5), 80, 2) == half[80:96], "resumed"
    held = stage(paths, drop_phrases=0.5).train.objects
    assert texts(stage(paths, 1, 2, drop_phrases=0.5), 0, 2) == half[1:16:2], "a worker's share"
    assert held.arrays["caption"][0] == held.collate.text_tokenizer.decode(held.batch([0], [0])["text_BM"][0]), (
        "evaluation reads whole captions"
    )


def test_workers_share_the_global_batch(paths: dict[str, str]) -> None:
    whole = next(stage(paths).batches(0))
    halves = [next(stage(paths, rank, 2).batches(0)) for rank in range(2)]
    for rank, half in enumerate(halves):
        assert torch.equal(half["codes_BS"], whole["codes_BS"][rank::2])
        assert torch.equal(half["images_B3HW"], whole["images_B3HW"][rank::2])


@pytest.fixture
def streamed(paths: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., CARStage]:
    """The training split, streamed shard by shard as if it were too large."""
    monkeypatch.setattr(
        car_batches, "Reading", functools.partial(car_batches.Reading, in_memory_bytes=0, group_bytes=16_000)
    )
    return lambda **more: stage(paths, **more)


def test_a_streamed_object_gives_the_batch_that_it_gives_in_memory(
    paths: dict[str, str], streamed: Callable[..., CARStage]
) -> None:
    shards = streamed(drop_phrases=0.5).train
    assert isinstance(shards.objects, ShardedObjects) and shards.objects.group_size == 2
    info = datasets.open_dataset(paths["data"])
    arrays = reading.load_arrays(info, "train", car_batches.columns(info))
    kind = tokens.tokens_kind(paths["tokenizer"])
    held = ConditionedCodes(
        stage(paths).model, car_batches.joined_codes(info, kind, 18).join(arrays, sorted(info.shards))
    )
    held.aligned_NTA = None  # a streamed batch has none either
    shown, batches = [], shards(0)
    rows = shards.objects.rows(TRAIN.batch_size, TRAIN.seed, 0)
    for batch, (samples, objects) in itertools.islice(
        zip(batches, rows, strict=True), 2 * len(held) // TRAIN.batch_size
    ):
        names = [row["id"] for row in objects]
        expected = held.batch(
            [arrays["id"].index(name) for name in names], shards._choices(samples), shards._shortened(samples)
        )
        assert batch.keys() == expected.keys() and all(torch.equal(batch[name], expected[name]) for name in batch)
        shown += names
    assert sorted(shown[: len(held)]) == sorted(arrays["id"]), "each object once an epoch"


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_cache_and_loader_processes_give_the_same_batches(
    in_memory: bool,
    paths: dict[str, str],
    streamed: Callable[..., CARStage],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    if in_memory:
        monkeypatch.undo()  # what `streamed` changed
    plain, feed = stage(paths, drop_phrases=0.5), Feed(cache=str(tmp_path), loader_workers=2)
    cached = stage(paths, feed=feed, drop_phrases=0.5)
    assert isinstance(cached.train.objects, ShardedObjects) != in_memory and list(tmp_path.glob("*/tokens-*.arrow"))
    for start, rank, world_size in ((0, 0, 1), (19, 1, 2)):
        for run in (plain, cached):
            run.train.rank, run.train.world_size = rank, world_size
        with contextlib.closing(plain.batches(start)) as ours, contextlib.closing(cached.batches(start)) as theirs:
            for one, other in itertools.islice(zip(ours, theirs, strict=True), 7):
                assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("in_memory", [True, False])
def test_each_sample_reads_the_codes_of_a_variant_by_its_number(
    in_memory: bool,
    paths: dict[str, str],
    streamed: Callable[..., CARStage],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    if in_memory:
        monkeypatch.undo()  # what `streamed` changed
    tokens.encode_dataset(paths["data"], paths["tokenizer"], use_ray=False, variants=3)
    run = stage(paths, code_variants=3)
    info, kind = datasets.open_dataset(paths["data"]), tokens.tokens_kind(paths["tokenizer"])
    known = [tokens.load_codes(info, tokens.variant_kind(kind, variant)) for variant in range(3)]
    of = [{codes.tobytes(): name for name, codes in some.items()} for some in known]
    batch, shown = next(run.batches(16)), []
    for codes in batch["codes_BS"].numpy().astype(np.uint16):
        shown += [variant for variant in range(3) if codes.tobytes() in of[variant]]
    assert len(shown) >= len(batch["codes_BS"]) and "aligned_BTA" not in batch
    if in_memory:  # where objects have the same order
        plain = next(stage(paths).batches(16))
        assert torch.equal(plain["images_B3HW"], batch["images_B3HW"])
        for own, codes in zip(plain["codes_BS"].numpy(), batch["codes_BS"].numpy(), strict=True):
            name = of[0][own.astype(np.uint16).tobytes()]
            assert any(np.array_equal(known[variant][name], codes) for variant in range(3)), name
    assert set(shown) == {0, 1, 2}
    cached = stage(paths, 1, 2, Feed(cache=str(tmp_path), loader_workers=2), code_variants=3)
    with contextlib.closing(cached.batches(16)) as stream:
        assert torch.equal(next(stream)["codes_BS"], batch["codes_BS"][1::2])


def test_variants_count_as_objects_in_a_plan(paths: dict[str, str]) -> None:
    flags = argparse.Namespace(data=paths["data"], num_workers=1)
    objects, train = datasets.open_dataset(paths["data"]).splits["train"], dataclasses.replace(TRAIN, steps=84)
    assert samples_line(MODEL, train, flags) == (
        f"samples: 672 on 1 worker(s): {672 / objects:.3g} epochs of {objects} objects, {objects / 672:.0%} of them "
        "unique"
    )
    assert (
        f": {672 / objects / 4:.3g} epochs of {objects} objects in 4 variants, {objects / 168:.0%} of"
        in samples_line(dataclasses.replace(MODEL, code_variants=4), train, flags)
    )
    assert (
        samples_line(MODEL, train, argparse.Namespace(data="nowhere", num_workers=2)) == "samples: 672 on 2 worker(s)"
    )


def test_a_view_that_cannot_be_read_names_its_object(paths: dict[str, str]) -> None:
    run = stage(paths)
    row = run.train.objects.rows([0])[0] | {"views": [b"no picture"]}
    with pytest.raises(ValueError, match=f"^view 0 of '{row['id']}': image is none of"):
        run.train.collate([row], [4])


def test_streaming_resumes_in_the_middle_of_an_epoch(streamed: Callable[..., CARStage]) -> None:
    batches = streamed().batches(0)
    whole = [next(batches) for _ in range(9)]
    for start in (3, 8):  # an epoch is 42 objects
        again = next(streamed().batches(start * TRAIN.batch_size))
        assert all(torch.equal(whole[start][name], again[name]) for name in again)
    half = next(streamed(rank=1, world_size=2).batches(3 * TRAIN.batch_size))
    assert all(torch.equal(half[name], whole[3][name][1::2]) for name in half if "text" not in name)


def test_a_streamed_run_trains_and_its_validation_is_the_same(
    paths: dict[str, str], streamed: Callable[..., CARStage]
) -> None:
    run, seen = streamed(), []
    fit(model=run.model, batches=run.batches, config=run.train_config, report=seen.append, evaluate=run.evaluate)
    assert seen[-1]["ce"] < seen[0]["ce"] - 0.3
    assert streamed().evaluate(run.model) == stage(paths).evaluate(run.model)


def test_training_lowers_the_cross_entropy_and_repeats_bitwise(paths: dict[str, str], tmp_path: Path) -> None:
    weights = []
    for _ in range(2):
        run, records_seen = stage(paths), []
        fit(
            model=run.model,
            batches=run.batches,
            config=run.train_config,
            report=records_seen.append,
            evaluate=run.evaluate,
        )
        weights.append({name: p.clone() for name, p in run.model.named_parameters()})
    assert records_seen[-1]["ce"] < records_seen[0]["ce"] - 0.3
    assert {"val_ce", "val_ce_scale_4", "val_ce_image", "val_ce_unconditional"} <= records_seen[-1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    evaluated = run.evaluate(run.model)
    assert run.evaluate_raw(run.model) == {"val_ce_raw": evaluated["val_ce"]} and run.best_by(evaluated) > 0
    final = run.final(run.model)
    assert {"test_ce", "test_ce_scale_1", "test_objects"} <= final.keys()
    write_object_losses(run.object_losses(), tmp_path)
    objects = read_object_losses(tmp_path)
    assert objects is not None and len(objects["id"]) == final["test_objects"] == len(set(objects["id"]))
    for name in ("ce", "ce_scale_1", "ce_scale_4"):
        assert np.mean(objects[name]) == pytest.approx(final[f"test_{name}"], rel=1e-6), name
    assert len(set(objects["ce"])) > 1 and read_object_losses(tmp_path / "older") is None
    run.export(run.model, tmp_path / "export")
    again = G3PT.from_pretrained(tmp_path / "export")
    assert run.final(again)["test_ce"] == pytest.approx(final["test_ce"], abs=1e-6)


def test_the_export_carries_the_tokenizer_s_sources_and_counts_its_flops(paths: dict[str, str], tmp_path: Path) -> None:
    sources = [{"id": "toy/000", "license": "CC-BY-4.0", "author": "somebody"}]
    tokenizer = tiny_tokenizer().save_pretrained(tmp_path / "tokenizer", extra={"trained_on": sources})
    tokens.encode_dataset(paths["data"], tokenizer, use_ray=False)
    run = stage(paths | {"tokenizer": str(tokenizer)})
    run.export(run.model, tmp_path / "run" / "export")
    config = read_export_config(tmp_path / "run")
    assert config["tokenizer_trained_on"] == sources
    assert config["trained_on"] != sources and len(config["trained_on"]) > 1
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 240, "test_ce": 2.0, "test_ce_scale_1": 3.0}\n')
    (tmp_path / "run" / "_SUCCESS").touch()
    point = points.point(run.spec, tmp_path / "run")
    assert run.model.car.num_prefix > 0
    assert point["flops"] == 3 * 240 * run.model.car.flops_per_object


def test_without_views_there_is_no_image_encoder(paths: dict[str, str], tmp_path: Path) -> None:
    info = write_toy_dataset(tmp_path / "data", count=20, config=dataclasses.replace(TOY, num_views=0))
    tokens.encode_dataset(info.path, paths["tokenizer"], use_ray=False)
    run = stage(paths | {"data": str(info.path)})
    batch = next(run.batches(0))
    assert run.model.image is None and "images_B3HW" not in batch
    assert torch.isfinite(run.model(batch)[0])
    assert run.model.config.image_encoder == "none"


def test_missing_codes_are_named(paths: dict[str, str], tmp_path: Path) -> None:
    info = write_toy_dataset(tmp_path / "data", count=10)
    with pytest.raises(ValueError, match="missing or older than its shard"):
        stage(paths | {"data": str(info.path)})
