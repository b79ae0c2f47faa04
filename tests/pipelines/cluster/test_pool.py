"""A pool returns the results of a plain loop, even if actors die."""

import errno
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli.errors import UsageError
from pipelines.cli.failures import Failure, root_cause
from pipelines.cluster import pieces as pieces_module
from pipelines.cluster.pieces import GIVE_UP, MAX_DEATHS, MAX_NODES, Died, Lost, NodeLost, Pieces, halves
from pipelines.cluster.pool import MAX_LOADS, Pool, RayCrew, drive, run_items
from tests.pipelines.cluster.test_session import pretend

HERE = Pool(num_workers=0)


class Squarer:
    """Squares numbers. An item can ask for a fault, which happens once, as the file `marks` records."""

    def __init__(self, marks: str, offset: int) -> None:
        self.marks, self.offset = Path(marks), offset

    def run(self, item: tuple[int, str]) -> dict[str, int]:
        number, fate = item
        if fate == "raise":
            print("the last words", flush=True)
            raise ValueError(f"{number} is refused")
        if fate == "die" or (fate == "die once" and not self.marks.exists()):
            self.marks.touch()
            os._exit(1)
        return {"square": number**2 + self.offset}


@pytest.mark.parametrize(
    ("resources", "pool", "items", "actors"),
    [
        ({"CPU": 192.0, "GPU": 2.0}, Pool(num_workers=3), 5, 2),  # a third would wait for ever
        ({"CPU": 192.0, "GPU": 2.0}, Pool(num_workers=1), 5, 1),
        ({"CPU": 192.0, "GPU": 2.0}, Pool(num_workers=1, all_gpus=True), 5, 2),
        ({"CPU": 192.0, "GPU": 2.0}, Pool(num_workers=3, device="cpu"), 5, 3),
        ({"CPU": 2.0}, Pool(num_workers=3), 5, 3),  # CPUs are shared
        ({"CPU": 4.0}, Pool(), 5, 4),
        ({"CPU": 4.0}, Pool(), 3, 3),
        ({"CPU": 4.0}, Pool(num_workers=0), 3, 0),
    ],
)
def test_actors_go_where_there_is_room(
    resources: dict[str, float], pool: Pool, items: int, actors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, [], **resources)
    assert pool.num_actors(items) == actors


def test_without_workers_it_is_a_loop_in_this_process(tmp_path: Path) -> None:
    items = [(number, "") for number in range(3)]
    found = run_items(Squarer, (str(tmp_path / "mark"), 1), items, Pool(num_workers=0))
    assert list(found) == [(0, {"square": 1}), (1, {"square": 2}), (2, {"square": 5})]
    assert list(run_items(Squarer, (), [], Pool(num_workers=0))) == []


class Model:
    """Sums batches of numbers; a number in `faults` is an error each time."""

    def __init__(self, faults: dict[int, Exception]) -> None:
        self.faults = faults

    def run(self, batch: list[int]) -> int:
        for number in batch:
            if number in self.faults:
                raise self.faults[number]
        return sum(batch)


def test_a_batch_with_a_bad_item_is_halved_until_it_is_alone() -> None:
    batches = [list(range(8)), [8, 9]]
    found = list(run_items(Model, ({5: RuntimeError("no")},), batches, HERE, split=halves))
    lost = [result for _, result in found if isinstance(result, Lost)]
    assert [(one.item, one.reason) for one in lost] == [([5], "RuntimeError: no")]
    assert [(index, result) for index, result in found if not isinstance(result, Lost)] == [
        (0, 0 + 1 + 2 + 3),
        (0, 4),
        (0, 6 + 7),
        (1, 17),
    ]


def test_work_that_never_succeeds_ends_and_a_lack_of_memory_or_disk_at_once() -> None:
    tried = []

    class Counted(Model):
        def run(self, batch: list[int]) -> int:
            tried.append(list(batch))
            return super().run(batch)

    faults = {number: RuntimeError(f"no {number}") for number in range(100)}
    batches = [list(range(start, start + 4)) for start in range(0, 100, 4)]
    with pytest.raises(RuntimeError, match=f"no {GIVE_UP - 1}"):
        list(run_items(Counted, (faults,), batches, HERE, split=halves))
    assert len(tried) == 2 * (1 + 2 + 4)
    for error in (RuntimeError("CUDA out of memory"), OSError(errno.ENOSPC, "No space left on device")):
        tried.clear()
        with pytest.raises(type(error), match="(?i)out of memory|no space"):
            list(run_items(Counted, ({1: error},), [[0, 1]], HERE, split=halves))
        assert tried == [[0, 1]]
    tried.clear()
    with pytest.raises(RuntimeError, match="no 1"):
        list(run_items(Counted, (faults,), [[1, 2]], HERE))
    assert tried == [[1, 2]], "an item that cannot be split is no batch"


class PretendedCrew:
    """Actors of a clock that only calls move: loading takes 5 s, an item its own `seconds`. `fate` says what becomes of
    an item: Died or NodeLost to raise. Only `room` actors fit; the others wait.
    """

    def __init__(self, room: int, fate: dict[str, list[Exception]] | None = None) -> None:
        self.room, self.fate, self.now, self.counted = room, fate or {}, 0.0, itertools.count()
        self.alive: list[int] = []
        self.calls: dict[int, tuple[int, Any]] = {}
        self.due: dict[int, float] = {}
        self.idle: dict[int, float] = {}
        self.made: dict[int, Any] = {}
        self.waited = 0.0  # seconds of loaded actors without an item

    def hire(self) -> tuple[int, int]:
        actor = next(self.counted)
        self.alive.append(actor)
        return actor, self._call(actor, None)

    def start(self, actor: int, item: Any) -> int:
        self.waited += self.now - self.idle.pop(actor)
        return self._call(actor, item)

    def _call(self, actor: int, item: Any) -> int:
        ticket = next(self.counted)
        self.calls[ticket] = (actor, item)
        return ticket

    def next_of(self, tickets: Sequence[int]) -> int:
        for ticket in tickets:
            actor, item = self.calls[ticket]
            if actor in self.alive[: self.room]:
                self.due.setdefault(ticket, self.now + (5.0 if item is None else item[1]))
        done = min((ticket for ticket in tickets if ticket in self.due), key=lambda ticket: (self.due[ticket], ticket))
        self.now = max(self.now, self.due[done])
        return done

    def finish(self, ticket: int) -> int:
        item = self.made.pop(ticket)
        second = next(self.counted)
        self.calls[second], self.due[second] = (-1, (item[0] + "'", 0.0)), self.now + item[2]
        return second

    def result(self, ticket: int) -> Any:
        actor, item = self.calls.pop(ticket)
        self.made[ticket] = item
        others = "load 1" if item is None and actor != 0 else ""
        if fates := self.fate.get(item[0] if item else "load") or self.fate.get(others):
            raise fates.pop(0)
        self.idle[actor] = self.now
        return item and item[0].upper()

    def end(self, actor: int) -> None:
        if actor in self.alive:
            self.alive.remove(actor)


def test_actors_begin_as_there_is_room_and_none_is_left() -> None:
    crew, pieces = PretendedCrew(room=2), Pieces([(name, 10.0) for name in "abcdef"])
    found = []
    for index, result in drive(pieces, 4, crew):
        found.append((index, result))
        crew.room = 3 if len(found) == 2 else crew.room  # a node joins
        assert len(crew.alive) <= min(4, 1 + len(pieces) + 2)
    assert sorted(found) == list(enumerate("ABCDEF")) and not crew.alive
    assert crew.waited == 0.0 and crew.now < 5.0 + 3 * 10.0 + 1e-9


def test_a_death_costs_its_item_another_try_and_a_lost_node_none() -> None:
    fate: dict[str, list[Exception]] = {
        "a": [Died("oom")],
        "b": [NodeLost("spot")] * MAX_NODES,
        "load": [Died("slow disk")] * (MAX_LOADS - 1),
    }
    crew = PretendedCrew(2, fate)
    assert sorted(drive(Pieces([(name, 1.0) for name in "abc"]), 2, crew)) == list(enumerate("ABC"))
    assert not crew.alive and not any(fate.values())


def test_an_item_that_kills_its_actors_fails_after_all_others_are_done() -> None:
    pieces = Pieces([(name, 1.0) for name in "abc"])
    crew = PretendedCrew(2, {"a": [Died("killed")] * MAX_DEATHS})
    assert sorted(drive(pieces, 2, crew)) == [(1, "B"), (2, "C")] and not crew.alive
    with pytest.raises(Died, match="killed"):
        pieces.check()
    crew = PretendedCrew(2, {"load 1": [Died("a lean node")] * MAX_LOADS})
    assert sorted(drive(Pieces([(name, 10.0) for name in "abc"]), 2, crew)) == list(enumerate("ABC"))
    assert not any(crew.fate.values()), "it goes on with the actor that could load"
    crew = PretendedCrew(2, {"load": [Died("no space")] * MAX_LOADS})
    with pytest.raises(Died, match="no space"):
        list(drive(Pieces([("a", 1.0)]), 1, crew))
    assert not crew.alive


def test_a_sampler_never_waits_for_a_mesh() -> None:
    """A batch takes a GPU 1 s and its meshes a CPU 10 s. One process for both would take 11 s per batch."""
    crew = PretendedCrew(room=1)
    found, waits = driven(Pieces([(name, 1.0, 10.0) for name in "abcdefgh"]), crew, backlog=16)
    assert sorted(found) == [(number, f"{name}'") for number, name in enumerate("ABCDEFGH")]
    assert waits == 0 and crew.waited == 0.0 and crew.now == 5.0 + 8 * 1.0 + 10.0


def test_a_sampler_waits_if_too_many_meshes_are_unfinished_and_that_is_counted() -> None:
    crew = PretendedCrew(room=1)
    found, waits = driven(Pieces([(name, 1.0, 10.0) for name in "abcdef"]), crew, backlog=2)
    assert len(found) == 6 and waits == 2 and not crew.alive


def test_a_mesh_that_fails_is_made_again_from_its_prompt() -> None:
    crew = PretendedCrew(1, {"a'": [Died("oom")], "b'": [NodeLost("its GPU node went away")]})
    found, _ = driven(Pieces([(name, 1.0, 3.0) for name in "abc"]), crew, backlog=8)
    assert sorted(found) == [(0, "A'"), (1, "B'"), (2, "C'")] and not any(crew.fate.values())


def driven(pieces: Pieces, crew: PretendedCrew, backlog: int) -> tuple[list[Any], int]:
    """The results and the number of waits of one actor."""
    found, work = [], drive(pieces, 1, crew, backlog)
    while True:
        try:
            found.append(next(work))
        except StopIteration as end:
            return found, end.value


class Letters:
    """A first stage: a word's letters."""

    def run(self, word: str) -> Iterator[str]:
        yield from word


def upper(letter: str) -> tuple[str, int]:
    """A second stage."""
    return letter.upper(), os.getpid()


def test_both_stages_in_one_process() -> None:
    found = run_items(Letters, (), ["ab", "c"], HERE, finish=upper)
    assert list(found) == [(0, [("A", os.getpid()), ("B", os.getpid())]), (1, [("C", os.getpid())])]


@pytest.mark.slow
def test_the_second_stage_runs_in_tasks_beside_the_actor(ray_cluster: None) -> None:
    import ray

    crew = RayCrew(Letters, ray.put(()), "begun", {"num_cpus": 1.0}, upper)
    found = dict(drive(Pieces(["ab", "c", "de"]), 1, crew, backlog=8))
    letters = {index: "".join(letter for letter, _ in parts) for index, parts in found.items()}
    assert letters == {0: "AB", 1: "C", 2: "DE"}
    assert not crew.parts and not crew.actors


@pytest.mark.slow
def test_a_dead_actor_costs_nothing(ray_cluster: None, tmp_path: Path) -> None:
    """One that dies once is replaced; the item at which each dies is named at the end, or is one row of its batch."""
    items = [(number, "die once" if number == 2 else "") for number in range(6)]
    found = dict(run_items(Squarer, (str(tmp_path / "mark"), 0), items, Pool(num_workers=2)))
    assert (tmp_path / "mark").exists()
    assert found == {number: {"square": number**2} for number in range(6)}


@pytest.mark.slow
def test_an_item_that_kills_every_actor_ends_the_work(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces_module, "MAX_DEATHS", 1)
    found = run_items(Squarer, (str(tmp_path / "mark"), 0), [(1, "die"), (2, "")], Pool(num_workers=1))
    assert next(found) == (1, {"square": 4}), "all else is kept"
    with pytest.raises(Died, match="(?i)actor died unexpectedly"):
        next(found)


@pytest.mark.slow
def test_an_error_of_the_work_arrives_as_it_was_after_other_work_was_waited_for(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Others' tasks hold all CPUs for some seconds; a GPU can never be had."""
    import ray

    other = ray.remote(num_cpus=1)(lambda seconds: time.sleep(seconds))
    tasks = [other.remote(4) for _ in range(2)]
    while ray.available_resources().get("CPU", 0):
        time.sleep(0.1)
    with pytest.raises(Exception) as error:
        list(run_items(Squarer, (str(tmp_path / "mark"), 0), [(7, "raise")], Pool(num_workers=1), "tokens"))
    ray.get(tasks)
    assert "progress stage=tokens state=waiting needs=1xCPU free=0 total=2\n" in capsys.readouterr().err
    cause = root_cause(error.value)
    assert isinstance(cause, ValueError) and "7 is refused" in str(cause)
    told = Failure.of(error.value)
    assert told.ip and "the last words" in told.log and told.node == ray.nodes()[0]["NodeID"] and told.rank is None
    with pytest.raises(UsageError, match="the cluster can never provide 1xGPU: it has 0 GPU on 1 node.* --device cpu"):
        list(run_items(Squarer, (str(tmp_path / "mark"), 0), [(7, "")], Pool(num_workers=1, device="gpu")))
