"""One way to be alone with a file or folder: a lock of the kernel (flock) that ends with its process, so a kill leaves
nothing to clean up.

How: the lock is held on a file of its own, which is removed with it. Whoever gets a lock on a file that has been
removed or replaced meanwhile tries again with the file of that name. A bucket has no such lock, nor has every network
mount.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

LOCK_FILE = ".lock"  # in the folder that is locked
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
POLL_S = 0.2


class Held(Exception):
    """Another process holds the lock."""


@contextlib.contextmanager
def locked(file: Path, *, wait_s: float | None = 0.0, needed: bool = True) -> Iterator[None]:
    """Hold the lock `file` inside the block.

    Held if another process has it for more than `wait_s` seconds (None: wait without end).

    Where the file system has no locks: OSError, or without `needed` a block without a lock.
    """
    handle = _acquire(file, wait_s, needed)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a disk that became read-only: the lock ends with this process
            file.unlink(missing_ok=True)
        handle.close()


def is_held(file: Path) -> bool:
    """Whether a process of this machine holds the lock."""
    try:
        with open(file) as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _acquire(file: Path, wait_s: float | None, needed: bool) -> IO[str]:
    deadline = None if wait_s is None else time.monotonic() + wait_s
    while True:
        handle = open(file, "w")  # noqa: SIM115 (held by the caller; for writing, since NFS locks nothing else)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if deadline is None else fcntl.LOCK_NB))
        except BlockingIOError:
            handle.close()
            if time.monotonic() >= deadline:
                raise Held(str(file)) from None
            time.sleep(POLL_S)
            continue
        except OSError as error:
            if not needed and error.errno in NO_LOCKS:
                return handle
            handle.close()
            raise
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(file), os.fstat(handle.fileno())):
                return handle
        handle.close()  # its holder removed the file: a lock on it keeps nobody away
