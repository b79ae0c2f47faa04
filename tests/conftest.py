"""One thread per process, no Ray or MLflow of the machine, no network habits: every test starts
from the same ground.
"""

import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from tests.empty_store import EmptyStore  # noqa: E402

pytest_plugins = ("tests.cpu_seconds",)

for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
    os.environ.pop(name, None)
os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    NUMBA_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
    MLFLOW_DISABLE_TELEMETRY="true",
    DO_NOT_TRACK="true",
    HF_HUB_OFFLINE="1",
    RAY_USAGE_STATS_ENABLED="0",
    # Ray's agents have longer to come up than 30 s beside a busy neighbour.
    RAY_agent_register_timeout_ms="60000",
    # A token of our own in the environment: a local Ray would otherwise write one into the home directory.
    RAY_AUTH_MODE="token",
    RAY_AUTH_TOKEN=secrets.token_hex(32),
)


# Each takes minutes: with two processes each has one of them.
LONGEST = ("test_quickstart_job.py", "test_documented_commands.py")


WITH_RAY = pytest.StashKey[set[Path]]()  # files with tests that use `ray_cluster`


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files with slow tests first, of these the longest, then whole commands (tests/jobs), then those that share a Ray:
    no process ends long after the others, and each starts the shared Ray once.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    config.stash[WITH_RAY] = with_ray = {
        item.path
        for item in items
        if {"ray_cluster", "ray_of_commands"} & set(getattr(item, "fixturenames", ()))
        and not item.get_closest_marker("soak")
    }

    def place(path: Path) -> tuple[bool, bool, int]:
        kind = 1 if path in with_ray else 0 if path.parent.name == "jobs" else 2
        return path not in slow, path.name not in LONGEST, kind

    items.sort(key=lambda item: place(item.path))


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End the shared Ray before a file that does not use it: idle it takes 4 % of a core."""
    with_ray = item.config.stash[WITH_RAY]
    if nextitem is None or (item.path in with_ray and nextitem.path not in with_ray):
        from pipelines.cluster import session

        session.disconnect()


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    """Two torch threads beside another busy core were measured ten times slower than one."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmptyStore]:
    """Stores of MLflow that this process opens, copied from one; commands in processes of their own make theirs,
    or are laid one.
    """
    store = EmptyStore(tmp_path_factory.mktemp("mlflow"))
    with store.copied():
        yield store


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the working tree."""
    return REPOSITORY


@pytest.fixture
def ray_cluster() -> None:
    """One private local Ray of two CPUs, shared by tests until a file does not use it (`pytest_runtest_teardown`)."""
    from pipelines.cluster import session

    session.connect("local", num_cpus=2)


@pytest.fixture
def ray_of_commands(request: pytest.FixtureRequest) -> dict[str, str]:
    """Environment of commands that start a Ray of their own ("own"), or join one that lives on ("joined")."""
    if request.param == "own":
        return {}
    request.getfixturevalue("ray_cluster")
    import ray

    return {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}


@pytest.fixture(scope="session")
def real_meshes() -> Path:
    """The folder of real objects that G3PT_MESHES names (it holds meshes/ and hostile/), or a skip."""
    folder = os.environ.get("G3PT_MESHES")
    if not folder:
        pytest.skip("G3PT_MESHES is not set: no real meshes on this machine")
    return Path(folder)
