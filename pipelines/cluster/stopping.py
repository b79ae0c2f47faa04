"""Stopping a training run: it saves a checkpoint after the current step, so that a scheduler's SIGTERM costs no work.

How: while rank 0 trains, the run's folder contains an empty file `.stop`. A driver that got a signal writes a word into
it (`ask_and_wait`). Rank 0 reads the file five times a second, answers on a second line, and removes the file when the
checkpoint is saved. A worker that gets SIGTERM itself (`catch_sigterm`) needs no file. In both cases all workers agree
in `fit` after each step; several workers stop one step later, since none waits for the others' answers.

Ours: a file, because the run's folder is all that driver and workers share. It exists before it is written to: NFS
shows a change of a known file at once, but a new file late.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from pipelines.cli import interrupt
from pipelines.cli.progress import say

STOP_FILE = ".stop"
STOP, SAVES = "stop\n", "saves\n"
POLL_S = 0.2
ANSWER_S = 10.0  # for rank 0 to answer; a worker that does not train yet has nothing to save
SAVE_S = 900.0  # for the current step and its checkpoint; the sender of the signal may be less patient
_got_sigterm, _training = threading.Event(), threading.Event()


@contextlib.contextmanager
def stoppable(run_dir: Path, rank: int) -> Iterator[Callable[[], bool]]:
    """Around a worker's training: yields a function that returns whether this worker was asked to stop."""
    asked, done, file = threading.Event(), threading.Event(), run_dir / STOP_FILE

    def watch() -> None:
        while not asked.is_set() and not done.wait(POLL_S):
            with contextlib.suppress(OSError):
                if file.read_text(encoding="utf-8") == STOP:
                    file.write_text(STOP + SAVES, encoding="utf-8")
                    asked.set()

    _training.set()
    if rank == 0:
        file.write_text("", encoding="utf-8")
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield lambda: asked.is_set() or _got_sigterm.is_set()
    finally:
        _training.clear()
        done.set()
        if rank == 0:
            file.unlink(missing_ok=True)


def catch_sigterm() -> None:
    """In a worker's main thread: SIGTERM during training asks it to stop; at other times the previous handler runs."""
    before = signal.getsignal(signal.SIGTERM)

    def note(number: int, frame: FrameType | None) -> None:
        if _training.is_set():
            _got_sigterm.set()
        elif callable(before):
            before(number, frame)
        else:
            signal.signal(number, before or signal.SIG_DFL)
            signal.raise_signal(number)

    with contextlib.suppress(ValueError):  # not the main thread after all: SIGTERM ends this worker as usual
        signal.signal(signal.SIGTERM, note)


@contextlib.contextmanager
def asking(run_dirs: Sequence[Path]) -> Iterator[None]:
    """Around a driver's wait: after a signal these runs are asked to stop, and the block ends once they have saved."""
    try:
        yield
    except interrupt.Stopped:
        ask_and_wait(run_dirs)
        raise


def ask_and_wait(run_dirs: Sequence[Path]) -> None:
    """Ask the runs in training to stop and wait until each has saved. A run that does not answer is left alone."""
    asked = [folder / STOP_FILE for folder in run_dirs if _write(folder / STOP_FILE)]
    _wait_while(lambda: any(_read(file) == STOP for file in asked), ANSWER_S)
    if saving := [file for file in asked if _read(file) == STOP + SAVES]:
        interrupt.grant(SAVE_S)
        say(f"  {', '.join(file.parent.name for file in saving)}: saving after the current step")
        _wait_while(lambda: any(file.exists() for file in saving), SAVE_S)
        interrupt.grant(interrupt.GRACE_S)


def _write(file: Path) -> bool:
    """Whether the run could be asked, which means that it is in training."""
    try:
        with open(file, "r+", encoding="utf-8") as handle:
            handle.write(STOP)
        return True
    except OSError:
        return False


def _read(file: Path) -> Any:
    with contextlib.suppress(OSError):
        return file.read_text(encoding="utf-8")
    return None


def _wait_while(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while holds() and time.monotonic() < deadline:
        time.sleep(POLL_S / 4)
