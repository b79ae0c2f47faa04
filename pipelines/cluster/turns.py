"""Turns for all workers of a job together: at most so many per second, in the order of asking.

How: who asks takes the next free turn and is told how long to wait for it. On Ray the turns are kept by one actor
without a CPU, so that the rate does not depend on how many workers there are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

Turn = Callable[[], float]  # takes a turn and returns the seconds until it


class Turns:
    """At most `rate` turns per second."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.apart_s, self.clock, self.next, self.lock = 1.0 / rate, clock, float("-inf"), threading.Lock()

    def take(self) -> float:
        """Take the next turn; return the seconds until it."""
        with self.lock:
            now = self.clock()
            mine = max(now, self.next)
            self.next = mine + self.apart_s
            return mine - now


def turns_on_ray(rate: float) -> Turn:
    """Turns that workers of the connected cluster share; the function can be passed to them."""
    import ray

    actor = ray.remote(Turns).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote(rate)

    def take() -> float:
        return float(ray.get(actor.take.remote()))

    return take
