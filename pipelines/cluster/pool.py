"""The pool of actors: runs a worker that holds a model on many items, on Ray Data or in this process.

How: a worker is a plain class. `worker(*arguments)` loads a model once, and `run(item)` does the work of one item. On
Ray each actor has one worker. Items and results travel pickled, one block each. An actor that dies is replaced, and its
item is tried again at most MAX_RETRIES times.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipelines.cli.failures import placed
from pipelines.cluster import session
from pipelines.cluster.place import place
from pipelines.cluster.waiting import Need, asked, begun

MAX_RETRIES = 10  # of an item whose actor died


class Worker(Protocol):
    """What a pool runs."""

    def run(self, item: Any) -> Any:
        """The result of one item."""
        ...


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The workers. If `device` selects GPUs each actor has its own GPU, and there are no more actors than GPUs."""

    num_workers: int | None = None  # actors; 0: this process; None: as many as the cluster has CPUs (or GPUs) for
    all_gpus: bool = False  # use all GPUs; num_workers then counts CPU actors only
    ray_address: str | None = None
    device: str = "auto"

    def num_actors(self, num_items: int) -> int:
        """How many actors so many items get on the cluster as it is now; connects to it. 0 if this process does the
        work.
        """
        if self.num_workers == 0 or num_items == 0:
            return 0
        session.connect(self.ray_address)
        request, room = session.actor_resources(self.device)
        on_gpus = "num_gpus" in request
        wanted = room if self.num_workers is None or (on_gpus and self.all_gpus) else self.num_workers
        return min(wanted, num_items, room if on_gpus else num_items)


def run_items(
    worker: type[Worker], arguments: Sequence[Any], items: Sequence[Any], pool: Pool, stage: str = "work"
) -> Iterator[tuple[int, Any]]:
    """(index, result) of each item, as they are done; in this process in their order.

    `stage` names the work in lines about waiting. UsageError if the cluster can never run an actor.
    """
    num_actors = pool.num_actors(len(items))
    if num_actors:
        yield from _on_ray(worker, arguments, items, num_actors, pool.device, stage)
    elif items:
        here = worker(*arguments)
        yield from enumerate(map(here.run, items))


def _on_ray(
    worker: type[Worker], arguments: Sequence[Any], items: Sequence[Any], num_actors: int, device: str, stage: str
) -> Iterator[tuple[int, Any]]:
    import ray

    request, _ = session.actor_resources(device)
    rows = [{"index": index, "item": pickle.dumps(item)} for index, item in enumerate(items)]
    with asked(stage, one_actor(request)) as key:
        # One block each from the start: tasks that split them would wait for ever for a CPU that an actor holds.
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Actor,
            # Put once: it may hold a library of point clouds.
            fn_constructor_args=(worker, ray.put(tuple(arguments)), key),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=num_actors),
            max_task_retries=MAX_RETRIES,
            **request,
        )
        for row in results.iter_rows():
            yield int(row["index"]), pickle.loads(row["result"])


def one_actor(request: dict[str, float]) -> Need:
    """What the first actor of a pool needs: the work begins with it."""
    if "num_gpus" in request:
        return Need(count=1, each={"GPU": request["num_gpus"]}, remedy="use --device cpu, or a cluster with GPUs")
    return Need(count=1, each={"CPU": request["num_cpus"]}, remedy="start a node that offers CPUs")


class _Actor:
    """Ray Data's interface around a worker."""

    def __init__(self, worker: type[Worker], arguments: Any, key: str) -> None:
        import ray

        begun(key)
        with placed(place):
            self.worker = worker(*ray.get(arguments))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """{'index': (1,), 'item': [bytes]} -> {'index', 'result'}."""
        with placed(place):
            results = [pickle.dumps(self.worker.run(pickle.loads(item))) for item in batch["item"]]
        return {"index": batch["index"], "result": results}
