"""Ledger, the records of a training run on disk (metrics.jsonl): the source of truth, of which MLflow is a view.

How: rank 0 appends records. The driver reads the new ones every few seconds (`Periodic`, `NewRecords`), to show
progress and to copy them to MLflow (`pipelines.train.follow`, `pipelines.tracking.client`).
"""

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

Record = dict[str, float]
LEDGER_FILE = "metrics.jsonl"
LAST_BYTES = 2**16  # in which the last record is looked for first


class Ledger:
    """A JSON-lines file of flat records. A torn last line, left by a kill, is ignored.

    A record's key `step` is the number of samples seen, which increases from record to record: MLflow and other readers
    of the file call the horizontal axis "step". Everywhere else a step is an optimiser step, and objects seen are
    "samples".
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._last: float | None = None  # the last step that was written; read from the file at the first append

    @classmethod
    def of(cls, run_dir: Path) -> "Ledger":
        """The ledger of a run's folder."""
        return cls(run_dir / LEDGER_FILE)

    def read(self) -> list[Record]:
        """All complete records, in order."""
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")[:-1]  # the rest after the last newline is torn or empty
        return [json.loads(line) for line in lines if line]

    def tail(self, max_bytes: int) -> list[Record]:
        """The complete records in the last `max_bytes`, in order; unreadable lines are left out."""
        try:
            with open(self.path, "rb") as file:
                file.seek(max(0, self.path.stat().st_size - max_bytes))
                lines = file.read().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            with contextlib.suppress(ValueError):  # the first of the tail, or damaged
                record = json.loads(line)
                if isinstance(record, dict) and isinstance(record.get("step"), (int, float)):
                    found.append(record)
        return found

    def append(self, records: Iterable[Record]) -> None:
        """Append records and wait until they are on disk. A record that does not advance is a bug in the caller."""
        records = list(records)
        last = self._last if self._last is not None else self.last_samples()
        for record in records:
            assert last is None or record["step"] > last, f"{record['step']} samples after {last} in {self.path}"
            last = record["step"]
        with open(self.path, "ab") as file:
            file.write("".join(json.dumps(r, sort_keys=True) + "\n" for r in records).encode())
            file.flush()
            os.fsync(file.fileno())
        self._last = last

    def truncate_after(self, samples: float) -> int:
        """Drop the records after `samples` and a torn line; return how many complete records were dropped."""
        records = self.read()
        kept = [r for r in records if r["step"] <= samples]
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.write_text("".join(json.dumps(r, sort_keys=True) + "\n" for r in kept), encoding="utf-8")
        os.replace(temporary, self.path)
        self._last = None
        return len(records) - len(kept)

    def last(self) -> Record | None:
        """The last complete record; None if there is none. Reads the end of the file only."""
        records = self.tail(LAST_BYTES) or self.read()
        return records[-1] if records else None

    def last_samples(self) -> float | None:
        """Samples seen at the last record; None if there is none."""
        last = self.last()
        return last["step"] if last else None


class NewRecords:
    """Follows a ledger that grows: each call of `read` returns the records that were appended since the call before.

    A ledger that was replaced, as by `Ledger.truncate_after` when a run resumes, is read from its beginning again.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.path = ledger.path
        self._offset, self._file_id = 0, 0

    def read(self) -> list[Record]:
        """The complete records that are new, in order."""
        try:
            file = open(self.path, "rb")  # noqa: SIM115 (closed below)
        except FileNotFoundError:
            return []
        with file:
            about = os.fstat(file.fileno())
            if about.st_ino != self._file_id or about.st_size < self._offset:
                self._offset, self._file_id = 0, about.st_ino
            file.seek(self._offset)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]  # what follows is torn or still being written
        self._offset += len(whole)
        return [json.loads(line) for line in whole.split(b"\n") if line]


class Periodic:
    """Calls `work` every `interval_s` seconds in its own thread until the block ends, and once more at the end."""

    def __init__(self, work: Callable[[], None], interval_s: float = 2.0) -> None:
        self.work, self.interval_s = work, interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> "Periodic":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=60)
        self.work()

    def _loop(self) -> None:
        while not self._stop.wait(self.interval_s):
            self.work()
