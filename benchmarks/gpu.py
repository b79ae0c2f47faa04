"""A table of a GPU, filled in a stated time: training speed of both models, bf16 codes, attention, sampling.

    benchmarks/gpu.sh --minutes 5 [--output gpu.json] [--only car-0.1B,cvq-small] [--toy]

Needs torch (2.11 or later), numpy, pyarrow and safetensors, no package of Ray's or MLflow's, no data and no network.

How: the rows below are commands of the other benchmarks, most important first. Each runs in a process of its own, so
that one that fails or runs out of memory leaves the others, and the JSON is written again after each. A row starts only
if the time left is more than its own; when the time is up the row that runs is ended and named. `--toy` replaces
presets and sizes by the smallest, and Inductor by a backend that compiles nothing, which shows on a CPU that every
command is understood.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

COMPILED = {False: (), True: ("--compile", "inductor")}
TOY_COMPILED = {False: (), True: ("--compile", "aot_eager")}
SAID = 600  # characters of a failed row's last words that are kept


@dataclass(frozen=True, kw_only=True)
class Row:
    """A command of a benchmark, and the seconds that it should need on a GPU."""

    name: str
    seconds: float
    words: tuple[str, ...]  # script, then its flags
    toy: tuple[str, ...] = ()  # flags that follow, and win, with --toy


def car(name: str, preset: str, batch: int, seconds: float, compiled: bool = False) -> Row:
    """Training steps of a generator on random inputs of the paper's tokens."""
    sizes = ("--presets", preset, "--scales", "paper", "--batch-size", str(batch), "--micro-batch", str(batch))
    words = ("generator_step.py", *sizes, "--precision", "bf16", *COMPILED[compiled])
    toy = ("--presets", "nano", "--scales", "nano", "--batch-size", "2", "--micro-batch", "2", "--precision", "fp32")
    return Row(name=name, seconds=seconds, words=words, toy=(*toy, "--steps", "1", *TOY_COMPILED[compiled]))


def cvq(name: str, preset: str, batch: int, seconds: float, compiled: bool = False) -> Row:
    """Training steps of a tokenizer on balls."""
    words = ("tokenizer.py", "--presets", preset, "--batch-size", str(batch), "--steps", "5", "--precision", "bf16")
    toy = ("--presets", "nano", "--batch-size", "2", "--steps", "1", "--precision", "fp32")
    return Row(
        name=name, seconds=seconds, words=(*words, *COMPILED[compiled]), toy=(*toy, *TOY_COMPILED[compiled])
    )  # fmt: skip


ROWS = (
    car("car-0.1B", "0.1B", 32, 25),
    car("car-0.1B-compiled", "0.1B", 32, 45, compiled=True),
    cvq("cvq-small", "small", 64, 30),
    cvq("cvq-small-compiled", "small", 64, 60, compiled=True),
    car("car-1.5B-compiled", "1.5B", 8, 60, compiled=True),
    Row(name="codes", seconds=30, words=("codes.py",), toy=("--objects", "2")),
    car("car-1.5B", "1.5B", 4, 40),
    Row(
        name="attention", seconds=40, words=("attention.py", "--presets", "0.1B,1.5B"),
        toy=("--presets", "nano", "--scales", "nano", "--batch-size", "1", "--steps", "1"),
    ),
    car("car-0.5B-compiled", "0.5B", 16, 50, compiled=True),
    cvq("cvq-small-compiled-256", "small", 256, 60, compiled=True),
    cvq("cvq-base-compiled", "base", 32, 70, compiled=True),
    cvq("cvq-large-compiled", "large", 8, 80, compiled=True),
    Row(
        name="sampling", seconds=60,
        words=("sampling.py", "--presets", "0.1B", "--batches", "1,8", "--precision", "bf16", "--repeats", "1"),
        toy=("--presets", "nano", "--batches", "1", "--precision", "fp32"),
    ),
)  # fmt: skip


def command(row: Row, device: str, toy: bool, output: Path) -> list[str]:
    """The words that run a row."""
    script, *flags = row.words
    return [
        sys.executable, str(HERE / script), *flags, *(row.toy if toy else ()), "--device", device,
        "--output", str(output),
    ]  # fmt: skip


def run(row: Row, device: str, toy: bool, seconds: float) -> dict[str, Any]:
    """What the row's benchmark wrote, or why it wrote nothing: its last words, or that the time was up."""
    with tempfile.TemporaryDirectory() as folder:
        output, began = Path(folder) / "row.json", time.monotonic()
        said = Path(folder) / "said"
        with open(said, "wb") as log:
            process = subprocess.Popen(
                command(row, device, toy, output),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # compilers are processes of its own, which end with it
            )
            try:
                status: int | str = process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                status = f"ended after {seconds:.0f} s: the time was up"
            finally:
                with_its_children(process)
        found = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
        taken = {"name": row.name, "seconds": round(time.monotonic() - began, 1), "command": row.words}
        if status == 0 and found:
            return taken | {"rows": found["rows"], "hardware": found.get("hardware")}
        text = said.read_text(encoding="utf-8", errors="replace").strip()
        return taken | {"failed": str(status), "said": text[-SAID:], "rows": found.get("rows", [])}


def with_its_children(process: subprocess.Popen[bytes]) -> None:
    """End the process and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def fill(rows: Sequence[Row], minutes: float, device: str, toy: bool, output: Path) -> list[dict[str, Any]]:
    """Run the rows that fit in the time; write the table after each."""
    from benchmarks.tokenizer import commit

    end, done, left = time.monotonic() + 60 * minutes, list[dict[str, Any]](), [row.name for row in rows]
    about = {"commit": commit(), "minutes": minutes, "toy": toy, "rows": done, "not_reached": left}
    write(output, about)
    for row in rows:
        remaining = end - time.monotonic()
        if remaining < (1 if toy else row.seconds):
            continue
        left.remove(row.name)
        done.append(run(row, device, toy, remaining))
        print(line(done[-1]), flush=True)
        write(output, about)
    return done


def write(output: Path, table: dict[str, Any]) -> None:
    """Write the table complete or not at all."""
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    temporary.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, output)


def line(found: dict[str, Any]) -> str:
    """A row in one line."""
    if "failed" in found:
        words = found["said"].splitlines()[-1:] or [""]
        return f"{found['name']}: FAILED ({found['failed']}) {words[0]}"
    (first, *_) = found["rows"]
    rates = ("samples_per_s", "train_samples_per_s", "utilisation_of_product", "utilisation", "kernels", "peak_bytes")
    shown = [f"{name} {first[name]:.4g}" for name in rates if first.get(name) is not None]
    return f"{found['name']}: {', '.join(shown) or json.dumps(first)[:300]} ({found['seconds']} s)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5, help="after which no row runs any more")
    parser.add_argument("--only", help="names of rows, comma-separated; default all")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--toy", action="store_true", help="the smallest sizes, to try the commands")
    parser.add_argument("--list", action="store_true", help="print the rows and stop")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    flags = parser.parse_args()
    names = flags.only.split(",") if flags.only else [row.name for row in ROWS]
    known = {row.name: row for row in ROWS}
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"error: --only {unknown[0]}: no such row; --list prints them")
    rows = [known[name] for name in names]
    if flags.list:
        print("\n".join(f"{row.name:24} {row.seconds:4.0f} s  {' '.join(row.words)}" for row in rows))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a row's process ends, too
    done = fill(rows, flags.minutes, flags.device, flags.toy, flags.output)
    failed = sum("failed" in one for one in done)
    print(f"{len(done)} of {len(rows)} rows, {failed} failed; wrote {flags.output}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
