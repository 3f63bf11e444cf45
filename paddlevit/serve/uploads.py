"""The image file in a request: its body as it is, or the only part of a form."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from paddlevit.serve.admission import Visit
from paddlevit.serve.limits import Limits, RefusedError

_FORM_HEADERS = 2**16  # bytes of a form that are not the image
_MOST_SCANS = 100  # of a JPEG file; usual ones have 1 to 12, and every one costs time for all pixels


async def read_upload(request: Request, visit: Visit, *, limits: Limits) -> bytes:
    """The image file. Raises RefusedError as soon as it is too large, whatever is still to come."""
    form = _form(request.headers.get("content-type", ""))
    most = limits.max_bytes + (_FORM_HEADERS if form else 0)
    told = request.headers.get("content-length", "")
    if told.isdigit() and int(told) > most:
        raise _too_large(limits)
    body = bytearray()
    received = 0
    try:
        async for chunk in request.stream():
            received += len(chunk)
            if received > most or len(body) > limits.max_bytes:
                raise _too_large(limits)
            visit.take(len(chunk))
            body += form.feed(chunk) if form else chunk
    except ClientDisconnect:
        raise RefusedError(400, "the upload was broken off") from None
    if form:
        form.end()
    if len(body) > limits.max_bytes:
        raise _too_large(limits)
    return bytes(body)


def check_image(data: bytes, limits: Limits) -> None:
    """Raises RefusedError for what is neither JPEG nor PNG, and for an image too large to decode; decodes nothing."""
    if not data:
        raise RefusedError(400, "there is no image in the request: send the file as the body, or in a form")
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            width, height = image.size
    except Image.DecompressionBombError:  # at twice Pillow's own limit it does not even tell the size
        raise RefusedError(413, f"the image has too many pixels, allowed: {limits.max_pixels:,}") from None
    except Exception:  # what Pillow raises on damaged headers has no common class
        raise RefusedError(415, "this is no JPEG or PNG image, or a damaged one") from None
    if width * height > limits.max_pixels:
        raise RefusedError(413, f"the image has {width} x {height} pixels, allowed: {limits.max_pixels:,} in all")
    if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > _MOST_SCANS:
        raise RefusedError(413, f"the JPEG image has more than {_MOST_SCANS} scans")


class _Form:
    """The content of the only part of a form; what its headers say does not matter."""

    def __init__(self, boundary: bytes) -> None:
        self._parts = 0
        self._ended = False
        self._content = bytearray()
        callbacks: Any = {"on_part_begin": self._begin, "on_part_data": self._data, "on_end": self._end}
        self._parser = MultipartParser(boundary, callbacks)

    def feed(self, chunk: bytes) -> bytes:
        """What `chunk` has of the image."""
        self._content.clear()
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise RefusedError(400, f"the form cannot be read: {error}") from None
        return bytes(self._content)

    def end(self) -> None:
        if not self._ended:
            raise RefusedError(400, "the form ends too early")

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > 1:
            raise RefusedError(
                400, "the form has several parts, allowed: one, the image; top_k and overlay go into the URL"
            )

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._content += data[start:end]

    def _end(self) -> None:
        self._ended = True


def _form(content_type: str) -> _Form | None:
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        return None
    if not options.get(b"boundary"):
        raise RefusedError(400, "the form's Content-Type has no boundary")
    return _Form(options[b"boundary"])


def _too_large(limits: Limits) -> RefusedError:
    return RefusedError(413, f"the file is too large, allowed: {limits.max_bytes / 2**20:g} MiB")
