"""The checks of `jobs/doctor.py` on one machine, without Ray: Python, packages, mesh2sdf, GPUs, disks, the clock.

A check returns `Found`: ok, warning (work is possible but slower, incomplete or different) or failed, with the remedy.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipelines.cli.paths import REPOSITORY
from pipelines.cli.plain_text import duration
from pipelines.cluster.session import OBJECT_STORE_BYTES

GIB = 2**30
STATES = ("ok", "warning", "failed")
DISK_LIMITS = {
    "storage": (20 * GIB, 2 * GIB),
    "/tmp": (10 * GIB, 1 * GIB),
    "/dev/shm": (OBJECT_STORE_BYTES, 0),
}  # free bytes below which there is a warning, and a failure
REPAIR = "pip install -c constraints.txt -e '.[dev]'"
LIST_GPUS = (
    "import torch\nfor i in range(torch.cuda.device_count()): print(torch.cuda.get_device_name(i), "
    "*torch.cuda.mem_get_info(i), sep='|')"
)
CHILD_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Found:
    """The result of a check, and the remedy for a problem."""

    state: Literal["ok", "warning", "failed"]
    found: str
    remedy: str = ""


def ok(found: str) -> Found:
    """A check without problems."""
    return Found(state="ok", found=found)


def warning(found: str, remedy: str) -> Found:
    """A problem with which work is still possible."""
    return Found(state="warning", found=found, remedy=remedy)


def failed(found: str, remedy: str) -> Found:
    """A problem with which work is not possible, or not here."""
    return Found(state="failed", found=found, remedy=remedy)


def check_python() -> Found:
    """Check the Python version against pyproject.toml."""
    said = f"{platform.python_version()} in {sys.prefix}, {platform.system()} {platform.machine()}"
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return ok(said)
    return failed(said, "install Python 3.11, 3.12 or 3.13 with venv and headers, then `make clean demo`")


# ----------------------------------------------------------------------------------------------------------- packages


def wanted_packages() -> dict[str, str]:
    """Our direct dependencies by name, with the version in constraints.txt ("" if it has none)."""
    lines = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    names = [re.split(r"[\[<>=!~; ]", line, maxsplit=1)[0] for line in lines]
    fixed = dict(
        re.findall(r"^([\w.-]+)==(\S+)", (REPOSITORY / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    )
    by_name = {_normal(name): version for name, version in fixed.items()}
    return {name: by_name.get(_normal(name), "") for name in names}


def installed_packages(names: Sequence[str]) -> dict[str, str]:
    """The installed versions; "" for missing packages. The build suffix (2.13.0+cpu) is removed."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    return found


def check_packages() -> Found:
    """Check all direct dependencies against constraints.txt."""
    wanted = wanted_packages()
    here = installed_packages(list(wanted))
    missing = [name for name in wanted if not here[name]]
    other = [
        f"{name} {here[name]} (constraints.txt: {wanted[name]})"
        for name in wanted
        if here[name] and wanted[name] not in ("", here[name])
    ]
    if missing:
        return failed(
            f"missing: {', '.join(missing)}" + (f"; other versions: {', '.join(other)}" if other else ""), REPAIR
        )
    if other:
        names = [f"{name}=={wanted[name]}" for name in wanted if wanted[name] not in ("", here[name])]
        return warning(", ".join(other), f"pip install -c constraints.txt {' '.join(names)}")
    return ok(
        f"{len(wanted)} direct dependencies as in constraints.txt (torch {here['torch']}, ray {here['ray']}, mlflow "
        f"{here['mlflow']})"
    )


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def check_mesh2sdf() -> Found:
    """Check mesh2sdf, the one package compiled on installation, by importing it in a child process."""
    compiler = shutil.which(os.environ.get("CXX") or "c++") or shutil.which("g++") or shutil.which("clang++")
    error = child_error("import mesh2sdf")
    if error is None:
        return ok(
            "imports"
            + (f"; compiler {compiler}" if compiler else "; no C++ compiler, which only a new installation needs")
        )
    remedy = "pip install --force-reinstall --no-cache-dir -c constraints.txt mesh2sdf"
    return warning(
        f"--watertight mesh2sdf will not work: {error}",
        remedy if compiler else f"install a C++ compiler (apt install g++), then {remedy}",
    )


def child_error(code: str, timeout_s: float = CHILD_TIMEOUT_S) -> str | None:
    """Run code in a Python child process; return None if it succeeds, else the last line of its output."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            encoding="utf-8",
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {timeout_s:g} s"
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]


# --------------------------------------------------------------------------------------------------- GPU, disk, clock


def gpus(timeout_s: float = CHILD_TIMEOUT_S) -> tuple[list[str], str]:
    """(name and memory of each GPU that torch can use here, problem or "").

    Runs in a child process, since a driver may hang or crash.
    """
    has_driver = shutil.which("nvidia-smi") is not None or Path("/dev/nvidiactl").exists()
    if not has_driver:
        return [], ""
    try:
        done = subprocess.run(
            [sys.executable, "-c", LIST_GPUS],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            encoding="utf-8",
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        return [], f"the GPU driver did not answer within {timeout_s:g} s"
    rows = [line.rsplit("|", 2) for line in done.stdout.splitlines() if line.count("|") >= 2]
    named = [f"{name}, {int(free) / GIB:.0f} of {int(total) / GIB:.0f} GiB free" for name, free, total in rows]
    said = (done.stderr.strip().splitlines() or ["no message"])[-1][:200]
    return named, "" if named else f"there is an NVIDIA driver, but torch finds no GPU ({said})"


def check_gpu() -> Found:
    """Check this machine's GPUs and their memory."""
    named, problem = gpus()
    if problem:
        return warning(problem, "run nvidia-smi to check the driver; replace a CPU build of torch by a CUDA build")
    return ok("; ".join(named) or "none; the CPU is used")


def disk_space(storage: str) -> dict[str, tuple[str, int]]:
    """Purpose -> (path, free bytes of its nearest existing parent) on this machine."""
    found = {}
    for name in DISK_LIMITS:
        path = Path(storage if name == "storage" else name)
        while not path.exists() and path != path.parent:
            path = path.parent
        if path.exists():
            usage = shutil.disk_usage(path)
            found[name] = (storage if name == "storage" else name, usage.free)
    return found


def judge_disks(found: dict[str, tuple[str, int]]) -> Found:
    """Compare free space with DISK_LIMITS. With a small /dev/shm Ray keeps objects in files, which is slow."""
    said, state, remedies = [], "ok", []
    for name, (path, free) in found.items():
        low, least = DISK_LIMITS[name]
        level = "failed" if free < least else "warning" if free < low else "ok"
        said.append(f"{path} {free / GIB:.1f} GiB free" + (f" (want {low / GIB:g})" if level != "ok" else ""))
        state = max(state, level, key=STATES.index)
        if level != "ok":
            remedies.append(
                "docker run --shm-size=2g, or enlarge it"
                if name == "/dev/shm"
                else f"free space below {path}" + (", or use another --storage" if name == "storage" else "")
            )
    return Found(state=state, found=", ".join(said), remedy="; ".join(remedies))  # type: ignore[arg-type]


def check_disk(storage: str) -> Found:
    """Check free space for results, temporary files and Ray's object store."""
    return judge_disks(disk_space(storage))


def check_clock(now: Callable[[], float] = time.time) -> Found:
    """Check that the clock is not behind this repository's own files: resuming and `status` compare file times."""
    newest = max(
        file.stat().st_mtime for file in [*REPOSITORY.glob("pipelines/**/*.py"), REPOSITORY / "pyproject.toml"]
    )
    said = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now()))
    if newest > now() + 60:
        return warning(
            f"{said} is {duration(newest - now())} before the repository's newest file",
            "set the clock (timedatectl set-ntp true)",
        )
    return ok(said)
