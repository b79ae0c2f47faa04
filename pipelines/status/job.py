"""`jobs/status.py DIR`: one table of everything that the pipeline made below a folder, and the commands to type next.

How: `pipelines.status.inventory.find` reads the folder, and this module prints it. On a terminal it prints a table of
at most 100 columns, followed by each command once. In a pipe each thing is one line with its command at the end. With
--json it prints `{"root", "done", "items": [...]}`; an item's keys are the fields of `pipelines.status.items.Item`.
MLflow runs of killed commands are closed on the way (`pipelines.tracking.killed`).
"""

import dataclasses
import json
import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import tyro

from pipelines.cli.errors import NotWell, UsageError
from pipelines.cli.plain_text import console, duration, plain, shortened
from pipelines.status.inventory import STATES, Item, find
from pipelines.status.items import counted
from pipelines.tracking.client import best_effort
from pipelines.tracking.killed import close_killed

WIDEST = 100  # columns of the table on a terminal
COLOURS = {"done": "green", "partial": "yellow", "stale": "magenta", "failed": "bold red"}


@dataclass(frozen=True, kw_only=True)
class StatusFlags:
    """Show what a folder contains: what is done, partial, stale or failed, and the commands to type next.

    Exit code 0 if everything is done, 1 if not, 2 if the folder is missing.
    """

    dir: tyro.conf.Positional[str]
    """folder to inspect"""
    verify: bool = False
    """compare contents instead of names and times: reads every source mesh, model and derived shard"""
    json: bool = False
    """print JSON instead of a table"""


def status(flags: StatusFlags) -> None:
    """Print the table. NotWell unless everything is done; an empty folder counts as done."""
    if "://" in flags.dir:
        raise UsageError(
            f"{plain(flags.dir)}: object stores are not supported yet, status reads local folders; "
            "python -m g3pt.data.inspection reads a dataset in a bucket"
        )
    root = Path(flags.dir).expanduser()
    if not root.is_dir():
        raise UsageError(f"{plain(flags.dir)}: no such folder")
    items = find(root, verify=flags.verify)
    close_runs(items)
    if flags.json:
        print(json.dumps(as_json(items, root), indent=1))
    elif not items:
        print(f"{plain(flags.dir)}: contains nothing made by this pipeline")
    elif sys.stdout.isatty():
        print_table(items, root)
    else:
        print("\n".join(lines(items, root)))
    if any(item.state != "done" for item in items):
        raise NotWell


def close_runs(items: list[Item]) -> None:
    """Close the MLflow runs of killed commands, and say so on stderr."""
    folders = [item.path for item in items if item.kind in ("run", "study") and not item.working]
    for folder in best_effort("closing MLflow runs of killed commands", lambda: close_killed(folders)) or ():
        print(f"MLflow: closed the run of {plain(folder)}, whose command was killed", file=sys.stderr)


def as_json(items: list[Item], root: Path) -> dict[str, Any]:
    """The absolute root, whether everything is done, and the items with paths relative to the root."""
    rows = []
    for item in items:
        row = dataclasses.asdict(item) | {
            "path": relative(item.path, root),
            "notes": list(item.notes),
            "failures": dict(item.failures),
        }
        rows.append(row | {"parent": None if item.parent is None else relative(item.parent, root)})
    return {"root": os.path.abspath(root), "done": all(item.state == "done" for item in items), "items": rows}


# -------------------------------------------------------------------------------------------------------------- words


def shown(items: list[Item]) -> list[Item]:
    """All items without the done and stale runs of studies, which their study represents."""
    studies = {item.path for item in items if item.kind == "study"}
    return [item for item in items if not (item.parent in studies and item.state in ("done", "stale"))]


def relative(path: Path, root: Path) -> str:
    """The path below the root; `.` for the root itself."""
    return os.path.relpath(path, os.path.abspath(root))


def percent(item: Item) -> str:
    """`48%`, never 100% before the end; empty if unknown."""
    if item.state == "done":
        return "100%"
    if item.done is None or not item.total:
        return ""
    return f"{min(99 if item.state == 'partial' else 100, 100 * item.done // item.total)}%"


def words(item: Item, root: Path) -> str:
    """The description of an item beside its state and percentage. Paths below the root are shown relative to it."""
    parts = [f"ALARM: {item.alarm}"] * bool(item.alarm) + [item.reason] * bool(item.reason)
    if item.done is not None:
        of = "" if item.total in (None, item.done) else f" of {item.total}"
        parts.append(f"{item.done}{of} {item.unit}")
    if item.failures:
        parts.append(f"{sum(item.failures.values())} not ok ({counted(item.failures)})")
    if item.state == "partial":
        if item.seconds_left is not None:
            parts.append(f"{duration(item.seconds_left)} left")
        parts.append("running now" if item.working else f"idle for {duration(item.idle_seconds or 0)}")
    return plain("; ".join([*parts, *item.notes]).replace(os.path.abspath(root) + os.sep, ""))


def lines(items: list[Item], root: Path) -> list[str]:
    """One line per item, uncut, for grep and scripts."""
    rows = [
        (item.state, item.kind, plain(relative(item.path, root)), percent(item), words(item, root))
        for item in shown(items)
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    ends = [f"; next: {plain(item.next)}" if item.next else "" for item in shown(items)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]) + end
        for row, end in zip(rows, ends, strict=True)
    ]


# -------------------------------------------------------------------------------------------------------------- table


def print_table(items: list[Item], root: Path, file: TextIO | None = None) -> None:
    """Print the table, the totals and the commands."""
    from rich.table import Table
    from rich.text import Text

    terminal = console(WIDEST, file=file)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("state", "kind", "path"):
        table.add_column(name, no_wrap=True)
    table.add_column("%", justify="right", no_wrap=True)
    table.add_column("what", overflow="fold")
    for item in shown(items):
        path = shortened(plain(relative(item.path, root)), terminal.width * 2 // 5)
        table.add_row(
            Text(item.state, COLOURS[item.state]),
            item.kind,
            Text(path),
            percent(item).removesuffix("%"),
            Text(words(item, root)),
        )
    terminal.print(table)
    counts = Counter(item.state for item in shown(items))
    terminal.print("\n" + ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]))
    commands = next_commands(items, root)
    if commands:
        terminal.print("next:")
    for command, paths in commands.items():
        terminal.print(Text(f"  {command}"), soft_wrap=True)  # whole, so that it can be copied
        terminal.print(Text("      " + shortened(", ".join(paths), terminal.width - 6), "dim"))


def next_commands(items: list[Item], root: Path) -> dict[str, list[str]]:
    """Each command once, with the paths of the items that it continues."""
    found: dict[str, list[str]] = {}
    for item in shown(items):
        if item.next:
            found.setdefault(plain(item.next), []).append(plain(relative(item.path, root)))
    return found
