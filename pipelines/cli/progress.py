"""Progress of long work: one rewritten line on a terminal, occasional `key=value` lines anywhere else, always on
stderr.

How: a stage wraps its work in `with Progress(stage, total, unit) as progress` and calls `progress.show(done, ...)` as
often as it likes. On a terminal tqdm draws one line per active Progress, so the runs of a sweep stay readable; each
leaves one line with its result. Elsewhere (a file, a pipe, `ray job submit`, TERM=dumb) a line is printed at the start,
then at most every EVERY_S seconds, and at the end, without colour, carriage return or cursor movement:

    progress stage=train state=running run=cvq-nano-s0-1a2b3c4d done=9600 total=19200 unit=samples rate=112.3 loss=0.41
    left_s=85

The prefix `progress ` and these keys are stable. Unknown values are left out. No value contains a space.

- stage: annotations (of --source objaverse), preprocess, train, tokens, features, generate, evaluate
- state: running; at the end done, or stopped (failed or interrupted)
- run: training run, or part of an evaluation
- done, total: whole numbers of `unit`; work finished by an earlier start of the command counts as done in training only
- rate: units per second since the first unit was done, which leaves out the start of the workers; in training, of the
  last steps
- failed: units that failed so far
- left_s: estimated seconds left; at the end `seconds` instead, since this command began this work
- tokens_per_s, loss, val_iou, val_ce: generation and training only

While a command waits for the cluster, lines with state=waiting have `needs`, `free` and `total` of the resource that is
short, and no `done` (pipelines.cluster.waiting).

Ours: no colour at all, which is what NO_COLOR asks for.
"""

import os
import sys
import time
from typing import Any, TextIO

EVERY_S = 10.0  # least time between two lines of one Progress where there is no terminal
MEASURED_S = 2.0  # least time over which a rate is measured: the first results of several workers come in a burst
# A fixed bar width, so that a narrow terminal cuts the line at its right end.
BAR = "{desc} {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} {unit}{postfix}"
_active: list["Progress"] = []


class Progress:
    """The progress of one piece of work, as a context manager. `run` tells it apart from others of the same stage."""

    def __init__(
        self,
        stage: str,
        total: int,
        unit: str,
        *,
        run: str = "",
        done: int = 0,
        tokens_per_unit: int = 0,
        stream: TextIO | None = None,
    ) -> None:
        self.stage, self.total, self.unit, self.run, self.tokens_per_unit = stage, total, unit, run, tokens_per_unit
        self.done, self.numbers, self.failed = done, dict[str, float](), None
        self.rate: float | None = None
        self.stream = stream or sys.stderr
        self.on_terminal = is_terminal(self.stream)
        self.started = self._said_at = time.monotonic()
        self._first: tuple[int, float] | None = (
            None  # units done and time at the first result: before it the workers were starting
        )
        self._bar: Any = None

    def __enter__(self) -> "Progress":
        alone = not _active  # of several runs, those that still wait print nothing
        _active.append(self)
        if alone:
            self._print("running")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        _active.remove(self)
        if self._bar is not None:
            self._bar.close()
        self._print("done" if kind is None and self.done >= self.total else "stopped")

    def show(self, done: int, *, failed: int | None = None, rate: float | None = None, **numbers: float) -> None:
        """Record that `done` units are finished, `failed` of them unsuccessfully, and print if it is time.

        `rate` overrides the measured rate.
        """
        now = time.monotonic()
        if rate is None and self._first is not None and now - self._first[1] >= MEASURED_S:
            rate = (done - self._first[0]) / (now - self._first[1])
        if self._first is None and done > self.done:
            self._first = (done, now)
        self.done, self.failed, self.rate = done, failed, rate or self.rate
        self.numbers |= numbers
        if self.tokens_per_unit and self.rate:
            self.numbers["tokens_per_s"] = self.rate * self.tokens_per_unit
        if self.on_terminal or now - self._said_at >= EVERY_S:
            self._said_at = now
            self._print("running")

    @property
    def left_s(self) -> float | None:
        """Seconds left at the present rate; None while the rate is unknown."""
        return (self.total - self.done) / self.rate if self.rate else None

    def _print(self, state: str) -> None:
        if not self.on_terminal:
            print(self.fields(state), file=self.stream, flush=True)
        elif state == "running":
            self._draw()
        else:
            say(
                f"  {self.title}: {self.done}/{self.total} {self.unit}{self._told(ended=True)}, "
                f"{clock(time.monotonic() - self.started)}",
                self.stream,
            )

    def fields(self, state: str) -> str:
        """The `key=value` line."""
        left = {"left_s": self.left_s} if state == "running" else {"seconds": time.monotonic() - self.started}
        found = {
            "stage": self.stage,
            "state": state,
            "run": self.run or None,
            "done": self.done,
            "total": self.total,
            "unit": self.unit,
        }
        found |= {"rate": self.rate, "failed": self.failed, **self.numbers, **left}
        return "progress " + " ".join(f"{key}={_value(value)}" for key, value in found.items() if value is not None)

    @property
    def title(self) -> str:
        """The name at the start of the line on a terminal."""
        return self.run or self.stage

    def _draw(self) -> None:
        """Redraw the terminal's line; tqdm gives each Progress its own row."""
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                total=self.total,
                desc=f"  {self.title}",
                unit=self.unit,
                file=self.stream,
                leave=False,
                dynamic_ncols=True,
                bar_format=BAR,
            )
        self._bar.n = self.done
        self._bar.set_postfix_str(self._told().removeprefix(", "))

    def _told(self, ended: bool = False) -> str:
        """Rate, numbers and time left, as shown on a terminal."""
        parts = (
            []
            if ended
            else ["starting"]
            if self._first is None
            else [f"{clock(self.left_s)} left"]
            if self.left_s is not None
            else []
        )
        parts += [f"{self.rate:.3g}/s"] if self.rate else []
        parts += [f"{self.failed} failed"] if self.failed is not None else []
        parts += [
            f"{value:.4g} tokens/s" if key == "tokens_per_s" else f"{key} {value:.3g}"
            for key, value in self.numbers.items()
        ]
        return "".join(f", {part}" for part in parts)


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line on stderr, above the progress lines."""
    stream = stream or sys.stderr
    if _active and is_terminal(stream):
        from tqdm import tqdm

        tqdm.write(text, file=stream)
    else:
        print(text, file=stream, flush=True)


def is_terminal(stream: TextIO) -> bool:
    """Whether the stream is a terminal whose lines can be rewritten."""
    return os.environ.get("TERM") != "dumb" and stream.isatty()


def clock(seconds: float) -> str:
    """14 s, 3:05 or 2:10:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace(" ", "_")
