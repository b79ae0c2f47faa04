"""One way to be alone with a file or folder: a lock that no death leaves behind, and that names its holder.

How: the lock is a file of its own, which contains the holder's process, host and start time. The kernel's lock on it
(flock) ends with its process, so a kill leaves nothing to clean up. Whoever gets a lock on a file that has been removed
or replaced meanwhile tries again with the file of that name.

Ours: a file system without flock (Lustre without `-o flock`, many FUSE mounts) gets the same rule by other means. There
the lock belongs to whoever creates the file, and a thread renews the file's time every BEAT_S seconds. A lock that has
not been renewed for STALE_S seconds, or whose process on this host has ended, is free. A process that is suspended for
longer than STALE_S loses its lock there. A bucket has no locks: this module takes local paths only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pipelines.cli.errors import UsageError

if TYPE_CHECKING:
    from g3pt.data.storage import Location

LOCK_FILE = ".lock"  # in the folder that is locked
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
POLL_S = 0.2
LOOK_S = 0.5  # `is_held` holds a lock for a moment: whoever looks must not keep a command away
BEAT_S = 5.0
STALE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that holds a lock."""

    pid: int
    host: str
    since: float
    token: str = field(default_factory=lambda: uuid.uuid4().hex)  # of one acquisition

    @classmethod
    def me(cls) -> Holder:
        """This process, from now on."""
        return cls(pid=os.getpid(), host=socket.gethostname(), since=time.time())

    @classmethod
    def read(cls, file: Path) -> Holder | None:
        """The holder that a lock's file names; None for a missing or unreadable file."""
        try:
            return cls(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def __str__(self) -> str:
        return (
            f"process {self.pid} on {self.host}, since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.since))}"
        )


class Held(Exception):
    """Another process holds the lock; `holder` is that process, if its file says so."""

    def __init__(self, file: Path, holder: Holder | None) -> None:
        super().__init__(f"{file}: {holder or 'another process'}")
        self.holder = holder


@contextlib.contextmanager
def locked(file: Path, *, wait_s: float | None = 0.0) -> Iterator[None]:
    """Hold the lock `file` inside the block.

    Held if another process has it for more than `wait_s` seconds (None: wait without end).
    """
    deadline = None if wait_s is None else time.monotonic() + wait_s
    while (release := _try(file)) is None:
        if deadline is not None and time.monotonic() >= deadline:
            raise Held(file, Holder.read(file))
        time.sleep(POLL_S)
    try:
        yield
    finally:
        release.close()


@contextlib.contextmanager
def alone_in(output: Location, *, is_file: bool = False) -> Iterator[None]:
    """Hold the lock of a command's output inside the block: for its driver, before it does anything else.

    `output` is a folder, which is made if missing, or with `is_file` a file, whose lock is beside it. Buckets have no
    locks.

    UsageError if another command works there, with its process, and if the output cannot be written.

    Folders made here that stay empty, because the input was bad, are removed.
    """
    from g3pt.data.storage import RemotePath

    if isinstance(output, RemotePath):
        yield
        return
    folder, lock = (output.parent, f".{output.name}{LOCK_FILE}") if is_file else (output, LOCK_FILE)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_empty, made)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder / lock, wait_s=LOOK_S))
        except Held as held:
            who = f" ({held.holder})" if held.holder else ""
            raise UsageError(
                f"--output {output}: another command is working there{who}; wait until it ends, or choose another "
                f"output"
            ) from None
        except OSError as error:
            raise UsageError(f"--output {output} cannot be written: {error.strerror}") from error
        yield


def is_held(file: Path) -> bool:
    """Whether a process holds the lock."""
    try:
        with open(file, encoding="utf-8") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        return error.errno in NO_LOCKS and not _is_stale(file)
    return False


def process_lives(pid: int) -> bool:
    """Whether this machine has a process with this id."""
    try:
        os.kill(pid, 0) if pid > 0 else None
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return pid > 0


def _remove_empty(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):  # not empty
        for path in folders:
            path.rmdir()


def _try(file: Path) -> contextlib.ExitStack | None:
    """What releases the lock when it is closed; None if another process has it."""
    handle, is_new = _opened(file)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        return None
    except OSError as error:
        handle.close()
        if is_new:
            file.unlink(missing_ok=True)
        if error.errno not in NO_LOCKS:
            raise
        return _try_without_flock(file)
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.stat(file), os.fstat(handle.fileno())):
            return _held_by_flock(file, handle)
    handle.close()  # its holder removed the file: a lock on it keeps nobody away
    return None


def _opened(file: Path) -> tuple[IO[str], bool]:
    """(the file, whether it was made here). Opened for writing, since NFS locks nothing else."""
    while True:
        with contextlib.suppress(FileExistsError):
            return open(file, "x", encoding="utf-8"), True
        with contextlib.suppress(FileNotFoundError):
            return open(file, "r+", encoding="utf-8"), False


def _held_by_flock(file: Path, handle: IO[str]) -> contextlib.ExitStack:
    release = contextlib.ExitStack()
    release.callback(handle.close)
    release.callback(_remove, file)
    with contextlib.suppress(OSError):  # a full disk: the lock then names nobody
        handle.truncate(0)
        handle.write(json.dumps(asdict(Holder.me())))
        handle.flush()
    return release


def _remove(file: Path) -> None:
    with contextlib.suppress(OSError):  # a disk that became read-only: the lock ends with this process
        file.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------ without flock


def _try_without_flock(file: Path) -> contextlib.ExitStack | None:
    """The same on a file system without flock: a link to a file of our own is made by one process only."""
    me = Holder.me()
    own = file.with_name(f"{file.name}.{me.token}")
    own.write_text(json.dumps(asdict(me)), encoding="utf-8")
    try:
        if file.exists() and _is_stale(file):
            _set_aside(file, own)
        try:
            os.link(own, file)
        except FileExistsError:
            return None
        except OSError:  # no links either: exclusive creation, which is as good where it is done in one step
            try:
                with open(file, "x", encoding="utf-8") as created:
                    created.write(json.dumps(asdict(me)))
            except FileExistsError:
                return None
    finally:
        own.unlink(missing_ok=True)
    return _beating(file, me)


def _beating(file: Path, me: Holder) -> contextlib.ExitStack:
    """Renews the lock's time in a thread until the returned release is closed, which also removes the file if it is
    still ours.
    """
    ended = threading.Event()

    def is_mine() -> bool:
        return (Holder.read(file) or me).token == me.token

    def beat() -> None:
        while not ended.wait(BEAT_S) and is_mine():
            with contextlib.suppress(OSError):
                os.utime(file)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    release = contextlib.ExitStack()
    release.callback(lambda: _remove(file) if is_mine() else None)
    release.callback(thread.join)
    release.callback(ended.set)
    return release


def _is_stale(file: Path) -> bool:
    """Whether the process that made this lock without flock has ended: on this host by its id, elsewhere by the age of
    the file, measured by the clock of the file system.
    """
    holder = Holder.read(file)
    if holder is not None and holder.host == socket.gethostname() and not process_lives(holder.pid):
        return True
    try:
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f"{file.name}.") as now:
            return os.fstat(now.fileno()).st_mtime - file.stat().st_mtime > STALE_S
    except OSError:
        return False


def _set_aside(file: Path, own: Path) -> None:
    """Remove a stale lock. By a rename, so that of two processes that found it stale one removes it and none removes
    the other's new lock unseen.
    """
    aside = own.with_name(f"{own.name}.stale")
    with contextlib.suppress(FileNotFoundError):
        os.rename(file, aside)
        if _is_stale(aside):
            aside.unlink()
        else:  # meanwhile another process has taken it: give it back
            os.rename(aside, file)
