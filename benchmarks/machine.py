"""The hardware of a benchmark, and its clocks: CPU seconds and peak resident memory of processes.

`python benchmarks/machine.py` prints the hardware, the load, and the rate of a matrix product on one core. Use that
rate to compare times of different machines.
"""

import contextlib
import os
import platform
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
MB = 1024.0


def about(*packages: str) -> dict[str, Any]:
    """Hardware, load, commit and package versions for the JSON of a benchmark."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
        "commit": _commit(),
    }


def matrix_gflops(size: int = 1024, tries: int = 7) -> float:
    """GFLOP/s of a float32 matrix product (size, size) x (size, size) on one thread: the fastest of several tries."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    a, b = torch.rand(size, size), torch.rand(size, size)
    seconds = []
    for _ in range(tries):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    return 2 * size**3 / min(seconds) / 1e9


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    """Short hash, with "+" where tracked files differ from it; empty outside a checkout."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
            encoding="utf-8",
            errors="replace",
        )
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
            encoding="utf-8",
            errors="replace",
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


@dataclass
class Cost:
    """CPU seconds of a block, and the MB by which its peak memory exceeded the memory before it."""

    seconds: float = 0.0
    peak_mb: float = 0.0


@contextlib.contextmanager
def cost() -> Iterator[Cost]:
    """Measure a block in CPU seconds, which hold on a shared machine."""
    found, before = Cost(), reset_peak()
    started = time.process_time()
    try:
        yield found
    finally:
        found.seconds = time.process_time() - started
        found.peak_mb = peak_mb() - before


def reset_peak() -> float:
    """Reset the peak resident memory (Linux) and return the resident memory in MB."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return _status("VmRSS")


def peak_mb() -> float:
    """Peak resident memory in MB since `reset_peak`."""
    return _status("VmHWM")


def family(pid: int) -> dict[int, float]:
    """CPU seconds by id of a process and its descendants, with those of ended children that were waited for (Linux)."""
    seconds, children = dict[int, float](), dict[int, list[int]]()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields, number = stat.read_text(encoding="utf-8").rpartition(")")[2].split(), int(stat.parent.name)
            seconds[number] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
            children.setdefault(int(fields[1]), []).append(number)
    found, todo = dict[int, float](), [pid]
    while todo:
        number = todo.pop()
        found[number] = seconds.get(number, 0.0)
        todo += children.get(number, [])
    return found


class Watch:
    """CPU seconds and peak memory in MB of a process and its descendants,
    sampled every `every_s` seconds until it ends.

    Shared pages count once (PSS). A process that ends between two samples is missed.
    """

    def __init__(self, pid: int, every_s: float = 1.0) -> None:
        self.cpu_s = self.peak_mb = 0.0
        self._thread = threading.Thread(target=self._look, args=(pid, every_s), daemon=True)
        self._thread.start()

    def _look(self, pid: int, every_s: float) -> None:
        while seconds := {number: spent for number, spent in family(pid).items() if command_line(number)}:
            self.cpu_s = max(self.cpu_s, sum(seconds.values()))
            self.peak_mb = max(self.peak_mb, sum(map(proportional_mb, seconds)))
            time.sleep(every_s)


def proportional_mb(pid: int) -> float:
    """Memory of a process in MB, with its share of shared pages (PSS); 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) / MB for line in lines if line.startswith("Pss:")), 0.0)


def command_line(pid: int) -> bytes:
    """Arguments of a process, each followed by a zero byte; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def busy_seconds() -> float:
    """CPU seconds used by the whole machine since it started (Linux)."""
    user, nice, system, _, _, irq, soft, *_ = map(
        int, Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:]
    )
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(name + ":"):
            return float(line.split()[1]) / MB
    raise KeyError(name)


if __name__ == "__main__":
    import json

    print(json.dumps(about("torch", "numpy", "ray") | {"matrix_gflops_one_core": round(matrix_gflops(), 1)}, indent=1))
