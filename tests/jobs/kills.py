"""Start commands as a user does, interrupt or kill them, and start them again."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.die_with_parent import die_with_parent

JOBS = Path(__file__).resolve().parents[2] / "jobs"
# Twenty kills of a driver: five each end a local Ray with it, fifteen leave one behind that the next start joins, at a
# third of the cost.
TWENTY = pytest.mark.parametrize(
    ("number", "ray_of_commands"), [(5, "own"), (15, "joined")], indirect=["ray_of_commands"],
    ids=["own Ray", "joined Ray"]
)  # fmt: skip
START_S = 600.0  # the longest that a start may take to a point of its work
IN_A_ROW = 5  # kills of children or workers without any progress between them
NO_RAY = "The current node timed out during startup"  # Ray gives its own processes 30 s, on the busiest machine too


def command(job: str, *more: str, **flags: object) -> list[str]:
    """`python jobs/<job>.py --flag value ... more`."""
    pairs = [(f"--{name.replace('_', '-')}", str(value)) for name, value in flags.items()]
    return [sys.executable, str(JOBS / f"{job}.py"), *(part for pair in pairs for part in pair), *more]


def start(args: Sequence[str], folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Start the command in `folder`, with stdout and stderr in files there."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "stdout.txt", "w") as out, open(folder / "stderr.txt", "w") as err:
        env = {**os.environ, **environment}
        return subprocess.Popen(args, stdout=out, stderr=err, cwd=folder, env=env, preexec_fn=die_with_parent)


def printed(folder: Path) -> tuple[str, str]:
    """(stdout, stderr) of the last command."""
    return (folder / "stdout.txt").read_text(), (folder / "stderr.txt").read_text()


def finish(args: Sequence[str], folder: Path, timeout_s: float = 300, **environment: str) -> str:
    """Run the command, which must succeed, and return its `result: ` path. Tries again once if Ray did not start."""
    code = start(args, folder, **environment).wait(timeout=timeout_s)
    if code and ray_did_not_start(folder):
        code = start(args, folder, **environment).wait(timeout=timeout_s)
    out, err = printed(folder)
    assert code == 0, err[-4000:]
    assert out.splitlines()[-1].startswith("result: "), out
    return out.splitlines()[-1].removeprefix("result: ")


def ray_did_not_start(folder: Path) -> bool:
    """True if the last command failed because Ray did not start; reported on stderr."""
    found = NO_RAY in printed(folder)[1]
    if found:
        print(
            f"{folder.name}: RAY DID NOT START in its 30 s, load {os.getloadavg()[0]:.0f}", file=sys.stderr, flush=True
        )
    return found


def kill_when(args: Sequence[str], folder: Path, ready: Callable[[], bool], wait_s: float, **environment: str) -> float:
    """Start the command and SIGKILL it `wait_s` seconds after `ready()` is first true; returns the time of the kill."""
    process = start(args, folder, **environment)
    wait_until(process, folder, ready)
    return kill_driver(process, wait_s)


def wait_until(process: subprocess.Popen[str], folder: Path, ready: Callable[[], bool], timeout_s: float = 200) -> None:
    """Wait until `ready()` is true; the command must still run."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert process.poll() is None and time.monotonic() < deadline, printed(folder)[1][-4000:]
        time.sleep(0.02)


def kill_driver(process: subprocess.Popen[str], wait_s: float) -> float:
    """SIGKILL the command after `wait_s` seconds; returns the time of the kill."""
    time.sleep(wait_s)
    assert process.poll() is None, "it ended before the kill"
    process.send_signal(signal.SIGKILL)
    process.wait()
    return time.time()


def kill_below(process: subprocess.Popen[str], kind: str, rng: random.Random) -> bool:
    """SIGKILL a sandbox child of a command ("child"), or the Ray worker of one ("worker"), whose child must end too.

    Returns False if there is none at the moment.
    """
    found = sandbox_children(process.pid)
    if not found:
        return False
    child, worker = rng.choice(sorted(found.items()))
    try:
        os.kill(child if kind == "child" else worker, signal.SIGKILL)
    except ProcessLookupError:
        return False
    deadline = time.monotonic() + 20
    while is_alive(child):
        assert time.monotonic() < deadline, f"the sandbox child {child} outlives its {kind}"
        time.sleep(0.02)
    return True


def sandbox_children(pid: int) -> dict[int, int]:
    """Process id of each sandbox child of a process -> the id of its parent, a Ray worker."""
    found = {}
    for number in descendants(pid):
        with contextlib.suppress(OSError, IndexError):
            if b"pipelines.preprocess.sandbox" in (Path("/proc") / str(number) / "cmdline").read_bytes().split(b"\0"):
                found[number] = int((Path("/proc") / str(number) / "stat").read_text().rpartition(")")[2].split()[1])
    return found


def is_alive(pid: int) -> bool:
    """True if a process is running; a zombie is not."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def interrupt_when(
    args: Sequence[str], folder: Path, ready: Callable[[], bool], number: int = signal.SIGINT, **environment: str
) -> str:
    """Start the command and signal it once `ready()` is true.
    It must end within 20 s with the signal's exit code, without a traceback, leave no process behind and name the
    command that resumes. Returns its stderr.
    """
    process = start(args, folder, **environment)
    wait_until(process, folder, ready)
    family = descendants(process.pid)
    process.send_signal(number)
    assert process.wait(timeout=20) == 128 + number
    out, err = printed(folder)
    assert out == "" and "Traceback" not in err, err
    assert f"  resume   python {' '.join(args[1:])}" in err.splitlines(), err
    deadline = time.monotonic() + 10
    while left := {pid for pid in family if (Path("/proc") / str(pid)).exists()}:
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.1)
    return err


def descendants(pid: int) -> set[int]:
    """Process ids of all descendants."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            children.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
    found, todo = set[int](), [pid]
    while todo:
        mine = children.get(todo.pop(), [])
        found.update(mine)
        todo += mine
    return found


def kill_often(
    args_for: Callable[[Path], Sequence[str]], root: Path, check: Callable[[Path], None], kills: int,
    progress: Callable[[Path], int], total: int,
    **environment: str,
) -> None:  # fmt: skip
    """SIGKILL `kills` starts of a command, then let it finish; call `check` on each folder in which it finished.

    A start is killed at a random point of its remaining work (`progress(folder)` of `total`) or while it ends; every
    fourth start is killed before any work. After a start that finishes, the next begins in a new folder. The point of
    each kill is printed on stderr.
    """
    rng, done, turn, start_s = random.Random(time.time_ns()), 0, 0, 5.0
    while done < kills:
        folder, missed = root / f"turn-{turn}", 0
        turn += 1
        while done < kills and (found := progress(folder)) < total:
            process, began = start(args_for(folder), folder, **environment), time.monotonic()
            at, latest = rng.randint(found + 1, total), began + (rng.uniform(0, start_s) if done % 4 == 3 else START_S)
            while process.poll() is None and (now := progress(folder)) < at and time.monotonic() < latest:
                start_s = time.monotonic() - began if now == found else start_s
                time.sleep(0.02)
            assert time.monotonic() < began + START_S, printed(folder)[1][-4000:]
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=rng.uniform(0, 0.7))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
                done += 1
                print(
                    f"{folder.name}: kill {done} at {found} + {progress(folder) - found} of {total}, "
                    f"{time.monotonic() - began:.1f} s",
                    file=sys.stderr,
                )
            elif process.returncode and ray_did_not_start(folder) and not missed:
                missed += 1
            else:
                assert process.returncode == 0, printed(folder)[1][-4000:]
                break
        finish(args_for(folder), folder, START_S, **environment)
        check(folder)


def kill_below_often(
    args_for: Callable[[Path], Sequence[str]], root: Path, check: Callable[[Path], None], kind: str, kills: int,
    pause_s: tuple[float, float],
    progress: Callable[[Path], int],
) -> None:  # fmt: skip
    """Kill `kills` sandbox children or workers of a command at random intervals; each start must finish,
    then `check` its folder.

    After IN_A_ROW kills the next one waits until `progress(folder)` has grown: a command gives up if no child starts
    between kills (sandbox.MAX_STARTS), and on a busy machine no interval is long enough for a child to start.
    """
    rng, done, turn, missed = random.Random(time.time_ns()), 0, 0, 0
    while done < kills:
        folder = root / f"turn-{turn}"
        turn += 1
        process, reached, in_a_row, before = start(args_for(folder), folder), 0, 0, done
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=rng.uniform(*pause_s))
            if (now := progress(folder)) > reached:
                reached, in_a_row = now, 0
            if process.poll() is None and done < kills and in_a_row < IN_A_ROW and kill_below(process, kind, rng):
                done, in_a_row = done + 1, in_a_row + 1
        print(f"{folder.name}: {done - before} kills, exit {process.returncode}", file=sys.stderr)
        if process.returncode and ray_did_not_start(folder) and not missed:
            missed += 1
            continue
        assert process.returncode == 0, printed(folder)[1][-4000:]
        check(folder)
