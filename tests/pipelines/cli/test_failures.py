"""The block that a failed command prints: the worker's own error, place, item and what is safe,
without Ray's wrappers.
"""

import errno
import json
import pickle
import re
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from g3pt.training.fit import naming_step
from g3pt.training.skipped import NonFiniteLoss
from pipelines.cli import main, quiet
from pipelines.cli.errors import UsageError
from pipelines.cli.failures import Failure, doing, is_deterministic, on_disk, placed, remedied, root_cause
from pipelines.runs.notes import FAILURE_FILE, working_in
from tests.pipelines.cli.test_main import ToyFlags


@pytest.fixture(autouse=True)
def logs_go_with_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures keep their log file; keep it out of the machine's /tmp."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def caught(error: BaseException) -> BaseException:
    """The error as the driver gets it: raised inside `doing` at a step, then pickled as Ray does."""
    with pytest.raises(type(error)) as raised, doing("training cvq-toy"), naming_step(7):
        raise error
    return pickle.loads(pickle.dumps(raised.value))


def wrapped_by_train(*errors: BaseException) -> BaseException:
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
    from ray.train.v2.api.exceptions import WorkerGroupError

    text = (
        'Traceback:\n  File "/copy/of/pipelines/train/run.py", line 5, in work\n'
        '  File "/x/site-packages/pipelines/base.py", line 1, in no\n'
    )
    failures = {rank: UserExceptionWithTraceback(error, text) for rank, error in enumerate(errors)}
    return WorkerGroupError(text, failures)


def test_the_cause_is_found_inside_train_s_wrappers_with_step_run_and_place() -> None:
    failure = Failure.of(wrapped_by_train(caught(NonFiniteLoss("the loss is nan"))))
    assert (failure.error, failure.step, failure.doing) == ("NonFiniteLoss: the loss is nan", 7, ("training cvq-toy",))
    assert failure.where == ("pipelines/train/run.py:5 work",)


def test_the_cause_is_found_inside_a_task_s_error() -> None:
    from ray.exceptions import RayTaskError

    task_error = RayTaskError(
        "f", "a traceback", caught(ValueError("bad\nshard")), proctitle="p", pid=1, ip="::1"
    ).as_instanceof_cause()
    assert isinstance(task_error, ValueError)
    assert Failure.of(task_error).error == "ValueError: bad shard"
    assert Failure.of(task_error).doing == ("training cvq-toy",)


def test_of_two_workers_the_one_that_explains_the_other_is_told() -> None:
    peers = RuntimeError("Connection closed by peer"), ValueError("the reason")
    assert str(root_cause(wrapped_by_train(*peers))) == "the reason"


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (NonFiniteLoss("nan"), False),
        (ValueError("x"), False),
        (UsageError("x"), False),
        (RuntimeError("NCCL"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), False),
        (RuntimeError("CUDA error: out of memory"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), False),
        (RuntimeError("HIP out of memory"), False),
        (MemoryError("a neighbour's"), True),
        (OSError(errno.EIO, "disk"), True),
    ],
)
def test_only_what_may_pass_is_tried_again(error: Exception, again: bool) -> None:
    assert is_deterministic(wrapped_by_train(error)) != again


def test_of_two_workers_the_one_without_memory_is_told() -> None:
    peers = RuntimeError("Connection closed by peer"), torch.OutOfMemoryError("CUDA out of memory")
    assert str(root_cause(wrapped_by_train(*peers))) == "CUDA out of memory"


def test_place_and_remedy_travel_with_the_error() -> None:
    place = {"node": "ab12", "ip": "10.0.0.7", "rank": 0, "log": ("a line", "the last")}
    with (
        pytest.raises(torch.OutOfMemoryError) as raised,
        remedied(lambda: "of an outer frame"),
        placed(lambda: place),
        remedied(lambda: "--micro-batch 8"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")
    failure = Failure.of(wrapped_by_train(pickle.loads(pickle.dumps(raised.value))))
    assert failure.to_dict().items() >= {**place, "remedy": "--micro-batch 8"}.items()
    assert failure.lines()[-2:] == [("on", "node 10.0.0.7, rank 0"), ("remedy", "--micro-batch 8")]
    with pytest.raises(ValueError) as other, remedied(lambda: "--micro-batch 8"):
        raise ValueError("x")
    assert not Failure.of(other.value).remedy


def fails(error: Exception, folder: Path) -> type:
    def run(flags: ToyFlags) -> None:
        with working_in(folder), on_disk(lambda: "3 of 4 shards are finished"), doing("converting shard-00002"):
            raise error

    return run


def call(run: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main.main(ToyFlags, run, example="", args=())
    return stop.value.code


def test_a_failure_is_one_block_and_its_traceback_is_in_the_file_it_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["jobs/toy.py", "--output", "my data"])
    assert call(fails(RuntimeError("two\nlines"), tmp_path)) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    lines = err.splitlines()
    assert lines[0] == "failed: RuntimeError: two lines"
    assert lines[1] == "  while    converting shard-00002"
    assert re.fullmatch(r"  in       tests/pipelines/cli/test_failures.py:\d+ run", lines[2])
    assert "  safe     3 of 4 shards are finished" in lines
    assert "  resume   python jobs/toy.py --output 'my data'" in lines
    log = Path(re.search(r"  details  (\S+) ", err)[1])
    assert "Traceback" in log.read_text() and "two\nlines" in log.read_text()
    log.unlink()
    found = json.loads((tmp_path / FAILURE_FILE).read_text())
    assert found["error"] == "RuntimeError: two lines" and found["doing"] == ["converting shard-00002"]


def test_g3pt_traceback_prints_it_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(quiet.VERBOSE, "1")
    assert call(fails(RuntimeError("broke"), tmp_path)) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and "details" not in err


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_is_told_without_a_place_in_the_code(
    code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(fails(OSError(code, "said by the system", "/out/shard"), tmp_path)) == 1
    err = capsys.readouterr().err
    kind = {errno.ENOSPC: "OSError", errno.EACCES: "PermissionError"}[code]
    assert err.splitlines()[0] == f"failed: {kind}: said by the system: '/out/shard'"
    assert [line.split()[0] for line in err.splitlines()[1:]] == ["safe", "resume"]


def test_ray_data_s_advice_does_not_hide_the_file(tmp_path: Path) -> None:
    """Ray 2.60's `_annotate_exception_with_retry_context` adds it between worker and driver."""
    with pytest.raises(OSError) as raised, doing("converting shard-00002"):
        raise OSError(errno.ENOSPC, "No space left on device", "/out/shard")
    raised.value.args = (*raised.value.args, "Failed to apply UDF transform after 1/1 attempts")
    failure = Failure.of(pickle.loads(pickle.dumps(raised.value)))
    assert failure.error == "OSError: No space left on device: '/out/shard'" and failure.is_plain


def test_usage_errors_of_workers_exit_2_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(fails(wrapped_by_train(UsageError("no such run")), tmp_path)) == 2
    assert capsys.readouterr().err == "error: no such run\n"


def test_library_noise_goes_to_the_file_and_our_words_stay(tmp_path: Path, repository: Path) -> None:
    """Runs in its own process with a real descriptor 2: native output, console loggers made before
    and after, warnings.
    """
    import subprocess

    program = (
        "import logging, os, sys, warnings\n"
        "early = logging.getLogger('early'); early.addHandler(logging.StreamHandler())\n"
        "from pipelines.cli.quiet import noise_aside\n"
        "with noise_aside() as noise:\n"
        "    late = logging.getLogger('late'); late.addHandler(logging.StreamHandler())\n"
        "    early.warning('NOISE early'); late.error('NOISE late'); logging.warning('NOISE root'); "
        "warnings.warn('NOISE warned')\n    os.write(2, b'NOISE native\\n'); os.system('echo NOISE child >&2')\n"
        "    print('our words', file=sys.stderr)\n"
        "    log = noise.keep('the traceback')\n"
        "print(log)\n"
        "os.write(2, b'back\\n')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == "our words\nback\n"
    log = Path(done.stdout.strip())
    text = log.read_text()
    log.unlink()
    for words in ("early", "late", "root", "warned", "native", "child"):
        assert f"NOISE {words}" in text, words
