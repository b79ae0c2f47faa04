"""Trials with different numbers of workers on three nodes, in one study. By hand, through `make soak`."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.runs.identity import RunSpec
from pipelines.study import trials
from pipelines.study.config import SweepFlags
from pipelines.study.placement import Placement
from pipelines.train.feed import FEED, Feed
from tests.die_with_parent import die_with_parent
from tests.jobs.ray_head import free_port
from tests.pipelines.toy_stage import ToyStage
from tests.pipelines.train.test_run import toy_spec

FLAGS = SweepFlags(data="data", tokenizer="tokenizer", output="study", device="cpu")
WAIT_S = 240.0  # for nodes, and for trials
BUILD = "tests.pipelines.study.test_placed_trials:build_stage"


def build_stage(spec: RunSpec, rank: int, world_size: int, feed: Feed = FEED) -> ToyStage:
    """A toy stage that leaves a file named by its rank, the number of workers and the node. Trials of two workers wait
    for each other.
    """
    import ray

    seen = Path(spec.paths["seen"])
    (seen / f"{spec.name}.{rank}.{world_size}.{ray.get_runtime_context().get_node_id()}").touch()
    deadline = time.monotonic() + WAIT_S
    while world_size == 2 and len(list(seen.glob("*.2.*"))) < 4:
        assert time.monotonic() < deadline, "the other trial of two workers did not start"
        time.sleep(0.2)
    return ToyStage(spec, rank, world_size)


def node(address: str, slots: int) -> subprocess.Popen[bytes]:
    """A raylet of one CPU that joins the cluster."""
    ray = [str(Path(sys.executable).with_name("ray")), "start", f"--address={address}", "--num-cpus=1", "--block"]
    ray += [f"--dashboard-agent-listen-port={free_port()}", f"--object-store-memory={80 * 2**20}"]
    ray += [f"--resources={json.dumps({'sweep_slot': slots})}"]
    environment = {name: value for name, value in os.environ.items() if name != "TMPDIR"}
    return subprocess.Popen(
        ray, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=die_with_parent
    )


def placed(width: int, workers: int, seen: Path) -> RunSpec:
    spec = toy_spec(paths={"seen": str(seen)}, dropout=0.0)
    spec = dataclasses.replace(spec, config={**spec.config, "toy": {**spec.config["toy"], "width": width}})
    way = Placement(workers=workers, micro_batch=4 // workers)
    return dataclasses.replace(spec, config={**spec.config, "computed": way.computed})


@pytest.mark.soak
def test_trials_of_one_and_two_workers_share_three_nodes(tmp_path: Path, ray_cluster: None) -> None:
    """The first node has two CPUs and slots, the others one CPU each, and one of them two slots."""
    import ray

    seen = tmp_path / "seen"
    seen.mkdir()
    nodes = [node(ray.get_runtime_context().gcs_address, slots) for slots in (2, 0)]
    try:
        deadline = time.monotonic() + WAIT_S
        while sum(one["Alive"] for one in ray.nodes()) < 3:
            assert time.monotonic() < deadline, "a node did not join"
            time.sleep(0.5)
        specs = [placed(4, 2, seen), placed(5, 2, seen), placed(6, 1, seen)]
        trials.train_all(specs, tmp_path / "study", FLAGS, build=BUILD)
        trials.check_finished(specs, tmp_path / "study")
    finally:
        for one in nodes:
            one.terminate()
        for one in nodes:
            one.wait(60)
    found = sorted(path.name.split(".")[:3] for path in seen.iterdir())
    wanted = [
        [spec.name, rank, str(count)] for spec, count in zip(specs, (2, 2, 1), strict=True) for rank in "01"[:count]
    ]
    assert found == sorted(wanted)
    used = {path.name.split(".")[3] for path in seen.iterdir()}
    assert len(used) >= 2, "four CPUs of three nodes are used, two of which one trial has"
