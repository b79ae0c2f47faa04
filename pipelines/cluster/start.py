"""What can keep Ray from coming up, found in a stated time and told with its remedy.

How: an address is asked before Ray joins it, since Ray itself would try for four minutes: refused connections and
unknown hosts at once, a server that does not speak within ANSWER_S seconds. A local start that fails on a busy machine
is tried again, after the processes that it left were ended. Unix sockets have paths of at most 107 bytes: if TMPDIR is
too long for Ray's, they go to a short folder.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pipelines.cli.errors import UsageError, one_line
from pipelines.cli.plain_text import without_login
from pipelines.cli.progress import say

Result = TypeVar("Result")
TRIES = 3
CONNECT_S, ANSWER_S = 5.0, 15.0  # for a connection, and then for a server to speak
SOCKET_BYTES = 107
LONGEST_SOCKET = "session_2026-01-31_23-59-59_123456_1234567/sockets/plasma_store.12"  # in Ray's folder
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
LASTING = (ValueError, TypeError, ImportError, OSError)  # errors that another try does not change ...
PASSING = (ConnectionError, TimeoutError)  # ... except these


class NoRay(UsageError):
    """Ray does not come up."""

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(f"{cause}; {remedy}")
        self.cause, self.remedy = cause, remedy


# ------------------------------------------------------------------------------------------------------ a local start


def started(start: Callable[[], Result]) -> Result:
    """`start()`, tried up to TRIES times while Ray's processes do not come up. NoRay if they never do."""
    for number in range(1, TRIES + 1):
        before = _children()
        try:
            return start()
        except Exception as error:  # Ray raises plain Exception for a node that timed out
            _end(_children() - before)
            if isinstance(error, LASTING) and not isinstance(error, PASSING):
                if not isinstance(error, OSError):
                    raise
                raise NoRay(f"Ray does not start: {said(error)}", f"check the disk of {ray_folder()}") from error
            if number == TRIES:
                raise NoRay(
                    f"Ray did not start in {TRIES} tries: {said(error)}",
                    f"{_load()}: start the command again when the machine is quieter; Ray's logs are in "
                    f"{ray_folder()}/session_latest/logs",
                ) from error
            say(f"  Ray did not start ({said(error)[:100]}; {_load()}); try {number + 1} of {TRIES}")
    raise AssertionError("unreachable")


def short_folder() -> str | None:
    """A folder for Ray's sockets if the one by TMPDIR is too long for them, else None. NoRay if there is none."""
    if _fits(ray_folder()):
        return None
    for parent in SHORT_FOLDERS:
        folder = Path(parent, "ray")
        if os.access(folder if folder.exists() else parent, os.W_OK | os.X_OK):
            return str(folder)
    raise NoRay(
        f"Ray's sockets do not fit below {ray_folder()}: their paths have at most {SOCKET_BYTES} bytes",
        "export TMPDIR to a short path that you can write to",
    )


def ray_folder() -> str:
    """Ray's temporary folder, by RAY_TMPDIR or TMPDIR."""
    return os.path.join(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp", "ray")


def _fits(folder: str) -> bool:
    return len(os.fsencode(os.path.join(folder, LONGEST_SOCKET))) <= SOCKET_BYTES


def _load() -> str:
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs"


def _children() -> set[int]:
    """Ids of Ray's processes below this one."""
    parents, found = {}, {os.getpid()}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            parents[int(stat.parent.name)] = int(stat.read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid for pid in found - {os.getpid()} if b"/ray/" in _command(pid)}


def _command(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _end(pids: set[int]) -> None:
    """Kill processes that a failed start left: Ray itself would end them with this process only."""
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


# -------------------------------------------------------------------------------------------------------- an address


def address_and_source(ray_address: str | None) -> tuple[str, str]:
    """The address to use, and which flag or variable it is from."""
    if ray_address:
        return ray_address, "--ray-address"
    if os.environ.get("RAY_ADDRESS"):
        return os.environ["RAY_ADDRESS"], "RAY_ADDRESS"
    return "local", "neither --ray-address nor RAY_ADDRESS"


def is_given(ray_address: str | None) -> bool:
    """Whether a cluster to join was named: work may then leave this process without a start of Ray."""
    return address_and_source(ray_address)[0] != "local"


def joined(start: Callable[[], Result], address: str, source: str) -> Result:
    """`start()`, which joins the cluster at `address`, after something answered there. NoRay otherwise."""
    shown = f"{without_login(address)} ({source})"
    remedy = (
        "is a head running there (`ray start --head` in the repository), with the same RAY_AUTH_MODE and token? For a "
        f"local cluster: leave out {source}"
    )
    if address.startswith(("http://", "https://")):
        raise NoRay(f"{shown} is the address of a dashboard", "give host:port of the head, or auto")
    try:
        ask(address)
        return start()
    except Exception as error:  # Ray raises its own errors, ConnectionError, ValueError, RuntimeError
        raise NoRay(f"{shown}: {said(error)}", remedy) from error


def ask(address: str) -> None:
    """OSError unless a server speaks at the address, with `auto` at that of the cluster on this machine."""
    if address == "auto":
        from ray._private.services import canonicalize_bootstrap_address_or_die

        address = canonicalize_bootstrap_address_or_die("auto")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
        _speaks(f"{host}:{port}")


def _speaks(address: str) -> None:
    """TimeoutError unless a gRPC server answers within ANSWER_S."""
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return
    import grpc

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_S)
        except grpc.FutureTimeoutError:
            raise TimeoutError(f"it is connected, but does not answer within {ANSWER_S:g} s") from None


def said(error: BaseException) -> str:
    """The error's type and first 200 characters, without passwords."""
    return without_login(f"{type(error).__name__}: {one_line(error)[:200]}")
