"""Whether the nodes of a cluster share the folders that a command uses, found before any work, and whether what a
worker wrote has arrived.

How: `join` connects to Ray and, if the cluster has more than one living node, looks from each of them. For a folder to
be written the driver puts a file there, each node reads it and puts one of its own beside it, and the driver looks for
that. For a file to be read each node compares its size. Nodes that join later are covered by `check_arrived`, which the
driver calls for every file that a worker reports. Network file systems may show a file late, so all of them wait.

Ours: a node that does not answer (it is ending, or starts no worker) is named in a warning and does not stop the
command. Paths in a bucket are not looked at: every node sees the same bucket.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.cli.errors import UsageError, one_line
from pipelines.cli.progress import say
from pipelines.cluster import session
from pipelines.cluster.nodes import Node, Nodes, node_id

if TYPE_CHECKING:
    from g3pt.data.storage import Location

SEEN_WITHIN_S = 10.0  # time in which a network file system must show another machine's file
NOT_SEEN = "it does not see the driver's file: not shared"
REMEDY = "use a path on storage that all nodes share, or s3:// for a dataset"


class NotShared(RuntimeError):
    """A file that a worker wrote is not on this machine."""


def join(ray_address: str | None, *, writes: Iterable[str | Path] = (), reads: Iterable[str | Path] = ()) -> None:
    """Connect to Ray; UsageError if a living node does not share the folders `writes` or the files `reads` with this
    machine.
    """
    session.connect(ray_address)
    nodes = Nodes.living()
    if len(nodes.found) > 1:
        check_shared(nodes, writes, reads)


def check_shared(nodes: Nodes, writes: Iterable[str | Path], reads: Iterable[str | Path] = ()) -> None:
    """UsageError that names node and path, if one of the nodes does not share the local ones of these paths."""
    for folder in map(str, writes):
        if "://" not in folder:
            with cannot_write(folder):
                _refuse(folder, probe(nodes, existing(folder)))
    for file in map(str, reads):
        if "://" not in file and Path(file).is_file():
            _refuse(file, nodes.on_each(compare, file, Path(file).stat().st_size))


@contextlib.contextmanager
def cannot_write(folder: str) -> Iterator[None]:
    """Re-raise an OSError from the block as UsageError."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror}") from error


def _refuse(path: str, answers: Iterable[tuple[Node, Any]]) -> None:
    """UsageError for the first node that found something wrong with the path."""
    for node, problem in answers:
        if isinstance(problem, ImportError):
            raise UsageError(f"node {node.address} cannot run g3pt: {one_line(problem)}; install it there")
        if isinstance(problem, BaseException):
            say(f"warning: node {node.address} did not say whether it shares {path}: {type(problem).__name__}")
        elif problem:
            raise UsageError(f"{path}: node {node.address}: {problem}; {REMEDY}")


def existing(path: str | Path) -> str:
    """The folder, or its nearest parent that exists."""
    path = Path(path).absolute()
    return str(next(folder for folder in (path, *path.parents) if folder.is_dir()))


def probe(nodes: Nodes, folder: str) -> list[tuple[Node, Any]]:
    """(node, what is wrong) for each node, tried in both directions: "" if it shares the folder, or its exception.

    OSError if this machine cannot write there. No file is left behind.
    """
    name, text = f".g3pt-probe-{uuid.uuid4().hex}", uuid.uuid4().hex
    found: list[tuple[Node, Any]] = []
    try:
        Path(folder, name).write_text(text, encoding="utf-8")
        for node, problem in nodes.on_each(read_and_write, folder, name, text):
            arrived = problem or _reads(Path(folder, f"{name}-{node.id}"), text)
            found.append((node, problem if arrived else "its file does not arrive here: not shared"))
    finally:
        remove_own(folder, name)
        if any(isinstance(problem, str) and problem for _, problem in found):
            nodes.on_each(remove_own, folder, name)  # what it wrote into a folder of its own
    return found


def read_and_write(folder: str, name: str, text: str) -> str:
    """Read the driver's file and write this node's own beside it; return "" or what went wrong. Runs on a node."""
    if not _reads(Path(folder, name), text):
        return NOT_SEEN if Path(folder).is_dir() else "no such folder there: not shared"
    try:
        Path(folder, f"{name}-{node_id()}").write_text(text, encoding="utf-8")
    except OSError as error:
        return f"it cannot write there: {error.strerror}"
    return ""


def remove_own(folder: str, name: str) -> None:
    """Remove the files of a probe, on whichever machine this runs."""
    for file in Path(folder).glob(f"{name}*"):
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


def compare(file: str, size: int) -> str:
    """ "" if the file has so many bytes on this node, else what is wrong. Runs on a node."""
    if wait_for(lambda: size_of(file) == size):
        return ""
    return "it has another file there: not shared" if Path(file).is_file() else "no such file there: not shared"


def check_arrived(files: Mapping[str, int], node: str) -> None:
    """NotShared unless this machine has the files (path -> bytes) that a worker on `node` wrote."""
    for file, size in files.items():
        if "://" not in file and not wait_for(lambda file=file, size=size: size_of(file) == size):
            raise NotShared(
                f"{file}: worker {node} wrote it, this machine does not see it: not shared storage; {REMEDY}"
            )


def sizes_of(files: Iterable[Location]) -> dict[str, int]:
    """Path -> bytes of the local ones of the files that this worker wrote: every machine sees the same bucket."""
    return {str(file): file.stat().st_size for file in files if isinstance(file, Path)}


def size_of(file: str) -> int | None:
    """Bytes of a file; None if it is missing."""
    try:
        return Path(file).stat().st_size
    except OSError:
        return None


def wait_for(is_true: Callable[[], bool]) -> bool:
    """Whether `is_true` holds within SEEN_WITHIN_S."""
    deadline = time.monotonic() + SEEN_WITHIN_S
    while not (found := is_true()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def _reads(file: Path, text: str) -> bool:
    """Whether the file has this text within SEEN_WITHIN_S."""

    def has_text() -> bool:
        with contextlib.suppress(OSError):
            return file.read_text(encoding="utf-8") == text
        return False

    return wait_for(has_text)
