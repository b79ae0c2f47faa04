"""The commands of `python -m g3pt.scaling`: fit own or published points, find the best size for a budget,
compare studies.

Needs NumPy and SciPy alone: neither torch nor Ray.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from g3pt.scaling import forecast as forecasts
from g3pt.scaling.comparison import compared
from g3pt.scaling.intervals import errors
from g3pt.scaling.points import COUNTS, LOSS, Points, import_rows, read_points, read_rows, write_rows
from g3pt.scaling.sections import beyond, cost_of, optimum
from g3pt.scaling.study import law_of, report

EXAMPLES = """examples:
  python -m g3pt.scaling fit out/study/points.csv
  python -m g3pt.scaling optimum out/study/points.csv --flops 1e15 --presets out/study/points.csv
  python -m g3pt.scaling compare out/study-a out/study-b --output out/study-a/comparison.json
  python -m g3pt.scaling import svg_extracted_data.csv --output points.csv

exit code: 0 done, 2 bad usage or input"""
NO_INTERVAL = "no interval: as many parameters as points"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    flags = parser().parse_args(arguments)
    try:
        flags.run(flags)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """The commands and their flags."""
    whole = argparse.ArgumentParser(
        prog="python -m g3pt.scaling", description=__doc__.split("\n\n")[0], epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = whole.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, words: str, *files: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=words, description=words)
        for file in files:
            one.add_argument(file, help="points as CSV or Parquet, or the folder of a study")
        one.set_defaults(run=run)
        return one

    fit = command("fit", fit_command, "fit the law, choose its form, print intervals and what moves it", "points")
    fit.add_argument("--output", help="JSON file to write")
    best = command("optimum", optimum_command, "best N and D for a number of operations", "points")
    best.add_argument("--flops", type=float, required=True, help="operations of the whole training")
    best.add_argument(
        "--presets", metavar="CSV", help="sizes that exist (columns size and the count of N): the nearest by loss"
    )
    two = command(
        "compare", compare_command, "differences of two laws' exponents, and the compute multiplier", "first", "second"
    )
    two.add_argument(
        "--flops",
        type=float,
        help="operations at which the multiplier is taken; default the most that both have counted",
    )
    two.add_argument("--output", help="JSON file to write; FIRST/comparison.json is shown by that study's page")
    for one in (fit, best, two):
        one.add_argument(
            "--count", choices=COUNTS, default="", help="column of N; default the first of these that there is"
        )
        one.add_argument("--loss", default=LOSS, help=f"column of the loss [{LOSS}]")
        one.add_argument(
            "--form", default="", help="additive, joint, saturating or broken; default the one that predicts best"
        )
        one.add_argument("--max-loss", type=float, default=math.inf, help="leave out points of a higher loss")
        one.add_argument("--ceiling", type=float, help="known H of the saturating form, in the loss's unit")
    brought = command("import", import_command, "turn a published table into points", "file")
    brought.add_argument("--output", required=True, help="CSV file to write")
    brought.add_argument("--columns", help="ours=theirs, comma-separated; default those of a known table")
    seen = command("forecast", forecast_command, "a forecast written before the runs, beside their points", "points")
    seen.add_argument("forecast", help="forecast.json")
    return whole


def _read(path: str, flags: argparse.Namespace, count: str = "") -> Points:
    points = read_points(path, count=count or flags.count, column=flags.loss)
    return points.where(points.loss <= flags.max_loss)


def fit_command(flags: argparse.Namespace) -> None:
    """Print a study's law; with --output also write it."""
    points = _read(flags.points, flags)
    counts = [name for name in COUNTS if name in read_rows(flags.points)[0] and name != points.count]
    others = [_read(flags.points, flags, name) for name in counts]
    found = report(points, form=flags.form, ceiling=flags.ceiling, others=others)
    print("\n".join(lines(found)))
    if flags.output:
        Path(flags.output).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"result: {flags.output}")


def lines(found: dict[str, Any]) -> list[str]:
    """A report as text. A law that misses says so first."""
    law, points = found["law"], found["points"]
    shown = [
        f"{points['num']} points, {found['num_sizes']} sizes, {found['num_samples']} numbers of samples; N is "
        f"{points['count']}"
    ]
    if found["misses"]:
        lack = found["lack_of_fit"]
        shown.append(f"THE LAW MISSES: residuals exceed the spread of seeds (F {lack['F']:.3g}, p {lack['p']:.2g})")
    shown.append(f"L = {law['formula']}    rms {100 * law['rms']:.2f} %")
    for name, value in law["parameters"].items():
        words = "at its bound: not determined" if name in law["at_bound"] else "" if law["interval_95"] else NO_INTERVAL
        if name in law["interval_95"] and not words:
            low, high = law["interval_95"][name]
            words = f"95 % [{low:.5g}, {high:.5g}]"
        shown.append(f"  {name:<6} {value:<12.5g} {words}".rstrip())
    shown.append(
        "errors, % of the loss: "
        + ", ".join(f"{name.removesuffix('_sd')} {100 * sd:.2f}" for name, sd in found["errors"].items())
    )
    shown.append("error in predicting rungs left out, % of the loss:")
    for name, form in found["forms"].items():
        parts = ", ".join(f"{one['name']} {100 * one['error']:.2f}" for one in form["left_out"])
        words = f"{100 * form['score']:.2f}  ({parts})" if parts else "none could be left out"
        shown.append(f"  {name:<11} {words}")
    shown.append("what moves it:")
    for row in found["sensitivity"]:
        words = (
            row["error"]
            if "error" in row
            else " ".join(f"{k} {v:.4g}" for k, v in row.items() if isinstance(v, float) and k != "rms")
        )
        shown.append(f"  {row['variant']:<32} {words}")
    return shown


def optimum_command(flags: argparse.Namespace) -> None:
    """Print the best N and D for --flops, and the nearest size that exists."""
    points = _read(flags.points, flags)
    law = law_of(points, flags.form, flags.ceiling)
    cost = cost_of(points)
    best = optimum(law, cost, flags.flops, errors(law, points.size, points.seed))
    assert best.params_interval and best.loss_interval
    counted = "counted" if cost.counted else "6 N per sample: nothing was counted"
    print(f"{flags.flops:.3g} operations ({counted}), L = {law.form.formula}")
    print(f"  N {best.params:.4g}, 95 % [{best.params_interval[0]:.3g}, {best.params_interval[1]:.3g}]")
    print(
        f"  D {best.samples:.4g}    loss {best.loss:.4f}, 95 % [{best.loss_interval[0]:.4f}, "
        f"{best.loss_interval[1]:.4f}]"
    )
    words = beyond(points, best.params, best.samples)
    if words:
        print(f"  extrapolated: {words}")
    if flags.presets:
        known = {row.get("size") or row[points.count]: float(row[points.count]) for row in read_rows(flags.presets)}
        by_loss = {name: float(law(n, flags.flops / cost(n))) for name, n in known.items()}
        nearest = min(by_loss, key=lambda name: by_loss[name])
        print(
            f"  size that exists: {nearest} (N {known[nearest]:.4g}) with D "
            f"{flags.flops / float(cost(known[nearest])):.4g}, loss {by_loss[nearest]:.4f}"
        )


def compare_command(flags: argparse.Namespace) -> None:
    """Print the differences of two laws of one form; with --output also write them."""
    first, second = (_read(path, flags) for path in (flags.first, flags.second))
    found = compared(first, second, form=flags.form, ceiling=flags.ceiling, flops=flags.flops)
    print("\n".join(comparison_lines(found)))
    if flags.output:
        Path(flags.output).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"result: {flags.output}")


def comparison_lines(found: dict[str, Any]) -> list[str]:
    """A comparison as text."""
    shown = [f"first {found['first']['source']}, second {found['second']['source']}; L = {found['formula']}"]
    objects = found["objects"]
    shown.append(
        f"  intervals include the choice of test objects: {objects['first']:,} and {objects['second']:,}, "
        f"{objects['both']:,} in both and paired"
        if objects
        else "  intervals are about the test objects of the studies: without the losses of each (points.parquet)"
    )
    for one in found["differences"]:
        low, high = one["interval_95"]
        shown.append(
            f"  {one['name']}: {one['first']:.4f} and {one['second']:.4f}, difference {one['difference']:+.4f}, 95 % "
            f"[{low:+.4f}, {high:+.4f}]{'' if one['seen'] else ': not seen'}"
        )
    one = found["multiplier"]
    if one is None:
        return [*shown, "  compute multiplier: needs --flops, because the points have no counted operations"]
    low, high = (math.inf if end is None else end for end in one["interval_95"])
    words = f"{one['value']:.3g} times the {one['flops']:.3g} operations of the first for the same loss above E"
    return [*shown, f"  the second needs {words}, 95 % [{low:.3g}, {high:.3g}]"]


def import_command(flags: argparse.Namespace) -> None:
    """Write a published table as points."""
    columns = dict(pair.split("=", 1) for pair in flags.columns.split(",")) if flags.columns else None
    rows = import_rows(flags.file, columns)
    write_rows(rows, flags.output)
    read_points(flags.output)
    print(f"{len(rows)} points\nresult: {flags.output}")


def forecast_command(flags: argparse.Namespace) -> None:
    """Print a forecast beside what was measured, as CSV."""
    body = forecasts.read_forecast(flags.forecast)
    losses = {row["run"]: float(row[body["loss"]]) for row in read_rows(flags.points) if row.get("run")}
    rows = forecasts.compared(body, losses)
    writer = csv.DictWriter(sys.stdout, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
