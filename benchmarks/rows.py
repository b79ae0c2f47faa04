"""Flags, rows and seeds of the benchmarks that train one row of a table at a time."""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch


def row_parser(doc: str | None, output: str) -> argparse.ArgumentParser:
    """A parser with the flags that these benchmarks share."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", help="dataset of jobs/preprocess.py")
    made.add_argument("--output", type=Path, default=Path(output))
    made.add_argument("--rows", default="", help="comma-separated names of ROWS")
    made.add_argument("--seeds", default="0", help="comma-separated")
    made.add_argument("--list", action="store_true")
    return made


def rows_asked(flags: argparse.Namespace, rows: Mapping[str, Any]) -> Iterator[tuple[str, int, Path]]:
    """Name, seed and file of each row to train. Sets one torch thread. With --list, prints the rows and exits."""
    if flags.list:
        print("\n".join(f"{name:15} {changes}" for name, changes in rows.items()))
        raise SystemExit
    torch.set_num_threads(1)
    flags.output.mkdir(parents=True, exist_ok=True)
    names = [name for name in flags.rows.split(",") if name]
    for name in names:
        if name not in rows:
            raise SystemExit(f"--rows {name}: no such row; --list prints them")
    for name in names:
        yield from (
            (name, seed, flags.output / f"{name}-{flags.steps}-s{seed}.json")
            for seed in map(int, flags.seeds.split(","))
        )
