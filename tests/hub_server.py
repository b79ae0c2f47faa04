"""A stand-in for the Hugging Face hub: the paths of one dataset, its redirects to a storage host, counted requests,
and faults on demand.
"""

import contextlib
import gzip
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

PREFIX = "/datasets/allenai/objaverse/resolve/main/"
COMMIT = "0" * 39 + "1"


@dataclass
class HubServer:
    """Files by name, faults by name (taken from the front, one a request; the last stays if `for_ever`),
    and what was asked for.
    """

    address: str
    storage: str  # of another origin, as the real hub's is
    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    for_ever: bool = False
    seen: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def asked(self, method: str = "GET") -> Counter[str]:
        """How often each file was asked for."""
        return Counter(name for found, name, _ in self.seen if found == method)

    def add_json(self, name: str, content: object) -> None:
        self.files[name] = gzip.compress(json.dumps(content).encode(), mtime=0)

    def fault(self, method: str, name: str) -> str:
        """What goes wrong with this request; a fault that names a method waits for one."""
        left = self.faults.get(name, [])
        if not left or (left[0].startswith("head-") != (method == "HEAD")):
            return ""
        return (left[0] if self.for_ever and len(left) == 1 else left.pop(0)).removeprefix("head-")


@contextlib.contextmanager
def hub_server() -> Iterator[HubServer]:
    """Hub and storage at free ports of the loopback, as long as the block runs."""
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
    hub = HubServer(*(f"http://127.0.0.1:{server.server_address[1]}" for server in servers))
    for server in servers:
        server.daemon_threads, server.hub = True, hub  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield hub
    finally:
        hub.released.set()
        for server in servers:
            server.shutdown()
            server.server_close()


def use(hub: HubServer, patch: pytest.MonkeyPatch, stall_s: float = 0.25) -> None:
    """Let this process use the server, with short patience."""
    from huggingface_hub import constants

    from pipelines.preprocess.sources import hub as client

    patch.setattr(constants, "ENDPOINT", hub.address)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(client, "STALL_S", stall_s)
    patch.setattr(client, "FIRST_WAIT_S", 0.01)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        hub, name = self.server.hub, self.path.removeprefix(PREFIX)
        hub.seen.append(("HEAD", name, dict(self.headers)))
        fault = hub.fault("HEAD", name)
        if fault == "drip":  # headers that never end
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            self._drip()
        elif fault.isdigit():
            self._answer(int(fault))
        elif name not in hub.files:
            self._answer(404, {"X-Error-Code": "EntryNotFound"})
        else:
            sha256 = hashlib.sha256(hub.files[name]).hexdigest()
            linked = {
                "X-Linked-Etag": f'"{sha256}"',
                "X-Linked-Size": str(len(hub.files[name])),
                "X-Repo-Commit": COMMIT,
            }
            self._answer(302, {"Location": f"{hub.storage}/{name}", **linked})

    def do_GET(self) -> None:
        hub, name = self.server.hub, self.path.removeprefix("/")
        if name not in hub.files:  # not the dataset's: huggingface_hub asks for /api/agent-harnesses
            self._answer(404)
            return
        hub.seen.append(("GET", name, dict(self.headers)))
        fault, data = hub.fault("GET", name), hub.files[name]
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        if fault.isdigit():
            self._answer(int(fault), {"Retry-After": "0"} if fault == "429" else {})
            return
        data = bytes(byte ^ 1 for byte in data[start:]) if fault == "flip" else data[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if fault in ("stall", "cut", "drip"):
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
        if fault == "stall":
            hub.released.wait(60)
        elif fault == "drip":
            self._drip()
        elif fault != "cut":
            self.wfile.write(data)
        self.close_connection = bool(fault)

    def _answer(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": "0", **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()

    def _drip(self) -> None:
        with contextlib.suppress(OSError):
            while not self.server.hub.released.is_set():
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)
        self.close_connection = True
