"""However many workers ask, turns are at most so many per second."""

from pipelines.cluster.turns import Turns


def test_two_workers_share_the_rate_of_one_job() -> None:
    """Each asks again as soon as its turn is over; the clock is that of the earlier one."""
    clock = [0.0]
    turns, times = Turns(10.0, lambda: clock[0]), {"a": [], "b": []}
    ready = {"a": 0.0, "b": 0.0}
    while clock[0] < 3.0:
        worker = min(ready, key=lambda name: ready[name])
        clock[0] = max(clock[0], ready[worker])
        ready[worker] = clock[0] + turns.take()
        times[worker].append(ready[worker])
    both = sorted(times["a"] + times["b"])
    for start in both:
        assert sum(start <= when < start + 1.0 - 1e-9 for when in both) <= 10
    assert len(both) >= 30 and len(times["a"]) > 10 < len(times["b"])


def test_who_comes_late_finds_no_turns_saved_up() -> None:
    clock = [0.0]
    turns = Turns(2.0, lambda: clock[0])
    assert [turns.take() for _ in range(3)] == [0.0, 0.5, 1.0]
    clock[0] = 60.0
    assert [turns.take() for _ in range(3)] == [0.0, 0.5, 1.0]
