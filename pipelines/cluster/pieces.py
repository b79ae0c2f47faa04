"""The items of a pool that are still to do, and what becomes of one that fails.

How: an item that can be split (a batch) is tried again in halves when its worker dies or raises an error, and these in
halves, so that what is left at the end is the one part that fails by itself. That part is lost at once after an error,
and after MAX_DEATHS deaths of its worker, which may have had another cause; all else is kept. An item that cannot be
split is tried again after a death and ends the work with an error of its own, once everything else is done; its errors
end the work at once. A lost node is no fault of the item: it is tried again up to MAX_NODES times.

A full disk and a lack of GPU memory end the work at once: all other items would meet them too. So does the GIVE_UPth
lost part, and any later one, while more are lost than done: then the work itself is at fault.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.cli.errors import one_line
from pipelines.cli.failures import PLAIN, doing, is_out_of_memory, root_cause

MAX_DEATHS = 3  # of workers at one part that cannot be split
MAX_NODES = 10  # nodes lost under one item
GIVE_UP = 8

Split = Callable[[Any], Sequence[Any]]


class Died(RuntimeError):
    """The worker's process ended: killed for memory, a crash in a library, or by hand."""


class NodeLost(RuntimeError):
    """The worker's node has gone."""


@dataclass(frozen=True)
class Lost:
    """The result of a part of an item that fails by itself."""

    item: Any
    error: Exception

    @property
    def reason(self) -> str:
        """The error on one line, after `worker-died` if it was no error of the work."""
        cause = root_cause(self.error)
        name = "worker-died" if isinstance(cause, (Died, NodeLost)) else type(cause).__name__
        return f"{name}: {cause.__dict__.get('first_said') or one_line(cause)}"


def is_of_the_machine(error: Exception) -> bool:
    """Whether other items would fail in the same way: too little GPU memory, a full disk, no permission."""
    cause = root_cause(error)
    return is_out_of_memory(error) or (isinstance(cause, OSError) and cause.errno in PLAIN)


@dataclass
class Piece:
    """An item, or a part of one."""

    index: int  # of the whole item
    item: Any
    deaths: int = 0
    nodes: int = 0


def halves(batch: Sequence[Any]) -> list[Any]:
    """The halves of a batch; the batch alone if it has one element."""
    middle = len(batch) // 2
    return [batch[:middle], batch[middle:]] if middle else [batch]


@dataclass
class Pieces:
    """The pieces to do, in their order; halves of a failed one come first."""

    items: Sequence[Any]
    split: Split | None = None
    num_done: int = 0
    num_lost: int = 0
    unsplit: list[Lost] = field(default_factory=list)  # lost items that nobody expects to be lost

    def __post_init__(self) -> None:
        self.left = deque(Piece(index, item) for index, item in enumerate(self.items))

    def __len__(self) -> int:
        return len(self.left)

    def take(self) -> Piece:
        """The next piece; there must be one."""
        return self.left.popleft()

    def done(self, piece: Piece, result: Any) -> tuple[int, Any]:
        """(index, result) of a piece that succeeded."""
        self.num_done += 1
        return piece.index, result

    def failed(self, piece: Piece, error: Exception) -> Iterator[tuple[int, Lost]]:
        """Put a failed piece back, whole or in halves, or yield (index, Lost). Raises what ends the work."""
        died = isinstance(error, (Died, NodeLost))
        if is_of_the_machine(error) or (not died and self.split is None):
            raise error
        if isinstance(error, NodeLost) and piece.nodes < MAX_NODES:
            piece.nodes += 1
            self.left.appendleft(piece)
            return
        parts = self.split(piece.item) if self.split else [piece.item]
        piece.deaths += died
        if len(parts) > 1:
            self.left.extendleft(Piece(piece.index, part) for part in reversed(parts))
        elif died and piece.deaths < MAX_DEATHS:
            self.left.appendleft(piece)
        else:
            yield from self._lose(piece, error)

    def _lose(self, piece: Piece, error: Exception) -> Iterator[tuple[int, Lost]]:
        lost = Lost(piece.item, error)
        self.num_lost += 1
        if self.split is None:
            self.unsplit.append(lost)
            return
        if self.num_lost >= max(GIVE_UP, self.num_done + 1):
            raise error
        yield piece.index, lost

    def check(self, name: Callable[[Any], str] = str) -> None:
        """Raise the first death at an item that cannot be split, once the others are done."""
        if self.unsplit:
            with doing(f"working on {', '.join(name(lost.item) for lost in self.unsplit)}, {MAX_DEATHS} tries each"):
                raise self.unsplit[0].error
