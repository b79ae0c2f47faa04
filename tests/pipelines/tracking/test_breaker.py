"""A server that does not answer costs a command one failed call, and one warning."""

import time
from pathlib import Path

import pytest

from pipelines.cli.interrupt import in_thread
from pipelines.runs.ledger import Ledger
from pipelines.tracking import breaker
from pipelines.tracking import client as tracking
from pipelines.tracking.breaker import Guarded, Unreachable
from pipelines.tracking.tracked import followed, logged
from tests.pipelines.tracking.servers import closed_port, silent_server
from tests.pipelines.tracking.test_tracked import card


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """No server has failed yet; a second for each try and no pauses."""
    monkeypatch.setattr(breaker, "_open", {})
    monkeypatch.setattr(tracking, "_warned", set())
    for name in breaker.HTTP_LIMITS:
        monkeypatch.delenv(name, raising=False)
    quick = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "1", "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0"}
    monkeypatch.setattr(breaker, "HTTP_LIMITS", breaker.HTTP_LIMITS | quick)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")


@pytest.mark.parametrize("kind", ["silent", "closed"])
def test_a_whole_command_waits_once(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A training, its study and what follows: many calls, one of which waits."""
    with silent_server() as silent:
        uri = silent if kind == "silent" else closed_port()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.replace("//", "//user:secret@"))
        began = time.monotonic()
        ledger = Ledger(tmp_path / "metrics.jsonl")
        for name in ("one", "two"):
            with followed(card(tmp_path, name), tmp_path / "x", finished=lambda: False, ledger=ledger) as outcome:
                assert outcome.run_id is None
            with logged(card(tmp_path, name), tmp_path / "x"):
                pass
        seconds = time.monotonic() - began
    said = capsys.readouterr().err
    assert seconds < 3 * 1 + 5, "three tries of a second, and importing MLflow"
    assert said.count("warning") == 1 and f"warning: MLflow at {uri} does not answer: " in said
    assert "pipelines.status.relog" in said and "secret" not in said


def test_the_limits_leave_room_in_twenty_seconds_and_the_user_has_the_last_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    for name in breaker.HTTP_LIMITS:
        monkeypatch.delenv(name, raising=False)
    limits = {name: int(value) for name, value in breaker.HTTP_LIMITS.items() if value.isdigit()}
    tries = 1 + limits["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]
    pauses = sum(limits["MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR"] * 2**k + 1 for k in range(1, tries - 1))  # 1 s of jitter
    assert tries * limits["MLFLOW_HTTP_REQUEST_TIMEOUT"] + pauses <= breaker.LIMIT_S
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    breaker.limit_http()
    import os

    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "60" and os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "2"
    for name in breaker.HTTP_LIMITS:
        os.environ.pop(name)


class Client:
    """A client whose server dies at the second call."""

    def __init__(self) -> None:
        self.calls = 0

    def get_run(self, run_id: str) -> str:
        from mlflow.exceptions import MlflowException, RestException

        self.calls += 1
        if run_id == "unknown":
            raise RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such run"})
        if self.calls > 1:
            raise MlflowException("API request to http://u:p@host/api failed with exception refused")
        return run_id


def test_a_server_that_dies_during_the_work_is_asked_once_more() -> None:
    client = Client()
    one, other = Guarded(client, "http://u:p@host"), Guarded(client, "http://u:p@host")
    assert one.get_run("1") == "1" and one.calls == 1
    with pytest.raises(Unreachable, match="http://host does not answer: API request to http://host/api") as first:
        one.get_run("1")
    for again in (one, other):
        with pytest.raises(Unreachable) as later:
            again.get_run("1")
        assert first.value.is_new and not later.value.is_new
    assert client.calls == 2


def test_an_answer_that_refuses_is_an_answer() -> None:
    from mlflow.exceptions import RestException

    guard = Guarded(Client(), "http://host")
    for _ in range(2):
        with pytest.raises(RestException):
            guard.get_run("unknown")
    assert breaker._open == {}


def test_a_store_that_opens_too_slowly_is_left() -> None:
    with pytest.raises(TimeoutError, match="no answer within 0.05 s"):
        in_thread(lambda: time.sleep(1), 0.05)
    assert in_thread(lambda: 3, 5) == 3
    with pytest.raises(KeyError):
        in_thread(lambda: {}["x"], 5)
