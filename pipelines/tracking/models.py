"""Logged models: MLflow's entry for each finished training run, the evaluations of it, and its registered versions.

How: MLflow holds a pointer, not the weights. `log_model` makes the entry with the run's parameters and test metrics
and a file `export.json`, which names the export's folder and hash. An evaluation in the same store logs its numbers to
the entry too, so that the page "Models" compares models by both. `register` adds a version of a registered model.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.cli.progress import say
from pipelines.runs.notes import RUN_FILE, read_note
from pipelines.tracking.client import Tracking, tracking_uri

POINTER = "export.json"
VERSIONS_TAG = "mlflow.modelVersions"


@dataclass(frozen=True, kw_only=True)
class Model:
    """What a finished run made: the kind (cvq, car), the folder of its export, and the export's hash."""

    kind: str
    export: Path
    export_sha256: str


def log_model(
    tracking: Tracking, run_id: str, model: Model, name: str, params: Mapping[str, Any], metrics: Mapping[str, float]
) -> str:
    """Id of the run's logged model, which is made with these parameters and metrics if the run has none yet."""
    from mlflow.entities import LoggedModelOutput

    known = model_of(tracking, run_id)
    if known:
        return known
    client, run = tracking.client, tracking.client.get_run(run_id)
    made = client.create_logged_model(
        run.info.experiment_id,
        name=name,
        source_run_id=run_id,
        params={key: str(value) for key, value in params.items()},
        tags={"g3pt.path": str(model.export), "g3pt.export_hash": model.export_sha256},
        model_type=model.kind,
    )
    model_id, step = str(made.model_id), max(tracking.last_step(run_id), 0)
    link_metrics(tracking, run_id, model_id, metrics, step)
    with tempfile.TemporaryDirectory() as folder:
        pointer = Path(folder, POINTER)
        about = {"kind": model.kind, "path": str(model.export), "export_sha256": model.export_sha256}
        pointer.write_text(json.dumps(about, indent=1), encoding="utf-8")
        client.log_model_artifact(model_id, str(pointer))
    client.finalize_logged_model(model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model_id, step)])
    return model_id


def model_of(tracking: Tracking, run_id: str) -> str | None:
    """Id of the logged model that a run made; None without one."""
    outputs = getattr(tracking.client.get_run(run_id).outputs, "model_outputs", None) or []
    return str(outputs[0].model_id) if outputs else None


def link_metrics(tracking: Tracking, run_id: str, model_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
    """Log a run's numbers as numbers of the model too."""
    from mlflow.entities import Metric

    now_ms = int(time.time() * 1000)
    found = [
        Metric(name, float(value), now_ms, step, model_id=model_id, run_id=run_id) for name, value in metrics.items()
    ]
    if found:
        tracking.client.log_batch(run_id, metrics=found)


def link_evaluation(tracking: Tracking, run_id: str, made_by: str, metrics: Mapping[str, float]) -> None:
    """Show an evaluation's numbers at the model that the run `made_by` logged; does nothing if that logged none."""
    from mlflow.entities import LoggedModelInput

    model_id = model_of(tracking, made_by)
    if model_id:
        tracking.client.log_inputs(run_id, models=[LoggedModelInput(model_id)])
        link_metrics(tracking, run_id, model_id, metrics)


def register(output: str | Path, folder: Path, name: str) -> str:
    """Number of the version of the registered model `name` that is the run in `folder`; a new version if there is none.

    `output` is what the command was given. ValueError if the run has no logged model.
    """
    from mlflow.exceptions import MlflowException

    tracking, run_id = Tracking(tracking_uri(output)), str((read_note(folder, RUN_FILE) or {}).get("run_id", ""))
    model_id = model_of(tracking, run_id) if tracking.has_run(run_id) else None
    if model_id is None:
        raise ValueError("it has no logged model; `python -m pipelines.status.relog FOLDER` in a new store makes one")
    client = tracking.client
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"run_id = '{run_id}'")
    number = next((str(one.version) for one in versions if one.name == name), None)
    if number is None:
        with _default_store(tracking.uri):
            version = client.create_model_version(
                name, f"models:/{model_id}", run_id=run_id, model_id=model_id, await_creation_for=0
            )
        number = str(version.version)
        # As mlflow.register_model does, so that the model's page lists its versions.
        mine = json.loads(client.get_logged_model(model_id).tags.get(VERSIONS_TAG, "[]"))
        tag = json.dumps([*mine, {"name": name, "version": number}])
        client.set_logged_model_tags(model_id, {VERSIONS_TAG: tag})
    say(f"  MLflow: {folder.name} is version {number} of the registered model {name}")
    return number


@contextlib.contextmanager
def _default_store(uri: str) -> Iterator[None]:
    """Inside the block `uri` is MLflow's default, where it looks up models:/... of a local store."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = uri
    try:
        yield
    finally:
        del os.environ["MLFLOW_TRACKING_URI"]
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before
