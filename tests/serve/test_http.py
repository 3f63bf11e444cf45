"""Requests of every shape that HTTP allows, and of others: never a 500."""

from __future__ import annotations

import contextlib
import re
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import NAMES, ColourModel, Server, form, picture

from paddlevit.serve.app import create_app

GOOD = picture()


@pytest.fixture(scope="module")
def server():
    with Server(create_app(ColourModel(), NAMES)) as server:
        yield server


def raw(server, request):
    """Status of the first answer to bytes, and what has come of its body; 0 where there is no answer."""
    received = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=0.5) as client:
        client.sendall(request)
        with contextlib.suppress(ConnectionError):
            while b"\r\n\r\n" not in received:
                try:
                    part = client.recv(65536)
                except socket.timeout:  # it waits for more
                    client.shutdown(socket.SHUT_WR)
                    client.settimeout(5)
                    part = client.recv(65536)
                if not part:
                    break
                received += part
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, body


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /health HTTP/1.1\r\nHost: localhost\r\nOrigin: http://[::1", 403),
        ("GET /health HTTP/1.1\r\nHost: localhost\r\nOrigin: http://\uff0f", 403),
        ("GET /health HTTP/1.1\r\nHost: [::1", 421),
        ("GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example", 400),
        ("GET /health HTTP/1.0", 200),
        ("GET /health HTTP/1.0\r\nOrigin: null", 403),
        ("GET /health HTTP/1.1", 400),
        ("GET http://localhost/health HTTP/1.1\r\nHost: localhost", 200),
        ("GET http://evil.example/health HTTP/1.1\r\nHost: localhost", 421),
        ("GET http://localhost HTTP/1.1\r\nHost: localhost", 200),
        ("GET http://[::1/health HTTP/1.1\r\nHost: localhost", 404),
        ("OPTIONS * HTTP/1.1\r\nHost: localhost", 404),
        ("CONNECT localhost:80 HTTP/1.1\r\nHost: localhost", 404),
        ("PRI * HTTP/2.0", 404),
        ("POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + "9" * 5000, 400),
        ("POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: \u00b2", 400),
        ("POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary*0*=x'%ff", 400),
        ("POST /predict?top_k=" + "9" * 5000 + " HTTP/1.1\r\nHost: localhost", 422),
        ("GET /page/%2e%2e/app.py HTTP/1.1\r\nHost: localhost", 404),
        ("GET /page/ HTTP/1.1\r\nHost: localhost", 404),
        ("GET /page/\0 HTTP/1.1\r\nHost: localhost", 400),
        ("GET /page/%00 HTTP/1.1\r\nHost: localhost", 404),
    ],
)
def test_shapes_of_requests(server, head, status):
    assert raw(server, head.encode("latin-1", "replace") + b"\r\n\r\n")[0] == status


@pytest.mark.parametrize(("path", "status"), [("/", 200), ("/health", 200), ("/metrics", 200), ("/predict", 405)])
def test_head_is_get_without_a_body(server, path, status):
    reply = server.call("HEAD", path)
    assert (reply.status, reply.content) == (status, "")
    if path != "/metrics":  # whose figures change
        assert reply.headers["content-length"] == server.call("GET", path).headers["content-length"]


@pytest.mark.parametrize(
    ("before", "after", "boundary"),
    [
        (b"This is a form.\r\n", b"", "frontier"),
        (b"", b"\r\nand that was it\r\n--frontier\r\n", "frontier"),
        (b"\r\n\r\n", b"\r\n", "a" * 300),
        (b"", b"", '"a form"'),
    ],
)
def test_forms_as_rfc_2046_has_them(server, before, after, boundary):
    body, _ = form(GOOD, boundary=boundary.strip('"'))
    content_type = f"Multipart/Form-Data; charset=utf-8; boundary={boundary}"
    reply = server.predict(before + body + after, content_type=content_type)
    assert reply.content == server.predict(GOOD).content


def test_what_the_api_is_can_be_read(server):
    described = server.call("GET", "/openapi.json").content
    assert sorted(described["paths"]) == ["/health", "/metrics", "/predict"]
    predict = described["paths"]["/predict"]["post"]
    assert {"application/octet-stream", "multipart/form-data"} == set(predict["requestBody"]["content"])
    assert sorted(predict["responses"]) == ["200", "422", "default"]
    found = described["components"]["schemas"]["Found"]["properties"]
    assert list(found) == list(server.predict(GOOD).content["classes"][0])
    page = server.call("GET", "/docs")
    assert page.status == 200 and "/openapi.json" in page.content


WORDS = st.sampled_from(
    [
        "GET",
        "POST",
        "HEAD",
        "/",
        "/predict",
        "/health",
        "http://",
        "[::1",
        "localhost",
        "*",
        "?top_k=",
        "%00",
        "-1",
        "\xff",
    ]
)
NAMES_OF_HEADERS = st.sampled_from(
    [
        "Host",
        "Origin",
        "Content-Type",
        "Content-Length",
        "Transfer-Encoding",
        "Expect",
        "Connection",
        "Upgrade",
        "Range",
    ]
)
VALUES = st.one_of(
    st.sampled_from(
        [
            "localhost",
            "http://[::1",
            "null",
            "multipart/form-data; boundary=",
            "chunked",
            "100-continue",
            "bytes=0-1",
            "7",
        ]
    ),
    st.text(st.characters(max_codepoint=255), max_size=20),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(WORDS, max_size=4), st.lists(st.tuples(NAMES_OF_HEADERS, VALUES), max_size=4), st.binary(max_size=60))
def test_no_request_makes_the_server_fail(server, words, headers, body):
    target = "".join(words[1:]) or "/"
    lines = [f"{(words or ['GET'])[0]} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    if not any(name == "Host" for name, _ in headers):
        lines.append("Host: localhost")
    request = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
    assert raw(server, request)[0] < 500, request
    assert not re.search(rb'status="500"', raw(server, b"GET /metrics HTTP/1.0\r\n\r\n")[1])
