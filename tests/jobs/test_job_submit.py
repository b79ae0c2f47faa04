"""What README tells people to type, typed: a head started in the repository, jobs submitted to it, and from another folder.

The machine has a Ray token in the home directory (as any local run of Ray leaves one). The head has ports and a temporary
folder of its own and is ended by its processes' ids: `ray stop` would end every Ray on the machine.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Head:
    """A running head; `submit` gives the job's output."""

    def __init__(self, folder: Path) -> None:
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        (folder / "home").mkdir()
        binaries = str(Path(sys.executable).parent)
        self.environment |= {"HOME": str(folder / "home"), "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "RAY_AUTH_MODE": "token"}
        subprocess.run(["ray", "get-auth-token", "--generate"], env=self.environment, check=True, capture_output=True, timeout=60)
        assert (folder / "home" / ".ray" / "auth_token").exists()
        self.port, self.ray_folder = free_port(), Path(f"/tmp/g3pt-{os.getpid()}")  # socket paths must stay short
        ports = {"port": free_port(), "dashboard-port": self.port, "ray-client-server-port": free_port(), "dashboard-agent-listen-port": free_port()}
        command = ["ray", "start", "--head", "--num-cpus=2", "--disable-usage-stats", "--block", f"--temp-dir={self.ray_folder}"]
        command += [f"--{name}={port}" for name, port in ports.items()]
        self.log = open(folder / "head.log", "wb")  # noqa: SIM115
        self.process = subprocess.Popen(command, cwd=REPOSITORY, env=self.environment, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)

    def wait(self) -> None:
        """Until the job server answers."""
        for _ in range(60):
            if self.run(["ray", "job", "list", "--address", self.address], cwd=REPOSITORY, timeout=60).returncode == 0:
                return
            assert self.process.poll() is None, Path(self.log.name).read_text()[-2000:]
            time.sleep(1)
        raise AssertionError("the job server did not answer")

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def run(self, command: list[str], cwd: Path, timeout: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=cwd, env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout
        )

    def submit(self, *entrypoint: str, cwd: Path = REPOSITORY, working_dir: str | None = None) -> Path:
        """Submit, wait, and give the path of the last line that begins with `result: `."""
        options = ["--working-dir", working_dir] if working_dir else []
        done = self.run(["ray", "job", "submit", "--address", self.address, *options, "--", "python", *entrypoint], cwd, timeout=400)
        assert done.returncode == 0, done.stdout[-3000:]
        (*_, last) = [line for line in done.stdout.splitlines() if line.startswith("result: ")]
        return Path(last.removeprefix("result: "))

    def stop(self) -> None:
        """End the head and its processes by their ids."""
        ids = [self.process.pid, *descendants(self.process.pid)]
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=20)
        for pid in ids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.ray_folder, ignore_errors=True)
        self.log.close()


def descendants(pid: int) -> list[int]:
    """Ids of all processes below `pid`."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, queue = [], [pid]
    while queue:
        children = parents.get(queue.pop(), [])
        found += children
        queue += children
    return found


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    started = Head(tmp_path_factory.mktemp("head"))
    try:
        started.wait()
        yield started
    finally:
        started.stop()


def untrained_tokenizer(folder: Path) -> Path:
    """An export of the smallest preset, its level set so that half the box is inside and every mesh has a surface."""
    import torch

    from g3pt.config import cvq_preset
    from g3pt.tokenizer import CVQ

    torch.manual_seed(0)
    model = CVQ(cvq_preset("nano")[0]).eval()
    with torch.no_grad():
        codes_BS = torch.randint(model.config.num_codes, (1, model.config.num_tokens))
        logits = model.occupancy_logits(model.decode_latents(codes_BS), torch.rand(1, 4000, 3) * 2 - 1)
        model.decoder.head.bias.sub_(logits.median())
    return model.save_pretrained(folder)


@pytest.mark.slow
def test_preprocess_sweep_generate_as_jobs(head: Head, tmp_path: Path) -> None:
    """Preprocess and generate from the repository; the sweep from a copy in another folder, which is sent along."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    for package in ("jobs", "pipelines", "g3pt"):
        shutil.copytree(REPOSITORY / package, elsewhere / package, ignore=shutil.ignore_patterns("__pycache__"))
    shapes = head.submit("jobs/preprocess.py", "--source", "shapes", "--limit", "30", "--resolution", "64", "--num-shards", "2", "--output", str(out / "shapes"))
    assert (shapes / "dataset.json").exists()
    few = ["--steps", "2", "--batch-size", "4"]
    tokenizer = untrained_tokenizer(out / "tokenizer")
    sweep = ["jobs/scaling_sweep.py", "--data", str(shapes), "--tokenizer", str(tokenizer), "--output", str(out / "study"), "--sizes", "20k,80k", *few]
    study = head.submit(*sweep, cwd=elsewhere, working_dir=".")
    assert {p.name for p in study.iterdir()} >= {"study.json", "points.csv", "fit.json", "curve.png", "runs"}
    (model,) = (study / "runs").glob("car-20k-*")
    meshes = head.submit("jobs/generate.py", "--model", str(model), "--output", str(out / "meshes"), "--text", "a chair", "--resolution", "32")
    assert (meshes / "manifest.parquet").exists()
