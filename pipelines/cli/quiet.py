"""Messages of libraries and of Ray's core go to a log file of the command, so that the terminal shows only what this
project prints.

How: file descriptor 2, to which native code and child processes write, points at the file; `sys.stderr` keeps writing
to the terminal. Python's warnings and every log record meant for the console go to the file too. It is deleted when the
command succeeds. A failure names it and appends the full traceback. With G3PT_TRACEBACK=1 everything is printed as it
comes.
"""

import contextlib
import faulthandler
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

VERBOSE = "G3PT_TRACEBACK"


def verbose() -> bool:
    """Whether the user asked to see everything."""
    return os.environ.get(VERBOSE, "") not in ("", "0")


@dataclass
class Noise:
    """The log file of library messages; None: the terminal. The file is deleted at the end unless `keep` was called."""

    file: Path | None
    kept: bool = False

    def keep(self, text: str) -> Path | None:
        """Append `text`, keep the file, and return its path. Without a file the text is printed."""
        if self.file is None:
            print(text, file=sys.stderr, flush=True)
            return None
        self.kept = True
        with contextlib.suppress(OSError), open(self.file, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"\n{text}")
        return self.file


@contextlib.contextmanager
def noise_aside() -> Iterator[Noise]:
    """Inside the block messages of libraries go to a new file."""
    if verbose():
        yield Noise(None)
        return
    handle, name = tempfile.mkstemp(prefix="g3pt-", suffix=".log")
    noise = Noise(Path(name))
    try:
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, handle)
            if writes_to(sys.stderr, 2):
                stack.enter_context(_native_stderr_to(handle))
            stack.enter_context(_console_logs_to(name))
            yield noise
    finally:
        if not noise.kept:
            noise.file.unlink(missing_ok=True)


@contextlib.contextmanager
def prints_aside() -> Iterator[None]:
    """Inside the block Python's prints on stdout go to the log file: for a library that prints. We print on stderr."""
    with (
        os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace") as file,
        contextlib.redirect_stdout(file),
    ):
        yield


def writes_to(stream: TextIO, descriptor: int) -> bool:
    """Whether the stream writes to this file descriptor; not so for a test's capture or a closed stream."""
    try:
        return stream.fileno() == descriptor
    except (OSError, ValueError, AttributeError):
        return False


@contextlib.contextmanager
def _native_stderr_to(handle: int) -> Iterator[None]:
    """Inside the block descriptor 2 is `handle`; sys.stderr stays the terminal, where crashes of the interpreter are
    reported too.
    """
    old, crashes = sys.stderr, faulthandler.is_enabled()
    old.flush()
    kept = os.dup(2)
    sys.stderr = os.fdopen(kept, "w", buffering=1, encoding=old.encoding, errors="backslashreplace")
    os.dup2(handle, 2)
    faulthandler.enable(sys.stderr, all_threads=False)
    try:
        yield
    finally:
        faulthandler.disable()
        sys.stderr.flush()
        os.dup2(kept, 2)
        if crashes:
            faulthandler.enable(old)
        sys.stderr = old  # the stream on `kept` stays open: a library may hold it


@contextlib.contextmanager
def _console_logs_to(name: str) -> Iterator[None]:
    """Log records that a handler would write to stdout or stderr go to the file, and so do Python's warnings."""
    file = logging.FileHandler(name, encoding="utf-8", errors="backslashreplace")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    emit = logging.StreamHandler.emit

    def diverted(handler: logging.StreamHandler, record: logging.LogRecord) -> None:
        is_console = handler.stream in (sys.stderr, sys.stdout, sys.__stderr__, sys.__stdout__)
        emit(file if is_console else handler, record)

    # Libraries create their handlers when they are imported, at any time. All of them pass through this method.
    logging.StreamHandler.emit = diverted  # type: ignore[method-assign]
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        logging.StreamHandler.emit = emit  # type: ignore[method-assign]
        file.close()
