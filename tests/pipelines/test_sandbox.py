"""The sandbox: a hang, a crash, an error and an out-of-memory each cost one call, and no child outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.sandbox import REPOSITORY, Sandbox

VICTIMS = "sandbox_victims"


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    box = Sandbox(timeout_s=20.0, memory_limit_gb=4.0)
    yield box
    box.close()


def echo(sandbox: Sandbox, value: object = "hello") -> dict:
    result = sandbox.call(f"{VICTIMS}:echo", {"value": value})
    assert result.status == "ok" and result.error == ""
    return result.table.to_pylist()[0]


def test_a_child_answers_call_after_call_whatever_it_prints(sandbox: Sandbox) -> None:
    first, second = echo(sandbox, "ä"), echo(sandbox, 3)
    assert (first["value"], second["value"]) == ("ä", 3)
    assert first["pid"] == second["pid"] == sandbox.pid != os.getpid()
    large = sandbox.call(f"{VICTIMS}:big", {"num_bytes": 3_000_000})
    assert len(large.table["value"][0].as_py()) == 3_000_000


def test_an_error_is_a_reason_on_one_line_and_the_child_lives_on(sandbox: Sandbox) -> None:
    pid = echo(sandbox)["pid"]
    result = sandbox.call(f"{VICTIMS}:raise_error", {})
    assert (result.status, result.error, result.table) == ("failed", "ValueError: this mesh is bad", None)
    assert sandbox.call(f"{VICTIMS}:return_text", {}).error.startswith("bad-result: the function returned str")
    assert echo(sandbox)["pid"] == pid


def test_a_hang_is_killed_at_the_time_limit_and_the_next_call_works(sandbox: Sandbox) -> None:
    pid = echo(sandbox)["pid"]
    sandbox.timeout_s = 0.5
    result = sandbox.call(f"{VICTIMS}:hang", {})
    assert (result.status, result.error) == ("timeout", "timeout: over 0.5 s")
    assert not Path(f"/proc/{pid}").exists()
    sandbox.timeout_s = 20.0
    assert echo(sandbox)["pid"] != pid


def test_a_segfault_costs_one_call(sandbox: Sandbox) -> None:
    result = sandbox.call(f"{VICTIMS}:segfault", {})
    assert result.status == "failed" and result.error.startswith("crash: the child ended with signal SIGSEGV")
    echo(sandbox)


def test_memory_beyond_the_limit_is_out_of_memory(sandbox: Sandbox) -> None:
    result = sandbox.call(f"{VICTIMS}:eat_memory", {})
    assert result.status == "out-of-memory" and result.error.startswith("out-of-memory: ")
    echo(sandbox)


def test_a_child_killed_from_outside_between_calls_is_replaced(sandbox: Sandbox) -> None:
    pid = echo(sandbox)["pid"]
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)
    assert echo(sandbox)["pid"] != pid


def test_a_child_that_cannot_start_says_why(sandbox: Sandbox) -> None:
    sandbox.warm_up = f"{VICTIMS}:cannot_start"
    with pytest.raises(RuntimeError, match="does not start: RuntimeError: no geometry here"):
        sandbox.call(f"{VICTIMS}:echo", {"value": 1})


def test_limits_are_checked() -> None:
    with pytest.raises(ValueError, match="timeout_s must be positive, got 0"):
        Sandbox(timeout_s=0)
    with pytest.raises(ValueError, match="memory_limit_gb must be positive, got -1"):
        Sandbox(memory_limit_gb=-1)


PARENT = """
import sys
from pipelines.sandbox import Sandbox
box = Sandbox(timeout_s=60.0)
print(box.call("sandbox_victims:echo", {"value": 1}).table["pid"][0].as_py(), flush=True)
box.call("sandbox_victims:hang", {})
"""


def test_a_child_ends_with_its_parent_even_while_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.pathsep.join([str(REPOSITORY), str(Path(__file__).parent)])
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}
    )
    child_pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while _alive(child_pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(child_pid)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
