"""The checks of `jobs/doctor.py` of the storage that all nodes share: a folder and its locks, or a bucket and what its
login may do there.

How: what is tried on a node is a plain function that runs there (`pipelines.cluster.nodes`), and here too. Nothing is
left behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from g3pt.data.storage import RemotePath, is_remote, listing, location
from pipelines.cli.errors import one_line
from pipelines.cluster.nodes import Node, Nodes
from pipelines.cluster.start import said
from pipelines.cluster.storage import probe
from pipelines.runs.locks import NO_LOCKS, STALE_S, is_held, locked
from pipelines.status.doctor_cluster import RAY_FIRST, counted
from pipelines.status.doctor_machine import Found, failed, ok, warning

PARTS_BYTES = 12 * 2**20  # an upload in parts: they have 5 MiB at least, pyarrow's 10
SHARED = "mount the same storage at the same path on every node, or set --storage to one that is"
RIGHTS = "the login needs the rights to put, get, list and delete objects and to upload them in parts, on every node"
WITHOUT_FLOCK = "mount it with locks (Lustre: -o flock; NFS: version 4), or start commands on one output from one node"


def check_storage(nodes: Nodes, storage: str) -> list[Found]:
    """Check a folder and its locks, or a bucket."""
    if is_remote(storage):
        return [check_bucket(nodes, storage)]
    found = check_folder(nodes, storage)
    return [found] if found.state == "failed" else [found, check_locks(nodes, storage)]


# ------------------------------------------------------------------------------------------------------------- folder


def check_folder(nodes: Nodes, storage: str) -> Found:
    """Check that files written here can be read on each node and the reverse, so that it is really one folder."""
    try:
        with _made(Path(storage)):
            answers = probe(nodes, storage)
    except OSError as error:
        return failed(
            f"{storage}: {type(error).__name__}: {error.strerror}", "set --storage to a folder that you can write to"
        )
    if problems := _problems(answers):
        return failed(f"{storage}: {problems}", SHARED)
    if not nodes.found:
        return warning(f"{storage}: written here, not tried from a worker", RAY_FIRST)
    return ok(f"{storage}: written and read both ways between driver and {counted(nodes)}")


def check_locks(nodes: Nodes, storage: str) -> Found:
    """Check that the file system has locks, and that each node sees one that is held here."""
    with _made(Path(storage)):
        file = Path(storage, f".g3pt-probe-{uuid.uuid4().hex}.lock")
        try:
            if not has_flock(file):
                said_of = f"{storage}: no flock here; files that are renewed take its place"
                return warning(f"{said_of} (a lock is free {STALE_S:g} s after its process has died)", WITHOUT_FLOCK)
            with locked(file):
                answers = nodes.on_each(lock_seen, str(file))
        finally:
            file.unlink(missing_ok=True)
    if problems := _problems(answers):
        return failed(f"{storage}: {problems}: two commands on two nodes could work on one output", WITHOUT_FLOCK)
    return ok(f"{storage}: a lock that is held here is seen by {counted(nodes)}")


def has_flock(file: Path) -> bool:
    """Whether a file there can be locked by the kernel."""
    with open(file, "w", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return False
    return True


def lock_seen(file: str) -> str:
    """ "" if the lock counts as held on this node. Runs there."""
    return "" if is_held(Path(file)) else "does not see the driver's lock"


@contextlib.contextmanager
def _made(folder: Path) -> Any:
    """The folder inside the block; removed again if it was made for it and is empty."""
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if made and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


# ------------------------------------------------------------------------------------------------------------- bucket


def check_bucket(nodes: Nodes, uri: str) -> Found:
    """Check that files can be put, read, listed, uploaded in parts and deleted, from here and from each node."""
    if problem := try_bucket(uri):
        return failed(problem, RIGHTS)
    if problems := _problems(nodes.on_each(try_bucket, uri)):
        return failed(f"works from here, not from {problems}", RIGHTS)
    done = "put, read, listed, uploaded in parts and deleted"
    if not nodes.found:
        return warning(f"{uri}: {done} from here, not tried from a worker", RAY_FIRST)
    return ok(f"{uri}: {done} from the driver and from {counted(nodes)}")


def try_bucket(uri: str) -> str:
    """ "" if all that the commands do in a bucket works, else what does not, and why. Runs on a node and here."""
    folder = location(uri)
    assert isinstance(folder, RemotePath)
    small, large = (folder / f".g3pt-probe-{uuid.uuid4().hex}" for _ in range(2))
    steps: tuple[tuple[str, Callable[[], object]], ...] = (
        ("look for the bucket", folder.check_store),
        ("put", lambda: small.write_bytes(b"g3pt")),
        ("read", lambda: _expect(small.read_bytes() == b"g3pt", "other bytes came back")),
        ("list", lambda: _expect(small.name in listing(folder), "a file that was put is not listed")),
        ("upload in parts", lambda: large.write_bytes(bytes(PARTS_BYTES))),
        ("delete", lambda: [file.unlink() for file in (small, large)]),
        ("list", lambda: _expect(small.name not in listing(folder), "a deleted file is still listed")),
    )
    for what, step in steps:
        try:
            step()
        except (OSError, ValueError, pa.ArrowException) as error:
            with contextlib.suppress(OSError, ValueError, pa.ArrowException):
                small.unlink(missing_ok=True)
                large.unlink(missing_ok=True)
            return f"{what}: {one_line(error)}"
    return ""


def _expect(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise ValueError(otherwise)


def _problems(answers: Iterable[tuple[Node, Any]]) -> str:
    """The nodes that found something wrong, with what it is; "" if none did."""
    return "; ".join(
        f"{node.address}: {said(problem) if isinstance(problem, BaseException) else problem}"
        for node, problem in answers
        if problem
    )
