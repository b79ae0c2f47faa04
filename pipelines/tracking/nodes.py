"""Numbers of each node of a training (CPU, memory, disk, network, GPUs), under the names of MLflow's system metrics.

How: one worker per node appends them to RUN/system/NODE.jsonl (`pipelines.train.node_sampler`). A thread of the driver
copies new lines to the run as `system/NODE/...`, so workers need no route to the store. Their step counts records of
the node, as in MLflow, not training objects.
"""

from __future__ import annotations

import re
from pathlib import Path

from pipelines.runs.ledger import Ledger, NewRecords, Periodic, Record
from pipelines.tracking.client import SYSTEM, Tracking, best_effort

KEPT = ("step", "time")  # not a metric


def node_ledger(run_dir: Path, node: str) -> Ledger:
    """The records of a node of a run; characters that no metric's name may have become `_`."""
    return Ledger(run_dir / SYSTEM / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', node)}.jsonl")


class NodeMirror(Periodic):
    """Copies new records of all nodes of a run to its MLflow run until the block ends."""

    def __init__(self, tracking: Tracking, run_id: str, run_dir: Path, interval_s: float = 10.0) -> None:
        super().__init__(lambda: best_effort("copying system metrics to MLflow", self.copy), interval_s)
        self.tracking, self.run_id, self.run_dir = tracking, run_id, run_dir
        self._new: dict[str, NewRecords] = {}
        self._waiting: dict[str, list[Record]] = {}  # read, and not yet logged
        self._copied_to: dict[str, int] = {}

    def copy(self) -> None:
        """Log the records that MLflow does not have yet."""
        for path in sorted((self.run_dir / SYSTEM).glob("*.jsonl")):
            node, prefix = path.stem, f"{SYSTEM}/{path.stem}/"
            if node not in self._new:
                self._copied_to[node] = self.tracking.last_step(self.run_id, prefix)
                self._new[node], self._waiting[node] = NewRecords(Ledger(path)), []
            self._waiting[node] += self._new[node].read()
            new = [record for record in self._waiting[node] if record["step"] > self._copied_to[node]]
            if new:
                named = [{name if name in KEPT else prefix + name: v for name, v in one.items()} for one in new]
                self.tracking.log_records(self.run_id, named)
                self._copied_to[node] = int(new[-1]["step"])
            self._waiting[node].clear()
