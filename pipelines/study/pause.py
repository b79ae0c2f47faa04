"""`--pause`: another command asks a running study to stop, through a file in the study's folder.

How: the study's driver looks for the file once a second and then interrupts itself as Ctrl-C would: its runs save after
their current step, and it exits with 130. No process gets a signal from another. The same command continues the study.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from pipelines.cli.errors import UsageError
from pipelines.cli.progress import say
from pipelines.runs.locks import LOCK_FILE, is_held

PAUSE_FILE = ".pause"
POLL_S = 1.0
SAY_S = 30.0  # between lines of a command that waits for the study to stop


@contextlib.contextmanager
def pausable(study: Path) -> Iterator[None]:
    """Around a driver's work, which holds the study's lock: a request to pause interrupts the main thread by SIGINT."""
    file, over = study / PAUSE_FILE, threading.Event()
    file.unlink(missing_ok=True)  # a request that came after an earlier command had ended

    def watch() -> None:
        while not over.wait(POLL_S):
            if file.exists():
                say(f"  {study.name}: asked to pause")
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
        file.unlink(missing_ok=True)


def pause(study: Path) -> Path:
    """Ask the command that works on the study to stop, wait until it has, and return the folder.

    UsageError for a folder that does not exist.
    """
    if not study.is_dir():
        raise UsageError(f"--pause: there is no study at {study}")
    lock, file = study / LOCK_FILE, study / PAUSE_FILE
    if not is_held(lock):
        print(f"{study}: no command works on it", flush=True)
        return study
    file.touch()
    say(f"  {study.name}: waits until its runs have saved; Ctrl-C ends the waiting, not the pause")
    said = time.monotonic()
    while is_held(lock):
        time.sleep(POLL_S / 4)
        if time.monotonic() - said > SAY_S:
            say(f"  {study.name}: still at work")
            said = time.monotonic()
    file.unlink(missing_ok=True)
    print(f"{study}: paused; the command that was stopped continues it", flush=True)
    return study
