"""What Prometheus is told: requests by status, seconds, sizes of batches, memory."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paddlevit.serve.admission import Admission

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The figures of one server."""

    def __init__(self, admission: Admission) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "paddlevit_requests", "Requests to /predict, by status.", ["status"], registry=self.registry
        )
        self.seconds = Histogram(
            "paddlevit_request_seconds", "Seconds per request to /predict.", buckets=_SECONDS, registry=self.registry
        )
        self.batches = Histogram("paddlevit_batch_images", "Images per batch.", buckets=_IMAGES, registry=self.registry)
        under_way = Gauge("paddlevit_requests_under_way", "Requests being answered.", registry=self.registry)
        under_way.set_function(lambda: admission.requests)


class Measured:
    """Counts the requests to `path`, whatever becomes of them."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, path: str) -> None:
        self._app = app
        self._metrics = metrics
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != self._path:
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            self._metrics.requests.labels(str(status)).inc()
            self._metrics.seconds.observe(time.perf_counter() - start)
