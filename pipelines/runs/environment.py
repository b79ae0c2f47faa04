"""The environment of a stage, written beside its output: Python, packages, this code's commit, the machine.

How: `environment()` reads package metadata, /proc and nvidia-smi, once per process. It imports neither torch nor Ray
and takes milliseconds. It describes the driver's machine; the workers of a cluster may differ.
"""

import functools
import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from pipelines.cli.paths import REPOSITORY

PACKAGES = ("torch", "ray", "mlflow", "numpy", "pyarrow", "g3pt")


@functools.cache
def environment() -> dict[str, Any]:
    """Versions, git commit and hardware, ready for JSON."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git_commit": git_commit(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": _gpus(),
    }


def git_commit() -> str:
    """Commit of the repository that contains this code, with `-dirty` if tracked files differ; `unknown` outside a
    repository.
    """
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=20, check=True, encoding="utf-8", errors="replace"
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # g3pt is used from a folder, not installed
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _gpus() -> list[str]:
    """Names and memory of the GPUs that the NVIDIA driver lists; empty without one."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=20, check=True, encoding="utf-8", errors="replace"
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]
