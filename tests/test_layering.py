"""Who may import whom, read off the syntax tree (imports inside functions and under TYPE_CHECKING count), and that g3pt
imports on a bare GPU machine.

`FORBIDDEN` holds jobs -> pipelines -> g3pt, `ROOMS_ABOVE` the order of the folders of `pipelines` and of `g3pt`.
Modules of one room may import each other; no circle of modules exists anywhere.
"""

import ast
import functools
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
# `python -m g3pt.scaling` fits points on a machine that has NumPy and SciPy alone.
EXCEPTIONS = {("g3pt.scaling.__main__", "argparse")}
# Allowed beside the standard library when a g3pt module is imported; the rest only inside the functions that use it.
BARE = {"torch", "numpy", "pyarrow", "safetensors"}
HEAVY = [
    "trimesh", "numba", "scipy", "skimage", "transformers", "pyvista", "vtk", "PIL", "matplotlib", "pandas", "DracoPy",
    "mesh2sdf", "huggingface_hub", "ray", "mlflow", "tyro", "sklearn", "tokenizers", "requests", "yaml", "einops",
    "vector_quantize_pytorch",
]  # fmt: skip
# Room -> the rooms that its modules may import. In `pipelines` the package g3pt is free to all.
PIPELINES = {
    "cli": "",
    "cluster": "cli",
    "runs": "cli",
    "tracking": "cli runs",
    "preprocess": "cli cluster runs tracking",
    "derive": "cli cluster runs tracking",
    "train": "cli cluster runs tracking derive",
    "study": "cli cluster runs tracking preprocess derive train",
    "generate": "cli cluster runs tracking preprocess",
    "evaluate": "cli cluster runs tracking preprocess derive generate",
    "status": "cli cluster runs tracking preprocess derive train study generate evaluate",
    "report": "cli cluster runs tracking preprocess derive train study generate evaluate status",
    "serve": "cli cluster runs tracking preprocess train generate report",
    "release": "cli cluster runs tracking preprocess derive train study generate evaluate status report",
    "demo": "cli cluster runs tracking preprocess derive train study generate evaluate status report release",
}
G3PT = {
    "config": "",
    "scaling": "",
    "geometry": "config",
    "shapes": "config geometry",
    "metrics": "config geometry shapes",
    "data": "config geometry shapes metrics",
    "training": "config geometry shapes metrics data scaling",
    "models": "config geometry shapes metrics data scaling training",
}
ROOMS_ABOVE = {"pipelines": PIPELINES, "g3pt": G3PT}
# Only these rooms may import these packages.
ONLY_IN = {
    "ray": {"cluster", "preprocess", "train", "study"},
    "mlflow": {"tracking"},
}
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


def module_name(path: Path) -> str:
    """`pipelines.cli.main` of pipelines/cli/main.py, `pipelines.cli` of pipelines/cli/__init__.py."""
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def imports() -> dict[str, set[str]]:
    """Each of our modules with the modules of ours that it imports, wherever in its file."""
    paths = {module_name(path): path for package in (*FORBIDDEN, "benchmarks") for path in files(package)}
    return {name: set(_imported_modules(parse(path), set(paths))) for name, path in paths.items()}


def _imported_modules(tree: ast.AST, known: set[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{ast.unparse(node)}: a relative import hides its room"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield from {inner if inner in known else node.module or ""} & known


def room_of(module: str) -> str:
    """The second part of a module's name; empty for the package itself."""
    return module.split(".")[1] if "." in module else ""


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """One circle, as the path from its first module by name back to it, for each group of modules
    that reach each other.
    """
    reach = {name: reachable(graph, name) for name in graph}
    groups = {
        frozenset(other for other in reach[name] if name in reach[other]) for name in graph if name in reach[name]
    }
    return sorted(path_back(graph, min(group)) for group in groups)


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """All modules that a chain of imports from `start` leads to; `start` itself only if a circle leads back."""
    found: set[str] = set()
    todo = list(graph[start])
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += graph[name]
    return found


def path_back(graph: dict[str, set[str]], start: str) -> list[str]:
    """The shortest chain of imports from `start` back to itself."""
    paths = [[start, name] for name in sorted(graph[start])]
    for path in paths:
        if path[-1] == start:
            return path
        paths += [[*path, name] for name in sorted(graph[path[-1]]) if name not in path[1:]]
    raise AssertionError(f"{start} is in no circle")


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_point_one_way(package: str) -> None:
    wrong = [
        f"{path.relative_to(REPOSITORY)}: {name}"
        for path in files(package)
        for name in set(imported(parse(path))) & FORBIDDEN[package]
        if (module_name(path), name) not in EXCEPTIONS
    ]
    assert files(package)
    assert wrong == []


@pytest.mark.parametrize("package", ROOMS_ABOVE)
def test_rooms_import_only_rooms_above_them(package: str) -> None:
    above = {room: {room, *names.split()} for room, names in ROOMS_ABOVE[package].items()}
    modules = [name for name in imports() if name.startswith(f"{package}.")]
    assert {room_of(name) for name in modules} == above.keys(), "a room is missing in the table, or has no module"
    wrong = {
        f"{name} -> {other}"
        for name in modules
        for other in imports()[name]
        if other.split(".")[0] == package and room_of(other) not in above[room_of(name)]
    }
    assert sorted(wrong) == []


@pytest.mark.parametrize("package", [*FORBIDDEN, "benchmarks"])
def test_no_modules_import_each_other_in_a_circle(package: str) -> None:
    found = [" -> ".join(path) for path in circles(imports()) if path[0].split(".")[0] == package]
    assert found == []


def test_circles_are_found() -> None:
    """The search itself, on graphs that were drawn by hand."""
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert circles({"a": {"a"}}) == [["a", "a"]]
    pair_and_triangle = {"a": {"b"}, "b": {"a", "c"}, "c": {"d"}, "d": {"e"}, "e": {"c"}}
    assert circles(pair_and_triangle) == [["a", "b", "a"], ["c", "d", "e", "c"]]


@pytest.mark.parametrize("library", ONLY_IN)
def test_ray_and_mlflow_stay_in_their_rooms(library: str) -> None:
    rooms = {
        room_of(module_name(path))
        for package in FORBIDDEN
        for path in files(package)
        if library in set(imported(parse(path)))
    }
    assert rooms == ONLY_IN[library]


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
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.If,
               ast.TypeAlias) if sys.version_info >= (3, 12) else (
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
    modules = [module_name(path) for path in files("g3pt")]
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
