"""Commands started as a person starts them, interrupted or killed with SIGKILL, and started again."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

JOBS = Path(__file__).resolve().parents[2] / "jobs"


def command(job: str, *more: str, **flags: object) -> list[str]:
    """`python jobs/<job>.py --flag value ... more`."""
    pairs = [(f"--{name.replace('_', '-')}", str(value)) for name, value in flags.items()]
    return [sys.executable, str(JOBS / f"{job}.py"), *(part for pair in pairs for part in pair), *more]


def start(args: Sequence[str], folder: Path, **environment: str) -> subprocess.Popen[str]:
    """The command, running in `folder`; what it prints goes to files there, so that no full pipe stops it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "stdout.txt", "w") as out, open(folder / "stderr.txt", "w") as err:
        return subprocess.Popen(args, stdout=out, stderr=err, cwd=folder, env={**os.environ, **environment})


def printed(folder: Path) -> tuple[str, str]:
    """What the last command printed: (stdout, stderr)."""
    return (folder / "stdout.txt").read_text(), (folder / "stderr.txt").read_text()


def finish(args: Sequence[str], folder: Path, timeout_s: float = 300, **environment: str) -> str:
    """Run the command to its end, which must be a success; its `result: ` path."""
    code = start(args, folder, **environment).wait(timeout=timeout_s)
    out, err = printed(folder)
    assert code == 0, err[-4000:]
    assert out.splitlines()[-1].startswith("result: "), out
    return out.splitlines()[-1].removeprefix("result: ")


def kill_when(args: Sequence[str], folder: Path, ready: Callable[[], bool], wait_s: float, **environment: str) -> float:
    """Start the command, SIGKILL it `wait_s` after `ready()` first holds; the clock's time of the kill."""
    process, deadline = start(args, folder, **environment), time.monotonic() + 200
    while not ready():
        assert process.poll() is None and time.monotonic() < deadline, printed(folder)[1][-4000:]
        time.sleep(0.02)
    time.sleep(wait_s)
    assert process.poll() is None, "it ended before the kill"
    process.send_signal(signal.SIGKILL)
    process.wait()
    return time.time()


def interrupt_when(args: Sequence[str], folder: Path, ready: Callable[[], bool], number: int = signal.SIGINT, **environment: str) -> str:
    """Start the command, signal it once `ready()` holds: it must end within 20 s as its signal says, without a traceback or a
    process left behind, and name the command that resumes; what it printed on stderr."""
    process, deadline = start(args, folder, **environment), time.monotonic() + 200
    while not ready():
        assert process.poll() is None and time.monotonic() < deadline, printed(folder)[1][-4000:]
        time.sleep(0.02)
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
    """Process ids of children, their children, and so on."""
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


def kill_often(args_for: Callable[[Path], Sequence[str]], root: Path, check: Callable[[Path], None], kills: int, longest_s: float) -> None:
    """SIGKILL `kills` starts of a command, each at a random moment, until it comes through; `check` each folder that did.

    A start that comes through before its kill ends the folder's turn, and the next start begins a fresh one.
    """
    rng, done, turn = random.Random(time.time_ns()), 0, 0
    while done < kills:
        folder = root / f"turn-{turn}"
        turn += 1
        while done < kills:
            process = start(args_for(folder), folder)
            try:
                process.wait(timeout=rng.uniform(0, longest_s))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                done += 1
                continue
            assert process.returncode == 0, printed(folder)[1][-4000:]
            break
        finish(args_for(folder), folder)
        check(folder)
