"""The pool of actors: runs a worker that holds a model on many items, on Ray or in this process.

How: a worker is a plain class. `worker(*arguments)` loads a model once, and `run(item)` does the work of one item. On
Ray each actor has one worker and one item at a time. All actors are asked for at once: those that fit the cluster
work, the others are what an autoscaler sees, and begin when there is room. An actor without an item ends. What a
failure costs is in `pipelines.cluster.pieces`.

Two stages: a worker's `run` may return parts, and a function `finish` what becomes of each. Actors with a GPU pass
their parts on to tasks on CPUs, and take the next item at once; an actor waits only if `backlog` items are unfinished.
Actors on CPUs finish their parts themselves, since they hold the CPUs that tasks would need.

Ours: a loop of our own over Ray's actors. Ray Data's pool repeats a block whose actor died, or drops it; it cannot try
its halves, and its tasks of a second stage wait for CPUs that its actors hold. `ray.util.ActorPool` replaces no actor.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipelines.cli.failures import is_deterministic, placed
from pipelines.cli.progress import say
from pipelines.cluster import session
from pipelines.cluster.pieces import Died, NodeLost, Piece, Pieces, Split
from pipelines.cluster.place import place
from pipelines.cluster.waiting import Need, asked, begun

LEAST_BACKLOG = 8  # items in the second stage, or two per CPU: their parts wait in Ray's object store
MAX_LOADS = 3  # actors in a row that die while they load their model
WORKING_BYTES = 2**30  # of a worker beside its weights


class Worker(Protocol):
    """What a pool runs."""

    def run(self, item: Any) -> Any:
        """The result of one item."""
        ...


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The workers. If `device` selects GPUs each actor has its own GPU, and there are no more actors than GPUs."""

    num_workers: int | None = None  # actors at most; 0: this process; None: as many as the cluster can have
    all_gpus: bool = False  # use all GPUs; num_workers then counts CPU actors only
    ray_address: str | None = None
    device: str = "auto"
    memory: float = 0.0  # bytes that an actor asks of its node, as far as a node has them

    def num_actors(self, num_items: int) -> int:
        """How many actors so many items get at most; connects to the cluster. 0 if this process does the work."""
        if self.num_workers == 0 or num_items == 0:
            return 0
        session.connect(self.ray_address)
        request, room = session.actor_resources(self.device, self.memory)
        on_gpus = "num_gpus" in request
        wanted = room if self.num_workers is None or (on_gpus and self.all_gpus) else self.num_workers
        return min(wanted, num_items, room if on_gpus else num_items)


def run_items(
    worker: type[Worker],
    arguments: Sequence[Any],
    items: Sequence[Any],
    pool: Pool,
    stage: str = "work",
    split: Split | None = None,
    name: Callable[[Any], str] = str,
    finish: Callable[[Any], Any] | None = None,
) -> Iterator[tuple[int, Any]]:
    """(index, result) of each item, as they are done; in this process in their order.

    With `finish` the result is the list of `finish(part)` of the parts that `run` returns or yields.

    `stage` names the work in lines about waiting. `split` returns the halves of an item: an item that fails is then
    tried in halves, each with a result of its own, and what fails by itself has a `pieces.Lost` as its result. Without
    `split` an error of `run` ends the work, and so does an item at which workers die, once all others are done; `name`
    returns its name for the message. UsageError if the cluster can never run an actor.
    """
    pieces, num_actors = Pieces(items, split), pool.num_actors(len(items))
    if num_actors:
        yield from _on_ray(worker, arguments, pieces, num_actors, pool, stage, finish)
    elif items:
        here = worker(*arguments) if finish is None else BothStages(worker, arguments, finish)
        while pieces:
            piece = pieces.take()
            try:
                result = here.run(piece.item)
            except Exception as error:
                yield from pieces.failed(piece, error)
            else:
                yield pieces.done(piece, result)
    pieces.check(name)


def _on_ray(
    worker: type[Worker],
    arguments: Sequence[Any],
    pieces: Pieces,
    num_actors: int,
    pool: Pool,
    stage: str,
    finish: Callable[[Any], Any] | None,
) -> Iterator[tuple[int, Any]]:
    import ray

    request, _ = session.actor_resources(pool.device, pool.memory)
    if finish and "num_gpus" not in request:
        worker, arguments, finish = BothStages, (worker, arguments, finish), None
    backlog = max(LEAST_BACKLOG, 2 * int(ray.cluster_resources().get("CPU", 0)))
    with asked(stage, one_actor(request)) as key:
        # Put once: it may hold a library of point clouds.
        crew = RayCrew(worker, ray.put(tuple(arguments)), key, request, finish)
        waits = yield from drive(pieces, num_actors, crew, backlog if finish else 0)
    if waits:
        say(f"{stage}: GPUs waited {waits} times for CPUs to finish what they had made; more CPUs would help")


def one_actor(request: dict[str, float]) -> Need:
    """What the first actor of a pool needs: the work begins with it."""
    if "num_gpus" in request:
        return Need(count=1, each={"GPU": request["num_gpus"]}, remedy="use --device cpu, or a cluster with GPUs")
    return Need(count=1, each={"CPU": request["num_cpus"]}, remedy="start a node that offers CPUs")


def model_memory(export: Path) -> float:
    """Bytes that a worker with this export asks of its node: the weights, as they are read and as the model holds them,
    and WORKING_BYTES.
    """
    return 2.0 * sum(file.stat().st_size for file in export.glob("*.safetensors")) + WORKING_BYTES


class BothStages:
    """A worker that finishes its own parts."""

    def __init__(self, worker: type[Worker], arguments: Sequence[Any], finish: Callable[[Any], Any]) -> None:
        self.worker, self.finish = worker(*arguments), finish

    def run(self, item: Any) -> list[Any]:
        """What `finish` returns of each part, one after another."""
        return [self.finish(part) for part in self.worker.run(item)]


class Crew(Protocol):
    """Actors somewhere. A ticket is a call that is under way."""

    def hire(self) -> tuple[Any, Any]:
        """A new actor, and the ticket of its loading."""

    def start(self, actor: Any, item: Any) -> Any:
        """The ticket of an item's work."""

    def next_of(self, tickets: Sequence[Any]) -> Any:
        """The first ticket that is done; waits for it."""

    def result(self, ticket: Any) -> Any:
        """What a call returned; raises its error, Died or NodeLost."""

    def finish(self, ticket: Any) -> Any:
        """The ticket of the second stage of an item whose work is done, somewhere else than in its actor."""

    def end(self, actor: Any) -> None:
        """End an actor, at work or not."""


def drive(pieces: Pieces, num_actors: int, crew: Crew, backlog: int = 0) -> Generator[tuple[int, Any], None, int]:
    """Give the pieces to at most `num_actors` actors; yield (index, result) of each. All actors end with it.

    If there is a second stage, at most `backlog` pieces are in it. Returns how often an actor waited for that.
    """
    loading: dict[Any, Any] = {}  # ticket -> actor
    working: dict[Any, tuple[Any, Piece]] = {}
    finishing: dict[Any, Piece] = {}
    idle: list[Any] = []
    loads = waits = 0
    try:
        while pieces or working or finishing:
            while len(loading) + len(working) + len(idle) < min(num_actors, len(pieces) + len(working)):
                actor, ticket = crew.hire()
                loading[ticket] = actor
            done = crew.next_of([*working, *finishing, *loading])
            has_worked, results = done in working, []
            if done in loading:
                try:
                    crew.result(done)
                    loads = 0
                    idle.append(loading.pop(done))
                except (Died, NodeLost):
                    crew.end(loading.pop(done))
                    loads += 1
                    if loads == MAX_LOADS:
                        if not working and not idle:
                            raise
                        num_actors, loads = len(working) + len(idle), 0  # go on with those that could load
            elif done in finishing:
                piece = finishing.pop(done)
                try:
                    results.append(pieces.done(piece, crew.result(done)))
                except Exception as error:
                    results.extend(pieces.failed(piece, error))
            else:
                actor, piece = working.pop(done)
                idle.append(actor)
                try:
                    result = crew.result(done)
                    if backlog:
                        finishing[crew.finish(done)] = piece
                    else:
                        results.append(pieces.done(piece, result))
                except Exception as error:
                    if not is_deterministic(error):  # an error of a GPU stays in its process
                        crew.end(idle.pop())
                    results.extend(pieces.failed(piece, error))
            while idle and pieces and (not backlog or len(finishing) < backlog):
                actor, piece = idle.pop(), pieces.take()
                working[crew.start(actor, piece.item)] = (actor, piece)
            waits += bool(has_worked and idle and pieces)
            if not pieces:
                for actor in [*idle, *loading.values()]:
                    crew.end(actor)
                idle, loading = [], {}
            yield from results  # last: whoever takes them keeps no actor waiting
    finally:
        for actor in [*idle, *loading.values(), *(actor for actor, _ in working.values())]:
            crew.end(actor)
    return waits


class RayCrew:
    """Actors on Ray. Items and results travel pickled, so that arrays can be written to on the other side."""

    def __init__(
        self,
        worker: type[Worker],
        arguments: Any,
        key: str,
        request: dict[str, float],
        finish: Callable[[Any], Any] | None = None,
    ) -> None:
        self.second = finish and pickle.dumps(finish)
        self.parts: dict[Any, Any] = {}  # of the items whose first stage is under way or done
        self.actors: dict[Any, Any] = {}  # ticket -> actor
        self.nodes: dict[Any, str] = {}  # actor -> the node that it runs on, once it is known
        self.arguments = (worker, [arguments], key)  # in a list Ray passes the reference, not what it refers to
        self.options = {"num_cpus": 0, "max_restarts": 0, "max_task_retries": 0, **request}

    def hire(self) -> tuple[Any, Any]:
        """A new actor, and the ticket of its loading."""
        import ray

        actor = ray.remote(_Actor).options(**self.options).remote()
        ticket = actor.load.remote(*self.arguments)
        self.actors[ticket] = actor
        return actor, ticket

    def start(self, actor: Any, item: Any) -> Any:
        """The ticket of an item's work."""
        if self.second is None:
            ticket = actor.run.remote(pickle.dumps(item))
        else:
            ticket, parts = actor.run_first.options(num_returns=2).remote(pickle.dumps(item))
            self.parts[ticket] = parts
        self.actors[ticket] = actor
        return ticket

    def finish(self, ticket: Any) -> Any:
        """The ticket of the second stage of an item whose work is done: a task on a CPU."""
        import ray

        task = ray.remote(_finish_parts).options(num_cpus=1, max_retries=0)
        return task.remote(self.second, self.parts.pop(ticket))

    def next_of(self, tickets: Sequence[Any]) -> Any:
        """The first ticket that is done; waits for it."""
        import ray

        return ray.wait(list(tickets), num_returns=1, fetch_local=False)[0][0]

    def result(self, ticket: Any) -> Any:
        """What a call returned; raises its error, Died or NodeLost."""
        import ray

        actor = self.actors.pop(ticket, None)
        try:
            node, result = ray.get(ticket)
        except _deaths() as error:
            self.parts.pop(ticket, None)
            raise self._why(error, self.nodes.get(actor)) from error
        if actor is not None:
            self.nodes[actor] = node
        return pickle.loads(result)

    def _why(self, error: BaseException, node: str | None) -> Exception:
        import ray

        alive = {each["NodeID"] for each in ray.nodes() if each["Alive"]}
        said = " ".join(str(error).split())
        is_lost = getattr(error, "preempted", False) or isinstance(error, ray.exceptions.ObjectLostError)
        return NodeLost(said) if is_lost or (node is not None and node not in alive) else Died(said)

    def end(self, actor: Any) -> None:
        """End an actor, at work or not."""
        import ray

        ray.kill(actor)


class _Actor:
    """An actor around a worker. Each call returns this node and its pickled result."""

    def load(self, worker: type[Worker], arguments: list[Any], key: str) -> tuple[str, bytes]:
        """Make the worker; `arguments` is a list of one reference, which is read here."""
        import ray

        begun(key)
        self.node = ray.get_runtime_context().get_node_id()
        with placed(place):
            self.worker = worker(*ray.get(arguments[0]))
        return self.node, pickle.dumps(None)

    def run(self, item: bytes) -> tuple[str, bytes]:
        """The worker's result of a pickled item."""
        with placed(place):
            return self.node, pickle.dumps(self.worker.run(pickle.loads(item)))

    def run_first(self, item: bytes) -> tuple[tuple[str, bytes], bytes]:
        """The first stage of a pickled item: what `run` returns without a result, and the pickled parts."""
        with placed(place):
            parts = list(self.worker.run(pickle.loads(item)))
            return (self.node, pickle.dumps(None)), pickle.dumps(parts)


def _finish_parts(finish: bytes, parts: bytes) -> tuple[str, bytes]:
    """The second stage: this node, and the pickled results of the parts."""
    import ray

    with placed(place):
        function = pickle.loads(finish)
        return ray.get_runtime_context().get_node_id(), pickle.dumps([function(part) for part in pickle.loads(parts)])


def _deaths() -> tuple[type[Exception], ...]:
    """Errors of Ray that say nothing about the work itself."""
    from ray import exceptions

    return (
        exceptions.RayActorError,
        exceptions.WorkerCrashedError,
        exceptions.OutOfMemoryError,
        exceptions.ObjectLostError,
    )
