"""Errors as a person wants to read them: what went wrong, with which object, where in this code, what is safe, how to
resume.

How: Ray returns a worker's exception inside up to four wrappers; `root_cause` removes them. On its way up an exception
collects what only the frames it passes know: `doing(...)` adds the object, shard or run at hand (in the worker; it
travels with the exception), `on_disk(...)` adds what a stage has finished (in the driver), `placed(...)` the node and
the worker's last prints, `remedied(...)` what helps against a lack of GPU memory. `Failure` holds all of it as plain
data.
"""

import contextlib
import dataclasses
import errno
import re
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipelines.cli.errors import UsageError, one_line

MAX_CHARS = 400  # of the headline
MAX_FRAMES = 4
OURS = re.compile(r'File "(?![^"]*/site-packages/)[^"]*?/((?:g3pt|pipelines|jobs|tests)/[^"]+)", line (\d+), in (\S+)')
WRAPPED_BY = ("_base_exc", "controller_failure", "health_check_failure")  # attributes of Ray Train's wrappers
ERRNO = r"^\[Errno \d+\] "
PLAIN = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENETUNREACH,
)  # errors of the machine, whose message says everything
NO_GPU_MEMORY = re.compile(
    r"(CUDA|HIP|MPS)( error)?: out of memory|(CUDA|HIP) out of memory|MPS backend out of "
    r"memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|CUFFT_ALLOC_FAILED|NCCL.*out of memory"
)
# Errors that another try cannot change. Not OSError and RuntimeError: a lost node or a broken collective raises them.
DETERMINISTIC = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    ImportError,
    FileNotFoundError,
    PermissionError,
    UsageError,
)


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Add the note "while `what`" to an error that leaves the block."""
    try:
        yield
    except Exception as error:
        error.add_note(f"while {what}")
        # Ray Data adds advice to `args` and overwrites the file name of an OSError: keep the original message.
        error.__dict__.setdefault("first_said", one_line(error))
        raise


@contextlib.contextmanager
def remedied(remedy: Callable[[], str]) -> Iterator[None]:
    """Add `remedy()` to a lack of GPU memory that leaves the block, unless it has a remedy already."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            error.__dict__.setdefault("remedy", remedy())
        raise


@contextlib.contextmanager
def placed(place: Callable[[], dict[str, object]]) -> Iterator[None]:
    """Add `place()` to an error that leaves the block, unless it has a place already: node, ip, rank and log, as far as
    they are known (`pipelines.cluster.place`).
    """
    try:
        yield
    except Exception as error:
        error.__dict__.setdefault("ran_on", place())
        raise


@contextlib.contextmanager
def on_disk(safe: Callable[[], str]) -> Iterator[None]:
    """Add `safe` to an error or interruption that leaves the block: it says what is safe on disk when the message is
    written.

    By then Ray is gone, so that nothing is finished after it was counted.
    """
    try:
        yield
    except BaseException as error:
        error.__dict__.setdefault("safe_on_disk", []).append(safe)
        raise


def safe_on_disk(error: BaseException) -> list[str]:
    """What is safe now, by the stages that added to the error with `on_disk`, innermost first."""
    said = []
    for safe in error.__dict__.get("safe_on_disk", []):
        with contextlib.suppress(OSError):
            said.append(safe())
    return said


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An error, ready to be written or shown."""

    error: str  # type and message on one line
    step: int | None = None  # optimiser step, where it is known
    doing: tuple[str, ...] = ()  # the work at hand, innermost first
    where: tuple[str, ...] = ()  # the last frames in our code, outermost first
    remedy: str = ""  # a flag that helps
    node: str = ""  # where the worker ran
    ip: str = ""
    rank: int | None = None  # of a training's worker
    log: tuple[str, ...] = ()  # the last lines that the worker printed
    is_plain: bool = False  # a full disk or missing permission: the place in the code does not matter
    traceback: str = ""

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """Everything that is known about an error."""
        cause, text = root_cause(error), "".join(traceback.format_exception(error))
        notes = [note for note in getattr(cause, "__notes__", []) if note.startswith("while ")]
        frames = [f"{file}:{line} {name}" for file, line, name in OURS.findall(text) if file != "pipelines/cli/main.py"]
        step, said = getattr(cause, "step", None), cause.__dict__.get("first_said") or one_line(cause)
        place = cause.__dict__.get("ran_on") or {}
        return cls(
            error=f"{type(cause).__name__}: {re.sub(ERRNO, '', said)}"[:MAX_CHARS],
            step=step if isinstance(step, int) else None,
            doing=tuple(note.removeprefix("while ") for note in notes),
            where=tuple(frames[-MAX_FRAMES:]),
            remedy=cause.__dict__.get("remedy", ""),
            **place,
            is_plain=isinstance(cause, OSError) and cause.errno in PLAIN,
            traceback=text,
        )

    def to_dict(self) -> dict[str, object]:
        """The content of failure.json."""
        return {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if value is not None and value is not False and value not in ((), "")
        }

    def lines(self) -> list[tuple[str, str]]:
        """The (label, text) rows below the headline."""
        if self.is_plain:
            return []
        at = f"step {self.step} of " if self.step is not None and self.doing else ""
        found = [("while", f"{at if not number else ''}{what}") for number, what in enumerate(self.doing)]
        found += [("in", frame) for frame in self.where]
        if self.node or self.ip:
            rank = "" if self.rank is None else f", rank {self.rank}"
            found.append(("on", f"node {self.ip or self.node}{rank}"))
        return found + [("remedy", self.remedy)] * bool(self.remedy)


def root_cause(error: BaseException) -> BaseException:
    """The worker's own exception inside Ray's wrappers; the error itself if it is not wrapped."""
    while (inner := _unwrapped(error)) is not None:
        error = inner
    return error


def _unwrapped(error: BaseException) -> BaseException | None:
    """The exception inside the outermost wrapper; None without a wrapper.

    Wrappers are known by attributes, since this module must not import Ray.
    """
    failures = getattr(error, "worker_failures", None)
    if isinstance(failures, dict) and failures:
        return min(failures.values(), key=_rank)
    names = (*WRAPPED_BY, "cause") if any(cls.__name__ == "RayTaskError" for cls in type(error).__mro__) else WRAPPED_BY
    found = (error.__dict__.get(name) for name in names)
    return next((inner for inner in found if isinstance(inner, BaseException) and inner is not error), None)


def _rank(error: BaseException) -> int:
    """Sort key for the errors of several workers: the real cause comes first, lost connections of its peers later."""
    cause = root_cause(error)
    return 0 if is_deterministic(cause) else 1 if "Died" in type(cause).__name__ else 2


def is_deterministic(error: BaseException) -> bool:
    """Whether the same work would fail in the same way again."""
    return isinstance(root_cause(error), DETERMINISTIC) or is_out_of_memory(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's memory did not suffice, as torch and the libraries below it say.

    Known by name and message, since this module must not import torch. Not Ray's OutOfMemoryError, which says that a
    node's memory was short: another try may meet other neighbours.
    """
    cause = root_cause(error)
    if any(cls.__name__ == "OutOfMemoryError" and cls.__module__.startswith("torch") for cls in type(cause).__mro__):
        return True
    return isinstance(cause, RuntimeError) and bool(NO_GPU_MEMORY.search(str(cause)))
