"""Ctrl-C and SIGTERM: the first asks the work to stop cleanly, the second ends the process at once.

How: inside `stoppable()` the first signal raises `Stopped` in the main thread, so that stages unwind as for any error. Work that
does not come to an end in GRACE_S seconds is cut off: nothing is lost by that, since what a stage calls finished is renamed
into place. Ray sets handlers of its own when it starts (`rearm` after it) and when Train runs in the main thread (`in_thread`).
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeVar

from pipelines.cli.progress import say

Result = TypeVar("Result")
SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE_S = 20.0
_armed = False
_late: threading.Timer | None = None  # what cuts the process off


class Stopped(KeyboardInterrupt):
    """The work was asked to stop, by the signal in args[0]."""

    @property
    def exit_code(self) -> int:
        """As a shell gives it: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + int(self.args[0])


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """The signals stop the work inside the block; nothing changes outside the main thread."""
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
    """Take the signals back from a library that took them; nothing outside `stoppable`, nor in another thread (libraries can't take them there)."""
    if _armed and threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, _stop)


def _stop(number: int, _: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, _end)
    with contextlib.suppress(
        RuntimeError, OSError, ValueError
    ):  # the signal may have come in the middle of another print
        say("\n" * sys.stderr.isatty() + "stopping; Ctrl-C once more ends at once")
    _cut_off_in(GRACE_S, number)
    raise Stopped(number)


def grant(seconds: float) -> None:
    """Work that was asked to stop gets so long from now on; nothing where no signal came."""
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
    """Without clean-up: a local Ray ends with its driver, finished files stay."""
    with contextlib.suppress(RuntimeError, OSError, ValueError):
        print("ended at once; what was finished before is safe, the same command goes on", file=sys.stderr, flush=True)
    os._exit(128 + int(number))


def in_thread(work: Callable[[], Result]) -> Result:
    """`work()` in a thread of its own, waited for: a library that takes over the signals of the main thread leaves them alone."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # handed to the caller
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(timeout=0.5)
    if errors:
        raise errors[0]
    return results[0]
