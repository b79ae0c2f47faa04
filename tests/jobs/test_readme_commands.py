"""Every command that README tells people to type, typed in README's order into one shell; only sizes and ports are smaller.

The laptop's commands join the head through RAY_ADDRESS, which saves each its own start of Ray; other tests run them without.
"""

import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.jobs.ray_head import Head, free_port

REPOSITORY = Path(__file__).resolve().parents[2]
NOT_TYPED = ("make ", "source .venv/bin/activate")  # CI itself, and the tests' own interpreter
BY_THE_HEAD = ("export RAY_AUTH_MODE=token", "ray get-auth-token --generate", "ray start --head")
SMALLER = {
    ".venv/bin/": "",
    "out/demo": "out",
    "--limit 300": "--limit 40 --num-shards 4",
    "--limit 100": "--limit 3 --resolution 64",
    "jobs/train_cvq.py": "jobs/train_cvq.py --steps 80",
    "jobs/train_car.py": "jobs/train_car.py --steps 10",
    "jobs/evaluate.py": "jobs/evaluate.py --num-samples 4 --num-image-samples 0 --resolution 32",
    "jobs/scaling_sweep.py": "jobs/scaling_sweep.py --sizes 5k,20k --steps 2",
}


def blocks() -> list[list[str]]:
    """The indented blocks of README.md, comments cut."""
    found: list[list[str]] = [[]]
    for line in (REPOSITORY / "README.md").read_text().splitlines():
        if line.startswith("    "):
            found[-1].append(re.sub(r"\s{2,}#.*", "", line[4:]))
        elif found[-1]:
            found.append([])
    return [block for block in found if block]


def typed() -> list[str]:
    """All lines that belong into a shell."""
    lines = [
        line
        for block in blocks()
        for line in block
        if re.match(r"(python|ray|make|source|export|mlflow|\.venv)\b", line.lstrip("."))
    ]
    return [
        line for line in lines if not line.startswith(NOT_TYPED) and "--source objaverse" not in line
    ]  # which needs the hub


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head in a copy of the repository, with a folder MESHES."""
    import trimesh

    root = tmp_path_factory.mktemp("readme")
    for package in ("jobs", "pipelines", "g3pt", "weights"):
        shutil.copytree(REPOSITORY / package, root / "copy" / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (
        ".gitignore",
        "pyproject.toml",
        "constraints.txt",
    ):  # what .gitignore names does not travel with --working-dir
        shutil.copy(REPOSITORY / file, root / "copy")
    (root / "copy" / "prompts.jsonl").write_text('{"text": "a chair"}\n')
    (root / "copy" / "MESHES").mkdir()
    for name, mesh in (
        ("ball.ply", trimesh.creation.icosphere()),
        ("box.obj", trimesh.creation.box()),
        ("rod.stl", trimesh.creation.cylinder(0.1, 1)),
    ):
        mesh.export(root / "copy" / "MESHES" / name)
    started = Head(root / "copy", root / "home")
    try:
        started.wait()
        yield started
    finally:
        started.stop()


def with_names(line: str, folder: Path) -> str:
    """The line with its placeholders filled in and its sizes made small."""
    for large, small in SMALLER.items():
        line = line.replace(large, small)
    line = line.replace("PATH_OF_REPOSITORY", str(folder)).replace("/shared/", f"{folder}/out/")
    for stage in ("cvq", "car"):
        placeholder = f"{stage}-nano-s0-XXXXXXXX"
        if placeholder in line:
            (run,) = (folder / "out" / "runs").glob(f"{stage}-nano-s0-*")
            line = line.replace(placeholder, run.name)
    return line


@pytest.mark.slow
def test_what_readme_says_can_be_typed(head: Head) -> None:
    """Each line succeeds; a job prints its result, which exists."""
    lines = typed()
    assert set(BY_THE_HEAD) <= set(lines) and sum("ray job submit" in line for line in lines) >= 4
    for line in lines:
        if line in BY_THE_HEAD:
            continue
        command = with_names(line, head.folder)
        if "mlflow ui" in command:
            answers(head, command)
            continue
        own = {} if command.startswith("ray ") else {"RAY_ADDRESS": head.address}
        done = head.shell(command, **own)
        assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}"
        if re.search(r"jobs/(status|doctor)", command) is None:
            (*_, last) = [said for said in done.stdout.splitlines() if said.startswith("result: ")]
            assert (head.folder / last.removeprefix("result: ")).exists(), last


def answers(head: Head, command: str) -> None:
    """A server that is started with this command answers on loopback; it is ended by its process."""
    port = free_port()
    server = subprocess.Popen(
        [*command.split(), "--port", str(port)],
        cwd=head.folder,
        env=head.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert page_status(f"http://127.0.0.1:{port}/", lambda: server.poll() is None) == 200
    finally:
        server.terminate()
        server.wait(timeout=20)


def page_status(address: str, alive: Callable[[], bool], timeout_s: float = 60) -> int:
    """The HTTP status of a page, as soon as its server listens."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with urllib.request.urlopen(address, timeout=30) as reply:
                return reply.status
        except urllib.error.URLError:
            assert alive() and time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.3)


@pytest.mark.slow
def test_readme_s_python_runs(head: Head) -> None:
    """The five lines of Python give meshes' bounds."""
    (block,) = [block for block in blocks() if block[0].startswith("from g3pt")]
    code = with_names("\n".join(block), head.folder)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=head.folder, env=head.environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0 or "EmptyField" in done.stderr, done.stderr[-2000:]


@pytest.mark.slow
def test_readme_s_readers_run(head: Head) -> None:
    """The lines that read a dataset by pyarrow, pandas, Ray Data and a torch DataLoader, on the dataset that the commands made."""
    found = blocks()
    (first,) = [at for at, block in enumerate(found) if block[0].startswith("import glob")]
    code = "\n".join(line for block in found[first : first + 5] for line in block)
    assert (
        "pyarrow.dataset.dataset" in code and "pandas.read" in code and "ray.data.read" in code and "DataLoader" in code
    )
    code += "\nassert points.shape[1] == 6 and batch['surface'].shape[2] == 6 and len(loader.dataset) > 0"
    own = {**head.environment, "RAY_ADDRESS": head.address, "PYTHONPATH": str(head.folder)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=head.folder, env=own, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
