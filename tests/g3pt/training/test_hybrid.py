"""Four workers on two nodes: the model is sharded within a node, gradients are exchanged once per step, and one process
goes on from their checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from g3pt.training.memory import training_memory
from g3pt.training.parallel import FullyShard, Gathered, SingleProcess, make_parallel
from pipelines.train.memory import Workers
from tests.g3pt.training.test_parallel import same_curve
from tests.g3pt.two_workers import STEPS, stored, train_car
from tests.gloo import forked


def on_two_nodes(rank: int, folder: Path) -> list[tuple[dict[str, Any], int]]:
    """A generator trained without micro-batches and with two of one object: what it found, and its reduce-scatters."""
    calls, scatter = [0], dist.reduce_scatter_single

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return scatter(*args, **kwargs)

    dist.reduce_scatter_single = counting
    uneven = make_parallel("fsdp", rank, 4, per_node=3 if rank else 1)
    parallel = make_parallel("fsdp", rank, 4, per_node=2)
    assert isinstance(uneven, FullyShard) and isinstance(parallel, FullyShard)
    assert (uneven.shards, parallel.shards) == (4, 2)
    if rank == 0:
        (folder / "fsq-fsdp").mkdir()
    dist.barrier()
    found = []
    for given in ({}, {"micro_batch": 1, "folder": folder / "fsq-fsdp"}):
        calls[0] = 0
        records = train_car(parallel, **given)["records"]
        found.append(({"records": records}, calls[0]))
    return found


@pytest.mark.slow
def test_four_workers_on_two_nodes_give_the_run_of_one_and_exchange_gradients_once(tmp_path: Path) -> None:
    alone = train_car(SingleProcess())
    for (whole, scatters), (parts, same) in forked(
        4, tmp_path / "workers", lambda rank: on_two_nodes(rank, tmp_path), timeout_s=400
    ):
        same_curve(whole, alone)
        same_curve(parts, alone)
        assert scatters == same > STEPS, "as many with two micro-batches as with one"
    resumed = train_car(SingleProcess(), resume=stored(tmp_path))
    for ours, theirs in zip(resumed["records"], alone["records"][STEPS // 2 :], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-4)


def test_memory_is_that_of_a_node_s_shards_and_of_whole_gradients_between_micro_batches() -> None:
    fsdp = {"share": 8, "parallel": "fsdp"}
    found = [Workers(count=count, per_node=8, **fsdp).shards for count in (4, 8, 12, 16, 64)]
    assert found == [4, 8, 12, 8, 8] and Workers(count=64, **fsdp).shards == 64
    assert Workers(share=8, count=64, per_node=8).shards == 1
    given = {"shards": 8, "gathered": Gathered(block=10, outside=5, narrow=False)}
    memory, whole = (training_memory(800, 0, whole_gradients=some, **given) for some in (False, True))
    assert whole.gradients - memory.gradients == 4 * 800 and whole.weights == memory.weights
    assert training_memory(800, 0, whole_gradients=True).gradients == 4 * 800, "DDP has them whole already"
