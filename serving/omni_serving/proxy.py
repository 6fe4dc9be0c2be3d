"""What Ray Serve's HTTP proxy lacks, added inside its process: back pressure on bodies and a deadline for headers.
Headers by which any client could switch off the proxy's own limits are taken out.

The proxy reads a body as fast as the client sends it and keeps in memory what the replica has not fetched; and it waits
for the headers of a request for ever. Ray imports `middlewares` where `PROXY_ENV` is in the environment of the proxies;
without it everything works, with memory that grows with the bodies that arrive at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import uvicorn.config
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

PROXY_ENV = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "omni_serving.proxy.middlewares"}
"""Environment of the processes that Ray starts for Serve."""
HEADERS_TIMEOUT_S = 10.0
"""From a connection or the first byte of a request to the end of its headers."""
_CONTROL_HEADERS = (b"x-request-timeout-seconds", b"x-request-disconnect-disabled")
"""By these a client could let the proxy wait for ever, and continue for a client that has gone."""
_AHEAD_BYTES = 32 * 1024
"""The proxy reads on when it keeps less than this of a body. Pieces have up to 64 KiB: so what the replica fetches at
once stays under the 100 KiB from which Ray sends results through its object store."""


def middlewares() -> list[Middleware]:
    """Called by Ray in each proxy before it listens."""
    # The proxy lets uvicorn choose its protocol by this name.
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{ImpatientProtocol.__name__}"
    return [Middleware(BackPressure)]


class BackPressure:
    """Reads a body only as fast as the replica fetches it; the client then waits in TCP."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = [(name, value) for name, value in scope["headers"] if name.lower() not in _CONTROL_HEADERS]
            scope, receive = {**scope, "headers": headers}, _Flow(receive)
        await self._app(scope, receive, send)


class _Flow:
    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._ahead_bytes = 0
        self._fetched = asyncio.Event()

    async def __call__(self) -> Message:
        while self._ahead_bytes >= _AHEAD_BYTES:
            self._fetched.clear()
            await self._fetched.wait()
        message = await self._receive()
        self._ahead_bytes += len(message.get("body", b""))
        return _Fetchable(message, self._on_fetch)

    def _on_fetch(self, message: Message) -> None:
        self._ahead_bytes -= len(message.get("body", b""))
        self._fetched.set()


class _Fetchable(dict[str, Any]):
    """A message that says when it leaves: to fetch a message means to pickle it. It arrives as a plain dict."""

    def __init__(self, message: Message, on_fetch: Callable[[Message], None]) -> None:
        super().__init__(message)
        self._on_fetch = on_fetch

    def __reduce__(self) -> tuple[type, tuple[dict[str, Any]]]:
        self._on_fetch(self)
        return dict, (dict(self),)


class ImpatientProtocol(HttpToolsProtocol):
    """uvicorn's protocol, closing connections whose headers do not come to an end."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._got_headers()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_headers()

    def on_headers_complete(self) -> None:
        self._got_headers()
        super().on_headers_complete()

    def _expect_headers(self) -> None:
        self._got_headers()
        self._deadline = self.loop.call_later(HEADERS_TIMEOUT_S, self.transport.close)

    def _got_headers(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
