"""Runs an evaluation's worker on a list of items, with progress: on the cluster that was named, else in this process
(`--num-workers`).
"""

from collections.abc import Sequence
from typing import Any

from g3pt.training.exports import find_export
from pipelines.cli.progress import Progress
from pipelines.cluster.pool import Pool, Worker, model_memory, run_items
from pipelines.cluster.start import is_given
from pipelines.evaluate.config import EvaluateFlags


def is_on_ray(flags: EvaluateFlags) -> bool:
    """Whether actors do the work: if --num-workers asks for some, or without it if a cluster is named."""
    return bool(flags.num_workers) or (flags.num_workers is None and is_given(flags.ray_address))


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
    pool = Pool(
        num_workers=flags.num_workers if is_on_ray(flags) else 0,
        ray_address=flags.ray_address,
        device=device,
        memory=model_memory(find_export(flags.model)) if device != "cpu" else 0.0,
    )
    results: list[Any] = [None] * len(items)
    with Progress("evaluate", sum(sizes), unit, run=what) as progress:
        name = f"one of the {unit} of {what}"
        for index, result in run_items(worker, arguments, items, pool, "evaluate", name=lambda item: name):
            results[index] = result
            progress.show(progress.done + sizes[index])
    return results
