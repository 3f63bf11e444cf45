"""Who may ask: under which name, from which page, and how slowly."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Iterable
from typing import Any, Callable
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Guard:
    """Refuses foreign Host headers with 421 and requests from other sites' pages with 403, and marks all responses.

    On a loopback address, a foreign Host means that a page's own name was made to lead here (DNS rebinding). Browsers
    always send one, health checks need not. `hosts` are further names that are ours, with any port. `observe` is told
    the path, status and seconds of every request.
    """

    def __init__(
        self, app: ASGIApp, *, hosts: Iterable[str], any_host: bool, observe: Callable[[str, int, float], None]
    ) -> None:
        self._app = app
        self._hosts: set[str] = {host.lower() for host in hosts}
        self._any_host = any_host
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host = headers.get("host")
        url = _split(scope["path"])
        if url.scheme and url.netloc:  # a proxy's way to ask; the host in it counts: RFC 9112, section 3.2.2
            host, scope = url.netloc, {**scope, "path": url.path or "/"}
        if scope["method"] == "HEAD":  # uvicorn leaves the body out
            scope = {**scope, "method": "GET"}
        start, status = time.perf_counter(), 500

        async def marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        try:
            await (self._refusal(host, headers.get("origin")) or self._app)(scope, receive, marked)
        finally:
            self._observe(scope["path"], status, time.perf_counter() - start)

    def _refusal(self, host: str | None, origin: str | None) -> JSONResponse | None:
        name = _split(f"//{host}").hostname or ""
        ours = self._any_host or host is None or name == "localhost" or name in self._hosts or is_loopback(name)
        if not ours:
            message = f"this server is not known as {host!r} (-allowed_hosts names further ones)"
            return JSONResponse({"error": message}, 421)
        if origin is None or _split(origin).netloc.lower() == (host or "").lower() != "":
            return None
        if _split(origin).hostname in self._hosts:  # behind a proxy that has put its own name into Host
            return None
        return JSONResponse({"error": f"requests from pages of {origin!r} are refused"}, 403)


def is_loopback(address: str) -> bool:
    """Whether an IP address, as text, reaches this machine only; False for a name."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # as of http://[::1
        return urlsplit("")


class Connection(H11Protocol):
    """Closed where it asks for nothing, however many bytes it sends: uvicorn's own waits for headers for ever."""

    patience = 10.0  # seconds; a request that has begun has limits of its own

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer = self.loop.call_later(self.patience, self._look, None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def _look(self, last: Any) -> None:
        """Close where `last` is over and still the newest request."""
        if self.cycle is last and (last is None or last.response_complete):
            self.transport.close()
        else:
            self._timer = self.loop.call_later(self.patience, self._look, self.cycle)
