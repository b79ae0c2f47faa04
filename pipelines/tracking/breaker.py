"""A guard around MLflow's client: a server that does not answer costs a command one failed call, at most LIMIT_S.

How: MLflow's own limits (7 retries of 120 s with growing pauses) are lowered through its environment variables, unless
the user has set them. The first call that gets no answer opens the breaker of its server for the rest of the process:
every later call raises `Unreachable` at once, and `pipelines.tracking.client.best_effort` stays silent about it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar

from pipelines.cli.errors import one_line
from pipelines.cli.plain_text import without_login

Result = TypeVar("Result")
LIMIT_S = 20.0  # what a server that does not answer may cost a command
HTTP_LIMITS = {  # three tries of 5 s, with pauses of 0 and at most 3 s
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",  # a server may ask for an hour
}
NO_ANSWER = ("failed with exception", "failed with timeout exception", "failed with error code 5")
_open: dict[str, str] = {}  # servers that do not answer, with the first error


class Unreachable(Exception):
    """The server of this store did not answer a call before; `is_new` is true of the first call without an answer."""

    def __init__(self, uri: str, is_new: bool) -> None:
        super().__init__(f"{without_login(uri)} does not answer: {_open[uri]}")
        self.is_new = is_new


def limit_http() -> None:
    """Set MLflow's limits for HTTP, unless the user has set them."""
    for name, value in HTTP_LIMITS.items():
        os.environ.setdefault(name, value)


class Guarded:
    """A client whose methods raise `Unreachable` once its server has not answered."""

    def __init__(self, client: Any, uri: str) -> None:
        self._client, self._uri = client, uri

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        return functools.wraps(found)(functools.partial(guarded, self._uri, found)) if callable(found) else found


def guarded(uri: str, work: Callable[..., Result], *args: Any, **named: Any) -> Result:
    """The result of `work(...)`, which calls the server of `uri`. Unreachable if it does not answer, now or before."""
    if uri in _open:
        raise Unreachable(uri, is_new=False)
    try:
        return work(*args, **named)
    except Exception as error:
        if isinstance(error, Unreachable) or not has_no_answer(error):
            raise
        is_new = uri not in _open  # another thread may have waited at the same time
        _open.setdefault(uri, without_login(one_line(error))[:200])
        raise Unreachable(uri, is_new) from error


def has_no_answer(error: BaseException) -> bool:
    """Whether the error means that the server did not answer, or that it is broken (HTTP 500 to 599)."""
    from mlflow.exceptions import InvalidUrlException, MlflowException, RestException

    if isinstance(error, RestException):
        return False  # the server's own answer
    if isinstance(error, MlflowException):
        return isinstance(error, InvalidUrlException) or any(words in str(error) for words in NO_ANSWER)
    return isinstance(error, (ConnectionError, TimeoutError)) or "requests" in type(error).__module__
