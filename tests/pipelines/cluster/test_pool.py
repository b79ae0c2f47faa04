"""A pool returns the results of a plain loop, even if actors die."""

import os
import time
from pathlib import Path

import pytest

from pipelines.cli.errors import UsageError
from pipelines.cli.failures import Failure, root_cause
from pipelines.cluster import pool as pools
from pipelines.cluster.pool import Pool, run_items
from tests.pipelines.cluster.test_session import pretend


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


@pytest.mark.slow
def test_a_dead_actor_costs_nothing(ray_cluster: None, tmp_path: Path) -> None:
    items = [(number, "die once" if number == 2 else "") for number in range(6)]
    found = dict(run_items(Squarer, (str(tmp_path / "mark"), 0), items, Pool(num_workers=2)))
    assert (tmp_path / "mark").exists()
    assert found == {number: {"square": number**2} for number in range(6)}


@pytest.mark.slow
def test_an_item_that_kills_every_actor_ends_the_work(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "MAX_RETRIES", 1)
    with pytest.raises(Exception, match="(?i)actor"):
        list(run_items(Squarer, (str(tmp_path / "mark"), 0), [(1, "die"), (2, "")], Pool(num_workers=1)))


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
