"""Repairs a local MLflow store that was moved or copied, so that the artifacts of its runs are found.

How: MLflow keeps an absolute path per experiment and run. In a moved folder its page says "No Artifacts Recorded", and
new artifacts are written to the old place. Each time a store is opened, the paths of artifacts beside it are rewritten
in its tables; `python -m pipelines.tracking.moved_store out/demo/mlflow.db` does only that.
Ours: relies on two columns of MLflow's schema (experiments.artifact_location, runs.artifact_uri), unchanged since
version 1.
"""

import contextlib
import sqlite3
import sys
from pathlib import Path

ARTIFACTS = "mlartifacts"  # the folder beside the store

PATHS = (
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)  # columns that begin with an experiment's artifact_location


def location(store: Path, experiment: str) -> str:
    """The URI of an experiment's artifacts, as MLflow writes it."""
    return (store.parent / ARTIFACTS / experiment.replace("/", "-")).as_uri()


def follow_move(store: Path) -> int:
    """Rewrite the paths of artifacts; return how many experiments had moved: 0 for a store that does not exist or has
    no tables.
    """
    if not store.exists():
        return 0
    moved = 0
    with (
        contextlib.closing(sqlite3.connect(store, timeout=30)) as tables,
        contextlib.suppress(sqlite3.DatabaseError),
        tables,
    ):
        for number, name, old in tables.execute(
            "SELECT experiment_id, name, artifact_location FROM experiments"
        ).fetchall():
            new = location(store, name)
            if old == new or not str(old).endswith(f"/{ARTIFACTS}/{name.replace('/', '-')}"):
                continue  # in place, or never beside the store
            moved += 1
            tables.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (new, number))
            cut = len(old) + 1  # SQLite counts from 1
            for table, column in PATHS:
                tables.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                    (new, cut, len(old) + 1, f"{old}/"),
                )
    return moved


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_file():
        sys.exit("usage: python -m pipelines.tracking.moved_store PATH/mlflow.db")
    print(f"{follow_move(Path(sys.argv[1]).resolve())} experiments moved")
