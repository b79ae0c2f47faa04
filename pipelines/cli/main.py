"""The frame around every command: typed flags from a frozen dataclass, exit codes, and the last line `result: PATH`.

How: `main(flags_class, run, example=...)` parses kebab-case flags with tyro, calls `run(flags)` and exits: 0 done / 1
failed / 2 bad usage or bad input (one line on stderr) / 130 interrupted (143 by SIGTERM). While `run` works, stdout
points at stderr, so that no print can follow the result line, and messages of libraries go to a file
(pipelines.cli.quiet). With `--dry-run` stdout is left alone, because the plan is printed there. A failure or an
interruption is reported in one block: cause, place, what is safe, how to resume. If the reader of stdout leaves early
(`| head -1`), the command exits quietly with 141, like other programs. A flag class may check itself in
`__post_init__`; its ValueError counts as bad usage. Characters that the terminal's encoding lacks are printed as
escapes.
"""

import codecs
import contextlib
import dataclasses
import io
import os
import re
import select
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from pipelines.cli.defaults import SAVE_CONFIG, Call, Defaults, complete, save
from pipelines.cli.endings import Endings, endings
from pipelines.cli.errors import NotWell, UsageError, one_line
from pipelines.cli.failures import Failure, root_cause, safe_on_disk
from pipelines.cli.help import complaint, help_text, program
from pipelines.cli.interrupt import stoppable
from pipelines.cli.quiet import VERBOSE, Noise, noise_aside, writes_to

Flags = TypeVar("Flags")
EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_NO_READER = 1, 2, 130, 141
ESCAPES = "g3pt.escapes"  # the name of an error handler of encodings
KINDS = {"INT": "whole number", "FLOAT": "number"}  # by tyro's names
WRONG_TYPE = re.compile(
    r"Error parsing (?P<flag>--\S+): (no type matching .* from \[(?P<optional>.*?)\]\. Got errors:|.*?: "
    r"(?P<one>'.*')) .*?Argument helptext: --\S+ (\{None\}\|)?(?P<kind>INT|FLOAT) "
)


def main(
    flags_class: type[Flags],
    run: Callable[[Flags], str | None],
    *,
    example: str,
    args: Sequence[str] | None = None,
    keep_stdout: bool = False,
    defaults: Defaults | None = None,
    expand: Callable[[Sequence[str]], list[str]] = list,
) -> NoReturn:
    """Parse `args` (default sys.argv), call `run(flags)`, print `result: PATH` when it returns one, exit with the code.

    `defaults` is what the command does without flags (pipelines.cli.defaults). `expand` replaces words of the command
    line by those that they stand for; its ValueError is bad usage. `example` is a command line that --help
    shows; `keep_stdout` is for commands whose product is what they print. The docstring of `flags_class` is the
    command's description.
    """
    escape_foreign_characters()
    call = completed(flags_class, example, sys.argv[1:] if args is None else args, defaults, expand)
    flags = parse(flags_class, example=example, args=call.words)
    if args is None:
        sys.argv[1:] = (
            call.words
        )  # the command that is recorded and named for resuming does not depend on a later g3pt.toml
    result, code = None, 0
    with noise_aside() as noise, stoppable(), endings() as ends:
        try:
            with stdout_to_stderr(enabled=not (keep_stdout or getattr(flags, "dry_run", False))):
                try:
                    if call.defaults is not None and not getattr(flags, "dry_run", False):
                        call.defaults.prepare(flags)
                    result = run(flags)
                finally:
                    ends.say()
        except NotWell:
            code = EXIT_FAILED
        except KeyboardInterrupt as error:
            code = interrupted(error, ends)
        except Exception as error:  # the outermost frame of a program: report, then a failing exit code
            code = failed(error, noise, ends)
    try:
        if result is not None:
            print(f"result: {result}")
        sys.stdout.flush()
    except BrokenPipeError:
        leave_quietly()
    raise SystemExit(code)


def escape_foreign_characters() -> None:
    """From now on stdout and stderr write characters that their encoding lacks as escapes, where they would raise.

    File names that Python could not decode get their bytes back.
    """
    codecs.register_error(ESCAPES, _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors=ESCAPES)


def _escaped(error: UnicodeError) -> tuple[bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    lost = error.object[error.start : error.end]
    given_back = (
        bytes([ord(c) - 0xDC00]) if "\udc80" <= c <= "\udcff" else c.encode("ascii", "backslashreplace") for c in lost
    )
    return b"".join(given_back), error.end


def interrupted(error: KeyboardInterrupt, ends: Endings) -> int:
    """Print what is safe and how to resume; return the exit code, 130 for Ctrl-C and 143 for SIGTERM."""
    ends.close()
    print("interrupted", *_labelled(*_safe(error), ("resume", this_command())), sep="\n", file=sys.stderr, flush=True)
    return getattr(error, "exit_code", EXIT_INTERRUPTED)


def failed(error: Exception, noise: Noise, ends: Endings) -> int:
    """Report an error as one readable block and return the exit code. The traceback goes to the log file."""
    cause = root_cause(error)
    if isinstance(cause, UsageError):
        print(f"error: {one_line(cause)}", file=sys.stderr)
        return EXIT_USAGE
    if isinstance(error, BrokenPipeError) and reader_left():  # otherwise it was some other pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_NO_READER
    failure = Failure.of(error)
    details = None if failure.is_plain else noise.keep(failure.traceback)
    rows = [*failure.lines(), *_safe(error), ("resume", this_command())]
    rows += [("details", f"{details} ({VERBOSE}=1 prints them)")] if details else []
    rows += [] if failure.is_plain else ends.failure_rows()
    print(f"failed: {failure.error}", *_labelled(*rows), sep="\n", file=sys.stderr, flush=True)
    return EXIT_FAILED


def _safe(error: BaseException) -> list[tuple[str, str]]:
    return [("safe", text) for text in safe_on_disk(error)]


def _labelled(*rows: tuple[str, str]) -> list[str]:
    """The rows as aligned lines; a repeated label is written once."""
    before = ["", *(label for label, _ in rows)]
    return [f"  {label if label != last else '':<8} {text}" for (label, text), last in zip(rows, before, strict=False)]


def leave_quietly() -> NoReturn:
    """Exit with 141 and discard what is still buffered: nobody reads stdout any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    raise SystemExit(EXIT_NO_READER) from None


def reader_left() -> bool:
    """Whether stdout is a pipe without a reader."""
    stdout = select.poll()
    stdout.register(1, select.POLLOUT)
    return any(events & select.POLLERR for _, events in stdout.poll(0))


def completed(
    flags_class: type,
    example: str,
    given: Sequence[str],
    defaults: Defaults | None,
    expand: Callable[[Sequence[str]], list[str]] = list,
) -> Call:
    """The words of a call, expanded and with its defaults, announced in one line on stderr; exits after --save-config,
    and with 2 for a bad g3pt.toml.
    """
    if not program(example).endswith(".py") or {"-h", "--help"} & set(given):
        return Call(words=list(given))
    command = Path(program(example).split()[-1]).stem
    saved = SAVE_CONFIG in given
    try:
        call = complete(flags_class, command, expand([word for word in given if word != SAVE_CONFIG]), defaults)
        call = dataclasses.replace(call, words=expand(call.words))  # g3pt.toml may name such a word, too
        if saved:
            flags = parse(flags_class, example=example, args=call.words)
            print(f"result: {save(flags_class, command, call.words, flags)}")
            raise SystemExit(0)
    except ValueError as error:
        die(one_line(error))
    if call.notice:
        print(call.notice, file=sys.stderr, flush=True)
    return call


def parse(flags_class: type[Flags], *, example: str, args: Sequence[str] | None = None) -> Flags:
    """The flags, or exit 2 with one line on stderr (tyro's framed message squeezed), or exit 0 after --help."""
    given = sys.argv[1:] if args is None else list(args)
    if "-h" in given or "--help" in given:
        print_help(flags_class, example)
    import tyro

    framed = io.StringIO()
    try:
        with contextlib.redirect_stderr(framed):
            return tyro.cli(flags_class, args=given, config=(tyro.conf.FlagCreatePairsOff,))
    except ValueError as error:
        die(one_line(error))
    except SystemExit:
        die((complaint(flags_class, given) or squeeze(framed.getvalue())) + " (see --help)")


def print_help(flags_class: type, example: str) -> NoReturn:
    """Print the page of pipelines.cli.help and exit 0."""
    try:
        print(help_text(flags_class, example), end="", flush=True)
    except BrokenPipeError:
        leave_quietly()
    raise SystemExit(0)


def squeeze(framed: str) -> str:
    """One line from tyro's multi-line framed message: no borders, no colour, no pointer to --help at the end."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", framed)
    text = re.sub(r"[│╭╮╰╯─┌┐└┘]+|-{4,}", " ", text)
    text = re.sub(r"For full helptext, (run|see).*", "", " ".join(text.split()))
    text = re.sub(r"^(Parsing error|Required options|Value error) ?(Error parsing \w+: )?", "", text)
    wrong = WRONG_TYPE.match(text)
    if wrong:
        return f"{wrong['flag']} must be a {KINDS[wrong['kind']]}, got {wrong['one'] or wrong['optional']}"
    return text.strip().replace("Invalid choice invalid choice", "invalid choice")


def die(message: str) -> NoReturn:
    """Print one line on stderr and exit with code 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(EXIT_USAGE)


def this_command() -> str:
    """The command line as typed, quoted for a shell."""
    module = getattr(sys.modules["__main__"], "__spec__", None)  # python -m pipelines.report: argv holds its file
    program = (
        ["-m", module.name.removesuffix(".__main__")]
        if module is not None and module.name.startswith("pipelines.")
        else sys.argv[:1]
    )
    return shlex.join(["python", *program, *sys.argv[1:]])


def absolute(path: str) -> str:
    """An absolute path for a local one, because Ray changes the working directory; a URI such as s3:// unchanged."""
    return path if "://" in path else str(Path(path).expanduser().resolve())


@contextlib.contextmanager
def stdout_to_stderr(enabled: bool = True) -> Iterator[None]:
    """Inside the block, everything printed to stdout by Python or by a child process goes to stderr."""
    if not enabled:
        yield
        return
    with contextlib.ExitStack() as stack:
        if writes_to(sys.stdout, 1):
            sys.stdout.flush()
            saved = os.dup(1)
            os.dup2(2, 1)
            stack.callback(_restore_stdout, saved)
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield


def _restore_stdout(saved: int) -> None:
    os.dup2(saved, 1)
    os.close(saved)
