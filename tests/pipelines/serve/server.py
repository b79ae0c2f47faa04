"""A server on loopback in a thread of this process, and plain HTTP calls to it."""

import contextlib
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn

from pipelines.serve.app import Service, application
from pipelines.serve.job import bound


@dataclass(frozen=True)
class Answer:
    """Status, body and headers of a call."""

    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Client:
    """Calls a server."""

    port: int
    service: Service

    def call(self, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """GET, or POST of bytes or of anything else as JSON."""
        content = (
            body if body is None or isinstance(body, bytes) or hasattr(body, "__next__") else json.dumps(body).encode()
        )
        kind = {"content-type": "application/octet-stream" if isinstance(body, bytes) else "application/json"}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", content, (kind if body is not None else {}) | (headers or {})
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return Answer(answer.status, answer.read(), dict(answer.headers))
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.read(), dict(error.headers))

    def finished(self, **wanted: Any) -> dict[str, Any]:
        """The last state of a request."""
        state = self.call("/api/requests", wanted).json
        while state["state"] in ("waiting", "running"):
            time.sleep(0.02)
            state = self.call(f"/api/requests/{state['id']}").json
        return state


@contextlib.contextmanager
def serving(
    model: Any, *, facts: dict[str, Any] | None = None, max_waiting: int = 16, max_bytes: int = 1 << 20
) -> Iterator[Client]:
    """A server with this model."""
    facts = facts or {"name": "toy", "scales": list(model.scales), "reads_images": True, "objects": 0, "licenses": {},
             "parameters": 1, "words": [], "limits": ["It is a toy."], "credits": ""}  # fmt: skip
    service = Service(model, facts, max_waiting)
    listening = bound("127.0.0.1", 0)
    app = application(service, max_bytes, loopback_only=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield Client(listening.getsockname()[1], service)
    finally:
        server.should_exit = True
        thread.join()
