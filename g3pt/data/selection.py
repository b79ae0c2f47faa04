"""Which objects of a dataset a model may be trained on: by licence, and by patterns of ids.

Which licences are open: licenses.py.

Licences are compared exactly with the dataset's (SPDX names where the source gives them): `CC-BY` is not `CC-BY-4.0`.
`open` means all open ones. Patterns are the shell's, match the whole id and respect case; `*` also matches `/`. The
same selection applies to validation and test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from g3pt.data import licenses


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Objects with one of `licenses` (any if empty) whose id matches none of `exclude_ids`."""

    licenses: tuple[str, ...] = ()
    exclude_ids: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Selection:
        """The selection in a run's configuration."""
        return cls(licenses=tuple(config.get("licenses") or ()), exclude_ids=tuple(config.get("exclude_ids") or ()))

    def as_config(self) -> dict[str, list[str]]:
        """Entries for a run's configuration, as `of` reads them; none if everything is kept, so
        that the run's name does not change.
        """
        found = {"licenses": list(self.licenses), "exclude_ids": list(self.exclude_ids)}
        return {name: values for name, values in found.items() if values}

    def keeps(self, row: Mapping[str, Any]) -> bool:
        """Whether an object, by its `id` and `license`, may be used."""
        return self.reason(row) is None

    def reason(self, row: Mapping[str, Any]) -> str | None:
        """The pattern or licence because of which an object is left out; None if it is kept."""
        matched = next((pattern for pattern in self.exclude_ids if fnmatchcase(row["id"], pattern)), None)
        if matched is None and not licenses.allowed(row["license"], self.licenses):
            return f"licence {row['license'] or 'none'}"
        return matched


ALL = Selection()


def choose(selection: Selection, rows: Iterable[Mapping[str, Any]], where: str) -> str:
    """One line about what a selection leaves out of a split's rows; empty for a selection that keeps all.

    ValueError for a licence that no row has, with those that exist, and for a selection that keeps nothing.
    """
    rows = list(rows)
    found = Counter(row["license"] for row in rows)
    unknown = licenses.unknown(selection.licenses, found)
    if unknown:
        known = ", ".join(
            f"{name or 'none'} ({count})" for name, count in sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))
        )
        raise ValueError(f"{where}: no training object has a licence of {','.join(unknown)}; theirs are {known}")
    if not selection.as_config():
        return ""
    reasons = Counter(dict.fromkeys(selection.exclude_ids, 0))  # a pattern that matches nothing shows as 0
    reasons.update(filter(None, map(selection.reason, rows)))
    why = ", ".join(f"{name} {count}" for name, count in reasons.items())
    told = f"leaves out {reasons.total()} of {len(rows)} training objects{': ' if why else ''}{why}"
    if reasons.total() == len(rows):
        raise ValueError(f"{where}: nothing to train on: the selection {told}")
    return told
