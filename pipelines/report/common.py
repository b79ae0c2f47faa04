"""Parts of every report: unfinished work, seconds per stage, versions and hardware, credits of the shown objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipelines.report.html import Page, bar, command, facts, licence, link, paragraph, table, text, warning
from pipelines.report.values import NONE, Source, Unreadable, read_json


def times(page: Page) -> None:
    """Add the seconds of a demo's stages as bars, from seconds.json."""
    file = page.root / "seconds.json"
    if not file.is_file():
        return
    try:
        seconds = read_json(file, page.root)
        planned = page.root / "stages.json"
        order = read_json(planned, page.root).get("stages", default=[]) if planned.is_file() else []
    except Unreadable as error:
        page.add("Time", warning(error))
        return
    names = sorted(
        (name for name in seconds.value if name != "all"),
        key=lambda name: (order.index(name) if name in order else len(order), name),
    )
    stages = {name: seconds.get(name) for name in names if isinstance(seconds.get(name), (int, float))}
    longest = max(stages.values(), default=1.0) or 1.0
    rows = [
        bar(seconds.number(name, spec=".1f", unit="\u00a0s"), value / longest, name) for name, value in stages.items()
    ]
    if "all" in seconds.value:
        rows.append((text("all"), seconds.number("all", spec=".1f", unit="\u00a0s")))
        page.tile(seconds.number("all", spec=".0f", unit="\u00a0s"), "from shapes to this page", "all stages together")
    page.add(
        "Time",
        paragraph("Wall time of each stage, added up over all starts of the command in this folder."),
        table((), rows, "Seconds per stage"),
    )


def note_environment(page: Page, source: Source, where: str) -> None:
    """Record the environment in a file of the run; equal environments are shown once."""
    found = source.get("environment")
    if isinstance(found, dict):
        page.environments.setdefault(json.dumps(found, sort_keys=True), (source.at("environment"), []))[1].append(where)


def note_command(page: Page, folder: Path, where: str) -> Source | None:
    """`command.json` of a stage's folder, with its environment recorded; None without one."""
    from pipelines.runs.notes import COMMAND_FILE

    try:
        found = read_json(folder / COMMAND_FILE, page.root)
    except Unreadable:  # a note: no result depends on it
        return None
    note_environment(page, found, where)
    return found


def unfinished(folder: Path, note: Source | None, parts: str, unit: str) -> Iterator[Markup]:
    """The parts of a section about unfinished work."""
    yield warning(f"Not finished: {sum(1 for _ in folder.glob(parts))} {unit} so far.")
    failure = failure_line(folder)
    if failure:
        yield failure
    if note is not None:
        yield paragraph("The same command resumes:")
        yield command(str(note.get("command", default="")))


def failure_line(folder: Path) -> Markup | None:
    """A warning with the reason why the work in `folder` failed; None without one."""
    from pipelines.runs.notes import FAILURE_FILE, read_note

    failure = read_note(folder, FAILURE_FILE)
    return warning(f"Failed: {failure.get('error', 'no reason noted')}") if failure else None


def environments(page: Page) -> None:
    """Add the recorded versions, commits and hardware of the stages."""
    if not page.environments:
        page.add("Versions and hardware", paragraph("Not recorded: the stages were made by an older version."))
        return
    parts = []
    for source, names in page.environments.values():
        packages = source.get("packages", default={})
        shown = [(name, packages[name]) for name in ("torch", "ray", "mlflow", "g3pt") if packages.get(name)]
        gpus = source.get("gpus", default=[])
        parts += [
            paragraph("Of " + ", ".join(dict.fromkeys(names)), "soft"),
            facts(
                [
                    ("Python", text(source.get("python", default="unknown"))),
                    *((name, text(version)) for name, version in shown),
                    ("g3pt commit", text(source.get("git_commit", default="unknown"))),
                    ("Processor", text(source.get("cpu", default="unknown"))),
                    ("Cores", source.number("cores", spec="d")),
                    ("Memory", _gibibytes(source)),
                    ("GPU", text(", ".join(map(str, gpus)) or "none")),
                ]
            ),
        ]
    page.add("Versions and hardware", *parts)


def _gibibytes(source: Source) -> Any:
    value = source.get("memory_bytes")
    return text(f"{value / 2**30:.1f} GiB") if isinstance(value, (int, float)) else NONE


def credits(page: Page) -> None:
    """Add author, licence and origin of each object shown."""
    if not page.credits:
        return
    rows = []
    for object_id, row in sorted(page.credits.items()):
        addresses = [link(row[name]) for name in ("attribution_url", "source_url") if row[name]]
        rows.append(
            (
                text(object_id),
                text(row["author"] or "not stated"),
                licence(row["license"]),
                Markup("<br>").join(addresses) or NONE,
            )
        )
    page.add(
        "Credits",
        paragraph("The objects shown above keep their own licences."),
        table(("object", "author", "licence", "source"), rows, "Shown objects"),
    )
