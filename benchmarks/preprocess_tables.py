"""The Markdown tables of benchmarks/preprocess.py, from its JSON."""

import json
import sys
from pathlib import Path
from typing import Any

MILLION = 1_000_000


def markdown(report: dict[str, Any]) -> str:
    """All tables of a report that have at least one row."""
    about = report["machine"]
    head = (
        f"{about['cpu']}, commit {about['commit']}, meshes {report['meshes']}, load {about['load_average'][0]:.1f} "
        f"to {about['load_average_after'][0]:.1f}"
    )
    parts = [head, stages(report["stages"]), meshes(report["stages"])]
    parts += [methods(report["methods"])] if report["methods"] else []
    parts += [core_hours(report["sample"])] if report["sample"] else []
    return "\n\n".join(parts)


def stages(rows: list[dict[str, Any]]) -> str:
    """Mean CPU milliseconds and largest peak memory of each stage."""
    resolutions = sorted({row["resolution"] for row in rows})
    head = ["stage", *(f"{r}: ms" for r in resolutions), *(f"{r}: MB" for r in resolutions)]
    lines = []
    for stage in rows[0]["stages"]:
        costs = [[row["stages"][stage] for row in rows if row["resolution"] == r] for r in resolutions]
        if any(found["seconds"] for group in costs for found in group):
            lines.append(
                [
                    stage,
                    *(f"{1000 * _mean(group, 'seconds'):.1f}" for group in costs),
                    *(f"{max(found['peak_mb'] for found in group):.0f}" for group in costs),
                ]
            )
    groups = [[row for row in rows if row["resolution"] == r] for r in resolutions]
    rest = [
        _mean(group, "seconds")
        - sum(_mean([row["stages"][stage] for row in group], "seconds") for stage in group[0]["stages"])
        for group in groups
    ]
    lines.append(["rest", *(f"{1000 * value:.1f}" for value in rest), *("" for _ in groups)])
    lines.append(
        [
            "all",
            *(f"{1000 * _mean(group, 'seconds'):.0f}" for group in groups),
            *(f"{max(row['peak_mb'] for row in group):.0f}" for group in groups),
        ]
    )
    return _table(head, lines)


def meshes(rows: list[dict[str, Any]]) -> str:
    """CPU seconds of each mesh, without views."""
    resolutions = sorted({row["resolution"] for row in rows})
    lines = []
    for path in dict.fromkeys(row["path"] for row in rows):
        found = {row["resolution"]: row for row in rows if row["path"] == path}
        seconds = [f"{_without_views(found[r]):.2f}" for r in resolutions]
        lines.append(
            [
                path,
                f"{found[resolutions[0]]['faces']:,}",
                *seconds,
                f"{found[resolutions[-1]]['solid_faces']:,}",
                f"{found[resolutions[-1]]['peak_mb']:.0f}",
            ]
        )
    last = resolutions[-1]
    return _table(["mesh", "faces", *(f"{r}: s" for r in resolutions), f"{last}: solid's faces", f"{last}: MB"], lines)


def methods(rows: list[dict[str, Any]]) -> str:
    """Each method compared with ours on the same meshes: the ratio of the sums of seconds."""
    lines = []
    for resolution in sorted({row["resolution"] for row in rows}):
        here = [row for row in rows if row["resolution"] == resolution]
        first = {
            row["path"]: row["seconds"] for row in here if row["method"] == here[0]["method"] and "error" not in row
        }
        for method in dict.fromkeys(row["method"] for row in here):
            tried = [row for row in here if row["method"] == method]
            done = [row for row in tried if "error" not in row and row["path"] in first]
            if not done:
                lines.append([str(resolution), method, f"0 of {len(tried)}", *[""] * 6])
                continue
            ratios = sorted(row["seconds"] / first[row["path"]] for row in done)
            total = sum(row["seconds"] for row in done) / sum(first[row["path"]] for row in done)
            lines.append([str(resolution), method, f"{len(done)} of {len(tried)}", f"{_mean(done, 'seconds'):.2f}",
                          f"{total:.1f}", f"{ratios[0]:.1f} to {ratios[-1]:.1f}",
                          f"{max(row['peak_mb'] for row in done):.0f}", f"{_mean(done, 'iou'):.3f}",
                          f"{_mean(done, 'equal_far'):.4f}"])  # fmt: skip
    return _table(
        [
            "cells",
            "method",
            "meshes",
            "CPU s",
            "times ours",
            "by mesh",
            "peak MB",
            "IoU with ours",
            "equal beyond 2 voxels",
        ],
        lines,
    )


def core_hours(rows: list[dict[str, Any]]) -> str:
    """Core-hours of a million objects like those of the sample, with the arithmetic."""
    lines = []
    for resolution in sorted({row["resolution"] for row in rows}):
        here = [row for row in rows if row["resolution"] == resolution]
        plain = sum(_without_views(row) for row in here) / len(here)
        views = _mean([row["stages"]["views"] for row in here], "seconds")
        size = _mean(here, "bytes") / 1e6
        for what, seconds in (("no views", plain), ("with views", plain + views)):
            lines.append(
                [
                    str(resolution),
                    what,
                    str(len(here)),
                    f"{seconds:.3f}",
                    f"1,000,000 x {seconds:.3f} s / 3600 = {MILLION * seconds / 3600:,.0f}",
                    f"{size:.2f}" if what != "no views" else "",
                ]
            )
    return _table(["cells", "", "objects", "CPU s an object", "core-hours of a million", "MB an object"], lines)


def _without_views(row: dict[str, Any]) -> float:
    return row["seconds"] - row["stages"]["views"]["seconds"]


def _mean(rows: list[dict[str, Any]], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


def _table(head: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
