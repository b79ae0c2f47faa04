"""Devices: a GPU for each actor if the cluster has GPUs, and none for an actor that was assigned none."""

from collections.abc import Sequence

import pytest

from pipelines.cli.errors import UsageError
from pipelines.cluster import session
from pipelines.cluster.waiting import NodeType


def pretend(
    monkeypatch: pytest.MonkeyPatch, given: list[int], starts: Sequence[NodeType] = (), **resources: float
) -> None:
    """Pretend that a cluster with these resources is connected, that its autoscaler starts such nodes, and that this
    worker was assigned these GPUs.
    """
    import ray
    import torch

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    monkeypatch.setattr(session, "autoscaler_max", lambda: list(starts))
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: given)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_each_actor_gets_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, [3], CPU=192.0, GPU=8.0)
    assert session.actor_resources() == ({"num_gpus": 1.0}, 8)
    assert session.actor_resources("cpu") == ({"num_cpus": 1.0}, 192)
    assert session.torch_device() == "cuda"


def test_without_gpus_it_is_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, [], CPU=2.0)
    assert session.actor_resources() == ({"num_cpus": 1.0}, 2)
    assert session.torch_device() == "cpu", "no GPU was given, although this machine has one"


def test_gpu_nodes_that_are_not_up_yet_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU node has to run all the time: actors that wait are what starts them."""
    kinds = [NodeType(resources={"CPU": 32.0}, most=16), NodeType(resources={"CPU": 16.0, "GPU": 8.0}, most=4)]
    pretend(monkeypatch, [], kinds, CPU=0.0)
    assert session.wants_gpu() and not session.wants_gpu("cpu")
    assert session.actor_resources() == ({"num_gpus": 1.0}, 32)
    assert session.actor_resources("cpu") == ({"num_cpus": 1.0}, 16 * 32 + 4 * 16)
    pretend(monkeypatch, [], [NodeType(resources={"GPU": 8.0}, most=0)], CPU=2.0)
    assert not session.wants_gpu()


def test_a_model_asks_for_its_memory_as_far_as_nodes_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"CPU": 8.0, "memory": 16e9}, {"CPU": 8.0, "memory": 32e9}, {"memory": 64e9}]
    pretend(monkeypatch, [], CPU=16.0)
    monkeypatch.setattr(session, "node_resources", lambda: nodes)
    assert session.actor_resources(memory=8e9) == ({"num_cpus": 1.0, "memory": 8e9}, 2 + 4)
    assert session.actor_resources(memory=1e9) == ({"num_cpus": 1.0, "memory": 1e9}, 16)
    assert session.actor_resources(memory=90e9) == ({"num_cpus": 1.0, "memory": 32e9}, 1), "one, and not none for ever"
    pretend(monkeypatch, [], [NodeType(resources={"CPU": 32.0}, most=16)], CPU=16.0)
    assert session.actor_resources(memory=8e9)[0] == {"num_cpus": 1.0}, "nodes that do not say their memory"


def test_an_autoscaler_of_unknown_size_promises_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, [], CPU=2.0)
    monkeypatch.setattr(session, "autoscaler_max", lambda: None)
    assert not session.wants_gpu()


def test_without_ray_the_machine_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, [])
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    assert session.torch_device() == "cuda"


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(UsageError, match="--device must be auto, cpu or gpu, got 'tpu'"):
        session.wants_gpu("tpu")


def test_workers_learn_which_hub_the_driver_uses_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    found = session.worker_env()
    assert found["HF_ENDPOINT"] == "https://mirror.example" and not {"HF_TOKEN", "HF_HUB_OFFLINE"} & found.keys()
