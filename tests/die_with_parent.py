"""Processes that tests start end with the test process, also where that one is killed:
pytest-xdist kills its workers on Ctrl-C.
"""

import ctypes
import signal

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def die_with_parent() -> None:
    """For `preexec_fn` of Popen: SIGTERM for this process once the thread that started it is gone."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
