"""The points of a study, from the ledgers of its runs, and the law fitted to them: points.csv, fit.json, curve.png."""

import csv
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.runs.identity import RunSpec
from pipelines.runs.ledger import Ledger
from pipelines.train.counts import count_car
from pipelines.train.jobs import open_data


def collect(specs: Sequence[RunSpec], study: Path) -> list[dict[str, Any]]:
    """One point per run, from the last record of its ledger, smallest size first."""
    points = [point(spec, study / "runs" / spec.name) for spec in specs]
    return sorted(points, key=lambda row: (row["params_no_embed"], row["seed"]))


def point(spec: RunSpec, run_dir: Path) -> dict[str, Any]:
    """The run's row of points.csv. flops counts the transformer as trained (with image tokens), forward and backward
    (twice the forward).
    """
    from g3pt.config import CARConfig, CVQConfig, from_dict
    from g3pt.training.exports import read_export_config

    last = Ledger.of(run_dir).last()
    assert last is not None, f"{run_dir} is finished without a record"
    exported = read_export_config(run_dir)
    params = count_car(from_dict(CARConfig, exported["model"]), from_dict(CVQConfig, exported["tokenizer"]))
    samples = int(last["step"])
    tests = {key: value for key, value in last.items() if key == "test_ce" or key.startswith("test_ce_scale_")}
    return {
        "size": spec.preset,
        **{name.replace("parameters", "params"): count for name, count in params.items()},
        "flops": 3 * exported["flops_per_object"] * samples,
        "seed": spec.seed,
        "samples": samples,
        "epochs": round(samples / open_data(spec.paths["data"]).splits["train"], 4),
        "lr": spec.config["train"]["learning_rate"],
        "schedule": spec.config["train"]["schedule"],
        "test_ce": tests.pop("test_ce"),
        **dict(sorted(tests.items(), key=lambda pair: int(pair[0].rpartition("_")[2]))),
    }


def write_points(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Write points.csv, complete or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(points[0]))
        writer.writeheader()
        writer.writerows(points)
    os.replace(temporary, path)


def fit_and_draw(points: Sequence[dict[str, Any]], study: Path) -> None:
    """Write fit.json and curve.png."""
    from g3pt.scaling.law import report
    from g3pt.training.exports import write_json

    found = report(*([p[name] for p in points] for name in ("params_no_embed", "test_ce", "seed")))
    write_json(study / "fit.json", found)
    draw(points, found, study / "curve.png")


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
