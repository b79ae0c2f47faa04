"""MLflow's six experiments: the description of each, and the columns of its table of runs.

How: MLflow's table shows no parameters and metrics until columns are selected. A saved view selects them. It is an
experiment tag (`mlflow.sharedViewState.<key>`: JSON with a deflated state), listed under "Views" and linked from the
description.
Ours: the tag's format is that of MLflow 3.17 and undocumented. Another version would merely lack the view.
"""

import base64
import json
import time
import zlib
from dataclasses import dataclass

VIEW_KEY = "g3pt"


@dataclass(frozen=True)
class Experiment:
    """An experiment's description and the columns of its table of results."""

    description: str
    metrics: tuple[str, ...]
    params: tuple[str, ...]


EXPERIMENTS = {
    "g3pt/preprocess": Experiment(
        "Datasets made from meshes or procedural shapes. Each run is one command that converted something.",
        ("objects_ok", "objects_not_ok", "seconds_per_object", "seconds"),
        ("source", "resolution", "limit", "seed"),
    ),
    "g3pt/cvq": Experiment(
        "Tokenizers. Curves over samples seen: `train/`, `val/`, `test/`, then the same per scale; `codes` are "
        "diagnostics of the codebook.",
        ("test/iou", "test/iou_continuous", "val/iou", "train/loss"),
        ("preset", "parameters", "seed", "steps", "batch_size", "learning_rate", "dataset"),
    ),
    "g3pt/car": Experiment(
        "Generators. Curves over samples seen: cross-entropy in nats per token, given the text, nothing "
        "(`_unconditional`) or an image.",
        ("test/ce", "test/ce_unconditional", "val/ce", "train/ce"),
        ("preset", "parameters", "seed", "steps", "batch_size", "learning_rate", "dataset", "tokenizer"),
    ),
    "g3pt/scaling": Experiment(
        "Scaling studies: a parent run with the fitted law, and one child run per size, number of samples and seed.",
        ("test/ce", "law/alpha", "law/beta", "law/E", "forecast/miss", "pure_power_law/exponent"),
        ("parameters", "preset", "samples", "seed", "learning_rate", "dataset", "tokenizer"),
    ),
    "g3pt/generate": Experiment(
        "Meshes made from prompts.",
        ("samples_ok", "samples_not_ok", "seconds_per_sample", "tokens_per_s"),
        ("model", "prompts", "cfg", "temperature", "resolution"),
    ),
    "g3pt/evaluate": Experiment(
        "Evaluations: reconstructions by tokenizers, samples of prompts by generators. The JSON explains each number "
        "under `protocol`.",
        ("iou_volume", "chamfer", "f_score_0.02", "family_accuracy", "family_accuracy_unseen", "family_chance",
         "attribute_agreement", "valid_share"),
        ("model", "split", "resolution", "dataset"),
    ),
}  # fmt: skip


def experiment_tags(name: str, number: str) -> dict[str, str]:
    """The tags of a new experiment: its description, the kind whose page opens on the runs, and the saved view."""
    shown = EXPERIMENTS.get(name)
    tags = {"mlflow.experimentKind": "custom_model_development"}
    if shown is None:
        return tags
    charts = f"#/experiments/{number}/runs?workflowType=machine_learning&compareRunsMode=CHART"
    links = f"[Table of results]({table_page(number)}), [charts]({charts})"
    return tags | {
        "mlflow.note.content": f"{shown.description} {links}",
        f"mlflow.sharedViewState.{VIEW_KEY}": saved_view(shown),
    }


def table_page(number: str) -> str:
    """The address, within MLflow's page, of an experiment's table of runs with the columns of its saved view."""
    return f"#/experiments/{number}/runs?workflowType=machine_learning&viewStateShareKey={VIEW_KEY}"


def saved_view(shown: Experiment) -> str:
    """A view of the table with the experiment's columns, in the format of MLflow's page."""
    columns = [f"metrics.`{name}`" for name in shown.metrics] + [f"params.`{name}`" for name in shown.params]
    state = {"searchFilter": "", "orderByKey": "attributes.start_time", "orderByAsc": False, "startTime": "ALL",
             "lifecycleFilter": "Active", "datasetsFilter": [],
             "modelVersionFilter": "All Runs", "selectedColumns": columns, "columnOrder": columns, "columnWidths": {},
             "runsHiddenMode": "FIRST_10_RUNS", "hideEmptyCharts": True,
             "viewMaximized": False, "runListHidden": False, "isAccordionReordered": False,
             "useGroupedValuesInCharts": True, "groupBy": None, "groupsExpanded": {},
             "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0,
                                       "selectedXAxisMetricKey": ""}}  # fmt: skip
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    now_ms = int(time.time() * 1000)
    return json.dumps({"name": "Results", "createdAt": now_ms, "updatedAt": now_ms, "state": f"deflate;{packed}"})
