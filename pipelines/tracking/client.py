"""MLflow's client for one store: experiments, runs, records in batches, and how a person opens the store.

How: methods raise; `best_effort` around a call turns a failure into one warning, so that tracking never stops the work.
`pipelines.tracking.breaker` ends all calls to a server that does not answer.
A `Mirror` thread in the driver copies a ledger's new records to the run, and skips steps that MLflow has.
`pipelines.tracking.cards` decides what a run shows.
Ours: a lock around the first use of a local store, because several processes that open a fresh SQLite store at once all
fail, and concurrent creation of an experiment puts runs into experiment 0.
"""

import contextlib
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from g3pt.data.storage import Location, is_remote
from g3pt.training.alarm import Alarm, in_words
from pipelines.cli.endings import Ending, at_end
from pipelines.cli.errors import one_line
from pipelines.cli.interrupt import in_thread
from pipelines.cli.plain_text import without_login
from pipelines.cli.progress import say
from pipelines.runs.ledger import Ledger, NewRecords, Periodic, Record
from pipelines.runs.locks import locked
from pipelines.tracking.breaker import LIMIT_S, Guarded, Unreachable, guarded, limit_http
from pipelines.tracking.cards import SHORT, DatasetInput, shown_record
from pipelines.tracking.experiments import experiment_tags, table_page
from pipelines.tracking.moved_store import follow_move, location

Result = TypeVar("Result")
SQLITE = "sqlite:///"
SYSTEM = "system"  # what MLflow's names of system metrics begin with
MAX_BATCH_METRICS, MAX_BATCH_PARAMS, MAX_PARAM_CHARS, MAX_TAG_CHARS = (
    1000,
    100,
    500,
    5000,
)  # MLflow's limits for one call, and ours


def tracking_uri(output: str | Path) -> str:
    """MLFLOW_TRACKING_URI, else mlflow.db in the parent of `output` (the working directory for an object store)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{group_folder(output) / 'mlflow.db'}"


def group_folder(output: str | Path) -> Path:
    """The folder that contains the output, its siblings, and their local store."""
    return Path.cwd() if is_remote(output) else Path(output).absolute().parent


def how_to_open(uri: str, experiments: Collection[str] = ()) -> str:
    """How to see the store in a browser: a command or an address, without a login.

    MLflow 3 opens on its pages for language-model apps; this address chooses those for training runs. If there is one
    experiment of ours it is that of its table of runs, with the columns that matter.
    """
    page = "#/experiments?workflowType=machine_learning" if len(experiments) != 1 else table_page(*experiments)
    if uri.startswith(("http://", "https://")):
        return f"{without_login(uri).rstrip('/')}/{page}"
    own = Path(sys.executable).with_name("mlflow")
    on_path = shutil.which("mlflow")
    program = str(own) if own.exists() and (on_path is None or not own.samefile(on_path)) else "mlflow"
    command = shlex.join([program, "ui", "--backend-store-uri", without_login(uri)])
    return f"{command}\n        then open http://127.0.0.1:5000/{page}"


class ExperimentDeleted(Exception):
    """A run's experiment was deleted in MLflow; the message names the remedy."""


class Tracking:
    """MLflow's client for one store. Methods raise; `best_effort` around a call turns a failure into one warning."""

    def __init__(self, uri: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        import logging

        from mlflow import MlflowClient

        for noisy in ("alembic", "mlflow.store.db.utils"):  # they log each table of a fresh store
            logging.getLogger(noisy).setLevel(logging.WARNING)

        self.uri = uri
        limit_http()
        with _store_lock(uri):
            local = Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None
            fresh = local is not None and not local.exists()
            if local is not None:
                follow_move(local)

            def opened() -> Any:
                client = MlflowClient(tracking_uri=uri)
                client.search_experiments(max_results=1)  # makes the tables of a fresh store
                return client

            client = opened() if local is not None else guarded(uri, in_thread, opened, LIMIT_S)
            self.client = Guarded(client, uri)
            if fresh:
                self.client.set_experiment_tag(
                    "0", "mlflow.note.content", "Made by MLflow itself; g3pt logs nothing here."
                )

    def experiment(self, name: str) -> str:
        """The id of the experiment `name`, created with its description if missing."""
        from mlflow.exceptions import MlflowException

        with _store_lock(self.uri):
            found = self.client.get_experiment_by_name(name)
            if found is not None:
                return self._active(found)
            try:
                number = str(self.client.create_experiment(name, artifact_location=_artifact_location(self.uri, name)))
            except MlflowException:  # another machine was faster
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
                return self._active(found)
            for key, value in experiment_tags(name, number).items():
                self.client.set_experiment_tag(number, key, value)
            return number

    def _active(self, experiment: Any) -> str:
        """The experiment's id. ExperimentDeleted if it was deleted: MLflow keeps its name and takes no run for it."""
        if experiment.lifecycle_stage == "active":
            return str(experiment.experiment_id)
        uri = shlex.quote(without_login(self.uri))
        raise ExperimentDeleted(
            f"experiment {experiment.name} was deleted in MLflow; restore it: MLFLOW_TRACKING_URI={uri} mlflow "
            f"experiments restore --experiment-id {experiment.experiment_id}"
        )

    def open_run(
        self,
        experiment: str,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        parent: str | None = None,
        resume_id: str | None = None,
        started: float | None = None,
    ) -> str:
        """Open a run with these tags and return its id: the run `resume_id` if the store has it, else a new one with
        these parameters.
        """
        tags = dict(tags or {}) | ({"mlflow.parentRunId": parent} if parent else {})
        shown = _shown.setdefault(self.uri, {})
        at_end(self.uri, Ending(say=lambda: f"MLflow: {how_to_open(self.uri, shown.values())}"))
        if resume_id is not None and self.has_run(resume_id):
            shown[experiment] = str(self.client.get_run(resume_id).info.experiment_id)
            self.client.update_run(resume_id, status="RUNNING", name=name)
            self.set_tags(resume_id, tags)
            return resume_id
        start_ms = None if started is None else int(started * 1000)
        shown[experiment] = self.experiment(experiment)
        run_id = str(self.client.create_run(shown[experiment], start_time=start_ms, run_name=name).info.run_id)
        self.set_tags(run_id, tags)
        self.log_params(run_id, params)
        return run_id

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set all tags in one call, without logins."""
        from mlflow.entities import RunTag

        self.client.log_batch(
            run_id, tags=[RunTag(key, without_login(value)[:MAX_TAG_CHARS]) for key, value in tags.items()]
        )

    def clear_tag(self, run_id: str, key: str) -> None:
        """Remove a tag if the run has it."""
        if key in self.client.get_run(run_id).data.tags:
            self.client.delete_tag(run_id, key)

    def has_run(self, run_id: str) -> bool:
        """Whether the store contains this run and it is not deleted."""
        return self.status_of(run_id) is not None

    def status_of(self, run_id: str) -> str | None:
        """The run's status, such as RUNNING; None if the store does not contain it or it is deleted."""
        from mlflow.exceptions import MlflowException

        try:
            info = self.client.get_run(run_id).info
        except MlflowException:
            return None
        return str(info.status) if info.lifecycle_stage == "active" else None

    def run_of(self, experiment: str, folder: Location) -> str | None:
        """The newest run of the experiment whose output is this folder, by its tag g3pt.path; None without one."""
        quote = '"' if "'" in str(folder) else "'"
        found = self.client.search_runs([experiment], f"tags.`g3pt.path` = {quote}{folder}{quote}", max_results=1)
        return str(found[0].info.run_id) if found else None

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Log parameters. MLflow refuses to change one later."""
        from mlflow.entities import Param

        entities = [Param(key, without_login(str(value))[:MAX_PARAM_CHARS]) for key, value in params.items()]
        for start in range(0, len(entities), MAX_BATCH_PARAMS):
            self.client.log_batch(run_id, params=entities[start : start + MAX_BATCH_PARAMS])

    def log_records(self, run_id: str, records: Sequence[Record]) -> None:
        """Log records as metrics; a record is never split over two calls."""
        from mlflow.entities import Metric

        batch: list[Metric] = []
        for record in records:
            at_ms, step = int(record.get("time", time.time()) * 1000), int(record["step"])
            metrics = [
                Metric(key, float(value), at_ms, step) for key, value in record.items() if key not in ("step", "time")
            ]
            if len(batch) + len(metrics) > MAX_BATCH_METRICS:
                self.client.log_batch(run_id, metrics=batch)
                batch = []
            batch += metrics
        if batch:
            self.client.log_batch(run_id, metrics=batch)

    def last_step(self, run_id: str, prefix: str = "") -> int:
        """The highest step of the run's metrics whose names begin with `prefix`, by default of all but the system
        metrics, which count otherwise; -1 without any.
        """
        # The run has the newest value of each metric, with its step: one request, where histories are one per metric.
        newest = self.client.get_run(run_id).data.to_proto().metrics
        found = [m.step for m in newest if m.key.startswith(prefix) and (prefix or not m.key.startswith(f"{SYSTEM}/"))]
        return max(found, default=-1)

    def log_dataset(self, run_id: str, made_or_read: DatasetInput) -> None:
        """Log a dataset, identified by its fingerprint, as an input of the run."""
        from mlflow import entities

        dataset = entities.Dataset(
            name=made_or_read.name,
            digest=made_or_read.fingerprint[:SHORT],
            source_type="local",
            source=json.dumps({"uri": made_or_read.path}),
        )
        self.client.log_inputs(
            run_id, [entities.DatasetInput(dataset, [entities.InputTag("mlflow.data.context", made_or_read.context)])]
        )

    def log_artifacts(self, run_id: str, paths: Iterable[Location]) -> None:
        """Log files under their own names, those of an export in a folder `export`.

        Remote files are fetched first: MLflow takes local ones only.
        """
        with tempfile.TemporaryDirectory() as folder:
            for path in paths:
                local = path if isinstance(path, Path) else Path(folder, path.name)
                if local is not path:
                    local.write_bytes(path.read_bytes())
                self.client.log_artifact(run_id, str(local), "export" if path.parent.name == "export" else None)

    def close_run(self, run_id: str, status: str = "FINISHED", ended: float | None = None) -> None:
        """End the run with status FINISHED, FAILED or KILLED."""
        self.client.set_terminated(run_id, status, None if ended is None else int(ended * 1000))


@contextlib.contextmanager
def _store_lock(uri: str) -> Iterator[None]:
    """Hold the lock of a local SQLite store while its tables or experiments are created; does nothing for a server."""
    if not uri.startswith(SQLITE):
        yield
        return
    path = Path(uri.removeprefix(SQLITE))
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{path.name}.lock"), wait_s=None):
        yield


def _artifact_location(uri: str, experiment: str) -> str | None:
    """Where artifacts go: beside a local store; None for a server, which decides itself.

    MLflow's default would be the working directory.
    """
    return location(Path(uri.removeprefix(SQLITE)), experiment) if uri.startswith(SQLITE) else None


_shown: dict[str, dict[str, str]] = {}  # by store: the experiments that this process wrote to, name -> number
_warned: set[str] = set()
MAX_SAID = 400  # characters of an error in a warning


def best_effort(what: str, work: Callable[[], Result]) -> Result | None:
    """The result of `work()`; None after a failure, with one warning per `what`.

    For MLflow and reports, which must not stop the work.
    """
    try:
        return work()
    except Unreachable as error:
        if error.is_new:
            say(
                f"warning: MLflow at {error}; continuing without it. `python -m pipelines.status.relog FOLDER` logs "
                "runs again later"
            )
        return None
    except Exception as error:
        # MLflow raises errors of its own, of SQLAlchemy, requests and the OS; a report whatever a half-written file
        # causes.
        if what not in _warned:
            _warned.add(what)
            say(
                f"warning: {what} failed; continuing without it: {type(error).__name__}: "
                f"{without_login(one_line(error))[:MAX_SAID]}"
            )
        return None


class Mirror(Periodic):
    """Copies a ledger's new records to an MLflow run until the block ends, and maintains its alarm tag."""

    def __init__(self, tracking: Tracking, run_id: str, ledger: Ledger, interval_s: float = 2.0) -> None:
        super().__init__(lambda: best_effort("copying metrics to MLflow", self.copy), interval_s)
        self.tracking, self.run_id, self.new = tracking, run_id, NewRecords(ledger)
        self._waiting: list[Record] = []  # read, and not yet logged
        self._copied_to: float | None = None
        self._heard, self._alarm = -1.0, Alarm()
        self._tagged: str | None = None

    def copy(self) -> None:
        """Log the records that MLflow does not have yet."""
        self._waiting += self.new.read()
        if self._copied_to is None:
            self._copied_to = self.tracking.last_step(self.run_id)
        self._tag(self._waiting)
        new = [r for r in self._waiting if r["step"] > self._copied_to]
        if new:
            self.tracking.log_records(self.run_id, [shown_record(record) for record in new])
            self._copied_to = new[-1]["step"]
        self._waiting.clear()

    def _tag(self, records: list[Record]) -> None:
        """Set the tag g3pt.alarm to the active alarms; remove it when there is none."""
        for record in [r for r in records if r["step"] > self._heard]:
            self._heard = record["step"]
            self._alarm.update(record)
        words = in_words(self._alarm.active())
        if words != self._tagged:
            self.tracking.set_tags(self.run_id, {"g3pt.alarm": words}) if words else self.tracking.clear_tag(
                self.run_id, "g3pt.alarm"
            )
            self._tagged = words
