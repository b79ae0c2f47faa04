"""How far long work is: one rewritten line on a terminal, sparse `key=value` lines anywhere else, always on stderr.

How: a stage wraps its work in `with Progress(stage, total, unit) as progress` and calls `progress.show(done, ...)` as often as it
likes. On a terminal tqdm keeps one line for each Progress that is at work, so several runs of a sweep stay readable, and a line
with the result stays when each ends. Elsewhere (a file, a pipe, `ray job submit`, TERM=dumb) a line is printed at the start,
every EVERY_S seconds at most, and at the end; without colour, carriage return or cursor movement:

    progress stage=train state=running run=cvq-nano-s0-1a2b3c4d done=9600 total=19200 unit=samples rate=112.3 loss=0.41 left_s=85

The prefix `progress ` and these keys are stable; keys that are not known are left out. No value holds a space.

    stage       annotations (of --source objaverse), preprocess, train, tokens, features, generate, evaluate
    state       running; at the end done, or stopped (failed or interrupted)
    run         training run, or part of an evaluation
    done total  whole numbers of `unit`; what an earlier start of the command finished counts as done in training only
    rate        units a second since the first ones were done, so without the workers' start; in training, of the last steps
    failed      units that failed so far
    left_s      seconds to go at that rate; seconds: since this command began this work (at the end only)
    tokens_per_s, loss, val_iou, val_ce: of generation and training

Ours: no colour at all, which is what NO_COLOR asks for.
"""

import os
import sys
import time
from typing import Any, TextIO

EVERY_S = 10.0  # between two lines of one Progress that go to no terminal
MEASURED_S = 2.0  # least time that a rate is taken over: several workers' first results come in a burst
BAR = "{desc} {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} {unit}{postfix}"  # a bar of fixed width: the line is cut at the right
_active: list["Progress"] = []


class Progress:
    """The progress of one piece of work; a context manager. `run` names it among others of its stage."""

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
            None  # units and time when the first came: before it, workers were starting
        )
        self._bar: Any = None

    def __enter__(self) -> "Progress":
        alone = not _active  # of several runs, those that wait for their turn show nothing yet
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
        """`done` units are finished, `failed` of them badly; `rate` where the work measures its own. Prints if it is time."""
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
        """Seconds to go at the present rate; None while there is none."""
        return (self.total - self.done) / self.rate if self.rate else None

    def _print(self, state: str) -> None:
        if not self.on_terminal:
            print(self.fields(state), file=self.stream, flush=True)
        elif state == "running":
            self._draw()
        else:
            say(
                f"  {self.title}: {self.done}/{self.total} {self.unit}{self._told(ended=True)}, {clock(time.monotonic() - self.started)}",
                self.stream,
            )

    def fields(self, state: str) -> str:
        """The line for machines."""
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
        """What a person reads at the line's start."""
        return self.run or self.stage

    def _draw(self) -> None:
        """The terminal's line, made anew; tqdm finds it a row of its own."""
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
        """Rate, numbers and time left for a person."""
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
    """A line on stderr above the progress that is shown."""
    stream = stream or sys.stderr
    if _active and is_terminal(stream):
        from tqdm import tqdm

        tqdm.write(text, file=stream)
    else:
        print(text, file=stream, flush=True)


def is_terminal(stream: TextIO) -> bool:
    """Whether lines can be rewritten there."""
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
