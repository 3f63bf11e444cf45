"""What the server asks of a model, the limits that it keeps, and what is under way."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Callable, Protocol

import numpy as np
from starlette.exceptions import HTTPException


class Model(Protocol):
    """A classifier. `prepare` and `overlay` are called by several threads at a time, `classify` by one."""

    name: str
    precision: str
    num_classes: int
    explains: bool  # whether `classify` can make heat maps

    def prepare(self, data: bytes) -> np.ndarray:
        """Pixels uint8 [H, W, C] of an image file; all have the same shape. Raises UserError for a damaged file."""

    def classify(self, pixels: np.ndarray, explain: Sequence[int]) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """Probabilities [N, num_classes] of images [N, H, W, C]; for those numbered in `explain`, a heat map [h, w] of
        the top-1 class, 0 to 1.
        """

    def overlay(self, data: bytes, heat: np.ndarray) -> bytes:
        """The heat map over the part of the image that the model sees, as a PNG file."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one request and of all together."""

    formats: tuple[str, ...] = ("JPEG", "PNG")  # of an uploaded image, as Pillow calls them
    max_bytes: int = 10 * 2**20  # of an uploaded file
    max_pixels: int = 25_000_000  # of its image; three bytes each once it is decoded
    max_requests: int = 256  # under way at a time; more are sent away
    max_overlays: int = 16  # of them, that want one: gradients and a picture cost many times the classes
    max_memory: int = 256 * 2**20  # bytes of uploads that are held at a time
    max_batch: int = 16  # images that the model sees at once
    max_wait: float = 0.005  # seconds that the first image of a batch waits for others
    timeout: float = 30.0  # seconds for an upload, and as many for the answer


class Admission:
    """Counts what is under way and sends away what would be too much; for one thread."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.requests = 0
        self.overlays = 0
        self.bytes = 0

    @contextlib.contextmanager
    def enter(self, *, overlay: bool) -> Iterator[Callable[[int], None]]:
        """Hold a place to the end of the block; yields what the request calls with every number of bytes that it keeps.

        Both raise HTTPException where there is too much under way.
        """
        if self.requests >= self._limits.max_requests:
            raise busy(f"{self.requests} requests are under way: try again")
        if overlay and self.overlays >= self._limits.max_overlays:
            raise busy(f"{self.overlays} overlays are under way: try again, or without")
        kept = 0

        def keep(count: int) -> None:
            nonlocal kept
            if self.bytes + count > self._limits.max_memory:
                raise busy("too many uploads are under way: try again")
            self.bytes += count
            kept += count

        self.requests += 1
        self.overlays += overlay
        try:
            yield keep
        finally:
            self.requests -= 1
            self.overlays -= overlay
            self.bytes -= kept


def busy(message: str, status: int = 503) -> HTTPException:
    """To come again in a second, in which about as many images are classified as are let in."""
    return HTTPException(status, message, {"Retry-After": "1"})
