"""Who may ask: under which names the server is known, and whether a page of another site is behind a request."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Guard:
    """Refuses foreign Host headers with 421 and requests from other sites' pages with 403, and marks all responses.

    On a loopback address, a foreign Host means that a page's own name was made to lead here (DNS rebinding). `hosts`
    are further names that are ours, with any port.
    """

    def __init__(self, app: ASGIApp, *, hosts: Iterable[str], any_host: bool) -> None:
        self._app = app
        self._hosts: set[str] = {host.lower() for host in hosts}
        self._any_host = any_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        refusal = self._refusal(Headers(scope=scope))
        await (refusal or self._app)(scope, receive, marked)

    def _refusal(self, headers: Headers) -> JSONResponse | None:
        host = headers.get("host", "")
        if not self._any_host and not self._is_ours(_hostname(f"//{host}")):
            message = f"this server is not known as {host!r} (-allowed_hosts names further ones)"
            return JSONResponse({"error": message}, 421)
        origin = headers.get("origin")
        if origin is None or urlsplit(origin).netloc.lower() == host.lower():
            return None
        if _hostname(origin) in self._hosts:  # behind a proxy that has put its own name into Host
            return None
        return JSONResponse({"error": f"requests from pages of {origin!r} are refused"}, 403)

    def _is_ours(self, name: str) -> bool:
        return name == "localhost" or name in self._hosts or is_loopback(name)


def is_loopback(address: str) -> bool:
    """Whether an IP address, as text, reaches this machine only; False for a name."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
