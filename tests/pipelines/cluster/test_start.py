"""A Ray that does not come up ends the command in a stated time, with its cause and what to do."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.cli.errors import UsageError
from pipelines.cluster import session, start
from pipelines.cluster.start import NoRay

BUSY = (
    "The current node timed out during startup. This could happen because the raylet failed to startup or the GCS "
    "has become overloaded."
)


@pytest.fixture
def init(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[dict[str, Any]]]:
    """Calls of `ray.init`, which comes up at once unless its `errors` say otherwise."""
    import ray

    calls: list[dict[str, Any]] = []

    def pretend(**options: Any) -> SimpleNamespace:
        calls.append(options)
        if pretend.errors:
            raise pretend.errors.pop(0)
        return SimpleNamespace(address_info={"session_dir": str(tmp_path)})

    pretend.errors = []
    monkeypatch.setattr(ray, "init", pretend)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    return calls


def fail(init: list[dict[str, Any]], *errors: Exception) -> None:
    import ray

    ray.init.errors = list(errors)


def test_a_busy_machine_gets_three_tries(init: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    fail(init, Exception(BUSY), Exception(BUSY))
    session.connect("local")
    assert len(init) == 3
    said = capsys.readouterr().err
    assert "The current node timed out" in said and "try 2 of 3" in said and "try 3 of 3" in said
    fail(init, *[Exception(BUSY)] * 3)
    with pytest.raises(
        UsageError,
        match=r"Ray did not start in 3 tries: Exception: The current node timed out .* CPUs: start the command again "
        r"when",
    ):
        session.connect("local")
    assert len(init) == 6


@pytest.mark.parametrize(
    ("error", "says"), [(OSError(28, "No space left on device"), "No space left .*; check the disk of")]
)
def test_what_another_try_does_not_change_is_said_at_once(
    init: list[dict[str, Any]], error: Exception, says: str
) -> None:
    fail(init, error)
    with pytest.raises(NoRay, match=says):
        session.connect("local")
    assert len(init) == 1


def test_processes_of_a_failed_start_are_ended() -> None:
    left: list[subprocess.Popen[bytes]] = []

    def begin() -> str:
        if not left:
            left.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "/ray/raylet"]))
            deadline = time.monotonic() + 10
            while b"/ray/" not in Path(f"/proc/{left[0].pid}/cmdline").read_bytes():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            raise RuntimeError(BUSY)
        return "up"

    assert start.started(begin) == "up"
    assert left[0].wait(timeout=10) == -9


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_a_long_temporary_folder_is_not_used_for_sockets(
    name: str,
    init: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for other in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.delenv(other, raising=False)
    session.connect("local")
    assert "_temp_dir" not in init[-1], "Ray's own choice is short"
    monkeypatch.setenv(name, str(tmp_path / ("long" * 12)))
    session.connect("local")
    folder = init[-1]["_temp_dir"]
    assert len(f"{folder}/{start.LONGEST_SOCKET}") <= start.SOCKET_BYTES
    assert f"Ray's sockets and logs go to {folder}" in capsys.readouterr().err
    monkeypatch.setattr(start, "SHORT_FOLDERS", (str(tmp_path / "missing"),))
    with pytest.raises(NoRay, match="have at most 107 bytes; export TMPDIR to a short path"):
        session.connect("local")


def test_ray_train_is_told_what_a_local_cluster_is_unless_the_user_said_so(
    init: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A joined cluster keeps the watcher for nodes that a cloud takes away."""
    watcher, interval = session.LOCAL_ENV
    monkeypatch.setattr(start, "ask", lambda _: None)
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k not in session.LOCAL_ENV})
    session.connect("10.0.0.1:6379")
    assert not session.LOCAL_ENV.keys() & os.environ.keys()
    os.environ[interval] = "3"
    session.connect("local")
    assert (os.environ[watcher], os.environ[interval]) == ("0", "3")


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that accepts connections and never says anything."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(16)
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def refusing() -> str:
    """An address at which nothing listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{server.getsockname()[1]}"


def within(seconds: float, connect: Callable[[], None]) -> str:
    """The UsageError of `connect()`, which must come in time; joining a cluster is never reached."""
    found: list[str] = []

    def run() -> None:
        with pytest.raises(UsageError) as error:
            connect()
        found.append(str(error.value))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, f"no answer within {seconds} s"
    return found[0]


def test_an_address_that_refuses_or_is_silent_ends_in_time(
    init: list[dict[str, Any]], silent: str, refusing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "ANSWER_S", 1.0)
    monkeypatch.setenv("RAY_ADDRESS", refusing)
    said = within(5, session.connect)
    assert said.startswith(f"{refusing} (RAY_ADDRESS): ConnectionRefusedError") and "leave out RAY_ADDRESS" in said
    said = within(10, lambda: session.connect(silent))
    assert said.startswith(f"{silent} (--ray-address): TimeoutError: it is connected, but does not answer within 1 s")
    assert "dashboard" in within(5, lambda: session.connect("http://127.0.0.1:8265"))
    assert "ValueError" in within(5, lambda: (fail(init, ValueError("bad")), session.connect("host")))
    assert len(init) == 1


def test_the_cluster_on_this_machine_is_looked_for_first(
    init: list[dict[str, Any]], refusing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` after a head that has ended: its address is still in Ray's file."""
    monkeypatch.setattr("ray._private.services.canonicalize_bootstrap_address_or_die", lambda _: refusing)
    assert "auto (--ray-address): ConnectionRefusedError" in within(5, lambda: session.connect("auto"))
    assert init == []
