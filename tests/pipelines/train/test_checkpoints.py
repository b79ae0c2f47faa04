"""Checkpoints: written by one worker or by all, read by any number, and skipped if incomplete or changed."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from g3pt.training.stored_state import STATE_FILE, SUMS_FILE, StoredState, write_sharded, write_whole
from pipelines.cli.paths import REPOSITORY
from pipelines.train import checkpoints, run
from tests.gloo import forked
from tests.pipelines.train.test_run import TOY, records_of, toy_spec

STATE: dict[str, Any] = {
    "samples": 24,
    "held": {"loss": 0.1, "step": 24},
    "fit": {
        "steps_done": 6,
        "model": {"a.b": torch.arange(6.0).view(3, 2), "count": torch.tensor(7)},
        "optimizer": {"state": {0: {"step": torch.tensor(6.0)}}},
    },
}


@pytest.mark.parametrize("write", [write_whole, write_sharded])
def test_a_state_comes_back_and_nothing_of_it_is_pickled(tmp_path: Path, write: Callable[[Path, Any], None]) -> None:
    write(tmp_path, STATE)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors", ""}
    known = subprocess.run(["sha256sum", "--check", "--strict", SUMS_FILE], cwd=tmp_path, stdout=subprocess.PIPE)
    assert known.returncode == 0 and known.stdout.count(b": OK") == 2
    found = StoredState(tmp_path).read("fit")
    assert found["steps_done"] == 6 and found["optimizer"]["state"]["0"]["step"] == 6
    assert torch.equal(found["model"]["a.b"], STATE["fit"]["model"]["a.b"]) and int(found["model"]["count"]) == 7
    given = torch.zeros(3, 2)
    StoredState(tmp_path).read(
        "fit", lambda name, shape, dtype: given if name == "model/a.b" else torch.empty(shape, dtype=dtype)
    )
    assert torch.equal(given, STATE["fit"]["model"]["a.b"]), "filled in place"
    with pytest.raises(ValueError, match=r"fit/model/a.b is \(3, 2\), not \(4, 2\)"):
        StoredState(tmp_path).read("fit", lambda name, shape, dtype: torch.empty(4, 2))


def test_tensors_that_share_memory_are_stored_once_each(tmp_path: Path) -> None:
    weight = torch.arange(6.0).view(3, 2)
    write_whole(tmp_path, {"fit": {"weight": weight, "tied": weight, "turned": weight.T, "empty": weight[:0]}})
    found = StoredState(tmp_path).read("fit")
    assert torch.equal(found["tied"], weight) and torch.equal(found["turned"], weight.T) and found["empty"].numel() == 0


@pytest.mark.parametrize(
    "harm", ["no state", "no sums", "sums cut short", "cut short", "a file missing", "another tensor"]
)
def test_a_folder_that_lacks_a_part_is_named_and_passed_over(
    tmp_path: Path, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    older = checkpoints.save_checkpoint(tmp_path, {**STATE, "samples": 20}, 9)
    folder = tmp_path / "samples-000000000024.dcp"
    folder.mkdir()
    write_sharded(folder, STATE)
    assert checkpoints.newest_checkpoint(tmp_path)[0] == folder.name
    (shard,) = folder.glob("*.safetensors")
    if harm == "no state":
        (folder / STATE_FILE).unlink()
    elif harm == "no sums":
        (folder / SUMS_FILE).unlink()
    elif harm == "sums cut short":
        (folder / SUMS_FILE).write_text("")
    elif harm == "cut short":
        shard.write_bytes(shard.read_bytes()[:-4])
    elif harm == "a file missing":
        shard.unlink()
    else:
        text = (folder / STATE_FILE).read_text()
        (folder / STATE_FILE).write_text(text.replace('"shapes": {', '"shapes": {"fit/model/more": [2], '))
    name, state = checkpoints.newest_checkpoint(tmp_path)
    assert name == older.name and state is not None and state["samples"] == 20
    assert "skipped the unreadable checkpoint samples-000000000024.dcp" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["whole", "sharded", "pt", "state"])
def test_a_checkpoint_with_one_changed_byte_is_passed_over(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each reader itself takes the byte as it is: of a weight, or of a number in state.json."""
    older = checkpoints.save_checkpoint(tmp_path, STATE | {"samples": 20}, 2)
    newer, changed = tmp_path / f"samples-000000000024.{'pt' if kind == 'pt' else 'dcp'}", b'"steps_done": 6'
    if kind == "pt":
        torch.save(STATE, newer)
    else:
        newer.mkdir()
        (write_sharded if kind == "sharded" else write_whole)(newer, STATE)
    if kind != "state":
        changed = STATE["fit"]["model"]["a.b"].numpy().tobytes()
    (file,) = [path for path in (newer, *newer.glob("*")) if path.is_file() and changed in path.read_bytes()]
    assert checkpoints.newest_checkpoint(tmp_path)[0] == newer.name
    content = bytearray(file.read_bytes())
    content[content.index(changed) + len(changed) - 1] ^= 1
    file.write_bytes(content)
    assert fit_of(checkpoints.read_checkpoint(newer)) != fit_of(STATE), "read without a word"
    name, state = checkpoints.newest_checkpoint(tmp_path)
    assert name == older.name and state is not None and state["samples"] == 20
    assert f"skipped the unreadable checkpoint {newer.name}: ValueError" in capsys.readouterr().err


def fit_of(state: dict[str, Any]) -> tuple[int, list[float]]:
    """A number and a tensor of a checkpoint."""
    fit = state["fit"]() if callable(state["fit"]) else state["fit"]
    return fit["steps_done"], fit["model"]["a.b"].flatten().tolist()


def test_a_byte_that_one_worker_finds_changed_is_passed_over_by_all(tmp_path: Path) -> None:
    """Two workers share the files of a checkpoint: each reads another one for its checksum."""
    folder = tmp_path / "checkpoints"
    older, newer = (checkpoints.save_checkpoint(folder, STATE | {"samples": n}, 2) for n in (20, 24))
    assert [state and state["samples"] for state in agreed_by_two(tmp_path / "sound", folder)] == [24, 24]
    for file in ("model.safetensors", STATE_FILE):
        content = (newer / file).read_bytes()
        (newer / file).write_bytes(content.replace(b"6", b"7", 1) if file == STATE_FILE else content[:-1] + b"\1")
        assert agreed_by_two(tmp_path / file, folder) == [{"samples": 20}] * 2
        (newer / file).write_bytes(content)
    assert older.exists()


def agreed_by_two(meet: Path, folder: Path) -> list[dict[str, int] | None]:
    """The samples of the state that each of two workers resumes from."""

    def agreed(rank: int) -> dict[str, int] | None:
        state = checkpoints.agreed_checkpoint(folder, rank, 2)
        return state and {"samples": state["samples"]}

    return forked(2, meet, agreed)


def test_files_and_folders_are_kept_and_removed_alike(tmp_path: Path) -> None:
    for step in (8, 16, 24):
        (tmp_path / f"samples-{step:012d}.dcp").mkdir()
        (tmp_path / f"samples-{step + 4:012d}.pt").touch()
    (tmp_path / ".samples-000000000032.dcp").mkdir()
    (tmp_path / ".samples-000000000032.pt.77").touch()
    checkpoints.keep_newest(tmp_path, 3)
    checkpoints.remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "samples-000000000020.pt",
        "samples-000000000024.dcp",
        "samples-000000000028.pt",
    ]


@pytest.mark.slow
def test_two_sharded_workers_then_one_then_two_give_the_run_of_one(tmp_path: Path) -> None:
    """The toy run fails at sample 40 with two workers and at 60 with one, and finishes with two."""
    whole = run.train_run(toy_spec(dropout=0.0), tmp_path / "whole", num_workers=0, build=TOY)
    program = (
        "import datetime, sys; import torch.distributed as dist\n"
        "from tests.pipelines.train.test_run import *\n"
        f"folder, rank = Path({str(tmp_path)!r}), int(sys.argv[1])\n"
        "def start(world_size, fail_at=None):\n"
        "    spec = toy_spec(dropout=0.0, **({'fail_at': fail_at} if fail_at else {}), paths={'failures': str(folder "
        "/ 'failures')})\n    config = {'spec': spec.to_dict(), 'run_dir': str(folder / 'run'), 'build': TOY, "
        "'speed': {'parallel': 'fsdp', 'num_to_keep': 9}}\n    try:\n"
        "        train.work(config, rank=rank, world_size=world_size)\n"
        "    except ValueError as error:\n"
        "        assert f'sample {fail_at}' in str(error), error\n"
        "def together(meet, fail_at=None):\n"
        "    dist.init_process_group('gloo', init_method=f'file://{folder}/{meet}', rank=rank, world_size=2, "
        "timeout=datetime.timedelta(seconds=300))\n    start(2, fail_at)\n"
        "    dist.barrier(); dist.destroy_process_group()\n"
        "together('first', 40)\n"
        "if rank == 0:\n"
        "    start(1, 60)\n"
        "together('last')\n"
    )
    (tmp_path / "run").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    workers = [subprocess.Popen([sys.executable, "-c", program, str(rank)], env=environment) for rank in range(2)]
    assert [worker.wait(timeout=400) for worker in workers] == [0, 0]
    kept = [path.name for path in checkpoints.checkpoints(tmp_path / "run" / "checkpoints")]
    assert kept == [f"samples-{step:012d}.dcp" for step in (80, 72, 48, 24)]
    for ours, theirs in zip(records_of(tmp_path / "run"), records_of(whole), strict=True):
        assert ours == pytest.approx({**theirs, "micro_batch": ours["micro_batch"]}, rel=1e-4), "shares differ"
