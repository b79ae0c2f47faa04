"""The commands and the Python of all pages, typed in reading order on one Ray head with one tiny dataset,
tokenizer and generator.

A smallest set of lines is run that covers every program, every flag, both kinds of model, every source and every way to
submit. tests/test_docs.py parses all lines and makes their dry runs. `ray job submit` and servers run in a shell; other
lines run in a fork of a process that has imported everything (tests/jobs/typist.py). Commands join the head through
RAY_ADDRESS, so that none starts a Ray of its own; other tests run them without. Only sizes, ports and numbers of
workers differ from the pages.
"""

import json
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

from pipelines.cluster import session
from tests import pages
from tests.jobs.ray_head import Head, free_port

REPOSITORY = pages.REPOSITORY
BY_THE_HEAD = ("export RAY_AUTH_MODE=token", "ray get-auth-token --generate", "ray start --head")
NOT_TYPED = (
    "make ",  # the tests themselves, and tests of the demo
    "source .venv/bin/activate",  # the tests' own interpreter
    "python benchmarks/",  # minutes each
    "python -m pytest",
    "python docs/make/",  # tests/test_docs.py compares what they write
)
ELSEWHERE = (
    "--source objaverse",  # needs the hub; a test of its own has a stand-in
    "--dry-run",  # tests/test_docs.py makes these
    "study.publish",  # needs a study of the plan beside it: tests/pipelines/study/test_publish.py
)
SMALLER = {
    ".venv/bin/": "",
    "out/demo": "out",
    "--limit 300": "--limit 20 --num-shards 2",
    "--limit 100": "--limit 3 --resolution 64",
    "--resolution 128": "--resolution 64",
    "--num 24": "--num 2",
    "--shapes 1000": "--shapes 3",
}
ALSO = {
    "jobs/train_cvq.py": "--steps 60 --batch-size 8",
    "jobs/train_car.py": "--steps 10",
    "jobs/evaluate.py": "--num-samples 4 --num-image-samples 2 --num-compared 4 --num-detailed 2 --resolution 32",
    "jobs/scaling_sweep.py": "--sizes 5k,20k --steps 2 --num-workers 0",
    "jobs/generate.py": "--resolution 32 --num-workers 1",
}  # flags for a program where the line does not have them
DEFAULTS = """
[preprocess]
source = "shapes"
limit = 20
num_shards = 2
resolution = 64
output = "out/shapes"

[scaling_sweep]
data = "out/shapes"
tokenizer = "out/runs/cvq-nano-s0-XXXXXXXX"
output = "out/study"
sizes = "5k,20k"
steps = 2
num_workers = 0
"""  # g3pt.toml for jobs that are typed without flags: what the lines with flags made, so these find it finished
QUIET = re.compile(
    r"jobs/(status|doctor|tidy)|g3pt\.data\.inspection|moved_store|status\.relog|train\.presets"
)  # these name no result
NO_JOBS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # a dozen processes of MLflow's server for jobs of its own
MESHES = ("ball.ply", "box.obj", "rod.stl")
MANIFEST = (
    "path,id,caption,license,author\nball.ply,ball,a ball,CC0-1.0,Ann\nbox.obj,box,a box,MIT,Bob\n"
    "rod.stl,rod,a rod,CC0-1.0,Ann\n"
)


def submitted(command: pages.Command) -> set[tuple[str, ...]]:
    """The way a command is submitted with its program; empty if it is not submitted."""
    return (
        {(*(word for word in command.submit if not word.startswith("/")), command.program)} if command.submit else set()
    )


def shows(command: pages.Command) -> set[tuple[str, ...]]:
    """The features that a command covers: way to submit, program, flags (or none), kinds of model and source."""
    found: set[tuple[str, ...]] = {(command.program,), *submitted(command)}
    if command.submit and not command.args:
        found.add((command.line,))
    for flag, value in zip(command.args, (*command.args, "")[1:], strict=True):
        if flag.startswith("--"):
            kind = re.search(r"cvq|car", value) if flag in ("--model", "--tokenizer") else None
            found.add((command.program, flag, kind[0] if kind else value if flag == "--source" else ""))
    return found


def typed() -> list[str]:
    """A smallest set of lines that covers all features, in reading order; a dataset and its status come first."""
    lines = [
        line
        for line in pages.shell_lines()
        if line not in BY_THE_HEAD and not line.startswith(NOT_TYPED) and not any(text in line for text in ELSEWHERE)
    ]
    seen = {line: shows(command) if (command := pages.command(line)) else {(line,)} for line in lines}
    for line in sorted(reversed(lines), key=lambda line: (not line.startswith("ray "), len(seen[line]))):  # first stays
        if seen[line] <= set().union(*(shown for other, shown in seen.items() if other != line)):
            del seen[line]
    first = ("python jobs/preprocess.py --source shapes", "python jobs/status.py")
    return sorted(seen, key=lambda line: [not line.startswith(start) for start in first])


class Shell:
    """Runs lines in a shell beside the head, or through the typist."""

    def __init__(self, head: Head) -> None:
        self.head = head
        joining = {"RAY_ADDRESS": head.address, "PYTHONPATH": str(head.folder)}
        self.environment = session.LOCAL_ENV | head.environment | joining
        self.typist = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "tests" / "jobs" / "typist.py")],
            cwd=head.folder, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def type(self, line: str) -> str:
        """Run a line, which must succeed; returns what it printed."""
        command = pages.command(line)
        if command is None or command.submit:
            done = self.head.shell(line)
            assert done.returncode == 0, f"{line}\n{done.stdout[-4000:]}"
            return done.stdout
        return self._ask({"program": command.program, "args": command.args}, line)

    def run(self, code: str) -> str:
        """Run Python code, which must succeed; returns what it printed."""
        return self._ask({"code": code}, code)

    def _ask(self, request: dict[str, object], shown: str) -> str:
        assert self.typist.stdin and self.typist.stdout
        output = self.head.folder / "said.txt"
        print(json.dumps(request | {"output": str(output)}), file=self.typist.stdin, flush=True)
        answer = self.typist.stdout.readline()
        said = output.read_text()
        assert answer == "0\n", f"{shown}\n{answer}{said[-4000:]}"
        return said

    def close(self) -> None:
        assert self.typist.stdin
        self.typist.stdin.close()
        self.typist.wait(timeout=30)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A head in a copy of the repository that has the files a reader is assumed to have."""
    import PIL.Image
    import trimesh

    root = tmp_path_factory.mktemp("pages")
    copy = root / "copy"
    for package in ("jobs", "pipelines", "g3pt", "weights"):
        shutil.copytree(REPOSITORY / package, copy / package)  # with what was compiled
    for file in (
        ".gitignore",
        "pyproject.toml",
        "constraints.txt",
    ):  # what .gitignore names does not travel with --working-dir
        shutil.copy(REPOSITORY / file, copy)
    (copy / "docs" / "images").mkdir(parents=True)
    prompts = (REPOSITORY / "docs" / "prompts.jsonl").read_text().splitlines(keepends=True)
    (copy / "docs" / "prompts.jsonl").write_text("".join(prompts[:2]))
    (copy / "prompts.jsonl").write_text('{"text": "a chair"}\n')
    PIL.Image.new("RGB", (32, 32), "white").save(copy / "chair.png")
    trimesh.creation.box().export(copy / "mug.obj")
    (copy / "MESHES").mkdir()
    solids = (trimesh.creation.icosphere(), trimesh.creation.box(), trimesh.creation.cylinder(0.1, 1))
    for name, mesh in zip(MESHES, solids, strict=True):
        mesh.export(copy / "MESHES" / name)
    (copy / "MESHES" / "manifest.csv").write_text(MANIFEST)
    head = Head(copy, root / "home")
    try:
        started = Shell(head)
        head.wait()
        yield started
        started.close()
    finally:
        head.stop()


def filled_in(line: str, folder: Path) -> str:
    """The line with its placeholders filled in and its sizes made small."""
    for large, small in SMALLER.items():
        line = line.replace(large, small)
    for flag in re.findall(r"--\S+ [^-\s]\S*", next((ALSO[program] for program in ALSO if program in line), "")):
        line += "" if flag.split()[0] in line else f" {flag}"
    line = line.replace("PATH_OF_REPOSITORY", str(folder)).replace("/shared", f"{folder}/out")
    for stage in ("cvq", "car"):
        placeholder = f"{stage}-nano-s0-XXXXXXXX"
        if placeholder in line:
            first = min((folder / "out" / "runs").glob(f"{stage}-nano-s0-*"), key=lambda run: run.stat().st_ctime)
            line = line.replace(placeholder, first.name)
    return line.replace("$PWD", str(folder))


@pytest.mark.slow
def test_what_the_pages_say_can_be_typed(shell: Shell) -> None:
    """Each line succeeds, and the result that a command prints exists."""
    lines, folder = typed(), shell.head.folder
    assert len(lines) >= 20 and sum(line.startswith("ray job submit") for line in lines) >= 3
    for line in lines:
        begun = time.monotonic()
        without_flags = line.endswith(".py") and "doctor" not in line
        command = line if without_flags else filled_in(line, folder)
        if without_flags:
            (folder / "g3pt.toml").write_text(filled_in(DEFAULTS, folder))
        if "mlflow ui" in command:
            answers(shell.head, command)
        else:
            said = shell.type(command)
            if not QUIET.search(command):
                (*_, last) = [text for text in said.splitlines() if text.startswith("result: ")]
                assert (folder / last.removeprefix("result: ")).exists(), last
        (folder / "g3pt.toml").unlink(missing_ok=True)  # also that of --save-config
        print(f"{time.monotonic() - begun:6.1f} s  {command}")


def answers(head: Head, command: str) -> None:
    """The server that this command starts answers on loopback."""
    port = free_port()
    server = subprocess.Popen(
        [*command.split(), "--port", str(port), "--workers", "1"],
        cwd=head.folder,
        env=head.environment | NO_JOBS,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert page_status(f"http://127.0.0.1:{port}/", lambda: server.poll() is None) == 200
    finally:
        server.terminate()
        server.wait(timeout=20)


def page_status(address: str, alive: Callable[[], bool], timeout_s: float = 60) -> int:
    """The HTTP status of a page, once its server listens."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with urllib.request.urlopen(address, timeout=30) as reply:
                return reply.status
        except urllib.error.URLError:
            assert alive() and time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.3)


@pytest.mark.slow
def test_the_pages_python_runs(shell: Shell) -> None:
    """Each block of Python runs on the dataset and weights that the pages name."""
    found = [block for page in pages.pages() for block in pages.blocks(page) if block.language == "python"]
    found = [
        block for block in found if "http://127.0.0.1" not in "".join(block.lines)
    ]  # tests/pipelines/serve types it
    assert len(found) >= 5
    for block in found:
        code = re.sub(r"\bnum=\d", "num=1", "\n".join(block.lines))
        said = shell.run(code + CHECKS.get(next((key for key in CHECKS if key in code), ""), ""))
        assert said.strip() or "DataLoader" in code, f"{block.page}:{block.line} printed nothing"


CHECKS = {
    "DataLoader": "\nassert points.shape[1] == 6 and batch['surface'].shape[2] == 6 and len(loader.dataset) > 0",
    "encode(": "\nassert codes.shape[1] == 85 and logits.shape == points.shape[:2]",
}  # after a block that has this in it
