"""The addresses of the server: the page, /predict, /health, /metrics, and /docs of what they take."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, exposition
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from paddlevit.errors import UserError
from paddlevit.serve.batches import Batcher, Model
from paddlevit.serve.guard import Guard
from paddlevit.serve.uploads import Admission, Limits, busy, check_image, read_upload

T = TypeVar("T")

DEFAULTS = Limits()
_MOST_NAMES = 20  # of classes, that the page lists
_MOST_DECODERS = 4  # threads, and images of Limits.max_pixels in memory at a time
_PAGE = Path(__file__).parent / "page"
# What a browser may load for the page: its own files, and images that its script has made.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Found(BaseModel):
    """A class and how likely it is, 0 to 1."""

    label: int = Field(alias="class")
    name: str
    probability: float


class Answer(BaseModel):
    """The top-k classes, and the heat map over the image as a data: URL."""

    classes: list[Found]
    known: bool = Field(default=True, description="false: none of the classes; absent where that cannot be told")
    energy: float = Field(default=0.0, description="above a threshold the image is not known; absent with `known`")
    overlay: str = Field(default="", description="absent where it was not asked for")


class Mistake(BaseModel):
    """Why there is no answer."""

    error: str


_FILE = {"type": "string", "format": "binary"}
_FORM = {"type": "object", "properties": {"image": _FILE}, "required": ["image"]}
_BODY = {"application/octet-stream": {"schema": _FILE}, "multipart/form-data": {"schema": _FORM}}


def create_app(
    model: Model,
    names: Sequence[str],
    *,
    limits: Limits = DEFAULTS,
    allowed_hosts: Iterable[str] = (),
    any_host: bool = False,
) -> FastAPI:
    """The server of `model`, whose classes are called `names`, or by their numbers where there are none.

    It is known as localhost, by loopback addresses and as `allowed_hosts`; `any_host`: under every name.
    """
    service = _Service(model, names, limits)
    app = FastAPI(title="paddlevit", redoc_url=None, lifespan=service.lifespan)
    app.add_middleware(Guard, hosts=allowed_hosts, any_host=any_host, observe=service.observe)
    for kind in (RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _error)
    app.add_api_route("/", _page, include_in_schema=False)
    app.add_api_route("/page/{name}", _page, include_in_schema=False)
    app.add_api_route(
        "/predict",
        service.predict,
        methods=["POST"],
        response_model=Answer,
        responses={422: {"model": Mistake}, "default": {"model": Mistake}},
        openapi_extra={"requestBody": {"required": True, "content": _BODY}},
    )
    app.add_api_route("/health", service.health)
    app.add_api_route("/metrics", service.measured, response_class=Response)
    return app


class _Service:
    def __init__(self, model: Model, names: Sequence[str], limits: Limits) -> None:
        self.model = model
        self.names = [*names, *map(str, range(len(names), model.num_classes))]
        self.limits = limits
        self.admission = Admission(limits)
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter("paddlevit_requests", "Requests to /predict, by status.", ["status"], registry=registry)
        self.seconds = Histogram("paddlevit_request_seconds", "Seconds per request to /predict.", registry=registry)
        images = (1, 2, 4, 8, 16, 32, 64)
        self.batches = Histogram("paddlevit_batch_images", "Images per batch.", buckets=images, registry=registry)
        under_way = Gauge("paddlevit_requests_under_way", "Requests being answered.", registry=registry)
        under_way.set_function(lambda: self.admission.requests)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Threads and the batcher, for as long as the server runs."""
        self.batcher = Batcher(self.model, self.limits, observe=self.batches.observe)
        self.decoders = ThreadPoolExecutor(min(_MOST_DECODERS, os.cpu_count() or 1), "decode")
        batching = asyncio.create_task(self.batcher.run())
        yield
        batching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await batching
        self.decoders.shutdown(wait=True)

    async def predict(self, request: Request, top_k: int = Query(5, ge=1), overlay: bool = False) -> JSONResponse:
        """The top-k classes of the image in the body or in a form, and on request a heat map of the first."""
        unknown = set(request.query_params) - {"top_k", "overlay"}
        if unknown:
            raise HTTPException(400, f"there is no parameter {', '.join(sorted(unknown))}, allowed: top_k, overlay")
        if overlay and not self.model.explains:
            raise HTTPException(400, "overlay=true: this model does not support overlays (exported: no gradients)")
        late = HTTPException(408, f"the upload has taken more than {self.limits.timeout:g} s")
        with self.admission.enter(overlay=overlay) as keep:
            data = await self._in_time(read_upload(request, keep, limits=self.limits), late)
            late = busy(f"no answer within {self.limits.timeout:g} s", 504)
            return JSONResponse(await self._in_time(self._answer(data, top_k, overlay), late))

    async def _in_time(self, work: Awaitable[T], late: HTTPException) -> T:
        try:
            return await asyncio.wait_for(work, self.limits.timeout)
        except asyncio.TimeoutError:
            raise late from None

    async def _answer(self, data: bytes, top_k: int, overlay: bool) -> dict[str, Any]:
        pixels = await self._in_thread(self._prepare, data)
        logits, heat = await self.batcher.classify(pixels, explain=overlay)
        if not np.isfinite(logits).all():
            raise HTTPException(422, "the model's logits for this image are not finite")
        best, calibration = np.argsort(-logits, kind="stable")[:top_k].tolist(), self.model.calibration
        probabilities = calibration.probabilities(logits).astype(float).round(6).tolist()
        classes = [{"class": i, "name": self.names[i], "probability": probabilities[i]} for i in best]
        answer: dict[str, Any] = {"classes": classes, **calibration.verdict(logits)}
        if overlay:
            picture = await self._in_thread(self.model.overlay, data, heat)
            answer["overlay"] = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
        return answer

    def _prepare(self, data: bytes) -> np.ndarray:
        check_image(data, self.limits)
        try:
            return self.model.prepare(data)
        except UserError as error:
            raise HTTPException(422, str(error)) from None

    async def _in_thread(self, function: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.decoders, function, *args)

    async def health(self) -> dict[str, Any]:
        """What is served, and within which limits."""
        return {
            "status": "ok",
            "model": self.model.name,
            "precision": self.model.precision,
            "classes": self.model.num_classes,
            "names": self.names[:_MOST_NAMES],
            "overlay": self.model.explains,
            "max_bytes": self.limits.max_bytes,
            "max_pixels": self.limits.max_pixels,
        }

    async def measured(self) -> Response:
        """Metrics in Prometheus' text format."""
        return Response(exposition.generate_latest(self.registry), media_type=exposition.CONTENT_TYPE_LATEST)

    def observe(self, path: str, status: int, seconds: float) -> None:
        if path == "/predict":
            self.requests.labels(str(status)).inc()
            self.seconds.observe(seconds)


async def _page(name: str = "index.html") -> FileResponse:
    if name not in ("index.html", "style.css", "script.js"):
        raise HTTPException(404, "Not Found")
    return FileResponse(_PAGE / name, headers={"Content-Security-Policy": _POLICY})


async def _error(request: Request, error: Exception) -> JSONResponse:
    """Every mistake has the same form. Those of ours are raised again afterwards, so that the log has them."""
    if isinstance(error, RequestValidationError):
        told = [f"{mistake['loc'][-1]}={mistake.get('input')}: {mistake['msg']}" for mistake in error.errors()]
        return JSONResponse({"error": "; ".join(told)}, 422)
    if isinstance(error, HTTPException):
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)
    return JSONResponse({"error": "the server has failed; its log says why"}, 500)
