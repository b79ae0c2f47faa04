"""Stored features are what the encoders give, are made once, and train the run that computing them
in each step trains.
"""

import dataclasses
import functools
import hashlib
import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from g3pt.config import CARConfig, TrainConfig, car_preset
from g3pt.data import datasets, derived, reading
from g3pt.data.pictures import prepare_image
from g3pt.models import encoders, features
from g3pt.models.encoders import ImageEncoder, TextEncoder
from g3pt.models.features import StoredFeatures
from g3pt.training.exports import read_export_config
from g3pt.training.fit import fit
from pipelines.cli.errors import UsageError
from pipelines.cluster.pool import Pool
from pipelines.derive.features import store_features
from pipelines.runs.identity import RunSpec
from pipelines.train import car_batches, jobs
from pipelines.train.car import CARStage
from pipelines.train.feed import FEED, Feed
from tests.g3pt.models.test_encoders import pretrained  # noqa: F401 (a fixture: small encoders, saved as a hub stores them)
from tests.g3pt.tiny import given_conditions
from tests.pipelines.toy_data import write_encoded_toy, write_toy_dataset

HERE = Pool(num_workers=0)
COMMIT = "c0ffee" * 6 + "c0ff"
TRAIN = TrainConfig(
    steps=4, batch_size=8, learning_rate=3e-3, warmup_samples=16, ema_decay=0.5, log_every=2, eval_every=4
)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_encoded_toy(tmp_path_factory.mktemp("features"), count=40)


@pytest.fixture(scope="module")
def config(pretrained: Path) -> CARConfig:  # noqa: F811
    return CARConfig(
        depth=1,
        width=32,
        num_heads=2,
        image_size=28,
        text_encoder=str(pretrained / "clip"),
        image_encoder=str(pretrained / "dino"),
    )


@pytest.fixture(scope="module")
def kinds(paths: dict[str, str], config: CARConfig) -> dict[str, str]:
    return store_features(paths["data"], features.encodings(config), HERE)


def hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def test_they_are_what_the_encoders_give(paths: dict[str, str], config: CARConfig, kinds: dict[str, str]) -> None:
    info = datasets.open_dataset(paths["data"])
    rows = list(reading.read_rows(info, ["id", "caption", "views"]))
    stored = StoredFeatures(info, kinds)
    found = stored.columns([row["id"] for row in rows], sorted(info.shards))
    text, image = TextEncoder(config.text_encoder), ImageEncoder(config.image_encoder, size=28)
    assert found["num_views"] == [2] * len(rows)
    for row, text_C in list(zip(rows, found["text"], strict=True))[::7]:
        torch.testing.assert_close(
            torch.tensor(text_C).float()[None], text(*text.tokenizer([row["caption"]])), rtol=1e-3, atol=1e-3
        )
        for view in (0, 1):
            ours = torch.from_numpy(stored.image(row["id"], view)).float()
            torch.testing.assert_close(
                ours[None], image(prepare_image(row["views"][view], 28)[None]), rtol=1e-3, atol=2e-3
            )
    assert not np.array_equal(stored.image(rows[0]["id"], 0), stored.image(rows[0]["id"], 1))
    schema = pq.read_schema(derived.derived_path(info, kinds["image"], 0))
    assert schema.field("view_1").type == pa.fixed_shape_tensor(pa.float16(), (5, 24))


def test_they_are_made_once_and_a_missing_shard_comes_back_identical(
    paths: dict[str, str], config: CARConfig, kinds: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, done = Path(paths["data"]) / "derived" / kinds["image"], []
    before, original = hashes(folder), features.write_shard
    monkeypatch.setattr(
        features,
        "write_shard",
        lambda encoding, encoder, info, index: (
            done.append((encoding.condition, index)) or original(encoding, encoder, info, index)
        ),
    )
    store_features(paths["data"], features.encodings(config), HERE)
    assert done == []
    (folder / "shard-00001.parquet").unlink()
    store_features(paths["data"], features.encodings(config), HERE)
    assert done == [("image", 1)] and hashes(folder) == before


def test_another_caption_or_size_makes_others(paths: dict[str, str], config: CARConfig, kinds: dict[str, str]) -> None:
    text, image = features.encodings(config)
    assert kinds == {"text": text.kind, "image": image.kind}
    assert features.encodings(dataclasses.replace(config, drop_phrases=0.5)) == [image], (
        "its texts change from step to step"
    )
    assert dataclasses.replace(image, image_size=42).kind != image.kind
    assert (
        dataclasses.replace(image, encoder="facebook/dinov2-large", revision="a").kind
        != dataclasses.replace(image, encoder="facebook/dinov2-large", revision="b").kind
    )
    info = datasets.open_dataset(paths["data"])
    stale = dataclasses.replace(info, shards={index: "0" * 64 for index in info.shards})
    with pytest.raises(
        ValueError,
        match="shard-00000.parquet is missing or older than its shard: start the command with --features stored again",
    ):
        StoredFeatures(stale, kinds).encoders()


def test_a_failed_shard_leaves_nothing(tmp_path: Path, config: CARConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    info = write_toy_dataset(tmp_path / "data", count=12, num_shards=1)
    original, seen = features.prepare_image, []
    monkeypatch.setattr(
        features, "prepare_image", lambda *given: seen.append(1) or (original(*given) if len(seen) < 5 else 1 / 0)
    )
    with pytest.raises(ZeroDivisionError):
        store_features(str(info.path), features.encodings(config), HERE)
    (image,) = (info.path / "derived").glob("image-*")
    assert len(seen) == 5 and not list(image.iterdir())


def stage(paths: dict[str, str], config: CARConfig, kinds: dict[str, str] | None = None, feed: Feed = FEED) -> CARStage:
    spec = RunSpec(
        stage="car",
        preset="toy",
        seed=0,
        config={"model": dataclasses.asdict(config), "train": dataclasses.asdict(TRAIN)},
        paths=paths,
    )
    told = {f"{condition}_features": kind for condition, kind in (kinds or {}).items()}
    return CARStage(dataclasses.replace(spec, paths=paths | told), feed=feed)


@pytest.mark.parametrize("streamed", [False, True])
def test_stored_and_live_features_train_the_same(
    streamed: bool,
    paths: dict[str, str],
    config: CARConfig,
    kinds: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if streamed:
        monkeypatch.setattr(
            car_batches, "Reading", functools.partial(car_batches.Reading, in_memory_bytes=0, group_bytes=16_000)
        )
    live, stored = stage(paths, config), stage(paths, config, kinds)
    cached = stage(paths, config, kinds, Feed(cache=str(tmp_path / "cache")))
    start = [{name: p.clone() for name, p in run.model.named_parameters()} for run in (live, stored)]
    assert all(torch.equal(start[0][name], start[1][name]) for name in start[0])
    assert not list(stored.model.text.parameters()) and not list(stored.model.image.parameters())
    batches = zip(live.batches(8), stored.batches(8), cached.batches(8), strict=True)
    for ours, theirs, mapped in itertools.islice(batches, 3):
        assert all(torch.equal(theirs[name], mapped[name]) for name in theirs.keys() | mapped.keys())
        assert torch.equal(ours["codes_BS"], theirs["codes_BS"]) and torch.equal(
            ours["has_image_B"], theirs["has_image_B"]
        )
        for computed, kept in zip(
            given_conditions(live.model.eval(), ours), given_conditions(stored.model.eval(), theirs), strict=True
        ):
            torch.testing.assert_close(kept, computed, rtol=1e-3, atol=2e-3)
    records: list[list[dict]] = [[], []]
    for run, seen in zip((live, stored), records, strict=True):
        fit(model=run.model, batches=run.batches, config=TRAIN, report=seen.append, evaluate=run.evaluate)
    for name in ("ce", "val_ce", "val_ce_image", "val_ce_unconditional"):
        assert records[1][-1][name] == pytest.approx(records[0][-1][name], abs=2e-3), name
    stored.export(stored.model, tmp_path / "export")
    assert read_export_config(tmp_path / "export")["model"]["image_encoder"] == config.image_encoder


@pytest.mark.parametrize("cached", [False, True])
def test_stored_pictures_give_the_batches_of_views(cached: bool, paths: dict[str, str], tmp_path: Path) -> None:
    small = CARConfig(depth=1, width=32, num_heads=2, image_size=28)
    kinds = store_features(paths["data"], features.pictures_of(small), HERE)
    assert pq.read_schema(derived.derived_path(datasets.open_dataset(paths["data"]), kinds["pictures"], 0)).field(
        "view_1"
    ).type == pa.fixed_shape_tensor(pa.uint8(), (28, 28, 3))
    live = stage(paths, small)
    stored = stage(paths, small, kinds, Feed(cache=str(tmp_path)) if cached else FEED)
    for ours, theirs in itertools.islice(zip(live.batches(3), stored.batches(3), strict=True), 5):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert stored.evaluate(stored.model) == live.evaluate(live.model)
    if cached:
        assert list(tmp_path.glob("*/pictures-*.view_1.arrow")) and not list(tmp_path.glob("*/views.arrow"))


def test_pictures_are_stored_for_a_preset_that_reads_some(paths: dict[str, str], config: CARConfig) -> None:
    spec = jobs.car_spec(paths["data"], paths["tokenizer"], "toy", config, TRAIN)
    blind = dataclasses.replace(
        spec, config=spec.config | {"model": dataclasses.asdict(dataclasses.replace(config, image_encoder="none"))}
    )
    flags = jobs.TrainCARFlags(**paths, output="out", features="pictures", ray_address=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.derive.features.store_features", lambda data, some, pool: {some[0].condition: "kind"})
        told, untold = jobs.with_features([spec, blind], flags)
        with pytest.raises(UsageError, match="--features pictures: .* has no views, or the presets read no images"):
            jobs.with_features([blind], flags)
    assert untold == blind and told.name == spec.name and told.paths["pictures_features"] == "kind"


def test_a_preset_that_trains_its_encoders_has_nothing_to_store(paths: dict[str, str], tmp_path: Path) -> None:
    flags = jobs.TrainCARFlags(**paths, output=str(tmp_path), features="stored")
    with pytest.raises(UsageError, match="nano trains its encoders"):
        jobs.train_car(flags)


def test_the_flag_is_no_part_of_the_run_s_name(paths: dict[str, str], config: CARConfig, kinds: dict[str, str]) -> None:
    spec = jobs.car_spec(paths["data"], paths["tokenizer"], "toy", config, TRAIN)
    flags = jobs.TrainCARFlags(**paths, output="out", features="stored")
    small = dataclasses.replace(spec, config=spec.config | {"model": dataclasses.asdict(car_preset("nano")[0])})
    told, untold = jobs.with_features([spec, small], flags)
    assert untold == small, "it trains its encoders"
    assert (
        told.name == spec.name and told.paths["image_features"] == kinds["image"] and "image_features" not in spec.paths
    )


def hub_cache(folder: Path, name: str, source: Path) -> None:
    """A repository as huggingface_hub keeps it."""
    cached = folder / f"models--{name.replace('/', '--')}"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(COMMIT)
    (cached / "snapshots").mkdir()
    (cached / "snapshots" / COMMIT).symlink_to(source)


def test_a_hub_s_encoder_comes_from_the_cache_with_its_commit_and_a_missing_one_is_one_line(
    tmp_path: Path,
    pretrained: Path,  # noqa: F811
    paths: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    hub_cache(tmp_path, "openai/clip-vit-large-patch14", pretrained / "clip")
    assert (
        encoders.commit_of("openai/clip-vit-large-patch14", None) == COMMIT
        and encoders.commit_of(str(pretrained / "clip"), None) is None
    )
    assert TextEncoder("openai/clip-vit-large-patch14").revision == COMMIT
    with pytest.raises(
        UsageError,
        match=r"encoder facebook/dinov2-large is neither in the Hugging Face cache .* `hf download "
        r"facebook/dinov2-large`",
    ):
        jobs.car_spec(paths["data"], paths["tokenizer"], "0.1B", *car_preset("0.1B"))
    hub_cache(tmp_path, "facebook/dinov2-large", pretrained / "dino")
    spec = jobs.car_spec(paths["data"], paths["tokenizer"], "0.1B", *car_preset("0.1B"))
    assert spec.config["model"]["text_revision"] == spec.config["model"]["image_revision"] == COMMIT


@pytest.mark.slow
def test_ray_writes_the_same_files(
    paths: dict[str, str], config: CARConfig, kinds: dict[str, str], tmp_path: Path, ray_cluster: None
) -> None:
    other = write_toy_dataset(tmp_path / "again", count=40)
    assert store_features(str(other.path), features.encodings(config), Pool(num_workers=2)) == kinds
    for kind in kinds.values():
        assert hashes(other.path / "derived" / kind) == hashes(Path(paths["data"]) / "derived" / kind)
