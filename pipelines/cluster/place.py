"""Where a worker runs and what it printed last, for the failure.json of work that ran on another machine."""

from __future__ import annotations

import os
import sys

LOG_LINES, LOG_BYTES = 20, 2**14


def place(rank: int | None = None) -> dict[str, object]:
    """`node` and `ip` of this worker's node, its `rank` if given, and the last lines of its `log`; {} outside Ray."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return {}
    ip = ray.util.get_node_ip_address()
    found = {"node": ray.get_runtime_context().get_node_id(), "ip": ip, "log": tuple(last_prints())}
    return found if rank is None else found | {"rank": rank}


def last_prints() -> list[str]:
    """The last lines of the files that stdout and stderr of this process go to; none if they go elsewhere."""
    files = dict.fromkeys(os.path.realpath(f"/proc/self/fd/{number}") for number in (1, 2))
    return [line for file in files for line in last_lines(file)][-LOG_LINES:]


def last_lines(file: str) -> list[str]:
    """The last lines of a log file without Ray's own marks; none if it is not a file."""
    try:
        if not os.path.isfile(file):
            return []
        sys.stdout.flush()
        with open(file, "rb") as log:
            log.seek(max(0, os.path.getsize(file) - LOG_BYTES))
            lines = log.read().decode("utf-8", errors="replace").splitlines()
        return [line for line in lines if not line.startswith((":job_id:", ":actor_name:", ":task_name:"))][-LOG_LINES:]
    except OSError:
        return []
