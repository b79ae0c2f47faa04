"""The collapse alarm: which figures of a ledger record are past their limit, in words.

No torch: `jobs/status.py` reads it too.

`skipped_line` says which steps a run skipped because they were not finite. It is no alarm: the run goes on without
them.

A record carries, per scale, what `g3pt.training.usage` counted over the training batches since the record before. Four
faults are told apart, because each is invisible in the figures of the others (LOG.md):

    utilisation    distinct codes, as a share of those that as many uniform draws would show: few codes are in use
    information    entropy of the codes at a fixed position, as a share of the reachable: codes only encode their
                   position
    entropy_gap    bits by which a code's digits vary together: all bits flip at once, though each is balanced
    digit_balance  entropy of the least varied digit over its maximum: a digit or bit is stuck

The alarm is raised when a fault lasts PATIENCE records in a row, or is in the last record of a finished run: when
quantisation sets in, healthy runs fall below utilisation's floor at the finest scale for a while (LOG.md). The ledger's
`alarm` counts the faults of each record, lasting or not.

Ours: all of it. Utilisation's floor is the project's; the others are far from both healthy runs and provoked collapse
(LOG.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

UTILISATION_FLOOR, INFORMATION_FLOOR, BALANCE_FLOOR = 0.5, 0.25, 0.25  # shares
GAP_LIMIT = 3.0  # bits
PATIENCE = 10  # records in a row
SAYS = {
    "utilisation": f"{{}} of the reachable codes are used (floor {UTILISATION_FLOOR})",
    "information": f"codes at a fixed position hold {{}} of the reachable entropy (floor {INFORMATION_FLOOR})",
    "digit_balance": f"a digit's entropy is {{}} of its maximum (floor {BALANCE_FLOOR})",
    "entropy_gap": f"digits vary together, {{}} bits are lost (limit {GAP_LIMIT})",
}
FLOORS = {"utilisation": UTILISATION_FLOOR, "information": INFORMATION_FLOOR, "digit_balance": BALANCE_FLOOR}


class Fault(NamedTuple):
    """One figure past its limit. `scale` counts from 1, as record keys do."""

    scale: int
    kind: str
    value: float

    @property
    def key(self) -> tuple[int, str]:
        """Two faults with the same key are one fault that lasts."""
        return self.scale, self.kind


def faults(record: Mapping[str, float]) -> list[Fault]:
    """The faults of a ledger record, or of the part that `g3pt.training.usage` makes, by scale; a value
    that is not finite is one too.
    """
    found, scale = [], 1
    while f"utilisation_scale_{scale}" in record:
        for kind in SAYS:
            value = record[f"{kind}_scale_{scale}"]
            if not math.isfinite(value) or (value > GAP_LIMIT if kind == "entropy_gap" else value < FLOORS[kind]):
                found.append(Fault(scale, kind, value))
        scale += 1
    return found


class Alarm:
    """Follows a ledger: reports a fault once when it has lasted PATIENCE records, and again only after it was gone."""

    def __init__(self) -> None:
        self.newest: list[Fault] = []  # of the last record with code figures
        self.lasting: dict[tuple[int, str], int] = {}  # records in a row

    def update(self, record: Mapping[str, float]) -> list[Fault]:
        """The faults that become an alarm with this record; a record without code figures changes nothing."""
        if "alarm" not in record:
            return []
        self.newest = faults(record)
        self.lasting = {fault.key: self.lasting.get(fault.key, 0) + 1 for fault in self.newest}
        return [fault for fault in self.newest if self.lasting[fault.key] == PATIENCE]

    def active(self, finished: bool = False) -> list[Fault]:
        """The faults that are an alarm now; of a finished run, all of its last record."""
        return [fault for fault in self.newest if finished or self.lasting[fault.key] >= PATIENCE]


def alarm_line(records: Iterable[Mapping[str, float]], finished: bool = False) -> str:
    """A run's alarm as one line; empty if there is none."""
    alarm = Alarm()
    for record in records:
        alarm.update(record)
    return in_words(alarm.active(finished))


def skipped_line(records: Iterable[Mapping[str, float]]) -> str:
    """`2 steps skipped, not finite: 37, 52`, over all of `records`; empty if there is none."""
    steps = sorted(int(step) for record in records for key, step in record.items() if key.startswith("skipped_step_"))
    return (
        f"{len(steps)} step{'s' * (len(steps) > 1)} skipped, not finite: {', '.join(map(str, steps))}" if steps else ""
    )


def in_words(found: Iterable[Fault]) -> str:
    """`codes collapse at scales 1, 3: 0.03, 0.21 of the reachable codes are used (floor 0.5); scale 2: ...`,
    or an empty string.
    """
    found, parts = list(found), []
    for kind, words in SAYS.items():
        same = [fault for fault in found if fault.kind == kind]
        if same:
            scales, values = (
                ", ".join(str(fault.scale) for fault in same),
                ", ".join(f"{fault.value:.2f}" for fault in same),
            )
            parts.append(f"scale{'s' * (len(same) > 1)} {scales}: {words.format(values)}")
    return f"codes collapse at {'; '.join(parts)}" if parts else ""
