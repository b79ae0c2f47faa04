"""Ctrl-C and SIGTERM: the first asks the work to stop cleanly, the second ends the process at once.

How: inside `stoppable()` the first signal raises `Stopped` in the main thread, so that stages unwind as for any error.
Work that has not ended after GRACE_S seconds is cut off. No finished work is lost, because finished files are renamed
into place. Ray installs its own handlers when it starts (call `rearm` afterwards) and when Train runs in the main
thread (use `in_thread`).
"""

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeVar

from pipelines.cli.progress import say

Result = TypeVar("Result")
SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE_S = 20.0
_armed = False
_late: threading.Timer | None = None  # ends the process when the grace period is over


class Stopped(KeyboardInterrupt):
    """A signal, args[0], asked the work to stop."""

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, 143 for SIGTERM, as in a shell."""
        return 128 + int(self.args[0])


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Inside the block the signals stop the work. Does nothing in a thread other than the main one."""
    global _armed, _late
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _armed = True
    rearm()
    try:
        yield
    finally:
        _armed, _late = False, None
        for number, handler in before.items():
            signal.signal(number, handler)


def rearm() -> None:
    """Install our handlers again after a library replaced them.

    Does nothing outside `stoppable` or in another thread.
    """
    if _armed and threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, _stop)


def _stop(number: int, _: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, _end)
    with contextlib.suppress(
        RuntimeError, OSError, ValueError
    ):  # the signal may have come in the middle of another print
        say("\n" * sys.stderr.isatty() + "stopping; press Ctrl-C again to end at once")
    _cut_off_in(GRACE_S, number)
    raise Stopped(number)


def grant(seconds: float) -> None:
    """Restart the grace period with so many seconds, if a signal has come."""
    if _late is not None:
        _cut_off_in(seconds, _late.args[0])


def _cut_off_in(seconds: float, number: int) -> None:
    global _late
    if _late is not None:
        _late.cancel()
    _late = threading.Timer(seconds, _end, (number, None))
    _late.daemon = True
    _late.start()


def _end(number: int, _: FrameType | None) -> None:
    """End the process without clean-up. A local Ray ends with its driver; finished files stay."""
    with contextlib.suppress(RuntimeError, OSError, ValueError):
        print("ended at once; finished work is safe, the same command resumes", file=sys.stderr, flush=True)
    os._exit(128 + int(number))


def in_thread(work: Callable[[], Result], limit_s: float = math.inf) -> Result:
    """The result of `work()`, run in another thread, so that a library does not take over the signals of the main one.

    TimeoutError if it takes longer than `limit_s` seconds; the thread is left behind.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # handed to the caller
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    deadline = time.monotonic() + limit_s
    while thread.is_alive() and (left_s := deadline - time.monotonic()) > 0:
        thread.join(timeout=min(0.5, left_s))
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {limit_s:g} s")
    return results[0]
