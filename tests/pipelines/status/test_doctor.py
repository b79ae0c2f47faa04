"""jobs/doctor.py: each check on a working and on a broken machine; none hangs, none prints a secret."""

import errno
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main
from pipelines.cluster import start
from pipelines.cluster import storage as cluster_storage
from pipelines.cluster.nodes import Node, Nodes, node_id
from pipelines.status import doctor, doctor_cluster, doctor_machine, doctor_storage
from pipelines.status.doctor import Check, DoctorFlags, run_all
from pipelines.status.doctor_machine import GIB, Found, failed, ok, warning

NODE = Node(id="a" * 56, address="10.0.0.5", cpus=2, gpus=0, is_driver=False)


def call(monkeypatch: pytest.MonkeyPatch, found: list[Found], *args: str) -> int:
    """The exit code of the doctor if its checks have this result."""
    checks = [Check(name=f"check{number}", timeout_s=5, run=lambda one=one: one) for number, one in enumerate(found)]
    monkeypatch.setattr(doctor, "all_checks", lambda flags: checks)
    with pytest.raises(SystemExit) as stop:
        main.main(DoctorFlags, doctor.doctor, example="", args=args, keep_stdout=True)
    return stop.value.code


# -------------------------------------------------------------------------------------------------- running, printing


def test_a_warning_is_allowed_and_a_failure_is_exit_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, [ok("fine"), warning("slow", "be patient")]) == 0
    assert capsys.readouterr().out == "check0    ok       fine\ncheck1    warning  slow; remedy: be patient\n"
    assert call(monkeypatch, [failed("broken", "mend it"), ok("fine")]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "check0    failed   broken; remedy: mend it" and err == ""


def test_json_has_all_of_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, [ok("fine"), failed("a\x1b[31mb http://me:secret@host/", "mend it")], "--json") == 1
    rows = [
        {"name": "check0", "state": "ok", "found": "fine", "remedy": ""},
        {"name": "check1", "state": "failed", "found": "a\\x1b[31mb http://host/", "remedy": "mend it"},
    ]
    assert json.loads(capsys.readouterr().out) == {"ok": False, "checks": rows}


def test_a_check_that_hangs_or_breaks_stops_no_other() -> None:
    def breaks() -> Found:
        raise OSError("not here")

    checks = [
        Check(name="hangs", timeout_s=0.1, run=lambda: time.sleep(60), remedy="look there"),  # type: ignore[arg-type, return-value]
        Check(name="breaks", timeout_s=5, run=breaks),
        Check(name="many", timeout_s=5, run=lambda: [ok("one"), ok("two")]),
    ]
    started = time.monotonic()
    found = dict(run_all(checks))
    assert time.monotonic() - started < 5
    assert found["hangs"] == [failed("no answer within 0.1 s", "look there")]
    assert found["breaks"][0].state == "failed" and found["breaks"][0].found == "OSError: not here"
    assert found["many"] == [ok("one"), ok("two")]


def test_checks_share_a_thread_that_lives_on() -> None:
    """Ray's processes die with the thread that started them."""
    import threading

    threads: list[threading.Thread] = []
    checks = [
        Check(name=str(n), timeout_s=5, run=lambda: threads.append(threading.current_thread()) or ok(""))
        for n in range(2)
    ]
    assert len(list(run_all(checks))) == 2
    assert threads[0] is threads[1] and threads[0].is_alive()


def test_what_a_check_prints_stays_off_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        doctor, "all_checks", lambda flags: [Check(name="loud", timeout_s=5, run=lambda: print("noise") or ok("fine"))]
    )
    doctor.doctor(DoctorFlags(json=True))
    assert json.loads(capsys.readouterr().out)["ok"] is True


def test_storage_is_out_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert doctor.storage_folder(None) == str(tmp_path)
    (tmp_path / "out").mkdir()
    assert doctor.storage_folder(None) == str(tmp_path / "out")
    assert doctor.storage_folder("s3://bucket/out/") == "s3://bucket/out"
    with pytest.raises(main.UsageError, match=r"ftp://host/out: ftp:// is not known"):
        doctor.storage_folder("ftp://host/out")


# -------------------------------------------------------------------------------------------------------- one machine


def test_python_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor_machine.check_python().state == "ok"
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    assert doctor_machine.check_python().state == "failed"


def test_packages_against_constraints(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = doctor_machine.wanted_packages()
    assert {"torch", "ray", "mlflow", "DracoPy", "huggingface_hub"} <= wanted.keys() and all(wanted.values())
    monkeypatch.setattr(doctor_machine, "installed_packages", lambda names: wanted | {"torch": "2.12.0"})
    found = doctor_machine.check_packages()
    assert found == warning("torch 2.12.0 (constraints.txt: 2.13.0)", "pip install -c constraints.txt torch==2.13.0")
    monkeypatch.setattr(doctor_machine, "installed_packages", lambda names: wanted | {"ray": ""})
    assert doctor_machine.check_packages() == failed("missing: ray", doctor_machine.REPAIR)


def test_versions_are_read_without_a_builds_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_machine.importlib.metadata, "version", lambda name: "2.13.0+cpu")
    assert doctor_machine.installed_packages(["torch"]) == {"torch": "2.13.0"}
    monkeypatch.undo()
    assert doctor_machine.installed_packages(["no-such-package"]) == {"no-such-package": ""}


def test_a_compiled_package_is_tried_in_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor_machine.child_error("pass") is None
    assert (
        doctor_machine.child_error("import no_such_module") == "ModuleNotFoundError: No module named 'no_such_module'"
    )
    assert doctor_machine.child_error("import os; os.abort()") == "exit code -6"
    assert doctor_machine.child_error("import time; time.sleep(60)", timeout_s=0.2) == "no answer within 0.2 s"
    monkeypatch.setattr(doctor_machine.shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor_machine, "child_error", lambda code: "ImportError: no")
    found = doctor_machine.check_mesh2sdf()
    assert found.state == "warning" and "apt install g++" in found.remedy


def with_driver(monkeypatch: pytest.MonkeyPatch, out: str, err: str = "") -> None:
    monkeypatch.setattr(doctor_machine.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(doctor_machine.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, out, err))


def test_gpus_are_named_with_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    with_driver(monkeypatch, f"NVIDIA H100|{70 * GIB}|{80 * GIB}\n" * 2)
    assert doctor_machine.check_gpu() == ok("NVIDIA H100, 70 of 80 GiB free; NVIDIA H100, 70 of 80 GiB free")
    with_driver(monkeypatch, "", "AssertionError: Torch not compiled with CUDA enabled\n")
    found = doctor_machine.check_gpu()
    assert found.state == "warning" and "Torch not compiled with CUDA" in found.found


def test_disks_against_their_thresholds(tmp_path: Path) -> None:
    plenty = {"storage": ("/data", 100 * GIB), "/tmp": ("/tmp", 100 * GIB), "/dev/shm": ("/dev/shm", 8 * GIB)}
    assert doctor_machine.judge_disks(plenty).state == "ok"
    assert doctor_machine.judge_disks(plenty | {"/dev/shm": ("/dev/shm", 64 * 2**20)}).state == "warning"
    found = doctor_machine.judge_disks(plenty | {"storage": ("/data", GIB), "/tmp": ("/tmp", 5 * GIB)})
    assert (
        found.state == "failed"
        and "/data 1.0 GiB free (want 20)" in found.found
        and "another --storage" in found.remedy
    )
    assert doctor_machine.disk_space(str(tmp_path / "not" / "yet"))["storage"][1] > 0


def test_a_clock_behind_the_repositorys_files() -> None:
    assert doctor_machine.check_clock().state == "ok"
    found = doctor_machine.check_clock(now=lambda: 1e9)
    assert found.state == "warning" and found.found.startswith("2001-09-09 01:46:40 UTC is ")


# ------------------------------------------------------------------------------------------------------------ cluster


@pytest.mark.parametrize(
    ("mode", "token", "state", "says"),
    [
        ("token", True, "ok", "sends it"),
        ("token", False, "warning", "without a token"),
        (None, True, "warning", "does not send it and fails"),
        (None, False, "warning", "heads are open"),
        ("disabled", True, "warning", "can run code there"),
    ],
)
def test_authentication(
    mode: str | None, token: bool, state: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    if token:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("very-secret")
    found = doctor_cluster.check_auth()
    assert (found.state, says in found.found, "very-secret" in str(found)) == (state, True, False)
    assert bool(found.remedy) == (state != "ok")


def test_nothing_at_the_address_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # another test's Ray may be connected
    found = doctor_cluster.check_ray(Nodes(), None)
    assert (
        found.state == "failed"
        and found.found.startswith(f"{address} (RAY_ADDRESS): ConnectionRefusedError")
        and "ray start" in found.remedy
    )


def test_a_server_that_says_nothing_and_a_long_temporary_folder_are_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "ANSWER_S", 0.5)
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # another test's Ray may be connected
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        found = doctor_cluster.check_ray(Nodes(), f"127.0.0.1:{silent.getsockname()[1]}")
    assert found.state == "failed" and "does not answer within" in found.found and "ray start" in found.remedy
    monkeypatch.setattr(Nodes, "connect", lambda *_: None)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("long" * 12)))
    found = doctor_cluster.check_ray(Nodes(), None)
    assert found.state == "warning" and "TMPDIR is too long" in found.found and found.remedy == "export TMPDIR=/tmp"


def about(**changes: Any) -> dict[str, Any]:
    """The answer of a node like the driver."""
    disks = {"/tmp": ("/tmp", 100 * GIB)}
    return {
        "time": 0.0,
        "python": "3.11.7",
        "packages": {"torch": "2.13.0"},
        "gpus": [],
        "gpu_problem": "",
        "disks": disks,
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "skew_s", "state", "says"),
    [
        ({}, 0.0, "ok", "packages as on the driver"),
        ({"python": "3.11.9"}, 0.0, "ok", "3.11.9"),
        ({"python": "3.12.1"}, 0.0, "failed", "Python 3.12.1, driver 3.11.7"),
        ({"packages": {"torch": ""}}, 0.0, "warning", "torch missing (driver 2.13.0)"),
        ({"gpu_problem": "the GPU driver did not answer within 60 s"}, 0.0, "warning", "did not answer"),
        ({}, -600.0, "warning", "its clock is 10 min behind"),
        ({"disks": {"/tmp": ("/tmp", 0)}}, 0.0, "failed", "/tmp 0.0 GiB free"),
    ],
)
def test_a_node_against_the_driver(changes: dict[str, Any], skew_s: float, state: str, says: str) -> None:
    found = doctor_cluster.judge_node(NODE, about(**changes), about(), skew_s)
    assert (
        (found.state, bool(found.remedy)) == (state, state != "ok")
        and says in found.found
        and found.found.startswith("10.0.0.5: 2 CPUs")
    )


def test_a_node_that_gives_no_answer_or_no_gpu() -> None:
    found = doctor_cluster.judge_node(NODE, ModuleNotFoundError("No module named 'pipelines'"), about(), None)
    assert found.state == "failed" and "No module named 'pipelines'" in found.found and "--working-dir" in found.remedy
    gpu_node = Node(id="b", address="10.0.0.6", cpus=2, gpus=1, is_driver=False)
    assert "torch finds none" in doctor_cluster.judge_node(gpu_node, about(), about(), 0.0).found


class LocalNodes(Nodes):
    """One node, this process; `elsewhere` is the folder that it sees at the storage's path."""

    def __init__(self, storage: Path, elsewhere: Path | None = None, ahead_s: float = 0.0) -> None:
        self.found, self.storage, self.elsewhere, self.ahead_s = (
            [Node(**{**vars(NODE), "id": node_id()})],
            storage,
            elsewhere,
            ahead_s,
        )

    def on_each(self, function: Callable[..., Any], *args: Any, timeout_s: float = 1.0) -> list[tuple[Node, Any]]:
        swapped = [str(self.elsewhere) if self.elsewhere and arg == str(self.storage) else arg for arg in args]
        result = function(*swapped)
        return [(self.found[0], result + self.ahead_s if isinstance(result, float) else result)]


def test_shared_storage_is_tried_both_ways_and_left_as_it_was(tmp_path: Path) -> None:
    storage = tmp_path / "out"
    found = doctor_storage.check_folder(LocalNodes(storage), str(storage))
    assert found == ok(f"{storage}: written and read both ways between driver and 1 node")
    assert not storage.exists(), "it was not there before"


def test_storage_that_is_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_storage, "SEEN_WITHIN_S", 0.3)
    storage, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    assert "no such folder there" in doctor_storage.check_folder(LocalNodes(storage, elsewhere), str(storage)).found
    elsewhere.mkdir()
    found = doctor_storage.check_folder(LocalNodes(storage, elsewhere), str(storage))
    assert (found.state, "does not see the driver's file" in found.found) == ("failed", True)
    monkeypatch.setattr(cluster_storage, "read_and_write", lambda *_: "")
    assert (
        "its file does not arrive here"
        in doctor_storage.check_folder(LocalNodes(storage, elsewhere), str(storage)).found
    )
    assert list(tmp_path.rglob("*probe*")) == []


def test_storage_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert doctor_storage.check_folder(Nodes(), str(tmp_path / "file")).state == "failed"
    assert (
        doctor_storage.check_folder(Nodes(), str(tmp_path)).found
        == f"{tmp_path}: written here, not tried from a worker"
    )


def test_a_lock_that_is_held_here_is_seen_from_each_node(tmp_path: Path) -> None:
    storage = tmp_path / "out"
    found = doctor_storage.check_locks(LocalNodes(storage), str(storage))
    assert found == ok(f"{storage}: a lock that is held here is seen by 1 node")
    assert not storage.exists(), "it was not there before"


def test_locks_of_one_node_alone_are_a_failure(tmp_path: Path) -> None:
    """As on NFS mounted with local_lock: a file is shared, its locks are not."""

    class Alone(LocalNodes):
        def on_each(self, function: Callable[..., Any], *args: Any, timeout_s: float = 1.0) -> list[tuple[Node, Any]]:
            here = Path(args[0])
            other = here.with_name("as-there")
            other.write_bytes(here.read_bytes())
            return [(self.found[0], function(str(other)))]

    found = doctor_storage.check_locks(Alone(tmp_path), str(tmp_path))
    assert found.state == "failed" and "10.0.0.5: does not see the driver's lock" in found.found
    assert "two commands on two nodes could work on one output" in found.found


def test_a_file_system_without_flock_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(doctor_storage.fcntl, "flock", refuse)
    found = doctor_storage.check_locks(LocalNodes(tmp_path), str(tmp_path))
    assert found.state == "warning" and "no flock here" in found.found and "-o flock" in found.remedy
    assert list(tmp_path.iterdir()) == []


def test_clocks_are_compared_over_the_answers_way(tmp_path: Path) -> None:
    skews = [
        next(iter(doctor_cluster.clock_skews(LocalNodes(tmp_path, ahead_s=s)).values())) for s in (0.0, 100.0, -100.0)
    ]
    assert skews[0] == 0 and 90 < skews[1] <= 100 and -100 <= skews[2] < -90


def test_a_fresh_mlflow_store_is_tried_and_removed(tmp_path: Path) -> None:
    found = doctor_cluster.check_mlflow(LocalNodes(tmp_path), str(tmp_path / "out"))
    assert (
        found.state == "ok"
        and found.found
        == f"sqlite:///{tmp_path}/out/mlflow.db would be created: a test store opens from the driver and from 1 node"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_tracking_server_that_is_away_and_its_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    found = doctor_cluster.check_mlflow(Nodes(), str(tmp_path))
    assert found.state == "failed" and found.found.startswith("http://127.0.0.1:9: ") and "secret" not in str(found)
    opens = iter(["", "MlflowException: refused"])
    monkeypatch.setattr(doctor_cluster, "open_store", lambda uri: next(opens))
    assert doctor_cluster.check_mlflow(LocalNodes(tmp_path), str(tmp_path)).state == "warning"


@pytest.mark.slow
def test_this_machine_and_a_real_cluster(ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    doctor.doctor(DoctorFlags(storage=str(tmp_path / "out")))
    lines = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()}
    names = ("python", "packages", "ray-auth", "ray", "node", "storage", "mlflow")
    assert {name: lines[name] for name in names} == dict.fromkeys(names, "ok")
    assert list(tmp_path.iterdir()) == []
