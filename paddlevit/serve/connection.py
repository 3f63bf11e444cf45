"""A connection that asks for nothing is closed, however many bytes it sends."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """uvicorn's own waits for ever for the headers of a request, if only a byte of them comes."""

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
