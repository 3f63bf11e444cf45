"""The addresses of the server: the page, /predict, /health and /metrics."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from paddlevit.errors import UserError
from paddlevit.serve.admission import Admission
from paddlevit.serve.batches import Batcher
from paddlevit.serve.guard import Guard
from paddlevit.serve.limits import Limits, Network, RefusedError
from paddlevit.serve.metrics import Measured, Metrics
from paddlevit.serve.page import page, policy
from paddlevit.serve.uploads import check_image, read_upload

T = TypeVar("T")

DEFAULTS = Limits()
_MOST_DECODERS = 4  # threads, and images of Limits.max_pixels in memory at a time


def create_app(
    network: Network,
    names: Sequence[str],
    *,
    limits: Limits = DEFAULTS,
    allowed_hosts: Iterable[str] = (),
    any_host: bool = False,
) -> FastAPI:
    """The server of `network`, whose classes are called `names`, or by their numbers where there are none.

    It is known as localhost, by loopback addresses and as `allowed_hosts`; `any_host`: under every name.
    """
    service = _Service(network, names, limits)
    app = FastAPI(title="paddlevit", docs_url=None, redoc_url=None, openapi_url=None, lifespan=service.lifespan)
    app.add_middleware(Guard, hosts=allowed_hosts, any_host=any_host)
    app.add_middleware(Measured, metrics=service.metrics, path="/predict")
    for kind in (RefusedError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _error)
    app.add_api_route("/", _page, methods=["GET"])
    app.add_api_route("/predict", service.predict, methods=["POST"])
    app.add_api_route("/health", service.health, methods=["GET"])
    app.add_api_route("/metrics", service.figures, methods=["GET"])
    return app


class _Service:
    def __init__(self, network: Network, names: Sequence[str], limits: Limits) -> None:
        self.network = network
        self.names = names
        self.limits = limits
        self.admission = Admission(limits)
        self.metrics = Metrics(self.admission)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Threads and the batcher, for as long as the server runs."""
        self.batcher = Batcher(self.network, self.limits, observe=self.metrics.batches.observe)
        self.decoders = ThreadPoolExecutor(min(_MOST_DECODERS, os.cpu_count() or 1), "decode")
        batching = asyncio.create_task(self.batcher.run())
        yield
        batching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await batching
        self.decoders.shutdown(wait=True)

    async def predict(self, request: Request, top_k: int = Query(5, ge=1), overlay: bool = False) -> JSONResponse:
        """The likeliest classes of the image in the body or in a form, and on request where they were seen."""
        if overlay and not self.network.explains:
            raise RefusedError(400, "overlay=true: this network cannot say where it has looked")
        seconds = self.limits.timeout
        with self.admission.enter(overlay=overlay) as visit:
            data = await _within(
                seconds,
                read_upload(request, visit, limits=self.limits),
                otherwise=RefusedError(408, f"the upload has taken more than {seconds:g} s"),
            )
            answer = await _within(
                seconds,
                self._answer(data, top_k, overlay),
                otherwise=RefusedError(504, f"no answer within {seconds:g} s", retry_after=1),
            )
        return JSONResponse(answer)

    async def _answer(self, data: bytes, top_k: int, overlay: bool) -> dict[str, Any]:
        pixels = await self._in_thread(self._prepare, data)
        outcome = await self.batcher.classify(pixels, explain=overlay)
        best = np.argsort(-outcome.probabilities, kind="stable")[:top_k]
        answer: dict[str, Any] = {
            "classes": [
                {
                    "class": label,
                    "name": self._name(label),
                    "probability": round(float(outcome.probabilities[label]), 6),
                }
                for label in best.tolist()
            ]
        }
        if overlay:
            picture = await self._in_thread(self.network.overlay, data, outcome.heat)
            answer["overlay"] = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
        return answer

    def _prepare(self, data: bytes) -> np.ndarray:
        check_image(data, self.limits)
        try:
            return self.network.prepare(data)
        except UserError as error:
            raise RefusedError(422, str(error)) from None

    async def _in_thread(self, function: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.decoders, function, *args)

    def _name(self, label: int) -> str:
        return self.names[label] if label < len(self.names) else str(label)

    async def health(self) -> dict[str, Any]:
        """What is served, and within which limits."""
        return {
            "status": "ok",
            "network": self.network.name,
            "classes": self.network.num_classes,
            "overlay": self.network.explains,
            "max_bytes": self.limits.max_bytes,
            "max_pixels": self.limits.max_pixels,
        }

    async def figures(self) -> Response:
        """The figures in Prometheus' text format."""
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def _page() -> HTMLResponse:
    return HTMLResponse(page(), headers={"Content-Security-Policy": policy()})


async def _within(seconds: float, work: Awaitable[T], *, otherwise: RefusedError) -> T:
    try:
        return await asyncio.wait_for(work, seconds)
    except asyncio.TimeoutError:
        raise otherwise from None


async def _error(request: Request, error: Exception) -> JSONResponse:
    """Every mistake has the same form. Those of ours are raised again afterwards, so that the log has them."""
    if isinstance(error, RefusedError):
        return JSONResponse({"error": error.message}, error.status, error.headers)
    if isinstance(error, RequestValidationError):
        told = [f"{mistake['loc'][-1]}={mistake.get('input')}: {mistake['msg']}" for mistake in error.errors()]
        return JSONResponse({"error": "; ".join(told)}, 422)
    if isinstance(error, HTTPException):
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)
    return JSONResponse({"error": "the server has failed; its log says why"}, 500)
