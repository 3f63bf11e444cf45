"""What the server asks of a network, and the limits that it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Network(Protocol):
    """A classifier. `prepare` and `overlay` are called by several threads at a time, `classify` by one."""

    name: str
    num_classes: int
    explains: bool  # whether `classify` can say where it has looked

    def prepare(self, data: bytes) -> np.ndarray:
        """Pixels uint8 [H, W, C] of an image file; all have the same shape. Raises UserError for a damaged file."""

    def classify(self, pixels: np.ndarray, explain: Sequence[int]) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """Probabilities [N, num_classes] of images [N, H, W, C]; for those numbered in `explain`, a map [h, w], 0 to 1,
        that says where the likeliest class was seen.
        """

    def overlay(self, data: bytes, heat: np.ndarray) -> bytes:
        """The map over the part of the image that the network has seen, as a PNG file."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one request and of all together."""

    max_bytes: int = 10 * 2**20  # of an uploaded file
    max_pixels: int = 25_000_000  # of its image; three bytes each once it is decoded
    max_requests: int = 256  # under way at a time; more are sent away
    max_overlays: int = 16  # of them, that want one: gradients and a picture cost many times the classes
    max_memory: int = 256 * 2**20  # bytes of uploads that are held at a time
    max_batch: int = 16  # images that the network sees at once
    max_wait: float = 0.005  # seconds that the first image of a batch waits for others
    timeout: float = 30.0  # seconds for an upload, and as many for the answer


class RefusedError(Exception):
    """A request that is answered with an HTTP status and a sentence."""

    def __init__(self, status: int, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
