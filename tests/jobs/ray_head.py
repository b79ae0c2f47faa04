"""A Ray head as docs/guide/cluster.md starts one, and a shell beside it in which commands are typed.

Its home directory has a Ray token (as any local run of Ray leaves one). The head has ports and a temporary folder of
its own and is ended by its processes' ids: `ray stop` would end every Ray on the machine.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from tests.die_with_parent import die_with_parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Head:
    """A head that was started in `folder`, a copy of the repository; `shell` runs one line there."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder = folder
        home.mkdir()
        binaries = str(Path(sys.executable).parent)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        self.environment = inherited | {
            "HOME": str(home),
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
        }
        subprocess.run(
            ["ray", "get-auth-token", "--generate"], env=self.environment, check=True, capture_output=True, timeout=60
        )
        assert (home / ".ray" / "auth_token").exists()
        self.ray_folder = Path(f"/tmp/g3pt-{os.getpid()}")  # socket paths must stay short
        ports = {
            name: free_port()
            for name in ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port")
        }
        command = [
            "ray",
            "start",
            "--head",
            "--num-cpus=2",
            "--disable-usage-stats",
            "--include-log-monitor=false",  # it would poll all logs to copy them to drivers, which do not print them
            "--block",
            f"--temp-dir={self.ray_folder}",
        ]
        command += [f"--{name}={port}" for name, port in ports.items()]
        self.log = open(home / "head.log", "wb")  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            preexec_fn=die_with_parent,
        )
        # `ray job submit` looks for the dashboard here; on a machine of one's own both are at their default ports.
        self.environment |= {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{ports['dashboard-port']}"}
        self.address = f"127.0.0.1:{ports['port']}"

    def wait(self) -> None:
        """Wait until the job server answers. A `ray job list` would ask it too, at the cost of seconds of CPU."""
        token = Path(self.environment["HOME"], ".ray", "auth_token").read_text().strip()
        jobs = urllib.request.Request(
            self.environment["RAY_API_SERVER_ADDRESS"] + "/api/jobs/", headers={"Authorization": f"Bearer {token}"}
        )
        deadline = time.monotonic() + 120
        while not _answers(jobs):
            assert self.process.poll() is None, Path(self.log.name).read_text()[-2000:]
            assert time.monotonic() < deadline, "the job server did not answer"
            time.sleep(0.3)

    def shell(self, line: str, timeout: float = 400, **environment: str) -> subprocess.CompletedProcess[str]:
        """One line of bash in the head's folder."""
        return subprocess.run(
            ["bash", "-c", line], cwd=self.folder, env=self.environment | environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout,
        )  # fmt: skip

    def stop(self) -> None:
        """End the head and its processes by their ids."""
        ids = [self.process.pid, *descendants(self.process.pid)]
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=2)
        for pid in ids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.ray_folder, ignore_errors=True)
        self.log.close()


def _answers(request: urllib.request.Request) -> bool:
    """True if the server answers with success."""
    try:
        with urllib.request.urlopen(request, timeout=30):
            return True
    except OSError:  # an HTTPError too
        return False


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
