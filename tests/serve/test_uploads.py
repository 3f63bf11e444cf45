"""Uploads that are refused, each with a status and a sentence, and what the server is afterwards."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import time
import zlib

import pytest
from served import NAMES, ColourModel, Server, form, picture, png_header

from paddlevit.serve.app import create_app
from paddlevit.serve.guard import Connection
from paddlevit.serve.uploads import Limits

LIMITS = Limits(max_bytes=2**20, max_pixels=1_000_000, timeout=1.0)
GOOD = picture(size=(50, 50), kind="JPEG")


@pytest.fixture(scope="module")
def server():
    with Server(create_app(ColourModel(), NAMES, limits=LIMITS)) as server:
        yield server


@pytest.fixture(autouse=True)
def unharmed(server):
    yield
    assert server.predict(GOOD).status == 200
    assert b"paddlevit_requests_under_way 0.0" in server.call("GET", "/metrics").content.encode()


def scans(count):
    """A progressive JPEG file that repeats its last scan, as one that shall cost time does."""
    at = GOOD.index(b"\xff\xda")
    return GOOD[:at] + GOOD[at:-2] * count + GOOD[-2:]


REFUSED = {
    "nothing": (b"", 400, "no image in the request"),
    "text": (b"no image at all", 415, "or a damaged one, allowed: JPEG, PNG"),
    "GIF": (picture(kind="GIF"), 415, "or a damaged one, allowed: JPEG, PNG"),
    "TIFF": (picture(kind="TIFF"), 415, "or a damaged one, allowed: JPEG, PNG"),
    "EPS, which Pillow gives to another program": (picture(kind="EPS"), 415, "allowed: JPEG, PNG"),
    "only the first bytes of a PNG": (picture()[:20], 415, "or a damaged one, allowed: JPEG, PNG"),
    "truncated PNG": (picture(size=(900, 900), colour=(1, 2, 3))[:-30], 422, "damaged"),
    "JPEG without most of its header": (GOOD[:200], 415, "or a damaged one, allowed: JPEG, PNG"),
    "truncated JPEG": (picture(size=(900, 900), kind="JPEG")[:-2000], 422, "damaged"),
    "bomb": (png_header(50_000, 50_000), 413, "too many pixels, allowed: 1,000,000"),
    "small bomb": (png_header(9_000, 9_000), 413, "9000 x 9000 pixels, allowed: 1,000,000 in all"),
    "a bomb's real pixels": (picture(size=(4_000, 4_000)), 413, "4000 x 4000 pixels"),
    "scans": (scans(200), 413, "more than 100 scans"),
    "too large": (GOOD + bytes(2**20), 413, "too large, allowed: 1 MiB"),
}


@pytest.mark.parametrize("as_form", [False, True], ids=["body", "form"])
@pytest.mark.parametrize(("body", "status", "told"), list(REFUSED.values()), ids=list(REFUSED))
def test_refused(server, body, status, told, as_form):
    body, content_type = form(body) if as_form else (body, "image/png")
    reply = server.predict(body, content_type=content_type)
    assert (reply.status, told in reply.content["error"]) == (status, True), reply


def test_an_image_as_large_as_is_allowed(server):
    body = GOOD + bytes(2**20 - len(GOOD))
    assert server.predict(body).status == 200
    body, content_type = form(body)
    assert server.predict(body, content_type=content_type).status == 200
    assert server.predict(picture(size=(1000, 1000))).status == 200


@pytest.mark.parametrize(
    ("body", "content_type", "told"),
    [
        (*form(GOOD, GOOD), "several parts"),
        (*form(), "e"),  # a form without parts: newer parsers read it, older ones do not
        (form(GOOD)[0][:-20], form()[1], "ends too early"),
        (form(GOOD)[0], "multipart/form-data", "no boundary"),
        (form(GOOD)[0], "multipart/form-data; boundary=other", "cannot be read"),
        (b"--frontier\r\nno header\r\n\r\n", form()[1], "cannot be read"),
    ],
)
def test_damaged_forms(server, body, content_type, told):
    reply = server.predict(body, content_type=content_type)
    assert reply.status == 400 and told in reply.content["error"], reply


def test_upload_without_end(server):
    """Without a length, and much more than is allowed: the answer comes, and what follows goes nowhere."""
    reply = server.predict(b"x" * 2**16 for _ in range(100))
    assert reply.status == 413


@pytest.mark.parametrize("length", ["1000000000000", "-5", "many"])
def test_lengths_that_are_lies(server, length):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode())
        assert client.recv(100).split()[1] == (b"413" if length.isdigit() else b"400")


@pytest.mark.slow
def test_upload_that_stops_in_the_middle(server):
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(GOOD)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(head + GOOD[:100])
        assert b"408" in client.recv(1000).splitlines()[0], "it waits as long as it is told to, then says so"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(head + GOOD[:100])


def dripped(client, seconds):
    """What the server says to a client that sends a byte whenever it hears nothing, until the connection is closed."""
    received, end = b"", time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            part = client.recv(1000)
            if not part:
                return received
            received += part
        except socket.timeout:
            with contextlib.suppress(ConnectionError):  # the next look tells
                client.sendall(b"x")
        except ConnectionError:
            return received
    raise AssertionError("the connection stays")


@pytest.mark.parametrize("before", [b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"], ids=["first", "second"])
@pytest.mark.slow
def test_headers_that_never_end(server, monkeypatch, before):
    monkeypatch.setattr(Connection, "patience", 0.3)
    with socket.create_connection(("127.0.0.1", server.port), timeout=0.05) as client:
        client.sendall(before + b"POST /predict HTTP/1.1\r\nX-Slow: ")
        received = dripped(client, seconds=5)
    assert bool(before) == received.startswith(b"HTTP/1.1 200")


@pytest.mark.slow
def test_connection_that_asks_slowly_but_asks(server, monkeypatch):
    monkeypatch.setattr(Connection, "patience", 0.3)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    for _ in range(4):
        connection.request("GET", "/health")
        assert connection.getresponse().read()
        time.sleep(0.2)
    connection.close()


def test_text_that_swells_in_a_png(server):
    """A compressed comment of 20 MB in a small file."""
    content = b"zTXt" + b"comment\0\0" + zlib.compress(bytes(20_000_000), 9)
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    good = picture()
    reply = server.predict(good[:33] + chunk + good[33:])
    assert reply.status in (415, 422), reply
