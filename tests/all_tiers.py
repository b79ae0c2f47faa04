"""All tests, in two lanes side by side: what `make test` runs. A lane is one pytest after another; arguments go to all of them.

Slow tests mostly wait: for a Ray to start, a kill's moment, a process to end. Those of whole commands (tests/jobs) take as long as all others
together. That lane prints as it goes, each tier of the other all at once when it ends. Exit code: the first tier's that failed; 5 if none has a test.
"""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO

TIERS = {
    "fast": "not slow and not soak",
    "slow": "slow and not soak and not jobs",
    "slow jobs": "slow and not soak and jobs",
}
LANES = (("fast", "slow"), ("slow jobs",))
NO_TESTS = 5  # pytest's exit code where nothing was selected
Command = Sequence[str]


class Lane:
    """Commands in turn; each one's output goes to a file that is printed when it ends, or straight to the terminal."""

    def __init__(self, commands: Sequence[Command], folder: str, shown: bool) -> None:
        self.waiting, self.codes, self.folder, self.shown = list(commands), list[int](), folder, shown
        self.running: subprocess.Popen | None = None
        self.file: IO[bytes] | None = None

    def goes_on(self) -> bool:
        """Take note of a command that ended and start the next; False once there is none left."""
        if self.running is not None:
            if self.running.poll() is None:
                return True
            self.finish()
        if not self.waiting:
            return False
        self.file = None if self.shown else tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115
        self.running = subprocess.Popen(self.waiting.pop(0), stdout=self.file, stderr=self.file)
        return True

    def finish(self) -> None:
        """Wait for the command at work; keep its exit code, print what it said."""
        if self.running is None:
            return
        self.codes.append(self.running.wait())
        self.running = None
        if self.file is not None:
            self.file.seek(0)
            sys.stdout.buffer.write(b"\n" + self.file.read())
            sys.stdout.buffer.flush()
            self.file.close()

    def end(self) -> None:
        """Interrupt the command at work, which takes down what it started."""
        if self.running is not None and self.running.poll() is None:
            self.running.send_signal(signal.SIGINT)
        self.finish()


def run(lanes: Sequence[Sequence[Command]]) -> list[list[int]]:
    """Run the lanes at once; the last one's output comes as it goes. The exit codes of what ran in each."""
    with tempfile.TemporaryDirectory(prefix="g3pt-tests-") as folder:
        made = [Lane(commands, folder, shown=number == len(lanes) - 1) for number, commands in enumerate(lanes)]
        try:
            while any([lane.goes_on() for lane in made]):
                time.sleep(0.1)
        except KeyboardInterrupt:  # it reached them too: they take down what they started
            for lane in made:
                lane.finish()
        finally:
            for lane in made:
                lane.end()
        return [lane.codes for lane in made]


def exit_code(codes: Sequence[int]) -> int:
    """One code for all tiers: a tier in which nothing was selected doesn't count if another has tests."""
    failed = [code for code in codes if code not in (0, NO_TESTS)]
    return failed[0] if failed else min(codes)


def main(arguments: Sequence[str]) -> int:
    """All tiers with these arguments for pytest."""
    started = time.monotonic()
    codes = run([[[sys.executable, "-m", "pytest", "-m", TIERS[name], *arguments] for name in lane] for lane in LANES])
    said = [
        f"{name} tier exit {code}"
        for lane, found in zip(LANES, codes, strict=True)
        for name, code in zip(lane, found, strict=False)
    ]
    print(f"{', '.join(said)}; {time.monotonic() - started:.0f} s in all", flush=True)
    return exit_code([code for found in codes for code in found])


if __name__ == "__main__":
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's `&` has it ignored, and all tiers would inherit that
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that all tiers are ended in order
    sys.exit(main(sys.argv[1:]))
