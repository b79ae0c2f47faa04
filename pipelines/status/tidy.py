"""`jobs/tidy.py DIR`: removes what no command reads again below a folder, and never what a command uses.

What: checkpoints of finished runs, derived shards made from another version of their dataset, Ray's own files of runs
and studies that have ended, and temporary files of killed processes. With --ray-sessions also Ray's session folders
(logs, sockets, spilled objects) whose processes have ended.

How: the folder is walked like by `jobs/status.py`. Each output's locks are held while its leftovers are listed and
removed. Outputs at work are skipped and named; the runs of a study at work are skipped with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from g3pt.data.records import shard_name
from pipelines.cli.errors import UsageError
from pipelines.cli.plain_text import plain, with_bytes
from pipelines.runs.locks import LOCK_FILE, Held, is_held, locked, process_lives
from pipelines.status.inventory import listing, walk
from pipelines.status.items import Place, activity, note_of
from pipelines.train.checkpoints import checkpoints, remove
from pipelines.train.worker import WORKER_LOCK

LOCKS = (LOCK_FILE, WORKER_LOCK)
TEMPORARY = re.compile(r"\..+\.(\d+)(?:\.tmp)?")  # .NAME.PID or .NAME.PID.tmp
UNFINISHED = re.compile(r"\.(samples|gone)-.+")  # a checkpoint that was being written or removed
OLD_S = 86400.0  # after which a temporary file belongs to no process, on whatever machine
SESSION = re.compile(r"session_[\d_-]+")


@dataclass(frozen=True, kw_only=True)
class TidyFlags:
    """Remove what no command reads again below a folder: checkpoints of finished runs, outdated derived shards,
    Ray's own files, temporary files of killed processes. Outputs at work are skipped.
    """

    dir: tyro.conf.Positional[str]
    """folder to tidy"""
    dry_run: bool = False
    """print the plan and write nothing"""
    ray_sessions: bool = False
    """also remove Ray's session folders on this machine (logs, spilled objects) whose processes have ended"""


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """Files or folders of one output that nothing reads again."""

    what: str
    folder: Path
    paths: tuple[Path, ...]

    @property
    def size(self) -> int:
        """Bytes that are freed: files with other names (hard links) elsewhere count nothing."""
        files = [file for path in self.paths for file in _files(path)]
        return sum(stat.st_size for stat in map(_stat, files) if stat and stat.st_nlink == 1)


def tidy(flags: TidyFlags) -> None:
    """Print a line per output with leftovers and the sum, and remove them unless it is a dry run."""
    root = Path(os.path.abspath(Path(flags.dir).expanduser()))
    if not root.is_dir():
        raise UsageError(f"{plain(flags.dir)}: no such folder")
    places = [place for place in walk(root) if place.kind != "evaluation"]
    freed = count = 0
    busy = set[Path]()
    for place in places:  # a study comes before its runs
        if busy.isdisjoint(place.path.parents):
            if at_work(place):
                busy.add(place.path)
                print(f"in use, skipped: {_shown(place.path, root)}")
                continue
            for number, size in _each(place, root, flags.dry_run):
                count, freed = count + number, freed + size
    if flags.ray_sessions:
        for session in dead_sessions():
            found = Leftover(what="Ray session that has ended", folder=session, paths=(session,))
            print(f"{with_bytes(found.size):>10}  {found.what}: {plain(str(session))}")
            count, freed = count + 1, freed + found.size
            if not flags.dry_run:
                shutil.rmtree(session, ignore_errors=True)
    print(f"{'would remove' if flags.dry_run else 'removed'} {count} files and folders, {with_bytes(freed)}")


def _each(place: Place, root: Path, dry_run: bool) -> Iterator[tuple[int, int]]:
    """(number of paths, bytes) of each kind of leftovers of one output, printed, and removed unless it is a dry run."""
    with contextlib.ExitStack() as stack:
        if not dry_run:
            try:
                stack.enter_context(_alone(place.path))
            except (Held, OSError):
                print(f"in use, skipped: {_shown(place.path, root)}")
                return
        for found in leftovers(place):
            size = found.size
            print(f"{with_bytes(size):>10}  {found.what}: {_shown(found.folder, root)} ({len(found.paths)})")
            yield len(found.paths), size
            if not dry_run:
                for path in found.paths:
                    remove(path)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the locks of an output. Held if a command works there; OSError if the folder cannot be written."""
    with contextlib.ExitStack() as stack:
        for name in LOCKS:
            stack.enter_context(locked(folder / name))
        yield


def at_work(place: Place) -> bool:
    """Whether a command works on an output: by its locks, and for what is not finished by its process and its recent
    changes (`pipelines.status.items.activity`).
    """
    if any(is_held(place.path / name) for name in LOCKS):
        return True
    finished = bool({"_SUCCESS", "dataset.json", "manifest.parquet"} & place.names) or place.kind in ("derived", "demo")
    return not finished and bool(activity(place.path, note_of(place.path))["working"])


def leftovers(place: Place) -> list[Leftover]:
    """What nothing reads again of an output on which no command works."""
    found = [
        Leftover(what=what, folder=place.path, paths=tuple(sorted(find(place))))
        for what, kinds, find in LEFT
        if place.kind in kinds
    ]
    return [one for one in found if one.paths]


def old_checkpoints(place: Place) -> list[Path]:
    """Checkpoints of a finished run, from which nothing goes on; a driver that is killed at the end leaves them. The
    runs of a study keep theirs until `--finish`.
    """
    if "_SUCCESS" not in place.names or (place.path.parents[1] / "study.json").exists():
        return []
    return checkpoints(place.path / "checkpoints")


def outdated_shards(place: Place) -> list[Path]:
    """Derived shards that were made from another version of their dataset's shard, or of a shard that is gone."""
    dataset = place.path.parents[1]
    try:
        shards = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))["shards"]
    except (OSError, ValueError, KeyError):
        return []  # the dataset is being made, or damaged: nothing is known
    current = {f"{shard_name(int(index))}.parquet": sha256 for index, sha256 in shards.items()}
    there = [place.path / name for name in place.names if name.startswith("shard-") and name.endswith(".parquet")]
    return [path for path in there if _made_from(path) not in (None, current.get(path.name, ""))]


def _made_from(shard: Path) -> str | None:
    """The sha256 of the shard from which a derived one was made; None for an unreadable file."""
    try:
        metadata = pq.read_schema(shard).metadata or {}
    except (OSError, pa.ArrowException):
        return None
    return str(metadata.get(b"g3pt.source_sha256", b"").decode("ascii", errors="replace"))


def ray_files(place: Place) -> list[Path]:
    """The folder with Ray Train's or Ray Tune's own files, from which nothing here resumes."""
    folder = place.path / "ray"
    return [folder] if folder.is_dir() and not folder.is_symlink() else []


def temporaries(place: Place) -> list[Path]:
    """Files and folders under temporary names whose process has ended, in an output and its own folders."""
    found = []
    for folder in (place.path, *(place.path / name for name in ("checkpoints", "export", "samples"))):
        files, folders = listing(folder)
        found += [folder / name for name in files | folders if _is_abandoned(folder / name)]
    return found


def _is_abandoned(path: Path) -> bool:
    """Whether a name is a temporary one, and its process is not one of this machine or the file is old."""
    if UNFINISHED.fullmatch(path.name) and path.parent.name == "checkpoints":
        return True  # the caller holds the run's locks
    match, stat = TEMPORARY.fullmatch(path.name), _stat(path)
    if match is None or stat is None:
        return False
    return time.time() - stat.st_mtime > OLD_S or not process_lives(int(match[1]))


LEFT: tuple[tuple[str, tuple[str, ...], Callable[[Place], list[Path]]], ...] = (
    ("checkpoints of a finished run", ("run",), old_checkpoints),
    ("derived shards of another version of the dataset", ("derived",), outdated_shards),
    ("Ray's own files", ("run", "study"), ray_files),
    ("temporary files", ("run", "study", "dataset", "derived", "generation"), temporaries),
)


# --------------------------------------------------------------------------------------------------------------- Ray


def dead_sessions() -> list[Path]:
    """This user's session folders of Ray on this machine that no running process names or listens in."""
    from pipelines.cluster.start import ray_folder

    parent = Path(ray_folder())
    commands = [_command(entry) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [
        parent / name
        for name in sorted(listing(parent)[1])
        if SESSION.match(name)
        and (parent / name).stat().st_uid == os.getuid()
        and not any(name in command for command in commands)
        and not _answers(parent / name / "sockets")
    ]


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _answers(sockets: Path) -> bool:
    """Whether a process listens on one of the sockets: also one in another container, with this folder shared."""
    import socket

    for name in listing(sockets)[0]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(1.0)
            with contextlib.suppress(OSError):
                client.connect(str(sockets / name))
                return True
    return False


# -------------------------------------------------------------------------------------------------------------- files


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir() and not path.is_symlink():
        yield from (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    else:
        yield path


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:
        return None


def _shown(path: Path, root: Path) -> str:
    return plain(os.path.relpath(path, root))
