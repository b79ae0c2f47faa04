"""Can this machine run the pipeline: versions, a compiler's products, the renderer, Ray, MLflow; each its own line."""

import importlib.metadata
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelines import cluster
from pipelines.flags import OnRay

PACKAGES = ("torch", "ray", "mlflow", "pyarrow", "numpy", "numba", "trimesh", "mesh2sdf", "transformers", "pyvista")


@dataclass(frozen=True, kw_only=True)
class DoctorFlags(OnRay):
    """Check this machine: Python, packages, renderer, GPU, Ray, MLflow."""



def doctor(flags: DoctorFlags) -> None:
    """Print a line for each check; RuntimeError if one that everything needs fails."""
    checks: list[tuple[str, bool, Callable[[], str]]] = [
        ("python", True, check_python),
        ("packages", True, lambda: ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)),
        ("gpu", False, check_gpu),
        ("renderer", False, check_renderer),
        ("mlflow", True, check_mlflow),
        ("ray", True, lambda: check_ray(flags.ray_address)),
    ]
    failed = [name for name, needed, check in checks if not passes(name, check) and needed]
    if failed:
        raise RuntimeError(f"this machine cannot run the pipeline: {', '.join(failed)}")


def passes(name: str, check: Callable[[], str]) -> bool:
    """Run one check and print its line on stderr."""
    try:
        print(f"{name:9} ok    {check()}", file=sys.stderr, flush=True)
        return True
    except Exception as error:  # a check may fail in any way its library can
        print(f"{name:9} FAILS {type(error).__name__}: {str(error)[:200]}", file=sys.stderr, flush=True)
        return False


def check_python() -> str:
    """Version within what pyproject.toml asks for."""
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        raise RuntimeError(f"Python {platform.python_version()}; 3.11 to 3.13 is needed")
    return f"{platform.python_version()} on {platform.platform()}"


def check_gpu() -> str:
    """The GPU's name, or that the CPU will do."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none; the CPU is used"


def check_renderer() -> str:
    """Offscreen rendering; without it views and pictures are skipped."""
    from g3pt.geometry.render import renderer_available

    reason = renderer_available()
    if reason:
        raise RuntimeError(reason)
    return "offscreen"


def check_mlflow() -> str:
    """A store opens and takes a run."""
    from pipelines.tracking import Tracking

    with tempfile.TemporaryDirectory() as folder:
        tracking = Tracking(f"sqlite:///{Path(folder) / 'mlflow.db'}")
        tracking.close_run(tracking.open_run("doctor", "doctor", {}))
    return "a SQLite store opens"


def check_ray(ray_address: str | None) -> str:
    """A worker starts and finds the repository."""
    cluster.connect(ray_address)
    import ray

    @ray.remote
    def probe() -> str:
        import pipelines

        return str(Path(pipelines.__file__).parent.parent)

    return f"{ray.cluster_resources().get('CPU', 0):g} CPUs, workers import from {ray.get(probe.remote())}"
