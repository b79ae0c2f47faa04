"""Batches made by processes are those that the parent would make; the processes end with it, whatever ends it."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from g3pt.data.batches import SurfaceBatches
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


def test_a_killed_parent_leaves_no_process(repository: Path) -> None:
    program = (
        "import time; from tests.g3pt.data.test_loading import numbers, loaded\n"
        "stream = loaded(numbers, 100, 2)\n"
        "print(*[int(next(stream)['process']) for _ in range(2)], flush=True); time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=repository) as parent:
        assert parent.stdout is not None
        made = set(map(int, parent.stdout.readline().split()))
        parent.kill()
    assert len(made) == 2 and gone(made)
