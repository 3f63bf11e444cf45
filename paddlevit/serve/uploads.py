"""What is let in: how many requests and bytes at a time, and the image file in a request, as its body or in a form."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Callable

from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

_FORM_HEADERS = 2**16  # bytes of a form that are not the image
_MOST_SCANS = 100  # of a JPEG file; usual ones have 1 to 12, and every one costs time for all pixels


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
        self.requests = self.overlays = self.bytes = 0

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


async def read_upload(request: Request, keep: Callable[[int], None], *, limits: Limits) -> bytes:
    """The image file. `keep` is told of all bytes that are held. Raises HTTPException as soon as it is too large,
    whatever is still to come.
    """
    too_large = HTTPException(413, f"the file is too large, allowed: {limits.max_bytes / 2**20:g} MiB")
    boundary = _boundary(request.headers.get("content-type", ""))
    most = limits.max_bytes + (_FORM_HEADERS if boundary else 0)
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most:
        raise too_large
    body = bytearray()
    try:
        async for chunk in request.stream():
            if len(body) + len(chunk) > most:
                raise too_large
            keep(len(chunk))
            body += chunk
    except ClientDisconnect:
        raise HTTPException(400, "the upload was broken off") from None
    data = _only_part(bytes(body), boundary) if boundary else bytes(body)
    if len(data) > limits.max_bytes:
        raise too_large
    return data


def check_image(data: bytes, limits: Limits) -> None:
    """Raises HTTPException for what is not an image, and for one that is too large to decode; decodes nothing."""
    if not data:
        raise HTTPException(400, "there is no image in the request: send the file as the body, or in a form")
    try:
        with Image.open(io.BytesIO(data), formats=limits.formats) as image:
            width, height = image.size
    except Image.DecompressionBombError:  # at twice Pillow's own limit it does not even tell the size
        raise HTTPException(413, f"the image has too many pixels, allowed: {limits.max_pixels:,}") from None
    except Exception:  # what Pillow raises on damaged headers has no common class
        raise HTTPException(415, f"not an image, or a damaged one, allowed: {', '.join(limits.formats)}") from None
    if width * height > limits.max_pixels:
        raise HTTPException(413, f"the image has {width} x {height} pixels, allowed: {limits.max_pixels:,} in all")
    if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > _MOST_SCANS:
        raise HTTPException(413, f"the JPEG image has more than {_MOST_SCANS} scans")


def _boundary(content_type: str) -> bytes | None:
    """What stands between the parts of a form; None for another kind of body."""
    kind, *parameters = content_type.split(";")
    if kind.strip().lower() != "multipart/form-data":
        return None
    named = {name.strip().lower(): value.strip(' "') for name, _, value in (p.partition("=") for p in parameters)}
    if not named.get("boundary"):
        raise HTTPException(400, "the form's Content-Type has no boundary")
    return named["boundary"].encode("latin-1")


def _only_part(body: bytes, boundary: bytes) -> bytes:
    """The content of the only part of a form, whatever its headers say, and whatever stands around it.

    By hand, as parsers of forms write to disk, or refuse what RFC 2046 allows before the first part.
    """
    _, *parts = (b"\r\n" + body).split(b"\r\n--" + boundary, 2)
    if parts and parts[0].startswith(b"--"):
        return b""
    if len(parts) < 2 or len(parts[1]) < 2:
        raise HTTPException(400, "the form cannot be read, or ends too early")
    if not parts[1].startswith(b"--"):
        message = "the form has several parts, allowed: one, the image; top_k and overlay go into the URL"
        raise HTTPException(400, message)
    _, _, content = parts[0].partition(b"\r\n\r\n")
    return content
