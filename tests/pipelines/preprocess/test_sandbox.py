"""The sandbox: a hang, a crash, an error or running out of memory costs one call, and no child outlives its parent."""

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pipelines.preprocess.sandbox
from pipelines.cli.paths import REPOSITORY
from pipelines.preprocess.sandbox import MAX_TRIES, Sandbox

VICTIMS = "sandbox_victims"


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps memory by rules of its own")
def test_freed_memory_is_kept_for_the_next_call_unless_it_is_a_lot(sandbox: Sandbox) -> None:
    def faults(num_bytes: int) -> int:
        return sandbox.call(f"{VICTIMS}:use_and_free", {"num_bytes": num_bytes}).table["faults"][0].as_py()

    kept = [faults(50_000_000) for _ in range(3)]
    assert kept[0] > 10_000 and kept[-1] < 1000
    large = faults(100_000_000), faults(100_000_000)
    assert min(large) > 20_000, "a large mesh's memory goes back"


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


def test_a_call_whose_child_is_killed_from_outside_is_tried_again_twice(sandbox: Sandbox, tmp_path: Path) -> None:
    result = sandbox.call(f"{VICTIMS}:killed_by", {"number": signal.SIGKILL, "times": 2, "marks": str(tmp_path)})
    assert result.status == "ok" and result.table["value"][0].as_py() == 2
    always = sandbox.call(f"{VICTIMS}:killed_by", {"number": signal.SIGKILL, "times": 99, "marks": str(tmp_path)})
    assert (always.status, always.error) == ("out-of-memory", "out-of-memory: the child was killed")
    assert len(list(tmp_path.iterdir())) == 2 + MAX_TRIES


def test_a_crash_is_believed_of_a_fresh_child_only(sandbox: Sandbox, tmp_path: Path) -> None:
    crash = {"number": signal.SIGSEGV, "times": 1, "marks": str(tmp_path)}
    assert sandbox.call(f"{VICTIMS}:killed_by", crash).error.startswith("crash: ")
    (tmp_path / "0").unlink()
    echo(sandbox)
    assert sandbox.call(f"{VICTIMS}:killed_by", crash).status == "ok"


def test_memory_that_an_earlier_call_left_taken_costs_no_later_one(sandbox: Sandbox) -> None:
    values = [sandbox.call(f"{VICTIMS}:leak_memory", {"gigabytes": 2.5}).table["value"][0].as_py() for _ in range(2)]
    assert values == [1, 1]  # each in a child of its own


def test_a_child_that_hangs_up_and_goes_on_is_killed(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines.preprocess.sandbox, "LAST_BREATH_S", 0.2)
    pid = echo(sandbox)["pid"]
    assert sandbox.call(f"{VICTIMS}:hang_up", {}).error == "crash: the child ended with a closed pipe"
    assert not _alive(pid)


def test_a_child_killed_while_it_starts_is_started_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sandbox: Sandbox
) -> None:
    monkeypatch.setenv("G3PT_TEST_MARKS", str(tmp_path))
    sandbox.warm_up = f"{VICTIMS}:start_killed_once"
    echo(sandbox)
    assert len(list(tmp_path.iterdir())) == 1


def test_an_errors_own_status_counts_only_as_text_and_its_text_is_safe_to_print(sandbox: Sandbox) -> None:
    result = sandbox.call(f"{VICTIMS}:raise_status", {})
    assert (result.status, result.error) == ("failed", r"OSError: caf\udce9 \x1b[31mred")


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
from pipelines.preprocess.sandbox import Sandbox
box = Sandbox(timeout_s=60.0)
print(box.call("sandbox_victims:echo", {"value": 1}).table["pid"][0].as_py(), flush=True)
box.call("sandbox_victims:hang", {})
"""


def test_a_child_ends_with_its_parent_even_while_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.pathsep.join([str(REPOSITORY), str(Path(__file__).parents[1])])
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
