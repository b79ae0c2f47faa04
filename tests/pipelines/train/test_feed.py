"""How a worker gets its batches follows from its flags, and does not change its run."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from g3pt.config import CARConfig, TrainConfig
from g3pt.data.cache import ColumnCache
from g3pt.data.streaming import ShardedObjects
from g3pt.training.exports import export_hash
from pipelines.runs.identity import RunSpec
from pipelines.study.config import SweepFlags
from pipelines.train import feed, jobs, worker
from pipelines.train.feed import Feed, loaders
from tests.pipelines.toy_data import write_encoded_toy

TRAIN = TrainConfig(steps=5, batch_size=8, learning_rate=3e-3, warmup_samples=8, ema_decay=0.5, log_every=1)


def test_loader_processes_are_a_gpu_s_share_of_the_node_s_cpus_and_shared_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed.os, "sched_getaffinity", lambda _: set(range(24)))
    monkeypatch.setattr(feed, "_free_shared_memory", lambda: 2**40)
    assert [loaders("auto", True, ranks) for ranks in (1, 4, 8, 24)] == [8, 4, 1, 0]
    monkeypatch.setattr(feed, "_free_shared_memory", lambda: 2**30)
    assert [loaders("auto", True, ranks) for ranks in (1, 2, 4)] == [8, 4, 2]
    monkeypatch.setattr(feed, "_free_shared_memory", lambda: 2**26)  # what Docker gives
    assert loaders("auto", True) == 0
    assert loaders("auto", False) == 0 and loaders(3, False) == loaders(3, True, 24) == 3


def test_a_streamed_split_without_a_cache_has_no_loader_processes(capsys: pytest.CaptureFixture[str]) -> None:
    wanted, streamed = Feed(loader_workers=4), ShardedObjects([3], dict, 1)
    assert wanted.over({"id": []}, None) == wanted.over(streamed, ColumnCache.__new__(ColumnCache)) == wanted
    assert capsys.readouterr().err == ""
    assert wanted.over(streamed, None).loader_workers == 0 and "need a cache" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [jobs.TrainCARFlags, SweepFlags])
def test_a_cache_is_a_local_folder(flags: Any) -> None:
    needed = {"data": "d", "tokenizer": "t", "output": "o"}
    with pytest.raises(ValueError, match="^--cache s3://b/c: a cache is mapped into memory"):
        flags(**needed, cache="s3://b/c")
    with pytest.raises(ValueError, match="^--loader-workers must be at least 0, got -1"):
        flags(**needed, loader_workers=-1)


def test_a_run_with_a_cache_and_loader_processes_is_the_run_without(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    config = dataclasses.asdict(CARConfig(depth=1, width=32, num_heads=2, image_size=28))
    spec = RunSpec(
        stage="car",
        preset="toy",
        seed=0,
        config={"model": config, "train": dataclasses.asdict(TRAIN)},
        paths=write_encoded_toy(tmp_path / "toy", count=30),
    )
    speeds = [worker.Speed(), worker.Speed(cache=str(tmp_path / "cache"), loader_workers=2)]
    for number, speed in enumerate(speeds):
        (tmp_path / str(number) / "checkpoints").mkdir(parents=True)
        worker.work(worker.work_config(spec, tmp_path / str(number), speed=speed))
    assert list((tmp_path / "cache").glob("*/codes*")) or list((tmp_path / "cache").glob("*/tokens-*"))
    assert export_hash(tmp_path / "0" / "export") == export_hash(tmp_path / "1" / "export")
