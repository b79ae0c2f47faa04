"""A Slurm of two nodes on this machine: munge, slurmctld and two slurmd with folder, ports and key of their own."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.die_with_parent import die_with_parent
from tests.jobs.ray_head import free_port

DAEMONS = ("munged", "slurmctld", "slurmd")


def is_installed() -> bool:
    """Whether its daemons are there (Debian: slurm-wlm, munge) and may be started: they must be root."""
    return all(shutil.which(name) for name in (*DAEMONS, "sbatch", "srun")) and os.geteuid() == 0


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Start it; the environment in which `sbatch` and `squeue` reach it. All of it ends with the block."""
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    (folder / "state").mkdir()
    (folder / "slurm.conf").write_text(configuration(folder))
    conf = ("-D", "-f", str(folder / "slurm.conf"))
    files = {name: folder / f"munge.{name}" for name in ("socket", "pid", "log", "seed")}
    munged = ["munged", "-F", "--force", f"--key-file={key}"]
    munged += [f"--{name}{'' if name == 'socket' else '-file'}={file}" for name, file in files.items()]
    daemons = [munged, ["slurmctld", *conf], *(["slurmd", *conf, "-N", name] for name in ("n1", "n2"))]
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(open(folder / "daemons.log", "wb"))
        for command in daemons:
            daemon = subprocess.Popen(command, stdout=log, stderr=log, env=environment, preexec_fn=die_with_parent)
            stack.callback(_end, daemon)
        _wait_for_nodes(environment, folder / "daemons.log")
        stack.callback(_end_jobs, environment)
        yield environment


def configuration(folder: Path) -> str:
    """slurm.conf: two nodes of one CPU each, no accounting, no cgroups."""
    host = socket.gethostname()
    nodes = [
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs=1 RealMemory=4000"
        for name in ("n1", "n2")
    ]
    return f"""
ClusterName=trial
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={free_port()}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=requeue_delay=1
MpiDefault=none
MailProg=/bin/true
{nodes[0]}
{nodes[1]}
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def _wait_for_nodes(environment: dict[str, str], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        shown = subprocess.run(["sinfo", "-h", "-o", "%D %t"], capture_output=True, text=True, env=environment)
        if shown.stdout.split() == ["2", "idle"]:
            return
        time.sleep(1)
    raise TimeoutError(log.read_text()[-2000:])


def _end_jobs(environment: dict[str, str]) -> None:
    """Cancel all jobs and wait until they are gone: what they started would outlive the daemons."""
    subprocess.run(["scancel", "--full", "--user=root"], env=environment, timeout=60)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not subprocess.run(["squeue", "-h"], env=environment, capture_output=True, timeout=60).stdout:
            return
        time.sleep(1)


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(timeout=20)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
