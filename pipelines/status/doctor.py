"""`jobs/doctor.py`: checks whether this machine and the cluster can run the pipeline.

One line per check, with the remedy.

How: checks are plain functions (`doctor_machine`, `doctor_cluster`, `doctor_storage`, `doctor_network`) that return a
`Found`. Each has its own time limit: a check that hangs counts as failed, and the others continue. Exit code 0 if none
failed; warnings are allowed. With --json: `{"ok", "checks": [{"name", "state", "found", "remedy"}]}`.
"""

import json
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from g3pt.data.storage import is_remote, location
from pipelines.cli.errors import NotWell, bad_input, one_line
from pipelines.cli.flags import OnRay
from pipelines.cli.main import absolute, stdout_to_stderr
from pipelines.cli.plain_text import console, plain, without_login
from pipelines.cluster import session
from pipelines.status import doctor_cluster as on_cluster
from pipelines.status import doctor_machine as here
from pipelines.status import doctor_network as network
from pipelines.status.doctor_machine import Found, failed
from pipelines.status.doctor_storage import check_storage

SLOW = "the hub is too slow from here: try again, what arrived is kept"
WIDEST = 100  # columns on a terminal
COLOURS = {"ok": "green", "warning": "yellow", "failed": "bold red"}


@dataclass(frozen=True, kw_only=True)
class DoctorFlags(OnRay):
    """Check this machine and the Ray cluster: versions, GPUs, storage, MLflow, disks, clocks.

    Each problem comes with its remedy.

    Exit code 0 if nothing failed (warnings are allowed), else 1.
    """

    storage: str | None = None
    """what all nodes share: a folder, s3://bucket/path or gs://bucket/path; default ./out if it exists, else the
    working directory"""
    objaverse: bool = False
    """fetch Objaverse's lists and two objects, and compare them with what preprocessing reads"""
    encoders: bool = False
    """load CLIP and DINOv2, and compare their features with those of the first such check"""
    json: bool = False
    """print JSON instead of lines"""


@dataclass(frozen=True, kw_only=True)
class Check:
    """A check: its name, time limit and function, which returns one or several findings."""

    name: str
    timeout_s: float
    run: Callable[[], Found | list[Found]]
    remedy: str = "it hangs: investigate this first"


def doctor(flags: DoctorFlags) -> None:
    """Run all checks and print each result as it arrives. NotWell if one failed."""
    session.quiet_environment()
    started_before = session.is_connected()
    rows: list[dict[str, str]] = []
    try:
        for name, found in run_all(all_checks(flags)):
            for one in found:
                rows.append({"name": name, **{key: plain(without_login(value)) for key, value in asdict(one).items()}})
                if not flags.json:
                    print_row(rows[-1])
    finally:
        if not started_before:
            with stdout_to_stderr():
                session.disconnect()
    bad = any(row["state"] == "failed" for row in rows)
    if flags.json:
        print(json.dumps({"ok": not bad, "checks": rows}, indent=1))
    if bad:
        raise NotWell


def all_checks(flags: DoctorFlags) -> list[Check]:
    """All checks in order. Those of the cluster use the nodes found by the check `ray`."""
    shared, nodes = storage_folder(flags.storage), on_cluster.Nodes()
    storage = absolute(".") if is_remote(shared) else shared
    checks = [
        Check(name="python", timeout_s=10, run=here.check_python),
        Check(name="packages", timeout_s=30, run=here.check_packages),
        Check(name="mesh2sdf", timeout_s=90, run=here.check_mesh2sdf),
        Check(name="gpu", timeout_s=90, run=here.check_gpu),
        Check(name="disk", timeout_s=20, run=lambda: here.check_disk(storage)),
        Check(name="clock", timeout_s=10, run=here.check_clock),
        Check(name="ray-auth", timeout_s=10, run=on_cluster.check_auth),
        Check(
            name="ray",
            timeout_s=240,  # a busy machine: three tries
            run=lambda: on_cluster.check_ray(nodes, flags.ray_address),
            remedy=on_cluster.NO_ANSWER,
        ),
        Check(name="node", timeout_s=240, run=lambda: on_cluster.check_nodes(nodes, storage)),
        Check(name="storage", timeout_s=180, run=lambda: check_storage(nodes, shared)),
        Check(name="mlflow", timeout_s=240, run=lambda: on_cluster.check_mlflow(nodes, storage)),
    ]
    if flags.objaverse:
        checks.append(Check(name="objaverse", timeout_s=1800, run=network.check_objaverse, remedy=SLOW))
    if flags.encoders:
        checks.append(Check(name="encoders", timeout_s=1800, run=lambda: network.check_encoders(storage), remedy=SLOW))
    return checks


def storage_folder(given: str | None) -> str:
    """The folder to check, absolute, or the bucket's URI. UsageError for a URI of another kind."""
    if given is not None and is_remote(given):
        with bad_input():
            return str(location(given))
    return absolute(given if given is not None else "out" if Path("out").is_dir() else ".")


class Runner:
    """Runs checks one after another in one long-lived thread.

    Ray's processes end with the thread that started them: with one thread per check a local cluster would end right
    after its start. A check that hangs keeps its thread, and the next checks get a new one.
    """

    def __init__(self) -> None:
        self.tasks: queue.SimpleQueue[Check] = queue.SimpleQueue()
        self.found: queue.SimpleQueue[list[Found]] = queue.SimpleQueue()
        threading.Thread(target=self._serve, daemon=True).start()

    def within(self, check: Check) -> list[Found] | None:
        """The check's findings; None if it takes too long, after which this runner must not be used."""
        self.tasks.put(check)
        try:
            return self.found.get(timeout=check.timeout_s)
        except queue.Empty:
            return None

    def _serve(self) -> None:
        while True:
            check = self.tasks.get()
            try:
                result = check.run()
            except Exception as error:  # a check may fail in any way that its library can
                result = failed(
                    f"{type(error).__name__}: {one_line(error)[:200]}", "the check itself failed: please report it"
                )
            self.found.put(result if isinstance(result, list) else [result])


def run_all(checks: Iterable[Check]) -> Iterator[tuple[str, list[Found]]]:
    """(name, findings) of each check. A check that hangs does not block the others."""
    runner = Runner()
    for check in checks:
        with stdout_to_stderr():
            found = runner.within(check)
        if found is None:
            runner, found = Runner(), [failed(f"no answer within {check.timeout_s:g} s", check.remedy)]
        yield check.name, found


def print_row(row: dict[str, str]) -> None:
    """Print `name  state  found; remedy`: on one line in a pipe, wrapped and coloured on a terminal."""
    told = row["found"] + (f"; remedy: {row['remedy']}" if row["remedy"] else "")
    if not sys.stdout.isatty():
        print(f"{row['name']:8}  {row['state']:7}  {told}", flush=True)
        return
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(width=8)
    table.add_column(width=7)
    table.add_column(overflow="fold")
    table.add_row(row["name"], Text(row["state"], COLOURS[row["state"]]), told)
    console(WIDEST).print(table)
