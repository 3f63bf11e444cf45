"""How many requests, and how many bytes of them, are under way."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from paddlevit.serve.limits import Limits, RefusedError

_RETRY_AFTER = 1  # seconds, in which about as many images are classified as are let in


class Admission:
    """Counts what is under way and sends away what would be too much; for one thread."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.requests = 0
        self.overlays = 0
        self.bytes = 0

    @contextlib.contextmanager
    def enter(self, *, overlay: bool) -> Iterator[Visit]:
        """Hold a place, and what the visit takes, to the end of the block. Raises RefusedError where none is free."""
        if self.requests >= self._limits.max_requests:
            raise RefusedError(503, f"{self.requests} requests are under way: try again", retry_after=_RETRY_AFTER)
        if overlay and self.overlays >= self._limits.max_overlays:
            raise RefusedError(
                503, f"{self.overlays} overlays are under way: try again, or without", retry_after=_RETRY_AFTER
            )
        self.requests += 1
        self.overlays += overlay
        visit = Visit(self)
        try:
            yield visit
        finally:
            self.requests -= 1
            self.overlays -= overlay
            self.bytes -= visit.bytes

    def take(self, count: int) -> None:
        """Raises RefusedError where `count` more bytes are too many."""
        if self.bytes + count > self._limits.max_memory:
            raise RefusedError(503, "too many uploads are under way: try again", retry_after=_RETRY_AFTER)
        self.bytes += count


class Visit:
    """One request that was let in."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.bytes = 0

    def take(self, count: int) -> None:
        """Account for `count` bytes that are kept. Raises RefusedError where all visits together have too many."""
        self._admission.take(count)
        self.bytes += count
