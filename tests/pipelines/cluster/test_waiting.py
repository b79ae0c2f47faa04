"""What a cluster can ever give, and what is said while work waits for it."""

import json
import time
from typing import Any

import pytest

from pipelines.cli.errors import UsageError
from pipelines.cluster import waiting
from pipelines.cluster.waiting import Need, NodeType, asked, autoscaler_max, begun, can_ever, limits, node_types

CPU4 = Need(count=4, each={"CPU": 1.0}, remedy="lower --num-workers")
TRIAL = Need(count=1, each={"sweep_slot": 16.0})
GPUS = Need(count=16, each={"GPU": 1.0})
P5 = {"CPU": 192.0, "GPU": 8.0, "sweep_slot": 8.0}


@pytest.mark.parametrize(
    ("need", "nodes", "autoscaler", "possible"),
    [
        (CPU4, [{"CPU": 2.0}], (), False),
        (CPU4, [{"CPU": 2.0}, {"CPU": 2.0}], (), True),
        (CPU4, [{"CPU": 2.0}], [NodeType(resources={"CPU": 2}, most=2)], True),
        (CPU4, [{"CPU": 2.0}], [NodeType(resources={"CPU": 2}, most=1)], False),
        (CPU4, [{"CPU": 2.0}], [NodeType(resources={"GPU": 8})], False),
        (CPU4, [{"CPU": 2.0}], [NodeType(resources={"CPU": 1})], True),
        (CPU4, [{"CPU": 2.0}], None, True),  # an autoscaler of unknown limits
        (TRIAL, [P5, P5, P5], (), False),  # on one node, which has eight
        (TRIAL, [P5, {"sweep_slot": 32.0}], (), True),
        (TRIAL, [P5], [NodeType(resources=P5, most=9)], False),
        (GPUS, [P5, P5], (), True),
        (GPUS, [P5, {"CPU": 64.0}], (), False),
        (Need(count=2, each={"CPU": 3.0}), [{"CPU": 5.0}, {"CPU": 2.0}], (), False),  # fragments
        (Need(count=1, each={"CPU": 0.3}), [{"CPU": 0.3}], (), True),
        (Need(count=1, each={"CPU": 1.0}), [{}, {"CPU": 0.0}], (), False),  # a head without CPUs
        (Need(count=1, each={"CPU": 1.0}), [], (), False),
    ],
)
def test_what_can_never_come(need: Need, nodes: list, autoscaler: Any, possible: bool) -> None:
    assert can_ever(need, nodes, autoscaler) == possible


def test_an_autoscaler_is_known_by_its_node_types() -> None:
    """What Ray's monitor wrote on a cluster of `ray start` (one type per node, read-only) and with a cluster's file."""
    read_only = {"autoscaler_report": {"active_nodes": {"node_6e1f0c": 1, "node_77aa": 1}}}
    scaled = {"autoscaler_report": {"active_nodes": {"head": 1, "gpu": 1}}}
    assert node_types(json.dumps(read_only).encode()) == set()
    assert node_types(json.dumps(scaled).encode()) == {"head", "gpu"}
    for broken in (b"", b"[]", b"{}", b'{"autoscaler_report": null}'):
        assert node_types(broken) == set()
    from pathlib import Path

    text = (Path(__file__).resolve().parents[3] / "cluster.yaml").read_text()
    found = limits(text, {"head", "gpu"})
    assert [(dict(kind.resources).get("GPU", 0), kind.most) for kind in found] == [(0, 20), (0, 16), (8, 4)]
    assert can_ever(Need(count=512, each={"CPU": 1.0}), [], found)
    assert not can_ever(Need(count=33, each={"GPU": 1.0}), [], found)
    assert limits(text, {"head", "tpu"}) is None, "the file of another cluster"
    assert limits(text.replace('resources: {"CPU": 32}', ""), {"head"}) is None, "Ray asks the cloud for its size"


class Cluster:
    """A cluster of one node with two CPUs, one of them taken, and Ray's store of keys."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import ray
        from ray._private.state import state
        from ray.experimental import internal_kv

        self.keys: dict[Any, bytes] = {}
        self.free = 1.0
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}])
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
        monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": self.free})
        monkeypatch.setattr(state, "get_cluster_config", lambda: None)
        monkeypatch.setattr(internal_kv, "_internal_kv_put", self.keys.__setitem__)
        monkeypatch.setattr(internal_kv, "_internal_kv_get", self.keys.get)
        monkeypatch.setattr(internal_kv, "_internal_kv_exists", self.keys.__contains__)
        monkeypatch.setattr(internal_kv, "_internal_kv_del", self.keys.pop)
        monkeypatch.setattr(waiting, "EVERY_S", 0.04)
        monkeypatch.setattr(waiting, "LOOK_S", 0.01)


def test_waiting_is_told_until_a_worker_begins(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(monkeypatch)
    line = "progress stage=train state=waiting run=a needs=2xCPU free=1 total=2"
    with asked("train", Need(count=2, each={"CPU": 1.0}), "a") as key:
        said, deadline = list[str](), time.monotonic() + 30
        while len(said) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
            said += capsys.readouterr().err.splitlines()
        begun(key)
        time.sleep(0.3)  # for a look that has begun
        said += capsys.readouterr().err.splitlines()
        assert len(said) >= 3 and set(said) == {line}
        time.sleep(0.2)
        assert capsys.readouterr().err == "", "nobody waits any more"
    assert cluster.keys == {}


def test_work_that_finds_room_says_nothing_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Cluster(monkeypatch)
    monkeypatch.setattr(waiting, "EVERY_S", 30.0)
    with asked("tokens", Need(count=1, each={"CPU": 1.0})):
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_what_can_never_come_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(monkeypatch)
    assert autoscaler_max() == []
    wrong = (
        "the cluster can never provide 4xCPU: it has 2 CPU on 1 node, and no autoscaler adds enough; lower "
        "--num-workers"
    )
    with pytest.raises(UsageError, match=wrong), asked("train", CPU4):
        pytest.fail("the work must not begin")
    cluster.keys[waiting.STATUS_KEY] = b'{"autoscaler_report": {"active_nodes": {"cpu-workers": 1}}}'
    with asked("train", CPU4):
        time.sleep(0.05)
    assert "needs=4xCPU free=1 total=2" in capsys.readouterr().err, "an autoscaler of unknown limits may start more"


def test_on_a_terminal_it_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "is_terminal", lambda stream: True)
    words = waiting.waiting_line("train", Need(count=1, each={"CPU": 0, "sweep_slot": 4.0}), 2.0, 2.0)
    assert words == "  train: waits for 1x4sweep_slot, 2 of 2 are free"
