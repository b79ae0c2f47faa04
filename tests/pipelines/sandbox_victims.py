"""Functions that misbehave on purpose, run inside the sandbox by test_sandbox.py."""

import ctypes
import mmap
import os
import resource
import signal
import time
from pathlib import Path

import pyarrow as pa


def echo(value: object) -> pa.Table:
    print("a library that prints on stdout")
    os.write(1, b"and one that writes to descriptor 1\n")
    return pa.table({"value": [value], "pid": [os.getpid()]})


def big(num_bytes: int) -> pa.Table:
    return pa.table({"value": [b"x" * num_bytes]})


def hang() -> pa.Table:
    while True:
        time.sleep(0.05)


def segfault() -> pa.Table:
    ctypes.string_at(0)
    return pa.table({})


def eat_memory() -> pa.Table:
    return pa.table({"value": [bytes(bytearray(64 * 2**30))]})


_leak: list[mmap.mmap] = []


def leak_memory(gigabytes: float) -> pa.Table:
    """Succeeds in a new child and leaves too little memory for the next call."""
    _leak.append(mmap.mmap(-1, int(gigabytes * 2**30)))  # address space only: no page is touched
    return pa.table({"value": [len(_leak)]})


def killed_by(number: int, times: int, marks: str) -> pa.Table:
    """Send the child a signal on the first `times` calls, which are counted by files in the folder `marks`."""
    done = len(list(Path(marks).iterdir()))
    if done < times:
        (Path(marks) / str(done)).touch()
        os.kill(os.getpid(), number)
        signal.pause()
    return pa.table({"value": [done]})


def hang_up() -> pa.Table:
    """Close every pipe and continue."""
    os.closerange(3, 64)
    return hang()


def raise_status() -> pa.Table:
    """Raise an error like urllib's HTTPError, whose status is a number."""
    error = OSError("caf\udce9 \x1b[31mred")
    error.status, error.reason = 404, None
    raise error


def start_killed_once() -> None:
    killed_by(signal.SIGKILL, 1, os.environ["G3PT_TEST_MARKS"])


def raise_error() -> pa.Table:
    raise ValueError("this mesh\nis bad")


def return_text() -> str:
    return "not a table"


def cannot_start() -> None:
    raise RuntimeError("no geometry here")


def use_and_free(num_bytes: int) -> pa.Table:
    """The number of page faults of a block that is written and freed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(b"x") * num_bytes
    return pa.table({"faults": [resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before]})
