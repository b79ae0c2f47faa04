"""The report: one HTML file about everything g3pt made in a folder, to mail or to open from disk without a network.

How: `folders` finds what the folder contains, one function per kind writes its section (`dataset`, `runs`, `study`,
`generation`, `tokenizer`, `generator`), and `html` puts them into a page with the viewer inside. A report is a view:
every number is read from the files of the runs (`values`), none is computed here.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from pipelines.cli.errors import UsageError, one_line
from pipelines.report.values import Unreadable

if TYPE_CHECKING:  # the parts are imported when a report is written: they need torch
    from pipelines.report.folders import Item


@dataclass(frozen=True, kw_only=True)
class ReportFlags:
    """Write one HTML file about a dataset, run, study, generated meshes, an evaluation, or a folder with several of
    them.
    """

    path: tyro.conf.Positional[str]
    """output folder of a command, or an evaluation's .json"""
    output: str | None = None
    """HTML file to write; default report.html in the folder, or STEM.html beside STEM.json"""


def report(flags: ReportFlags) -> str:
    """The command; returns the path of the page."""
    if flags.output is not None and Path(flags.output).suffix not in (".html", ".htm"):
        raise UsageError(f"--output must end in .html, got {flags.output!r}")
    started = time.monotonic()
    page = write_report(flags.path, flags.output)
    print(f"report: {page.stat().st_size / 1e6:.1f} MB in {time.monotonic() - started:.1f} s", file=sys.stderr)
    return str(page)


def write_report(path: str | Path, output: str | Path | None = None) -> Path:
    """Write the report about `path` and return the HTML file. UsageError if there is nothing to report on."""
    from g3pt.data.storage import write_atomic
    from pipelines.report import folders

    if "://" in str(path):
        raise UsageError(f"{path}: object stores are not supported yet, reports read local paths")
    root = Path(path).expanduser().resolve()
    if not root.exists():
        raise UsageError(f"{path}: no such file or folder")
    items = folders.find(root)
    if not items:
        raise UsageError(f"{path}: no dataset, run, study, generated meshes or evaluation here")
    try:
        page = write_page(root, items)
    except Unreadable as error:
        raise UsageError(one_line(error)) from error
    target = (
        Path(output).expanduser().resolve()
        if output
        else (root.with_suffix(".html") if root.is_file() else root / "report.html")
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, page.encode("utf-8", errors="replace"))
    return target


def write_page(root: Path, items: list[Item]) -> str:
    """The HTML of `items`. An unreadable item becomes a warning; if it is the only one, Unreadable is raised."""
    from pipelines.report import common, dataset, generation, generator, html, runs, study, tokenizer
    from pipelines.status.inventory import UNREADABLE

    sections = {
        "dataset": dataset.dataset,
        "generation": generation.generation,
        "study": study.study,
        "cvq run": runs.run,
        "car run": runs.run,
        "cvq evaluation": tokenizer.tokenizer,
        "car evaluation": generator.generator,
    }
    page = html.Page(
        root=root if root.is_dir() else root.parent,
        title=root.name,
        kind=items[0].kind if len(items) == 1 else "report",
    )
    for item in items:
        try:
            sections[item.kind](page, item.path)
        except UNREADABLE as error:
            wrong = (
                error
                if isinstance(error, Unreadable)
                else Unreadable(f"{item.path}: damaged, or of another version ({type(error).__name__}: {error})")
            )
            if len(items) == 1:
                raise wrong from error
            page.add(item.path.name, html.warning(wrong))
    if root.is_dir():
        common.times(page)
    common.environments(page)
    common.credits(page)
    return html.render(
        page,
        f"Made {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())} by python -m pipelines.report from the files in "
        f"{root}. Every number is read from them.",
    )
