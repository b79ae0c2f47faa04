"""What a training command checks before Ray starts, and what makes two runs different."""

import dataclasses
from pathlib import Path

import pytest

from g3pt import records
from g3pt.config import car_preset
from pipelines import cluster, training_jobs
from pipelines.errors import UsageError
from pipelines.training_jobs import TrainCARFlags, TrainCVQFlags, train_car
from tests.pipelines.toy_data import TOY, toy_row, write_toy_dataset, write_toy_tokenizer


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("jobs")
    return {"data": str(write_toy_dataset(folder / "data").path), "tokenizer": str(write_toy_tokenizer(folder / "tokenizer"))}


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("Ray started")

    monkeypatch.setattr(cluster, "connect", refuse)


def test_a_licence_that_nobody_has_is_named_with_those_there_are(paths: dict, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no training object has a licence of NOSUCH; theirs are CC0-1.0 \(\d+\)"):
        train_car(TrainCARFlags(**paths, output=str(tmp_path / "runs"), licenses="NOSUCH"))
    assert not (tmp_path / "runs").exists()
    assert training_jobs.open_data(paths["data"], ["CC0-1.0", "NOSUCH"]).splits["train"] > 0


def test_an_object_store_is_refused_before_anything_is_encoded(paths: dict) -> None:
    with pytest.raises(UsageError, match="s3://bucket/runs: runs on an object store are not built yet"):
        train_car(TrainCARFlags(**paths, output="s3://bucket/runs"))
    assert not (Path(paths["data"]) / "derived").exists()


def test_another_caption_makes_another_run(paths: dict, tmp_path: Path) -> None:
    """Captions are not in the fingerprint: the ids and meshes are the same."""
    rows = [toy_row(number) for number in range(60)]
    rows[0]["caption"] = "something else"
    shards = {}
    for index in range(3):
        mine = [row for row in rows if records.shard_index(row["id"], 3) == index]
        shards[index] = records.write_shard(tmp_path / "data", index, mine, TOY, num_shards=3)
    records.write_dataset(tmp_path / "data", TOY, {"toy": 1}, 3, shards)
    here, there, copy = (
        training_jobs.car_spec(str(data), paths["tokenizer"], "nano", *car_preset("nano"))
        for data in (paths["data"], tmp_path / "data", write_toy_dataset(tmp_path / "copy").path)
    )
    assert here.config["dataset"] == there.config["dataset"]
    assert here.name != there.name
    assert here.name == copy.name, "the place does not matter"


@pytest.mark.parametrize("steps", [1, 7, 60, 250, 470, 1199])
def test_a_short_run_saves_only_where_it_reports(steps: int) -> None:
    """Otherwise the first mean after a resumption covers fewer steps than an uninterrupted run's."""
    flags = TrainCVQFlags(data="data", output="runs", steps=steps)
    config = training_jobs._varied(dataclasses.replace(car_preset("nano")[1], steps=1200), flags)
    assert config.checkpoint_every % config.log_every == 0
    assert steps // config.checkpoint_every >= min(5, steps)
