"""The ledger keeps whole records, each step once."""

import json
from pathlib import Path

import pytest

from pipelines.runs.ledger import Ledger


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
