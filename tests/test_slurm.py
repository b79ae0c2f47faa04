"""deploy/slurm/g3pt.sbatch with stand-ins for Slurm and Ray, and by hand (`make soak`) on a real Slurm of two nodes."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import job_lines, pages, slurm_cluster
from tests.die_with_parent import die_with_parent

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPT = REPOSITORY / "deploy" / "slurm" / "g3pt.sbatch"
PAGE = REPOSITORY / "docs" / "guide" / "slurm.md"

# Each stand-in writes its arguments to calls.txt. srun does the rest as Slurm would on one machine.
STAND_INS = {
    "srun": 'echo "srun $*" >> "$CALLS"; while [[ $1 == -* ]]; do shift; done; exec "$@"',
    "ray": 'echo "ray $*" >> "$CALLS"; [ -z "${NO_RAY:-}" ] || exit 1; exec sleep 60',
    "scontrol": 'echo "scontrol $*" >> "$CALLS"',
    # `-` is the program that waits for the nodes.
    "python": 'if [ "$1" = - ]; then sleep "${JOINING:-0}"; until [ "$(grep -c "^ray " "$CALLS")" = 2 ]; do sleep .02; '
    'done; exit; fi; exec bash -c "$@"',
    "box": 'echo "box $*" >> "$CALLS"; shift; exec "$@"',
}
SAVES = "trap 'echo saved; exit 143' TERM; echo begun; for i in {1..400}; do sleep .05; done"


def listening(job_id: int) -> socket.socket | None:
    """A socket at the port of this job's head, if that is free."""
    found = socket.socket()
    with contextlib.suppress(OSError):
        found.bind(("127.0.0.1", 20000 + 2 * job_id))
        found.listen()
        return found
    found.close()
    return None


class Job:
    """The script as Slurm starts it on the first of two nodes."""

    def __init__(self, folder: Path, command: str, **variables: str) -> None:
        self.folder, self.calls_file = folder, folder / "calls.txt"
        bin_folder = folder / "bin"
        bin_folder.mkdir()
        for name, text in STAND_INS.items():
            (bin_folder / name).write_text(f"#!/bin/bash\n{text}\n")
            (bin_folder / name).chmod(0o755)
        # The port that the script takes for its job is open, as if a head answered there.
        self.head = next(head for head in map(listening, range(1, 6000)) if head)
        self.port, job_id = self.head.getsockname()[1], (self.head.getsockname()[1] - 20000) // 2
        self.ray_folder = folder / f"ray-{job_id}"
        self.ray_folder.mkdir()
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM"))},
            **{"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "CALLS": str(self.calls_file)},
            **{"SLURM_JOB_ID": str(job_id), "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "8"},
            **{"SLURM_JOB_NODELIST": "n[1-2]", "SLURMD_NODENAME": "n1"},
            **{"G3PT_HEAD_IP": "127.0.0.1", "G3PT_RAY_FOLDER": str(folder)},
            **variables,
        }
        self.log = folder / "log.txt"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                ["bash", str(SCRIPT), "python", command], cwd=folder, env=environment, stdout=log, stderr=log
            )

    def when(self, said: str) -> "Job":
        """Wait until the log has this word."""
        deadline = time.monotonic() + 30
        while said not in self.log.read_text():
            assert time.monotonic() < deadline and self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        return self

    def ended(self) -> int:
        with self.head:
            return self.process.wait(timeout=40)

    def calls(self, program: str) -> list[str]:
        return [line for line in self.calls_file.read_text().splitlines() if line.startswith(f"{program} ")]


def test_it_starts_a_head_and_the_other_nodes_and_gives_the_command_s_code(tmp_path: Path) -> None:
    job = Job(tmp_path, "echo at $RAY_ADDRESS $RAY_AUTH_MODE ${#RAY_AUTH_TOKEN}; exit 3")
    assert job.ended() == 3
    assert f"at 127.0.0.1:{job.port} token 64" in job.log.read_text()
    other, head = sorted(job.calls("ray"), key=lambda line: "--head" in line)
    assert f"--head --port={job.port}" in head and "--num-cpus=8" in head and f"--address=127.0.0.1:{job.port}" in other
    assert all(f"--temp-dir={job.ray_folder}" in line for line in (head, other))
    *steps, cleaning = job.calls("srun")
    second, first = sorted(steps, key=lambda line: "--head" in line)
    assert "--nodes=1 --ntasks=1 --nodelist=n1" in first and "--nodes=1 --ntasks=1 --exclude=n1" in second
    assert "--nodes=2 --ntasks=2 rm -rf" in cleaning and not job.ray_folder.exists()
    assert job.calls("scontrol") == [], "a failure is not tried again"


def test_before_the_time_limit_the_command_saves_and_the_job_is_queued_again(tmp_path: Path) -> None:
    job = Job(tmp_path, SAVES).when("begun")
    job.process.send_signal(signal.SIGUSR1)
    assert job.ended() == 143
    assert job.log.read_text().count("saved") == 1, "a second SIGTERM would end it at once"
    assert job.calls("scontrol") == [f"scontrol requeue {job.ray_folder.name.removeprefix('ray-')}"]
    assert not job.ray_folder.exists(), "a job that is queued has no nodes to clean any more"


def test_a_command_that_is_done_when_the_signal_comes_is_not_queued_again(tmp_path: Path) -> None:
    job = Job(tmp_path, SAVES.replace("143", "0")).when("begun")
    job.process.send_signal(signal.SIGUSR1)
    assert job.ended() == 0 and job.calls("scontrol") == []


def test_a_job_that_is_stopped_by_hand_saves_and_is_not_queued_again(tmp_path: Path) -> None:
    job = Job(tmp_path, SAVES).when("begun")
    job.process.send_signal(signal.SIGTERM)
    assert job.ended() == 143
    assert "saved" in job.log.read_text() and job.calls("scontrol") == []


def test_a_signal_before_the_command_begins_queues_the_job_again(tmp_path: Path) -> None:
    job = Job(tmp_path, "echo begun", JOINING="1").when("start 1")
    time.sleep(0.3)
    job.process.send_signal(signal.SIGUSR1)
    assert job.ended() == 143
    assert "begun" not in job.log.read_text() and len(job.calls("scontrol")) == 1


def test_a_node_that_does_not_start_ends_the_job(tmp_path: Path) -> None:
    job = Job(tmp_path, "echo begun", NO_RAY="1", JOINING="30")
    assert job.ended() == 1
    assert "did not start on all nodes" in job.log.read_text() and "begun" not in job.log.read_text()


def test_all_of_it_runs_in_a_container(tmp_path: Path) -> None:
    job = Job(tmp_path, "echo inside", G3PT_CONTAINER="box --nv")
    assert job.ended() == 0
    inside = job.calls("box")
    assert sum("ray start" in line for line in inside) == 2 and any("echo inside" in line for line in inside)


def test_its_header_is_what_the_page_says() -> None:
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", SCRIPT.read_text(), re.MULTILINE))
    assert options["signal"] == "B:USR1@300" and "requeue" in options and options["ntasks-per-node"] == "1"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Slurm"]:
    folder = tmp_path_factory.mktemp("slurm")
    with slurm_cluster.slurm(folder) as environment:
        environment |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        yield Slurm(folder, environment | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"})


@dataclass
class Slurm:
    """A real Slurm of two nodes; its jobs' logs are FOLDER/NAME.log."""

    folder: Path
    environment: dict[str, str]

    def submit(self, name: str, minutes: int, *command: str) -> subprocess.Popen[bytes]:
        """`sbatch --wait`, which ends with the job, however often that is queued."""
        given = ["sbatch", "--wait", "--nodes=2", "--cpus-per-task=1", f"--time={minutes}", "--signal=B:USR1@30"]
        given += [f"--job-name={name}", "--output=%x.log", str(SCRIPT), *command]
        return subprocess.Popen(given, cwd=self.folder, env=self.environment, preexec_fn=die_with_parent)

    def log(self, name: str) -> str:
        file = self.folder / f"{name}.log"
        return file.read_text() if file.exists() else ""

    def when(self, name: str, pattern: str, job: subprocess.Popen[bytes], timeout_s: float = 400) -> None:
        """Wait until the log matches."""
        deadline = time.monotonic() + timeout_s
        while not re.search(pattern, self.log(name)):
            assert time.monotonic() < deadline and job.poll() is None, self.log(name)
            time.sleep(1)


needs_slurm = pytest.mark.skipif(
    not slurm_cluster.is_installed(), reason="Slurm's daemons (Debian: slurm-wlm, munge), as root"
)


@pytest.mark.soak
@needs_slurm
def test_a_job_goes_on_after_its_time_limit(slurm: Slurm) -> None:
    """Its first start would never end; Slurm's own signal stops it and the second start is done at once."""
    command = "[ ${SLURM_RESTART_COUNT:-0} = 0 ] || exit 0; trap 'echo saved; exit 143' TERM; while :; do sleep 1; done"
    job = slurm.submit("limit", 2, "bash", "-c", command)
    assert job.wait(900) == 0, slurm.log("limit")
    text = slurm.log("limit")
    assert (text.count(", start "), text.count("USR1: the command"), text.count("saved")) == (2, 1, 1), text


@pytest.mark.soak
@needs_slurm
def test_a_training_on_two_nodes_is_saved_and_goes_on(slurm: Slurm) -> None:
    """Preprocessing and training across both; no checkpoint but that of the signal."""
    small = ("--resolution", "24", "--num-surface", "256", "--num-sharp", "64", "--num-queries", "512")
    data = ("python", str(REPOSITORY / "jobs/preprocess.py"), "--source", "shapes", "--limit", "16", *small)
    job = slurm.submit("data", 10, *data, "--output", str(slurm.folder / "shapes"))
    assert job.wait(600) == 0, slurm.log("data")
    points = ",".join(f"num_{kind}=256" for kind in ("points", "encode_points", "volume_queries", "near_queries"))
    train = ("python", str(REPOSITORY / "jobs/train_cvq.py"), "--data", str(slurm.folder / "shapes"))
    train += ("--output", str(slurm.folder / "runs"), "--steps", "600", "--batch-size", "4", "--num-workers", "2")
    job = slurm.submit("train", 60, *train, "--device", "cpu", "--set", f"{points},checkpoint_every=600")
    slurm.when("train", r"done=[1-9]", job)
    subprocess.run(
        ["scancel", "--batch", "--signal=USR1", "--name=train"], env=slurm.environment, check=True, timeout=60
    )
    assert job.wait(1200) == 0, slurm.log("train")
    text = slurm.log("train")
    assert (text.count(", start "), text.count("USR1: the command")) == (2, 1), text
    saved = int(re.findall(r"its checkpoint at (\d+) of", text)[0])
    (run,) = (slurm.folder / "runs").iterdir()
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert 0 < saved < steps[-1] == 2400 and steps == sorted(set(steps)) and (run / "_SUCCESS").exists()


def test_the_page_s_commands_are_understood() -> None:
    lines = [line for block in pages.blocks(PAGE) for line in block.lines if line.startswith("sbatch ")]
    assert len(lines) == 3
    for line in lines:
        options, _, command = line.partition(" deploy/slurm/g3pt.sbatch ")
        assert SCRIPT.exists() and "--nodes=" in options
        job_lines.parsed(command)


def test_the_page_names_its_variables() -> None:
    """And no others of ours."""
    assert set(re.findall(r"\bG3PT_\w+", SCRIPT.read_text())) == set(re.findall(r"\bG3PT_\w+", PAGE.read_text()))
