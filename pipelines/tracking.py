"""MLflow, as a view of what lies on disk: one client, one run for each finished or running piece of work.

How: the driver creates experiment and run, and a `Mirror` thread of the driver copies new ledger records in batches by run id,
skipping steps that MLflow has. A tracking failure warns once and never stops the work.
Ours: one lock file around the first use of a local store, because several processes that open a fresh SQLite store at once all
fail, and a concurrent first creation of an experiment lands runs in experiment 0.
"""

import contextlib
import fcntl
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipelines.runs import Ledger, Periodic, Record, git_commit

Result = TypeVar("Result")
MAX_BATCH_METRICS, MAX_BATCH_PARAMS, MAX_PARAM_CHARS = 1000, 100, 500  # MLflow's limits for one call, and ours


def tracking_uri(output: str | Path) -> str:
    """MLFLOW_TRACKING_URI, else mlflow.db in the parent of `output` (the working directory for an object store)."""
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return os.environ["MLFLOW_TRACKING_URI"]
    folder = Path.cwd() if "://" in str(output) else Path(output).absolute().parent
    return f"sqlite:///{folder / 'mlflow.db'}"


def without_login(text: str) -> str:
    """The text with user and password cut from its URIs: what is written or printed must not hold them."""
    return re.sub(r"(?<=://)[^/\s]*@", "", text)


class Tracking:
    """MLflow's client for one store. Methods raise; `best_effort` around a call turns a failure into one warning."""

    def __init__(self, uri: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        import logging

        from mlflow import MlflowClient

        for noisy in ("alembic", "mlflow.store.db.utils"):  # they announce each table of a fresh store
            logging.getLogger(noisy).setLevel(logging.WARNING)

        self.uri = uri
        with _store_lock(uri):
            self.client = MlflowClient(tracking_uri=uri)
            self.client.search_experiments(max_results=1)  # makes the tables of a fresh store

    def experiment(self, name: str) -> str:
        """The id of the experiment `name`, made if missing; never experiment 0 by accident."""
        from mlflow.exceptions import MlflowException

        with _store_lock(self.uri):
            found = self.client.get_experiment_by_name(name)
            if found is not None:
                return str(found.experiment_id)
            try:
                return str(self.client.create_experiment(name, artifact_location=_artifact_location(self.uri, name)))
            except MlflowException:  # another machine was faster
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
                return str(found.experiment_id)

    def open_run(
        self,
        experiment: str,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        parent: str | None = None,
        resume_id: str | None = None,
    ) -> str:
        """The id of a running run: `resume_id` if the store has it, else a new one with parameters and tags."""
        if resume_id is not None and self.has_run(resume_id):
            self.client.update_run(resume_id, status="RUNNING")
            return resume_id
        all_tags = {"mlflow.runName": name, "mlflow.source.git.commit": git_commit(), **(tags or {})}
        if parent is not None:
            all_tags["mlflow.parentRunId"] = parent
        run = self.client.create_run(self.experiment(experiment), run_name=name, tags=all_tags)
        self.log_params(run.info.run_id, params)
        return str(run.info.run_id)

    def has_run(self, run_id: str) -> bool:
        """Whether the store holds this run, not deleted."""
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException:
            return False

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Nested parameters as dotted names."""
        from mlflow.entities import Param

        entities = [Param(key, str(value)[:MAX_PARAM_CHARS]) for key, value in flatten(params).items()]
        for start in range(0, len(entities), MAX_BATCH_PARAMS):
            self.client.log_batch(run_id, params=entities[start : start + MAX_BATCH_PARAMS])

    def log_records(self, run_id: str, records: Sequence[Record]) -> None:
        """Ledger records as metrics; a record is never split over two calls."""
        from mlflow.entities import Metric

        batch: list[Metric] = []
        for record in records:
            at_ms, step = int(record.get("time", time.time()) * 1000), int(record["step"])
            metrics = [Metric(key, float(value), at_ms, step) for key, value in record.items() if key not in ("step", "time")]
            if len(batch) + len(metrics) > MAX_BATCH_METRICS:
                self.client.log_batch(run_id, metrics=batch)
                batch = []
            batch += metrics
        if batch:
            self.client.log_batch(run_id, metrics=batch)

    def last_step(self, run_id: str) -> int:
        """The highest step of any metric of the run; -1 if it has none."""
        keys = self.client.get_run(run_id).data.metrics
        return max((m.step for key in keys for m in self.client.get_metric_history(run_id, key)), default=-1)

    def log_dataset(self, run_id: str, name: str, digest: str, source: str, context: str = "training") -> None:
        """Name a dataset by its fingerprint as the run's input."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name=name, digest=digest[:36], source_type="local", source=json.dumps({"uri": source}))
        self.client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])

    def log_artifacts(self, run_id: str, paths: Iterable[str | Path]) -> None:
        """Files and folders, under their own names."""
        for path in map(Path, paths):
            if path.is_dir():
                self.client.log_artifacts(run_id, str(path), path.name)
            else:
                self.client.log_artifact(run_id, str(path))

    def close_run(self, run_id: str, status: str = "FINISHED") -> None:
        """End the run: FINISHED, FAILED or KILLED."""
        self.client.set_terminated(run_id, status)


@contextlib.contextmanager
def _store_lock(uri: str) -> Iterator[None]:
    """Alone with a local SQLite store while its tables or experiments are made; nothing for a server."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    path = Path(uri.removeprefix("sqlite:///"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _artifact_location(uri: str, experiment: str) -> str | None:
    """Beside a local store; a server decides itself. MLflow's own default is the working directory."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts" / experiment.replace("/", "-")).as_uri()


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


_warned: set[str] = set()


def best_effort(what: str, work: Callable[[], Result]) -> Result | None:
    """`work()`, or None and one warning for each `what`: tracking never stops a stage. Only for calls to MLflow."""
    try:
        return work()
    except Exception as error:  # MLflow raises its own, SQLAlchemy's, requests' and OSErrors
        if what not in _warned:
            _warned.add(what)
            print(f"warning: MLflow: {what} failed, going on without: {type(error).__name__}: {without_login(str(error))[:200]}", file=sys.stderr)
        return None


class Mirror(Periodic):
    """Copies a ledger's new records to an MLflow run until the block ends."""

    def __init__(self, tracking: Tracking, run_id: str, ledger: Ledger, interval_s: float = 2.0) -> None:
        super().__init__(lambda: best_effort("copying metrics", self.copy), interval_s)
        self.tracking, self.run_id, self.ledger = tracking, run_id, ledger
        self._copied_to: float | None = None

    def copy(self) -> None:
        """Log what MLflow lacks."""
        if self._copied_to is None:
            self._copied_to = self.tracking.last_step(self.run_id)
        new = [r for r in self.ledger.read() if r["step"] > self._copied_to]
        if new:
            self.tracking.log_records(self.run_id, new)
            self._copied_to = new[-1]["step"]


def log_finished_run(
    experiment: str,
    name: str,
    params: Mapping[str, Any],
    metrics: Mapping[str, float],
    artifacts: Iterable[str | Path] = (),
    tags: Mapping[str, str] | None = None,
    dataset: tuple[str, str, str] | None = None,
    *,
    output: str | Path,
    parent: str | None = None,
) -> str | None:
    """One finished piece of work as one MLflow run beside `output`; its id, or None (and one warning) if MLflow failed.

    `experiment` as g3pt/preprocess; `dataset` is (name, fingerprint, path).
    """

    def log() -> str:
        tracking = Tracking(tracking_uri(output))
        run_id = tracking.open_run(experiment, name, params, tags, parent)
        numbers = {key: float(value) for key, value in flatten(metrics).items() if isinstance(value, (int, float))}
        tracking.log_records(run_id, [{"step": 0, **numbers}])
        if dataset is not None:
            tracking.log_dataset(run_id, *dataset)
        tracking.log_artifacts(run_id, artifacts)
        tracking.close_run(run_id)
        return run_id

    return best_effort(f"the run {name}", log)
