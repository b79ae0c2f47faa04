"""Copies a study's results to a folder for a repository: `python -m pipelines.study.publish STUDY --output FOLDER`.

What: points.csv, points.parquet, fit.json, forecast.json, lr.json, plan.csv and the pictures; no runs and no weights.
The folder has the study.toml by which others repeat the study, with paths of their own. A study that is not finished is
published as far as it is: the fit, and the forecast of runs that do not exist yet.

How: the plan must be that of the study, paths and placement aside. `command` of the points becomes the command with
that file, so that no path of this machine is published; the fit and the forecast read no such column.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from pipelines.cli.errors import UsageError, bad_input
from pipelines.study.plan_file import CONDITION_FIELDS, PATHS, TABLES, read_plan

COPIED = ("fit.json", "forecast.json", "lr.json", "plan.csv")
PLAN, POINTS = "study.toml", ("points.csv", "points.parquet")
LOCAL = re.compile(r"(?<![\w.:/])/(?:[\w.-]+/)+[\w.-]*")  # an absolute path
NOT_COMPARED = {*PATHS, *TABLES["placement"], *TABLES["cost"]}


@dataclass(frozen=True, kw_only=True)
class PublishFlags:
    """Copy a study's points, fit, forecast and pictures to a folder that a repository can hold."""

    study: tyro.conf.Positional[str]
    """folder of the study, finished or not"""
    output: str
    """folder with the study.toml that others will use"""


def publish(flags: PublishFlags) -> str:
    """Copy the files; returns the folder. UsageError if its study.toml is another plan than the study's, and if a file
    names a path of this machine.
    """
    study, output = Path(flags.study), Path(flags.output)
    for file in (study / "study.json", output / PLAN):
        if not file.is_file():
            raise UsageError(f"{file} is missing: give the folder of a study, and as --output one with its {PLAN}")
    check_plan(study, output)
    command = f"python jobs/scaling_sweep.py --plan {output.parent.name}/{output.name}/{PLAN}"
    tables = {name: study / name for name in POINTS if (study / name).is_file()}
    if "points.csv" not in tables:
        raise UsageError(f"{study}: has no points.csv yet: its first runs are not finished")
    copied = [study / name for name in COPIED if (study / name).is_file()] + sorted(study.glob("*.png"))
    for file in copied:
        if file.suffix != ".png":
            check_local(file)
    write_csv(tables["points.csv"], command, output / "points.csv")
    if "points.parquet" in tables:
        write_table(tables["points.parquet"], command, output / "points.parquet")
    for file in copied:
        shutil.copyfile(file, output / file.name)
    for line in missed(output):
        print(line)
    return str(output)


def check_plan(study: Path, output: Path) -> None:
    """UsageError unless the study.toml in `output` has the sizes, samples, seeds, conditions and fields that ran."""
    with bad_input():
        wanted, ran = _compared(output / PLAN), _compared(study / "study.json")
    differ = sorted(name for name in wanted.keys() | ran.keys() if wanted.get(name) != ran.get(name))
    if differ:
        first = differ[0]
        raise UsageError(
            f"{output / PLAN} is not the plan of {study}: {first} is {wanted.get(first, 'missing')}, the study has "
            f"{ran.get(first, 'none')}" + (f" ({len(differ) - 1} more differ)" if len(differ) > 1 else "")
        )


def _compared(file: Path) -> dict[str, Any]:
    """Flag -> value as typed, without those that may differ from machine to machine."""
    found = {name: value for name, value in read_plan(str(file)).items() if name not in NOT_COMPARED}
    fields = dict(part.partition("=")[::2] for part in found.pop("set", "").split(",") if part)
    for name in CONDITION_FIELDS:  # an encoder may be an export's folder, which has another path elsewhere
        if "/" in fields.get(name, ""):
            fields[name] = Path(fields[name]).name
    return found | {f"set {name}": value for name, value in fields.items()}


def check_local(file: Path) -> None:
    """UsageError if a text file names an absolute path."""
    found = LOCAL.search(file.read_text(encoding="utf-8"))
    if found:
        raise UsageError(f"{file} names {found[0]}, a path of this machine: it cannot be published as it is")


def write_csv(source: Path, command: str, target: Path) -> None:
    """The table with another command in each row."""
    import csv

    from g3pt.scaling.points import write_rows

    with open(source, newline="", encoding="utf-8") as file:
        rows = [dict(row) | {"command": command} for row in csv.DictReader(file)]
    write_rows(rows, target)
    check_local(target)


def write_table(source: Path, command: str, target: Path) -> None:
    """The same of the Parquet file, without the losses of single scales of each object, which are most of its bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from g3pt.scaling.points import OBJECTS, write_arrays

    table = pq.read_table(source)
    arrays = {name: table[name] for name in table.column_names if not name.startswith(f"{OBJECTS}ce_scale_")}
    write_arrays(arrays | {"command": pa.array([command] * len(table))}, target)


def missed(folder: Path) -> list[str]:
    """A line per forecast: what was expected, and by how much a run that exists missed it."""
    from g3pt.scaling.forecast import compared, read_forecast

    if not (folder / "forecast.json").exists():
        return []
    fit = json.loads((folder / "fit.json").read_text(encoding="utf-8"))
    losses = {row["run"]: row["measured"] for row in fit.get("forecast") or () if "measured" in row}
    lines = []
    for row in compared(read_forecast(folder / "forecast.json"), losses):
        low, high = row["interval_95"]
        said = f"{row['size']} at {row['samples']:,} samples: {row['loss']:.4f} expected ({low:.4f} to {high:.4f})"
        if "measured" in row:
            where = "inside" if row["inside"] else "OUTSIDE"
            said += f", {row['measured']:.4f} measured: missed by {row['miss']:+.2%}, {where} the interval"
        lines.append(said)
    return lines


if __name__ == "__main__":
    from pipelines.cli.main import main

    main(PublishFlags, publish, example="python -m pipelines.study.publish out/law --output studies/law")
