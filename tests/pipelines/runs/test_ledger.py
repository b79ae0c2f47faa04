"""The ledger keeps whole records, each step once."""

import json
from pathlib import Path

import pytest

from pipelines.runs import ledger as ledgers
from pipelines.runs.ledger import Ledger, NewRecords


def test_ledger_keeps_each_step_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "metrics.jsonl")
    assert ledger.read() == [] and ledger.last_samples() is None
    ledger.append([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}])
    with pytest.raises(AssertionError):
        ledger.append([{"step": 2, "loss": 0.5}])
    assert [r["step"] for r in ledger.read()] == [1, 2]


def test_ledger_survives_a_torn_line(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "metrics.jsonl")
    ledger.append([{"step": s, "loss": 0.0} for s in (1, 2, 3)])
    with open(ledger.path, "a") as file:
        file.write('{"step": 4, "lo')
    assert [r["step"] for r in ledger.read()] == [1, 2, 3]
    assert ledger.truncate_after(2) == 1
    ledger.append([{"step": 3, "loss": 1.0}])
    assert [json.loads(line)["step"] for line in ledger.path.read_text().splitlines()] == [1, 2, 3]


def test_the_tail_of_a_ledger_holds_whole_records_only(tmp_path: Path) -> None:
    ledger = Ledger.of(tmp_path)
    assert ledger.tail(1000) == []
    ledger.append({"step": float(step), "loss": 1.0} for step in range(1, 101))
    with open(ledger.path, "ab") as file:
        file.write(b'not JSON\n[1]\n{"step": 101, "lo')
    tail = ledger.tail(200)
    assert 2 <= len(tail) < 10 and tail == [{"step": float(step), "loss": 1.0} for step in range(101 - len(tail), 101)]
    assert len(ledger.tail(10**6)) == 100


def test_new_records_are_read_once_and_a_replaced_ledger_again(tmp_path: Path) -> None:
    ledger = Ledger.of(tmp_path)
    new = NewRecords(ledger)
    assert new.read() == []
    ledger.append([{"step": 1.0}, {"step": 2.0}])
    assert [r["step"] for r in new.read()] == [1, 2] and new.read() == []
    with open(ledger.path, "ab") as file:
        file.write(b'{"step": 3.0')
    assert new.read() == [], "a record that is being written"
    with open(ledger.path, "ab") as file:
        file.write(b'}\n{"st')
    assert [r["step"] for r in new.read()] == [3]
    ledger.truncate_after(2)
    ledger.append([{"step": 3.0, "again": 1.0}, {"step": 4.0}])
    assert [r["step"] for r in new.read()] == [1, 2, 3, 4], "another file of the same name"
    ledger.path.unlink()
    assert new.read() == []


def test_following_a_long_run_costs_what_a_short_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes read by everything that follows a run, per record, at its 10th and at its 10,000th."""
    from pipelines.status.runs import TAIL_BYTES
    from pipelines.tracking.client import Mirror
    from pipelines.train.follow import Follower
    from tests.pipelines.tracking.test_alarm import Store
    from tests.pipelines.train.test_run import toy_spec

    counted = [0]

    class Counting:
        """A file that counts what is read of it."""

        def __init__(self, file: object) -> None:
            self.file = file

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

        def __enter__(self) -> "Counting":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def read(self, *size: int) -> bytes:
            found = self.file.read(*size)
            counted[0] += len(found)
            return found

    monkeypatch.setattr(ledgers, "open", lambda *given: Counting(open(*given)), raising=False)  # noqa: SIM115
    costs = []
    for length in (10, 10_000):
        run_dir = tmp_path / str(length)
        run_dir.mkdir()
        ledger, record = Ledger.of(run_dir), {f"value_{k}": 1.0 for k in range(20)}
        ledger.path.write_text("".join(json.dumps({"step": float(k), **record}) + "\n" for k in range(1, length + 1)))
        follower, mirror = Follower(toy_spec(), run_dir), Mirror(Store(), "1", ledger)
        mirror.copy()
        ledger.append([{"step": length + 1.0, **record}])
        counted[0] = 0
        for _ in range(5):
            follower.show()
            mirror.copy()
        costs.append(counted[0])
        assert ledger.last_samples() == length + 1
        assert counted[0] - costs[-1] <= ledgers.LAST_BYTES
    assert costs[0] > 0 and costs[1] < 1.1 * costs[0] < TAIL_BYTES
