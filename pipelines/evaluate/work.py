"""Runs an evaluation's worker on a list of items, with progress: in this process or in Ray actors (--num-workers)."""

from collections.abc import Sequence
from typing import Any

from pipelines.cli.progress import Progress
from pipelines.cluster.pool import Pool, Worker, run_items
from pipelines.evaluate.config import EvaluateFlags


def map_work(
    worker: type[Worker],
    arguments: Sequence[Any],
    items: Sequence[Any],
    flags: EvaluateFlags,
    what: str,
    unit: str,
    sizes: Sequence[int] | None = None,
    device: str = "auto",
) -> list[Any]:
    """`worker(*arguments).run(item)` of each item, in their order.

    Progress counts `sizes` (default 1 each) in `unit`s under the name `what`.
    """
    sizes = sizes or [1] * len(items)
    pool = Pool(num_workers=flags.num_workers, ray_address=flags.ray_address, device=device)
    results: list[Any] = [None] * len(items)
    with Progress("evaluate", sum(sizes), unit, run=what) as progress:
        for index, result in run_items(worker, arguments, items, pool, "evaluate"):
            results[index] = result
            progress.show(progress.done + sizes[index])
    return results
