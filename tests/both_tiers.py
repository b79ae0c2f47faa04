"""The fast and the slow tests side by side, each tier in a pytest of its own: what `make test` runs. Arguments go to both.

Slow tests mostly wait: for a Ray to start, a kill's moment, a process to end. The fast tier fills the second core meanwhile. The slow
tier prints as it goes, the fast one all at once when it ends. Exit code: the first tier's that failed; 5 if neither has a test.
"""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO

TIERS = {"fast": "not slow and not soak", "slow": "slow and not soak"}
NO_TESTS = 5  # pytest's exit code where nothing was selected


def both(commands: Sequence[Sequence[str]]) -> list[int]:
    """Run the commands at once; the output of all but the last comes in one piece as each ends. Their exit codes."""
    with tempfile.TemporaryDirectory(prefix="g3pt-tests-") as folder:
        files = [open(f"{folder}/{number}", "w+b") for number in range(len(commands) - 1)]  # noqa: SIM115
        running = [subprocess.Popen(command, stdout=file, stderr=file) for command, file in zip(commands[:-1], files, strict=True)]
        running.append(subprocess.Popen(commands[-1]))
        waiting = list(zip(running[:-1], files, strict=True))
        try:
            while any(process.poll() is None for process in running) or waiting:
                for process, file in [pair for pair in waiting if pair[0].poll() is not None]:
                    waiting.remove((process, file))
                    _print(file)
                time.sleep(0.1)
        except KeyboardInterrupt:  # it reached them too: they take down what they started
            return [process.wait() for process in running]
        finally:
            for process in running:
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)
                    process.wait()
            for file in files:
                file.close()
        return [process.returncode for process in running]


def _print(file: IO[bytes]) -> None:
    file.seek(0)
    sys.stdout.buffer.write(b"\n" + file.read())
    sys.stdout.buffer.flush()


def exit_code(codes: Sequence[int]) -> int:
    """One code for all tiers: a tier in which nothing was selected doesn't count if another has tests."""
    failed = [code for code in codes if code not in (0, NO_TESTS)]
    return failed[0] if failed else min(codes)


def main(arguments: Sequence[str]) -> int:
    """Both tiers with these arguments for pytest."""
    started = time.monotonic()
    codes = both([[sys.executable, "-m", "pytest", "-m", marks, *arguments] for marks in TIERS.values()])
    said = ", ".join(f"{name} tier exit {code}" for name, code in zip(TIERS, codes, strict=True))
    print(f"{said}; {time.monotonic() - started:.0f} s in all", flush=True)
    return exit_code(codes)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored, and both tiers would inherit that
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that both tiers are ended in order
    sys.exit(main(sys.argv[1:]))
