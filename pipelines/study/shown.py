"""What MLflow shows of a study: its card, and the law's numbers and files once it is finished."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.runs.identity import RunSpec
from pipelines.study.config import SweepFlags
from pipelines.tracking import cards
from pipelines.tracking.cards import Card, code
from pipelines.tracking.tracked import Outcome

STUDY_FILES = ("study.json", "points.csv", "fit.json", "curve.png")  # of every finished study
FURTHER_FILES = ("points.parquet", "plan.csv", "forecast.json", "lr.json", "lr.png")  # that only some studies have


def card(flags: SweepFlags, specs: Sequence[RunSpec], folder: Path) -> Card:
    """What MLflow shows of a study.

    What grows with it (sizes, seeds) are tags: MLflow's parameters cannot be changed later.
    """
    sizes = list(dict.fromkeys(spec.preset for spec in specs))[::-1]
    dataset = cards.dataset_input(specs[0].paths.get("data"), specs[0].config.get("dataset"))
    params = {"tokenizer": cards.model_name(flags.tokenizer)} | ({"dataset": cards.label(dataset)} if dataset else {})
    changed = f", every preset with {code(flags.set)}" if flags.set else ""
    return Card(
        stage="scaling",
        name=f"{folder.name}-{len(sizes)}-sizes-{sizes[0]}-to-{sizes[-1]}",
        folder=folder,
        dataset=dataset,
        params=params,
        models=cards.models(tokenizer=flags.tokenizer),
        tags={
            "g3pt.sizes": ",".join(sizes),
            "g3pt.seeds": flags.seeds,
            "g3pt.num_runs": str(len(specs)),
            "g3pt.set": flags.set or "",
        },
        title=f"**Scaling study** over {len(sizes)} sizes ({', '.join(map(code, sizes))}), "
        f"seeds {code(flags.seeds)}{changed}; its runs are the children.",
    )


def describe_study(study: Path, outcome: Outcome) -> None:
    """Add what MLflow shows of a finished study: the laws with their intervals, and the study's files."""
    found = json.loads((study / "fit.json").read_text(encoding="utf-8"))
    for name in ("power_law_with_floor", "pure_power_law"):
        if found[name]:
            outcome.metrics |= {f"{name}/{key}": found[name][key] for key in ("exponent", "coefficient", "irreducible")}
            interval = found[name]["interval_95"]["exponent"] or ()
            outcome.metrics |= dict(zip((f"{name}/exponent_low", f"{name}/exponent_high"), interval, strict=False))
    outcome.metrics |= {"num_sizes": float(found["num_sizes"]), "num_points": float(found["num_points"])}
    outcome.metrics |= law_metrics(found)
    outcome.tags |= {"g3pt.fit": found["status"]} | law_tags(found)
    outcome.artifacts += [study / name for name in (*STUDY_FILES, *FURTHER_FILES)]


def law_metrics(found: Mapping[str, Any]) -> dict[str, float]:
    """The law in N and D of a fit.json with its intervals, and how its forecasts did, as MLflow's metrics.

    The names are the same in every study, so that MLflow's page compares two of them.
    """
    law = (found.get("surface") or {}).get("law")
    if not law:
        return {}
    metrics = {f"law/{name}": value for name, value in {**law["parameters"], "rms": law["rms"]}.items()}
    for name, (low, high) in law["interval_95"].items():
        metrics |= {f"law/{name}_low": low, f"law/{name}_high": high}
    rungs = [rung for rung in found.get("forecast", ()) if "measured" in rung]
    if rungs:
        metrics["forecast/miss"] = max((rung["miss"] for rung in rungs), key=abs)
        metrics["forecast/inside"] = sum(rung["inside"] for rung in rungs) / len(rungs)
    return metrics


def law_tags(found: Mapping[str, Any]) -> dict[str, str]:
    """What is no number: the form of the law, whether it misses, and whether the rule for learning rates held."""
    surface, rates = found.get("surface"), found.get("learning_rate")
    tags = {"g3pt.form": surface["law"]["form"], "g3pt.law_misses": str(surface["misses"]).lower()} if surface else {}
    return tags | ({"g3pt.lr_rule_holds": str(rates["holds"]).lower()} if rates else {})
