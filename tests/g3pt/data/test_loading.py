"""Batches made by processes are those that the parent would make; the processes end with it, whatever ends it."""

import contextlib
import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from g3pt.data.batches import SurfaceBatches, prefetched
from g3pt.data.loading import loaded
from tests.g3pt.models.test_tokenizer import TINY, spheres


def numbers(start_sample: int, turn: int = 0, turns: int = 1) -> Iterator[dict[str, Any]]:
    """Batches of their own number and process; the eighth cannot be made."""
    for number in itertools.count(start_sample + turn, turns):
        if number == 7:
            raise ValueError("shard-00007.parquet cannot be read: it is cut")
        yield {"number": torch.tensor(number), "process": torch.tensor(os.getpid())}


def children(pid: int) -> set[int]:
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
            found |= set(map(int, (task / "children").read_text().split()))
    return found


def gone(pids: set[int], within_s: float = 20) -> bool:
    """Whether the processes end within some seconds. What is left of them until they are waited for does not count."""
    until = time.monotonic() + within_s
    while time.monotonic() < until and any(_runs(pid) for pid in pids):
        time.sleep(0.1)
    return not any(_runs(pid) for pid in pids)


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_batches_are_the_same_from_any_sample_on_for_any_number_of_processes() -> None:
    batches = SurfaceBatches(spheres(7), TINY, 4, 0, 1, 2)
    for start in (0, 10):
        expected = list(itertools.islice(batches(start), 7))
        for processes in (0, 1, 2, 3):
            before = torch.get_rng_state()
            with contextlib.closing(loaded(batches, start, processes)) as stream:
                for ours, theirs in zip(itertools.islice(stream, 7), expected, strict=True):
                    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
            assert torch.equal(torch.get_rng_state(), before), "the training's random numbers are not used"


def test_an_error_comes_unchanged_in_place_of_its_batch_and_ends_the_processes() -> None:
    before = children(os.getpid())
    stream, seen, made = loaded(numbers, 3, 2), [], set()
    with pytest.raises(ValueError, match="^shard-00007.parquet cannot be read: it is cut$") as raised:
        for batch in stream:
            seen.append(int(batch["number"]))
            made.add(int(batch["process"]))
    assert seen == [3, 4, 5, 6] and len(made) == 2 and os.getpid() not in made
    assert raised.tb is not None and gone(made, 0.1), "although the traceback keeps the iterator"
    assert children(os.getpid()) <= before


def test_closing_ends_the_processes_and_signals_to_them_do_not() -> None:
    stream = loaded(numbers, 100, 2)
    made = {int(next(stream)["process"]) for _ in range(2)}
    for pid in made:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)
    assert [int(next(stream)["number"]) for _ in range(12)] == list(range(102, 114))
    stream.close()
    assert gone(made, 0.1)


def test_processes_of_batches_that_a_thread_makes_ahead_end_with_it() -> None:
    stream = prefetched(loaded(numbers, 100, 2), 2)
    seen = [next(stream) for _ in range(6)]
    assert [int(batch["number"]) for batch in seen] == list(range(100, 106))
    stream.close()
    assert gone({int(batch["process"]) for batch in seen}, 0.1)
    with pytest.raises(ValueError, match="cut$"):
        list(prefetched(loaded(numbers, 3, 2), 2))


LEFT: list[Any] = []  # iterators that are never closed


def _leave_open(told: Any, seconds: float) -> None:
    LEFT.append(loaded(numbers, 100, 2))
    told.send({int(next(LEFT[0])["process"]) for _ in range(2)})
    time.sleep(seconds)


@pytest.mark.slow
@pytest.mark.parametrize("is_killed", [True, False])
def test_a_parent_that_ends_without_closing_leaves_no_process_and_does_not_hang(is_killed: bool) -> None:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    parent = context.Process(target=_leave_open, args=(there, 600 if is_killed else 0))
    parent.start()
    made = here.recv()
    if is_killed:
        parent.kill()
    parent.join(60)
    assert parent.exitcode == (-signal.SIGKILL if is_killed else 0)
    assert len(made) == 2 and gone(made)
