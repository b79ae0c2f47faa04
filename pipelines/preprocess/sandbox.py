"""A killable child process for work that may hang, crash or exhaust memory: each of the three costs one call.

How: `Sandbox.call("module:function", arguments)` sends one JSON frame to a child started with `python -m
pipelines.preprocess.sandbox` and reads one Arrow IPC frame back (never a pickle: a mesh file must not be able to run
code here). The child serves many calls, has a limit on its address space, and is killed by its pid at the time limit;
the next call starts another. It ends with its parent: the kernel kills it (PR_SET_PDEATHSIG), and elsewhere the end of
its input stops it. Ray has no time limit per row, and Ray Data retries a crashing row for ever.

Ours: the time limit starts when the child reports that it is ready, so imports and compilation never count against a
      mesh. A call is blamed for a death only if nothing else can have caused it. A child that answered other calls
      before may have been damaged by them, and a SIGKILL comes from outside (a person, a kernel short of memory). In
      these cases the call is tried again in a fresh child, at most three times. No call suffers from an earlier one,
      and killing children changes no result.

A frame is an 8-byte big-endian length and that many bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import importlib
import json
import os
import resource
import selectors
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from pipelines.cli.freed_memory import keep_freed_memory
from pipelines.cli.paths import REPOSITORY
from pipelines.cli.plain_text import plain

START_TIMEOUT_S = 600.0  # the first child on a machine compiles the geometry kernels
MAX_FRAME_BYTES = 4 * 2**30
MAX_TRIES = 3  # of one call whose child died
MAX_STARTS = 10  # of a child that is killed before it is ready
NO_MEMORY = ("bad_alloc", "Cannot allocate memory", "out of memory")  # last messages of C++ libraries
LAST_BREATH_S = 5.0  # for a child that has closed its pipe to exit
LARGEST_KEPT, MOST_KEPT = (
    2**26,
    2**28,
)  # bytes: enough for the grids of a mesh at 256 cells, but not the peak of the largest mesh for ever
_LENGTH = struct.Struct(">Q")
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of one call: `table` if status is ok, otherwise `error` as "reason: text"."""

    status: str
    error: str = ""
    table: pa.Table | None = None
    seconds: float = 0.0


@dataclass(kw_only=True)
class Sandbox:
    """Runs calls in one child process at a time.

    Not for use by several threads. `warm_up` names a function that each child runs once.
    """

    timeout_s: float = 60.0
    memory_limit_gb: float = 8.0
    warm_up: str | None = None
    _child: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _stderr: IO[bytes] | None = field(default=None, repr=False)
    _has_answered: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        if self.timeout_s <= 0:
            raise ValueError(f"timeout_s must be positive, got {self.timeout_s}")
        if self.memory_limit_gb <= 0:
            raise ValueError(f"memory_limit_gb must be positive, got {self.memory_limit_gb}")

    def call(self, function: str, arguments: Mapping[str, Any]) -> Result:
        """Run `module:function`, which must return an Arrow table, in the child with JSON keyword arguments."""
        request = json.dumps({"function": function, "arguments": dict(arguments)}).encode("utf-8")
        for _ in range(MAX_TRIES):
            result, is_believed = self._tried(request)
            if is_believed:
                break
        return result

    def _tried(self, request: bytes) -> tuple[Result, bool]:
        """(result of one try of a call, whether the call itself caused it)."""
        child = self._running_child()
        self._stderr.truncate(0)
        started, was_fresh = time.monotonic(), not self._has_answered
        try:
            write_frame(child.stdin, request)
            reply = read_frame(child.stdout, started + self.timeout_s)
        except TimeoutError:
            self.close()
            return Result(
                status="timeout", error=f"timeout: over {self.timeout_s:g} s", seconds=time.monotonic() - started
            ), True
        except (EOFError, BrokenPipeError):
            was_killed, result = self._died(time.monotonic() - started)
            return result, was_fresh and not was_killed
        result = self._answer(reply, time.monotonic() - started)
        self._has_answered = True
        return result, was_fresh or self._child is not None

    def close(self) -> None:
        """Kill the child if there is one. The next call starts another."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child.stdin.close()
            self._child.stdout.close()
            self._stderr.close()
            self._child = None
            self._has_answered = False

    @property
    def pid(self) -> int | None:
        """Process id of the child; None if there is none."""
        return self._child.pid if self._child is not None else None

    def _running_child(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is not None:
            self.close()
        for _ in range(MAX_STARTS):
            if self._child is not None or self._started():
                return self._child
        raise RuntimeError(f"the sandbox child was killed {MAX_STARTS} times before it was ready")

    def _started(self) -> bool:
        """Start a child; return False if it was killed before it was ready."""
        self._stderr = tempfile.TemporaryFile(mode="ab+")  # noqa: SIM115 (append mode: may be truncated between calls)
        command = [sys.executable, "-m", "pipelines.preprocess.sandbox", "--memory-limit-gb", str(self.memory_limit_gb)]
        command += ["--parent-pid", str(os.getpid())] + (["--warm-up", self.warm_up] if self.warm_up else [])
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, env=_child_environment(),
            start_new_session=True
        )  # fmt: skip
        try:
            read_frame(self._child.stdout, time.monotonic() + START_TIMEOUT_S)
        except (EOFError, TimeoutError) as error:
            said, code = self._last_words(), self._exit_code() if isinstance(error, EOFError) else None
            self.close()
            if code == -signal.SIGKILL:
                return False
            raise RuntimeError(f"the sandbox child does not start: {said or type(error).__name__}") from error
        return True

    def _answer(self, reply: bytes, seconds: float) -> Result:
        try:
            with pa.ipc.open_stream(reply) as reader:
                metadata = reader.schema.metadata or {}
                table = reader.read_all()
            status, error = metadata[b"status"].decode("utf-8"), metadata[b"error"].decode("utf-8")
        except (
            pa.ArrowException,
            OSError,
            KeyError,
            UnicodeDecodeError,
        ) as error:  # the child's memory was overwritten
            self.close()
            return Result(
                status="failed",
                error=f"crash: the child's reply cannot be read ({type(error).__name__})",
                seconds=seconds,
            )
        if status == "out-of-memory":
            self.close()  # the rest of its address space is fragmented
        return Result(status=status, error=error, table=table if status == "ok" else None, seconds=seconds)

    def _died(self, seconds: float) -> tuple[bool, Result]:
        """(whether the child was killed from outside, the result of its call)."""
        code, words = self._exit_code(), self._last_words()
        self.close()
        was_killed = code == -signal.SIGKILL
        if was_killed or any(said in words for said in NO_MEMORY):
            return was_killed, Result(
                status="out-of-memory", error="out-of-memory: the child was killed", seconds=seconds
            )
        how = (
            "a closed pipe"
            if code is None
            else f"signal {signal.Signals(-code).name}"
            if code < 0
            else f"exit code {code}"
        )
        text = f"crash: the child ended with {how}{': ' + words if words else ''}"
        return False, Result(status="failed", error=text, seconds=seconds)

    def _exit_code(self) -> int | None:
        """The exit code of a child that has closed its pipe; None if it keeps running."""
        try:
            return self._child.wait(timeout=LAST_BREATH_S)
        except subprocess.TimeoutExpired:
            return None

    def _last_words(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read()[-4000:].decode("utf-8", "replace").strip().splitlines()
        return plain(lines[-1].strip())[:200] if lines else ""


def _child_environment() -> dict[str, str]:
    """The child's environment variables: ours, one thread, and the repository importable from any working directory."""
    path = os.pathsep.join(part for part in (str(REPOSITORY), os.environ.get("PYTHONPATH", "")) if part)
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    return {**os.environ, **one_thread, "PYTHONPATH": path}


# ------------------------------------------------------------------------------------------------------------- frames


def write_frame(stream: IO[bytes], data: bytes) -> None:
    """Send one frame."""
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def read_frame(stream: IO[bytes], deadline: float | None = None) -> bytes:
    """Receive one frame.

    EOFError if the other side has closed the pipe, TimeoutError past the deadline (time.monotonic).
    """
    (length,) = _LENGTH.unpack(_read_exactly(stream, _LENGTH.size, deadline))
    if length > MAX_FRAME_BYTES:
        raise EOFError(f"a frame of {length} bytes is no frame")
    return _read_exactly(stream, length, deadline)


def _read_exactly(stream: IO[bytes], size: int, deadline: float | None) -> bytes:
    data = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while len(data) < size:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and (left <= 0 or not selector.select(left)):
                raise TimeoutError
            part = os.read(stream.fileno(), min(size - len(data), 1 << 20))
            if not part:
                raise EOFError
            data += part
    return bytes(data)


# -------------------------------------------------------------------------------------------------------------- child


def answer(request: bytes) -> bytes:
    """The reply to one request. Whatever the function raises becomes a status and a reason."""
    try:
        called = json.loads(request)
        return _encode("ok", "", resolve(called["function"])(**called["arguments"]))
    except Exception as error:  # the child's outermost frame: the row records the error and the batch continues
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            return _encode("out-of-memory", "out-of-memory: an allocation was refused")
        return _encode(*describe(error))


def describe(error: Exception) -> tuple[str, str]:
    """(status, "reason: text" on one line, safe to print).

    An exception may have its own `status` and `reason` as strings.
    """
    own = {
        name: value for name in ("status", "reason") if isinstance(value := getattr(error, name, None), str) and value
    }
    status, reason = own.get("status", "failed"), own.get("reason", type(error).__name__)
    text = plain(" ".join(str(error).split()))[:300]
    return status, text if text.startswith(f"{reason}:") else f"{reason}: {text}"


def resolve(function: str) -> Callable[..., Any]:
    """`module:function` -> the function."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


def _encode(status: str, error: str, table: pa.Table | None = None) -> bytes:
    if status == "ok" and not isinstance(table, pa.Table):
        return _encode("failed", f"bad-result: the function returned {type(table).__name__}, not a table")
    table = table if table is not None else pa.table({"nothing": pa.nulls(0)})
    sink = pa.BufferOutputStream()
    tagged = table.schema.with_metadata({**(table.schema.metadata or {}), "status": status, "error": error})
    with pa.ipc.new_stream(sink, tagged) as writer:
        writer.write_table(table.cast(tagged))
    return sink.getvalue().to_pybytes()


def _die_with(parent_pid: int) -> None:
    """Ask the kernel to kill this process when its parent ends (Linux only; elsewhere the end of stdin ends it)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        with contextlib.suppress(
            OSError
        ):  # /proc may be read-only; a kernel short of memory should kill the child, not its worker
            Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")
    if os.getppid() != parent_pid:
        raise SystemExit("the parent ended before its child began")


def _claim_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Reserve stdin and stdout for frames; prints of libraries go to stderr."""
    incoming, outgoing = os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    return incoming, outgoing


def serve(parent_pid: int, memory_limit_gb: float, warm_up: str | None) -> None:
    """The child's main loop: get ready, report it, then one reply per request until the parent closes the pipe."""
    _die_with(parent_pid)
    incoming, outgoing = _claim_pipes()
    keep_freed_memory(LARGEST_KEPT, MOST_KEPT)
    if warm_up:
        resolve(warm_up)()
    limit = int(memory_limit_gb * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    write_frame(outgoing, b"ready")
    while True:
        try:
            request = read_frame(incoming)
        except EOFError:
            return
        write_frame(outgoing, answer(request))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--parent-pid", type=int, required=True)
    parser.add_argument("--memory-limit-gb", type=float, required=True)
    parser.add_argument("--warm-up")
    options = parser.parse_args()
    serve(options.parent_pid, options.memory_limit_gb, options.warm_up)
