"""The only `ray.init` of the project: joins the requested cluster or starts a small private one.

How: `--ray-address`, else RAY_ADDRESS (set by `ray job submit`), else a local cluster of this process. A local cluster
has an explicit number of CPUs, no dashboard and a bounded object store, so that it starts in seconds. Every worker gets
one compute thread (two torch threads beside another busy core were measured ten times slower than one) and the
repository on its PYTHONPATH.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.cli import interrupt
from pipelines.cli.endings import Ending, at_end
from pipelines.cli.errors import UsageError
from pipelines.cli.paths import REPOSITORY
from pipelines.cli.progress import say
from pipelines.cluster import start
from pipelines.cluster.waiting import autoscaler_max, fitting, node_resources

OBJECT_STORE_BYTES = 512 * 2**20  # shared memory of a local cluster; datasets pass through it shard by shard
PASSED_ON = (
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
)  # where workers find the Hugging Face hub; HF_TOKEN is a secret that each node has for itself
WORKER_ENV = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_TRAIN_ENABLE_V2": "1",
}

# Ray Train on a cluster of one machine that ends with the command.
LOCAL_ENV = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process that asks whether a cloud will take the node away
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # Ray's 2 s are also what the end of a training waits for
}


def connect(ray_address: str | None = None, num_cpus: int | None = None, sweep_slots: float | None = None) -> None:
    """Connect this process to Ray once; a second call keeps the first connection.

    A connection made by a command ends with it.

    num_cpus and sweep_slots (a logical resource that admits Tune trials) size a local cluster and are ignored
    otherwise.
    """
    quiet_environment()
    import ray

    if ray.is_initialized():
        return
    address, source = start.address_and_source(ray_address)

    def init(**options: object) -> Any:
        # Prints of workers stay in Ray's logs (below /tmp/ray): the driver reports progress.
        return ray.init(
            address=address,
            logging_level=logging.WARNING,
            log_to_driver=False,
            **options,
        )

    if address == "local":
        for name, value in LOCAL_ENV.items():
            os.environ.setdefault(name, value)
        options = _local_options(num_cpus or available_cpus(), sweep_slots)
        # Ray starts workers ahead of any work, but none with a runtime environment: these inherit the same variables.
        with environment(worker_env()):
            session = start.started(lambda: init(**options))
    else:
        session = start.joined(lambda: init(runtime_env={"env_vars": worker_env()}), address, source)
    logs = Path(session.address_info["session_dir"]) / "logs"  # on the node that this process runs on
    at_end("Ray", Ending(close=disconnect, failure_rows=lambda: [("Ray", f"its logs are in {logs}")]))
    interrupt.rearm()  # Ray has replaced our handler of SIGTERM
    data = ray.data.DataContext.get_current()
    data.enable_progress_bars = False  # pipelines.cli.progress shows it
    data.raise_original_map_exception = True


def _local_options(num_cpus: int, sweep_slots: float | None) -> dict[str, object]:
    """Ray's options for a small private cluster."""
    # Ray announces at every start that a local cluster asks for a token; docs/guide/cluster.md says so once.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    folder = start.short_folder()
    if folder:
        say(f"  Ray's sockets and logs go to {folder}: TMPDIR is too long for them")
    return {
        "num_cpus": num_cpus,
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
        "resources": {"sweep_slot": sweep_slots or float(num_cpus)},
        **({"_temp_dir": folder} if folder else {}),
    }


def wants_gpu(device: str = "auto") -> bool:
    """Whether workers get a GPU: `gpu` always, `cpu` never, `auto` if the connected cluster has or can start one."""
    if device not in ("auto", "cpu", "gpu"):
        raise UsageError(f"--device must be auto, cpu or gpu, got {device!r}")
    return device == "gpu" or (device == "auto" and gpus() > 0)


def gpus() -> int:
    """GPUs of the connected cluster; if it has none yet, those of the largest node that its autoscaler can start."""
    import ray

    there = int(ray.cluster_resources().get("GPU", 0))
    kinds = [] if there else autoscaler_max() or []
    return there or max((int(kind.resources.get("GPU", 0)) for kind in kinds if kind.most != 0), default=0)


def gpu_bytes() -> int | None:
    """Memory of one GPU of the connected cluster, as a task there finds it; None if it finds none. Waits for a GPU."""
    import ray

    def found() -> int | None:
        import torch

        return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None

    size: int | None = ray.get(ray.remote(num_gpus=1)(found).remote())
    return size


def actor_resources(device: str = "auto", memory: float = 0.0) -> tuple[dict[str, float], int]:
    """The resources of an actor with a model (one GPU or one CPU, and `memory` bytes as far as a node has them), and
    how many such actors the cluster has room for, with the nodes that its autoscaler may start.
    """
    unit, name = ("GPU", "num_gpus") if wants_gpu(device) else ("CPU", "num_cpus")
    request = {unit: 1.0}
    if memory and (most := most_memory(unit)):
        request["memory"] = float(int(min(memory, most)))
    kinds = [kind for kind in autoscaler_max() or [] if kind.resources.get(unit)]
    started = sum(fitting(request, kind.resources) * (1 if kind.most is None else kind.most) for kind in kinds)
    asked = {name: 1.0} | {key: value for key, value in request.items() if key == "memory"}
    return asked, max(1, int(max(room_now(request, unit), started)))


def room_now(request: dict[str, float], unit: str) -> float:
    """How many actors fit the connected cluster's nodes."""
    import ray

    if "memory" not in request:
        return ray.cluster_resources().get(unit, 0.0)
    return sum(fitting(request, node) for node in node_resources())


def most_memory(unit: str) -> float:
    """Bytes of the node with the most memory that offers `unit`; 0 if there is none or if the memory of one, or of a
    kind that an autoscaler may start, is unknown.
    """
    nodes = [*node_resources(), *(kind.resources for kind in autoscaler_max() or [])]
    found = [node.get("memory", 0.0) for node in nodes if node.get(unit)]
    return max(found) if all(found) and found else 0.0


def torch_device() -> str:
    """`cuda` in a worker that was given a GPU, and without Ray on a machine that has one; otherwise `cpu`.

    Every process on a node sees all its GPUs (RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0), so one that asked for none must
    use none.
    """
    import ray
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return "cuda" if not ray.is_initialized() or ray.get_gpu_ids() else "cpu"


def is_connected() -> bool:
    """Whether this process is connected to a cluster; does not import Ray."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def disconnect() -> None:
    """Disconnect from the cluster; a local one ends."""
    if is_connected():
        import ray

        ray.shutdown()


def worker_env() -> dict[str, str]:
    """Environment variables of every worker: one thread, the driver's hub address, this repository importable."""
    inherited = os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join(part for part in (str(REPOSITORY), inherited) if part)
    return {**WORKER_ENV, **{name: os.environ[name] for name in PASSED_ON if name in os.environ}, "PYTHONPATH": path}


@contextlib.contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Set these environment variables for processes that start in the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def quiet_environment() -> None:
    """Set the variables that Ray reads when it is imported or started, unless the user has set them."""
    defaults = {
        **WORKER_ENV,
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TQDM_PATCH_PRINT": "0",
        "RAY_agent_register_timeout_ms": "60000",  # for a raylet's agents; Ray's 15 s are too few on a busy machine
    }
    for key, value in defaults.items():
        os.environ.setdefault(key, value)


def available_cpus() -> int:
    """CPUs that this process may use, at least two: Ray needs one for a coordinator beside the one that works."""
    return max(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 2))
