"""A model that needs no Paddle, and images for it."""

from __future__ import annotations

import http.client
import io
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import uvicorn
from PIL import Image

from paddlevit.calibration import Calibration
from paddlevit.errors import UserError
from paddlevit.serve.guard import Connection

SIDE = 8
NAMES = ["red", "green", "blue"]


class ColourModel:
    """The logits are the mean of each colour; what is explained is where that colour is."""

    name = "colours"
    precision = "f32"
    num_classes = 3
    explains = True
    calibration = Calibration()

    def __init__(self) -> None:
        self.batches = []
        self.free = threading.Event()  # while it is not set, `classify` waits
        self.free.set()
        self.started = threading.Event()
        self.error = None

    def prepare(self, data: bytes) -> np.ndarray:
        try:
            image = Image.open(io.BytesIO(data)).convert("RGB")
        except Exception as error:
            raise UserError(f"the image is damaged: {error}") from None
        return np.asarray(image.resize((SIDE, SIDE)))

    def classify(self, pixels: np.ndarray, explain: Sequence[int]) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        self.batches.append(len(pixels))
        self.started.set()
        assert self.free.wait(20)
        if self.error is not None:
            raise self.error
        logits = pixels.mean(axis=(1, 2)) / 50
        return logits, {i: pixels[i, :, :, logits[i].argmax()] / 255 for i in explain}

    def overlay(self, data: bytes, heat: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray((255 * heat).astype("uint8")).save(file, "PNG")
        return file.getvalue()


def picture(colour=(200, 30, 30), size=(40, 30), kind="PNG") -> bytes:
    """An image file of one colour, given by three numbers from 0 to 255."""
    file = io.BytesIO()
    Image.new("RGB", size, tuple(colour)).save(file, kind)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG file that says how large it is, and has a few bytes of pixels."""
    good = picture(size=(1, 1))
    head = b"IHDR" + struct.pack(">II", width, height) + good[24:29]
    return good[:8] + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + good[33:]


def until(condition, seconds: float = 10.0) -> None:
    """Wait for something that happens in another thread."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it has not happened"
        time.sleep(0.005)


class Server:
    """A real server in a thread of this process; `url` is where it is."""

    def __init__(self, app) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._uvicorn = uvicorn.Server(uvicorn.Config(app, http=Connection, log_config=None, access_log=False))
        self._thread = threading.Thread(target=self._uvicorn.run, args=([self.listener],))

    def __enter__(self) -> Server:
        self._thread.start()
        until(lambda: self._uvicorn.started)
        return self

    def __exit__(self, *error) -> None:
        self._uvicorn.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()

    def call(self, method: str, path: str, body=None, **headers: str):
        """Status, headers and JSON (or text) of the reply."""
        return call(self.port, method, path, body, **headers)

    def predict(self, body, query: str = "", **headers: str):
        return self.call("POST", f"/predict{query}", body, **headers)


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    content: Any


def call(port: int, method: str, path: str, body=None, **headers: str) -> Reply:
    """One request, by a connection of its own; `_` in the name of a header is `-`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named, encode_chunked=not isinstance(body, (bytes, type(None))))
        response = connection.getresponse()
        content = response.read()
        kind = response.headers.get("content-type", "")
        return Reply(
            response.status,
            dict(response.headers.items()),
            json.loads(content) if content and "json" in kind else content.decode(),
        )
    finally:
        connection.close()


def form(*parts: bytes, boundary: str = "frontier"):
    """The body of a form with one file for each of `parts`, and its Content-Type."""
    begin = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'.encode()
    body = b"".join(begin + part + b"\r\n" for part in parts) + f"--{boundary}--\r\n".encode()
    return body, f"multipart/form-data; boundary={boundary}"
