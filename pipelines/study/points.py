"""The points of a study, from the ledgers of its runs, and the law fitted to them: points.csv and points.parquet,
fit.json, curve.png.
"""

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from g3pt.scaling.points import write_parquet, write_rows
from pipelines.runs.identity import RunSpec
from pipelines.runs.ledger import Ledger, Record
from pipelines.runs.notes import COMMAND_FILE, read_note
from pipelines.study.ceiling import usable
from pipelines.train.counts import count_car
from pipelines.train.jobs import open_data
from pipelines.train.object_losses import read_object_losses
from pipelines.train.trajectory import branched_from

ENVIRONMENT_FILE = "environment.json"  # of the machine that trained a run


def collect(specs: Sequence[RunSpec], study: Path, held_out: Collection[str] = ()) -> list[dict[str, Any]]:
    """One point per run, from the last record of its ledger, smallest size first; those named in `held_out` are marked.
    `command` is that of the study: none makes a single run of a trajectory.
    """
    command = (read_note(study, COMMAND_FILE) or {}).get("command", "")
    points = [
        {
            **point(spec, study / "runs" / spec.name),
            "held_out": int(spec.name in held_out),
            "command": command,
        }
        for spec in specs
    ]
    return sorted(points, key=lambda row: (row["params_no_embed"], row["seed"], row["samples"]))


def write_points(rows: Sequence[dict[str, Any]], study: Path) -> None:
    """Write points.csv, and points.parquet: the same rows, each with the losses of its test objects as far as its run
    has them.
    """
    write_rows(rows, study / "points.csv")
    losses = [read_object_losses(study / "runs" / row["run"]) for row in rows]
    write_parquet(rows, losses, study / "points.parquet")


def point(spec: RunSpec, run_dir: Path) -> dict[str, Any]:
    """The run's row of points.csv (docs/concepts/contracts.md). flops counts the transformer as trained (with image
    tokens), forward and backward (twice the forward).
    """
    from g3pt.config import CARConfig, CVQConfig, from_dict
    from g3pt.training.exports import export_hash, read_export_config

    last = Ledger.of(run_dir).last()
    assert last is not None, f"{run_dir} is finished without a record"
    exported, train = read_export_config(run_dir), spec.config["train"]
    params = count_car(from_dict(CARConfig, exported["model"]), from_dict(CVQConfig, exported["tokenizer"]))
    samples = int(last["step"])
    objects = open_data(spec.paths["data"]).splits["train"] * exported["model"].get("code_variants", 1)
    about = read_note(run_dir, ENVIRONMENT_FILE) or {}
    tests = {key: value for key, value in last.items() if key == "test_ce" or key.startswith("test_ce_scale_")}
    return {
        "size": spec.preset,
        **{name.replace("parameters", "params"): count for name, count in params.items()},
        "flops": operations(run_dir, samples),
        "seed": spec.seed,
        "samples": samples,
        "unique_share": round(min(1.0, objects / samples), 4),
        "epochs": round(samples / objects, 4),
        "batch_size": train["batch_size"],
        "lr": train["learning_rate"],
        "schedule": train["schedule"],
        "parent": branched_from(run_dir),
        "test_ce": tests.pop("test_ce"),
        **dict(sorted(tests.items(), key=lambda pair: int(pair[0].rpartition("_")[2]))),
        "test_objects": int(last.get("test_objects", 0)),
        "data": spec.config.get("dataset", ""),
        "tokenizer": exported["tokenizer_hash"],
        "code": about.get("git_commit", "unknown"),
        "weights_sha256": export_hash(run_dir),
        "device": ", ".join(about.get("gpus", [])) or about.get("cpu", "unknown"),
        "seconds": round(sum(step_seconds(Ledger.of(run_dir).read())), 1),
        "run": spec.name,
    }


def operations(run_dir: Path, samples: int) -> int:
    """Operations of training the exported model on so many samples, forward and backward (twice the forward)."""
    from g3pt.training.exports import read_export_config

    return 3 * int(read_export_config(run_dir)["flops_per_object"]) * samples


def step_seconds(records: Sequence[Record]) -> list[float]:
    """Seconds between the records of a ledger, without evaluations and pauses.
    Those of a trajectory that runs share are in the ledgers of all of them.
    """
    seen, found = 0.0, []
    for record in records:
        rate = record.get("samples_per_second", 0.0)
        found.append((record["step"] - seen) / rate if rate else 0.0)
        seen = record["step"]
    return found


def fit_and_draw(points: Sequence[dict[str, Any]], study: Path, ceiling: float | None = None) -> None:
    """Write fit.json and curve.png: the laws in N of the runs of most samples that at least three sizes have, and, if
    the numbers of samples differ enough, the law in N and D with its intervals. Held-out runs are no part of either.
    """
    from g3pt.scaling.law import report
    from g3pt.training.exports import write_json

    fitted = [row for row in points if not row["held_out"]]
    section = of_most_samples(fitted)
    found = report(*([row[name] for row in section] for name in ("params_no_embed", "test_ce", "seed")))
    seen = {row["samples"] for row in section}
    found["samples"] = seen.pop() if len(seen) == 1 else None
    found["surface"] = surface(study, ceiling) if has_surface(fitted) else None
    found["scales"] = by_scale(study, found["surface"]) if found["surface"] else None
    found["learning_rate"] = rate_rule(study)
    forecast = study / "forecast.json"
    if forecast.exists():
        from g3pt.scaling.forecast import compared, read_forecast

        losses = {row["run"]: row["test_ce"] for row in points if row["held_out"]}
        found["forecast"] = compared(read_forecast(forecast), losses)
    write_json(study / "fit.json", found)
    draw(section, found, study / "curve.png")


def of_most_samples(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The points of the largest number of samples that three sizes have; all points if there is none, as where each
    preset has its own.
    """
    for samples in sorted({row["samples"] for row in points}, reverse=True):
        part = [row for row in points if row["samples"] == samples]
        if len({row["params_no_embed"] for row in part}) >= 3:
            return part
    return list(points)


def has_surface(points: Sequence[dict[str, Any]]) -> bool:
    """Whether the points can have a law in N and D: at least three sizes, each with three numbers of samples."""
    by_size: dict[int, set[int]] = {}
    for row in points:
        by_size.setdefault(row["params_no_embed"], set()).add(row["samples"])
    return sum(len(samples) >= 3 for samples in by_size.values()) >= 3


def surface(study: Path, ceiling: float | None = None) -> dict[str, Any]:
    """The law in N and D of a study's points.csv, by all counts of N; that of its fit.json
    if it has the same points.
    """
    from g3pt.scaling.points import COUNTS, read_points
    from g3pt.scaling.study import report

    main, *others = (read_points(study / "points.csv", count=name) for name in COUNTS)
    ceiling = usable(ceiling, main.loss.tolist())
    known = known_surface(study)
    if known and (known["points"]["sha256"], known.get("ceiling")) == (main.sha256, ceiling):
        return known
    return report(main, ceiling=ceiling, others=others)


def by_scale(study: Path, whole: Mapping[str, Any]) -> dict[str, Any]:
    """Scale -> the law in N and D of its losses, in the form of the `whole`; the reason as `error` where they determine
    none. Those of the study's fit.json if that has the same law of the whole.
    """
    from g3pt.scaling.intervals import errors
    from g3pt.scaling.points import read_points, read_rows
    from g3pt.scaling.study import described, law_of

    known = known_fit(study)
    if known.get("scales") and known["surface"] == whole:
        return dict(known["scales"])
    found, form = dict[str, Any](), whole["law"]["form"]
    for column in (name for name in read_rows(study / "points.csv")[0] if name.startswith("test_ce_scale_")):
        scale = column.rpartition("_")[2]
        try:
            points = read_points(study / "points.csv", column=column)
            law = law_of(points, form)
        except ValueError as reason:
            found[scale] = {"error": str(reason)}
            continue
        found[scale] = described(law, errors(law, points.size, points.seed))
    return found


def rate_rule(study: Path) -> dict[str, Any] | None:
    """The rule of the study's lr.json, and whether its check held; None without one."""
    try:
        found = json.loads((study / "lr.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return {"rule": found["rule"], "holds": found["holds"]}


def known_surface(study: Path) -> dict[str, Any] | None:
    """The law in N and D of the study's fit.json; None without one."""
    return known_fit(study).get("surface")


def known_fit(study: Path) -> dict[str, Any]:
    """The content of the study's fit.json; empty without one."""
    try:
        found: dict[str, Any] = json.loads((study / "fit.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found


def write_forecast(study: Path, rows: Sequence[dict[str, Any]], ceiling: float | None = None) -> None:
    """Write forecast.json for held-out runs (size, params, samples) from points.csv, and its rungs to fit.json, where
    pages show them before the runs exist. An existing one is kept.
    """
    from g3pt.scaling import forecast as forecasts
    from g3pt.scaling.intervals import errors
    from g3pt.scaling.points import read_points
    from g3pt.scaling.study import law_of
    from g3pt.training.exports import write_json

    target = study / "forecast.json"
    if target.exists():
        forecasts.read_forecast(target)  # refuses one that was changed
        return
    points, known = read_points(study / "points.csv"), known_surface(study)
    law = law_of(points, known["law"]["form"] if known else "", usable(ceiling, points.loss.tolist()))
    body = forecasts.forecast(errors(law, points.size, points.seed), points, rows)
    forecasts.write_forecast(body, target)
    write_json(study / "fit.json", known_fit(study) | {"forecast": forecasts.compared(body, {})})


def draw(points: Sequence[dict[str, Any]], found: dict[str, Any], path: Path) -> None:
    """Draw test loss over parameters, both laws, and their confidence bands."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from g3pt.scaling.law import PowerLaw

    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    size = np.array([p["params_no_embed"] for p in points], float)
    axes.loglog(size, [p["test_ce"] for p in points], "o", color="black", label="runs")
    line = np.geomspace(size.min() / 1.3, size.max() * 1.3, 200)
    for name, style, label in (("power_law_with_floor", "-", "E + A N^-α"), ("pure_power_law", "--", "A N^-α")):
        if found[name]:
            law = PowerLaw(**{f.name: found[name][f.name] for f in dataclasses.fields(PowerLaw)})
            interval, band = found[name]["interval_95"]["exponent"], found[name]["band_95"]
            words = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
            if band:
                axes.fill_between(band["params"], band["low"], band["high"], alpha=0.12)
            axes.loglog(
                line,
                law(line),
                style,
                label=f"{label}: α {law.exponent:.3f}{words}, E {law.irreducible:.3g}",
            )
    axes.set_xlabel("parameters N, without embeddings and head")
    axes.set_ylabel("test cross-entropy, nats per token")
    axes.set_title(f"{found['num_sizes']} sizes: {found['status']}")
    axes.grid(which="both", alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
