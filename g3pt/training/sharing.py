"""An evaluation shared by the workers of a run: each computes some parts of its objects, and all get the results.

How: the parts do not depend on the number of workers beyond their size, and are joined in their order, so the numbers
are those of one worker. A worker reads the objects of its own parts alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch.distributed as dist

from g3pt.training.parallel import num_workers

Part = TypeVar("Part")


@dataclass(frozen=True)
class Shared:
    """`count` objects of an evaluation, cut into parts of `size` consecutive ones, of which this worker has those in
    the parts `held`.
    """

    count: int
    size: int
    held: tuple[int, ...]

    @classmethod
    def between_workers(cls, count: int, most: int) -> Shared:
        """Parts of at most `most` objects, few enough for each worker to have one. This worker has those that it
        computes.
        """
        whole = cls.everywhere(count, most)
        return replace(whole, held=tuple(sorted(set(_dealt(len(whole.held))))))

    @classmethod
    def everywhere(cls, count: int, most: int) -> Shared:
        """The same parts; every worker has all objects."""
        size = max(1, min(most, -(-count // num_workers())))
        return cls(count, size, tuple(range(-(-count // size))))

    @property
    def parts(self) -> int:
        """Number of parts, over all workers."""
        return -(-self.count // self.size)

    def objects(self) -> list[int]:
        """Numbers of this worker's objects, ascending."""
        return [i for part in self.held for i in range(part * self.size, min((part + 1) * self.size, self.count))]

    def rows(self, part: int) -> range:
        """Places of a part's objects among this worker's."""
        start = self.held.index(part) * self.size
        return range(start, start + min(self.size, self.count - part * self.size))

    def in_turn(self, compute: Callable[[int], Part]) -> dict[int, Part]:
        """`compute(part)` of each part that is this worker's: they are dealt in turn.

        Every worker makes equally many calls, because a pass through a sharded model needs all workers: one that has no
        part left computes the last one again and forgets it.
        """
        mine, rank = {}, _rank()
        for turn, part in enumerate(_dealt(self.parts)):
            found = compute(part)
            if rank + turn * num_workers() < self.parts:
                mine[part] = found
        return mine


def _dealt(parts: int) -> list[int]:
    """The parts that this worker computes, in order; as many on each worker, so the last one may come twice."""
    return [min(part, parts - 1) for part in range(_rank(), -(-parts // num_workers()) * num_workers(), num_workers())]


def _rank() -> int:
    return dist.get_rank() if num_workers() > 1 else 0


def joined(mine: dict[int, Part]) -> list[Part]:
    """The parts of all workers in order, on each of them, by one exchange. Tensors must be in main memory."""
    if num_workers() == 1:
        return list(mine.values())
    everyone: list[dict[int, Part]] = [{}] * num_workers()
    dist.all_gather_object(everyone, mine)
    found = {i: part for parts in everyone for i, part in parts.items()}
    return [found[i] for i in sorted(found)]
