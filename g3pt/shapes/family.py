"""What a family of procedural objects is: its attributes, its caption and the function that builds it.

How: a slot is a visible discrete attribute whose values are the caption's words; a range is a continuous attribute,
uniform in (low, high). The bounds may depend on a slot's value (`By`), so that between "tall" and "low" there is a gap
that can be measured.
Ours: all of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from types import SimpleNamespace

import numpy as np

from g3pt.shapes.primitives import Part

Range = tuple[float, float]


@dataclass(frozen=True)
class By:
    """A range that depends on the value of one slot."""

    slot: str
    ranges: dict[str, Range]

    def pick(self, values: dict[str, str]) -> Range:
        """The range for these slot values."""
        return self.ranges[values[self.slot]]


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family: its name, `slots` {slot: words}, `ranges` {attribute: range}, caption template and builder."""

    name: str
    slots: dict[str, tuple[str, ...]]
    ranges: dict[str, Range | By]
    template: str
    build: Callable[[SimpleNamespace], list[Part]]

    def __post_init__(self) -> None:
        clash = set(self.slots) & set(self.ranges)
        if clash:
            raise ValueError(f"{self.name}: {sorted(clash)} name both a slot and a range")

    def caption(self, values: dict[str, str]) -> str:
        """The caption of these slot values."""
        return self.template.format(**values)

    def combinations(self) -> list[dict[str, str]]:
        """Every combination of slot values, in a fixed order."""
        return [dict(zip(self.slots, words, strict=True)) for words in product(*self.slots.values())]

    def draw(self, random: np.random.Generator) -> dict[str, str | float]:
        """Attributes of one object: uniform slots, then uniform ranges."""
        values = {slot: words[random.integers(len(words))] for slot, words in self.slots.items()}
        bounds = {name: span.pick(values) if isinstance(span, By) else span for name, span in self.ranges.items()}
        return values | {name: float(random.uniform(*span)) for name, span in bounds.items()}
