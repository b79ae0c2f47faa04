"""Errors as a person wants to read them: what went wrong, with which object, where in this code, what is safe, how to
resume.

How: Ray returns a worker's exception inside up to four wrappers; `root_cause` removes them. On its way up an exception
collects what only the frames it passes know: `doing(...)` adds the object, shard or run at hand (in the worker; it
travels with the exception), `on_disk(...)` adds what a stage has finished (in the driver). `Failure` holds all of it as
plain data.
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
def on_disk(safe: Callable[[], str]) -> Iterator[None]:
    """Add `safe` to an error or interruption that leaves the block: it says what is safe on disk when the message is written.

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
    is_plain: bool = False  # a full disk or missing permission: the place in the code does not matter
    traceback: str = ""

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """Everything that is known about an error."""
        cause, text = root_cause(error), "".join(traceback.format_exception(error))
        notes = [note for note in getattr(cause, "__notes__", []) if note.startswith("while ")]
        frames = [f"{file}:{line} {name}" for file, line, name in OURS.findall(text) if file != "pipelines/cli/main.py"]
        step, said = getattr(cause, "step", None), cause.__dict__.get("first_said") or one_line(cause)
        return cls(
            error=f"{type(cause).__name__}: {re.sub(ERRNO, '', said)}"[:MAX_CHARS],
            step=step if isinstance(step, int) else None,
            doing=tuple(note.removeprefix("while ") for note in notes),
            where=tuple(frames[-MAX_FRAMES:]),
            is_plain=isinstance(cause, OSError) and cause.errno in PLAIN,
            traceback=text,
        )

    def to_dict(self) -> dict[str, object]:
        """The content of failure.json."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value not in (None, (), "", False)}

    def lines(self) -> list[tuple[str, str]]:
        """The (label, text) rows below the headline."""
        if self.is_plain:
            return []
        at = f"step {self.step} of " if self.step is not None and self.doing else ""
        found = [("while", f"{at if not number else ''}{what}") for number, what in enumerate(self.doing)]
        return found + [("in", frame) for frame in self.where]


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
    return 0 if isinstance(cause, DETERMINISTIC) else 1 if "Died" in type(cause).__name__ else 2


def is_deterministic(error: BaseException) -> bool:
    """Whether the same work would fail in the same way again."""
    return isinstance(root_cause(error), DETERMINISTIC)
