"""What every HTTP request passes: a limit on its bytes, the right host, and no other site behind it.

A server on loopback answers only to loopback names, so that no foreign page can reach it under a name of its own (DNS
rebinding). A request that a browser sends for another site (its `Origin` is not this server) is refused.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException

from pipelines.serve.config import is_loopback

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
DRAINED = 4  # times the limit
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


class Guard:
    """ASGI middleware around an application."""

    def __init__(self, app: Any, max_bytes: int, loopback_only: bool) -> None:
        self.app, self.max_bytes, self.loopback_only = app, max_bytes, loopback_only

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get("host", ""), headers.get("origin")
        send = _with_headers(send)
        if self.loopback_only and not is_loopback(host):
            return await refuse(send, 403, "this server answers only to this machine's own names")
        if origin is not None and urlsplit(origin).netloc != host:
            return await refuse(send, 403, "requests of other sites are refused")
        claimed = headers.get("content-length", "0")
        if not claimed.isdecimal() or int(claimed) > self.max_bytes:
            await self._drain(receive)
            return await refuse(send, 413, self.said())
        return await self.app(scope, self._counted(receive), send)

    def said(self) -> str:
        """The sentence for a request that is too large."""
        return f"a request has at most {self.max_bytes >> 20} MB"

    async def _drain(self, receive: Receive) -> None:
        """Drop the rest of a body, up to a few times the limit: a client that still sends would not read the answer."""
        left, more = DRAINED * self.max_bytes, True
        while more and left > 0:
            message = await receive()
            left -= len(message.get("body", b""))
            more = message.get("more_body", False)

    def _counted(self, receive: Receive) -> Receive:
        total = 0

        async def counted() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > self.max_bytes:
                await self._drain(receive)
                raise HTTPException(413, self.said())
            return message

        return counted


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *HEADERS]}
        await send(message)

    return sending


async def refuse(send: Send, status: int, sentence: str) -> None:
    """Answer with an error."""
    body = json.dumps({"error": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
