"""Samples the node on which a worker runs while it trains, under the names of MLflow's system metrics.

How: the first worker of each node reads psutil and NVML each SAMPLE_S seconds in a thread and appends means over
SAMPLES readings to RUN/system/NODE.jsonl, which the driver copies to MLflow (`pipelines.tracking.nodes`).

Ours: our own readings instead of MLflow's monitors, because importing MLflow would take each worker some seconds.
Ray brings psutil and NVML's bindings, and puts psutil on the path of whoever imports Ray.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import ray  # noqa: F401 (brings psutil)

from pipelines.runs.ledger import Ledger, Periodic
from pipelines.tracking.client import best_effort

SAMPLE_S = 10.0
SAMPLES = 3  # readings per record
MEGABYTE = 1e6
WHAT = "sampling this node"  # in a warning


class NodeSampler(Periodic):
    """Appends records to `ledger` until the block ends, and one of the last readings then.

    A failure is a warning: training goes on.
    """

    def __init__(
        self, ledger: Ledger, read: Callable[[], dict[str, float]] | None = None, interval_s: float = SAMPLE_S
    ) -> None:
        super().__init__(lambda: best_effort(WHAT, self.sample), interval_s)
        self.ledger, self._read = ledger, read
        self._taken: list[dict[str, float]] = []

    def __enter__(self) -> NodeSampler:
        best_effort(WHAT, self._begin)
        super().__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        super().__exit__(*raised)
        best_effort(WHAT, self._write)

    def sample(self) -> None:
        """Read once; write a record after SAMPLES readings."""
        assert self._read is not None
        self._taken.append(self._read())
        if len(self._taken) == SAMPLES:
            self._write()

    def _begin(self) -> None:
        self.ledger.path.parent.mkdir(exist_ok=True)
        self.ledger.truncate_after(math.inf)  # drops a line that a killed worker left torn
        self._read = self._read or reader()

    def _write(self) -> None:
        if self._taken:
            last = self.ledger.last_samples()
            means = {name: _mean([one[name] for one in self._taken if name in one]) for name in self._taken[-1]}
            step = 0 if last is None else last + 1
            self._taken.clear()
            self.ledger.append([{**means, "step": step, "time": time.time()}])


def _mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 1)


def reader() -> Callable[[], dict[str, float]]:
    """A function that returns the numbers of this machine. Network traffic counts from now on."""
    import psutil

    first, gpus = psutil.net_io_counters(), _gpus()
    psutil.cpu_percent()  # it returns the use since the call before

    def read() -> dict[str, float]:
        memory, disk, net = psutil.virtual_memory(), psutil.disk_usage("/"), psutil.net_io_counters()
        return {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / MEGABYTE,
            "system_memory_usage_percentage": 100 * memory.used / memory.total,
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / MEGABYTE,
            "disk_available_megabytes": disk.free / MEGABYTE,
            "network_receive_megabytes": (net.bytes_recv - first.bytes_recv) / MEGABYTE,
            "network_transmit_megabytes": (net.bytes_sent - first.bytes_sent) / MEGABYTE,
            **{name: value for index, gpu in enumerate(gpus) for name, value in gpu_numbers(index, gpu).items()},
        }

    return read


def gpu_numbers(index: int, gpu: Any) -> dict[str, float]:
    """The numbers of an NVIDIA GPU by its handle, without those that it does not tell."""
    from ray._private.thirdparty import pynvml

    def of(read: Callable[[Any], Any]) -> Any:
        try:
            return read(gpu)
        except pynvml.NVMLError:
            return None

    found: dict[str, float] = {}
    if memory := of(pynvml.nvmlDeviceGetMemoryInfo):
        found["memory_usage_percentage"] = 100 * memory.used / memory.total
        found["memory_usage_megabytes"] = memory.used / MEGABYTE
    if use := of(pynvml.nvmlDeviceGetUtilizationRates):
        found["utilization_percentage"] = use.gpu
    if power := of(pynvml.nvmlDeviceGetPowerUsage):
        found["power_usage_watts"] = power / 1000
        if limit := of(pynvml.nvmlDeviceGetEnforcedPowerLimit):
            found["power_usage_percentage"] = 100 * power / limit
    return {f"gpu_{index}_{name}": value for name, value in found.items()}


def _gpus() -> list[Any]:
    """NVML's handles of this node's GPUs; none without a driver."""
    from ray._private.thirdparty import pynvml

    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []
