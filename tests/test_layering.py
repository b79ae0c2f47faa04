"""jobs -> pipelines -> g3pt, read off the syntax tree; and g3pt imports on a bare GPU machine."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
FORBIDDEN = {
    "g3pt": {"pipelines", "jobs", "tests", "ray", "mlflow", "tyro", "argparse"},
    "pipelines": {"jobs", "tests"},
    "jobs": {"tests", "ray", "mlflow", "torch"},
}
# Allowed beside the standard library when a g3pt module is imported; the rest only inside the functions that use it.
BARE = {"torch", "numpy", "pyarrow", "safetensors"}
HEAVY = [
    "trimesh", "numba", "scipy", "skimage", "transformers", "pyvista", "vtk", "PIL", "matplotlib", "pandas", "DracoPy",
    "mesh2sdf", "huggingface_hub", "ray", "mlflow", "tyro", "sklearn", "tokenizers", "requests", "yaml", "einops",
    "vector_quantize_pytorch",
]  # fmt: skip
KERNELS = "_kernels"  # how the names of modules end that are compiled by numba, imported inside functions only


def files(package: str) -> list[Path]:
    return sorted(path for path in (REPOSITORY / package).rglob("*.py") if "__pycache__" not in path.parts)


def imported(tree: ast.AST) -> Iterator[str]:
    """Top-level names of all modules imported anywhere in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").split(".")[0]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_point_one_way(package: str) -> None:
    wrong = [
        f"{path.relative_to(REPOSITORY)}: {name}"
        for path in files(package)
        for name in set(imported(parse(path))) & FORBIDDEN[package]
    ]
    assert files(package)
    assert wrong == []


def test_ray_is_started_in_one_place() -> None:
    starts = [
        path.relative_to(REPOSITORY).as_posix()
        for package in FORBIDDEN
        for path in files(package)
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "ray.init"
    ]
    assert starts == ["pipelines/cluster/session.py"]


def test_g3pt_reads_no_environment() -> None:
    reads = [
        path.name
        for path in files("g3pt")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv")
    ]
    assert reads == []


def test_g3pt_does_nothing_at_import() -> None:
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.If, ast.TypeAlias) if sys.version_info >= (3, 12) else (
        ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.If)  # fmt: skip
    work = [
        f"{path.relative_to(REPOSITORY)}:{node.lineno}"
        for path in files("g3pt")
        for node in parse(path).body
        if not isinstance(node, allowed) and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    ]
    assert work == []


def test_jobs_hold_no_logic() -> None:
    """A job parses flags and calls one pipeline function: at most two functions of its own, no loops."""
    for path in files("jobs"):
        tree = parse(path)
        loops = [node.lineno for node in ast.walk(tree) if isinstance(node, (ast.For, ast.While, ast.Try))]
        assert loops == [], f"{path.name} has a loop or a try at lines {loops}"


def test_g3pt_imports_with_torch_numpy_pyarrow_safetensors_alone() -> None:
    modules = [
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__") for path in files("g3pt")
    ]
    program = f"""
import importlib, importlib.abc, sys

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)

sys.path.insert(0, {str(REPOSITORY)!r})
sys.meta_path.insert(0, Block())
for module in {[m for m in modules if not m.endswith(KERNELS)]!r}:
    importlib.import_module(module)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not BARE & set(HEAVY)
