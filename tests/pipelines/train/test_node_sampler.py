"""Numbers of the nodes of a training are in its folder and in MLflow, under MLflow's own names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ray  # noqa: F401 (brings psutil)

from pipelines.runs.ledger import Ledger
from pipelines.tracking.client import Tracking
from pipelines.tracking.nodes import NodeMirror, node_ledger
from pipelines.train import node_sampler
from pipelines.train.node_sampler import SAMPLES, NodeSampler, gpu_numbers, reader


def test_names_are_those_of_mlflow() -> None:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    theirs: set[str] = set()
    for monitor in (CPUMonitor(), DiskMonitor(), NetworkMonitor()):
        monitor.collect_metrics()
        theirs |= set(monitor.metrics)
    found = reader()()
    assert {name for name in found if not name.startswith("gpu_")} == theirs
    assert 0 < found["system_memory_usage_percentage"] < 100 and found["network_receive_megabytes"] >= 0


def test_a_gpu_s_numbers_are_those_that_it_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private.thirdparty import pynvml

    class Memory:
        used, total = 2e9, 8e9

    def refuses(_: object) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda _: Memory)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", refuses)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetPowerUsage", lambda _: 350_000)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetEnforcedPowerLimit", lambda _: 700_000)
    assert gpu_numbers(3, object()) == {
        "gpu_3_memory_usage_percentage": 25.0,
        "gpu_3_memory_usage_megabytes": 2000.0,
        "gpu_3_power_usage_watts": 350.0,
        "gpu_3_power_usage_percentage": 50.0,
    }


def test_two_nodes_are_two_series_that_go_on_after_a_restart(tmp_path: Path) -> None:
    store = Tracking(f"sqlite:///{tmp_path}/mlflow.db")
    run_id, run_dir = store.open_run("g3pt/cvq", "run", {}), tmp_path / "run"
    run_dir.mkdir()
    Ledger.of(run_dir).append([{"step": 1.0, "loss": 2.0}])
    store.log_records(run_id, [{"step": 1.0, "train/loss": 2.0}])

    def sampled(node: str, cpu: list[float]) -> None:
        values = iter(cpu)
        with NodeSampler(node_ledger(run_dir, node), lambda: {"cpu_utilization_percentage": next(values)}, 1e9) as one:
            for _ in cpu[:-1]:
                one.sample()

    mirror = NodeMirror(store, run_id, run_dir)
    sampled("10.0.0.1", [10.0, 20.0, 60.0, 40.0])
    sampled("fe80::2", [5.0])
    mirror.copy()
    with open(run_dir / "system" / "10.0.0.1.jsonl", "a", encoding="utf-8") as file:
        file.write('{"torn": ')  # by a worker that is killed
    sampled("10.0.0.1", [80.0])
    mirror.copy()
    NodeMirror(store, run_id, run_dir).copy()  # of the next start

    def series(node: str) -> list[tuple[int, float]]:
        found = store.client.get_metric_history(run_id, f"system/{node}/cpu_utilization_percentage")
        return sorted((metric.step, metric.value) for metric in found)

    assert SAMPLES == 3 and series("10.0.0.1") == [(0, 30.0), (1, 40.0), (2, 80.0)]
    assert series("fe80__2") == [(0, 5.0)]
    assert store.last_step(run_id) == 1, "steps of nodes are not samples seen"


def test_a_node_that_cannot_be_sampled_trains_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> dict[str, float]:
        raise OSError("no /proc")

    monkeypatch.setattr(node_sampler, "WHAT", "sampling a node of this test")
    with NodeSampler(node_ledger(tmp_path, "a"), fails, 1e9) as one:
        one.work()
    told = capsys.readouterr().err
    assert told.count("warning: sampling a node of this test failed") == 1 and "no /proc" in told
    assert not (tmp_path / "system" / "a.jsonl").read_text()


def test_the_first_worker_of_a_node_samples_it(tmp_path: Path) -> None:
    from pipelines.train.worker import node_sampled

    with node_sampled(tmp_path, 1):
        assert not (tmp_path / "system").exists()
    with node_sampled(tmp_path, 0):
        pass
    (file,) = (tmp_path / "system").iterdir()
    assert "cpu_utilization_percentage" in json.loads(file.read_text())
