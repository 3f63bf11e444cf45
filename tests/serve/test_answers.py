"""The server's answers, statuses and figures, by a real server before a model without Paddle."""

from __future__ import annotations

import base64
import io
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from scipy.special import logsumexp, softmax
from served import NAMES, ColourModel, Server, form, picture, until

from paddlevit.calibration import Calibration
from paddlevit.serve.app import create_app
from paddlevit.serve.uploads import Limits

RED, GREEN = (220, 40, 40), (40, 220, 40)


@pytest.fixture
def model():
    return ColourModel()


@pytest.fixture
def server(model):
    with Server(create_app(model, NAMES)) as server:
        yield server


def serve(model, **limits):
    return Server(create_app(model, NAMES, limits=Limits(**limits)))


def figure(server, line):
    """A figure of /metrics by its name and labels."""
    lines = server.call("GET", "/metrics").content.splitlines()
    (value,) = [text.rpartition(" ")[2] for text in lines if text.rpartition(" ")[0] == line]
    return float(value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("as_form", [False, True])
def test_likely_classes(server, model, kind, as_form):
    file = picture(GREEN, kind=kind)
    body, content_type = form(file) if as_form else (file, "application/x-www-form-urlencoded")
    reply = server.predict(body, content_type=content_type)
    assert reply.status == 200 and list(reply.content) == ["classes"]
    expected = softmax(model.classify(model.prepare(file)[None], [])[0][0])
    told = {c["class"]: c["probability"] for c in reply.content["classes"]}
    assert [told[i] for i in range(3)] == pytest.approx(expected.tolist(), abs=1e-6)
    assert [(c["class"], c["name"]) for c in reply.content["classes"]][0] == (1, "green")
    probabilities = [c["probability"] for c in reply.content["classes"]]
    assert probabilities == sorted(probabilities, reverse=True)


@pytest.mark.parametrize(("max_energy", "known"), [(-6.0, False), (-4.0, True)])
def test_calibrated_answers(model, max_energy, known):
    model.calibration = Calibration(temperature=2.0, max_energy=max_energy, num_images=9)
    (logits,), _ = model.classify(model.prepare(picture(GREEN))[None], [])
    with serve(model) as server:
        answer = server.predict(picture(GREEN)).content
    assert list(answer) == ["classes", "known", "energy"] and answer["known"] is known
    assert answer["energy"] == pytest.approx(-logsumexp(logits), abs=1e-5)
    assert answer["classes"][0]["probability"] == pytest.approx(softmax(logits / 2).max(), abs=1e-5)


def test_top_k_and_overlay(server, model):
    file = picture(RED)
    reply = server.predict(file, "?top_k=2&overlay=true").content
    assert len(reply["classes"]) == 2
    kind, _, data = reply["overlay"].partition(",")
    assert kind == "data:image/png;base64"
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    _, heats = model.classify(model.prepare(file)[None], [0])
    assert (shown == (255 * heats[0]).astype("uint8")).all()
    assert "overlay" not in server.predict(file).content


def test_classes_without_names_have_their_numbers(model):
    with Server(create_app(model, [])) as server:
        assert server.predict(picture(RED)).content["classes"][0]["name"] == "0"


def test_model_that_explains_nothing(model):
    model.explains = False
    with serve(model) as server:
        assert server.call("GET", "/health").content["overlay"] is False
        reply = server.predict(picture(), "?overlay=true")
        assert reply.status == 400 and "overlay=true" in reply.content["error"]
        assert server.predict(picture()).status == 200


def test_health(server):
    health = server.call("GET", "/health").content
    assert (health["status"], health["model"], health["precision"], health["classes"]) == ("ok", "colours", "f32", 3)
    assert health["names"] == ["red", "green", "blue"]
    assert health["max_bytes"] == 10 * 2**20 and health["overlay"] is True


@pytest.mark.parametrize(
    ("method", "path", "status", "told"),
    [
        ("POST", "/predict?top_k=0", 422, "top_k=0"),
        ("POST", "/predict?top_k=many", 422, "top_k=many"),
        ("POST", "/predict?topk=3", 400, "there is no parameter topk, allowed: top_k, overlay"),
        ("POST", "/predict?overlay=perhaps", 422, "overlay=perhaps"),
        ("GET", "/predict", 405, "Not Allowed"),
        ("GET", "/../../etc/passwd", 404, "Not Found"),
    ],
)
def test_requests_that_make_no_sense(server, method, path, status, told):
    reply = server.call(method, path, picture() if method == "POST" else None)
    assert reply.status == status and told in reply.content["error"]


def test_foreign_names_and_pages_are_refused(model):
    app = create_app(model, NAMES, allowed_hosts=["Photos.example.org"])
    with Server(app) as server:
        here = f"127.0.0.1:{server.port}"
        for host in (here, f"localhost:{server.port}", "[::1]", "127.0.0.2", "photos.example.org"):
            assert server.call("GET", "/health", host=host).status == 200
        for host in (
            "attacker.example",
            "localhost.attacker.example",
            "",
            "10.0.0.1",
            "[::1",
            "photos.example.org.evil",
        ):
            assert server.call("GET", "/health", host=host).status == 421
        for origin in (f"http://{here}", "https://photos.example.org"):
            assert server.predict(picture(), origin=origin).status == 200
        for origin in ("http://attacker.example", "null", f"http://localhost:{server.port}", "http://127.0.0.1:1"):
            reply = server.predict(picture(), origin=origin)
            assert reply.status == 403 and origin in reply.content["error"]
    with Server(create_app(model, NAMES, any_host=True)) as server:
        assert server.call("GET", "/health", host="photos.example.com").status == 200
        assert server.predict(picture(), host="a.example", origin="http://b.example").status == 403


def test_page_allows_nothing_from_elsewhere(server):
    reply = server.call("GET", "/")
    policy = dict(rule.split(" ", 1) for rule in reply.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
    assert policy["connect-src"] == "'self'" and policy["img-src"] == "data: blob:"
    assert "unsafe" not in str(policy)
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert "http:" not in reply.content and "https:" not in reply.content


def test_requests_are_classified_together_and_answered_as_if_alone(model):
    colours = [(10 * i, 250 - 10 * i, 90 + i) for i in range(8)]
    with serve(model, max_batch=8, max_wait=0.05) as server, ThreadPoolExecutor(24) as clients:
        alone = [server.predict(picture(colour)).content for colour in colours]
        model.batches.clear()
        together = list(clients.map(lambda colour: server.predict(picture(colour)).content, colours * 3))
        assert together == alone * 3
        assert max(model.batches) == 8 and sum(model.batches) == 24
        assert figure(server, "paddlevit_batch_images_sum") == 8 + 24


def test_only_those_who_ask_get_an_overlay(model):
    with serve(model, max_batch=8, max_wait=0.2) as server, ThreadPoolExecutor(8) as clients:
        queries = ["?overlay=true", ""] * 4
        replies = list(clients.map(lambda i: server.predict(picture((250, i, 9 * i)), queries[i]).content, range(8)))
        assert ["overlay" in reply for reply in replies] == [True, False] * 4
        assert replies[2]["overlay"] == server.predict(picture((250, 2, 18)), "?overlay=true").content["overlay"]


def test_one_request_too_many_is_sent_away_at_once(model):
    model.free.clear()
    with serve(model, max_requests=3) as server, ThreadPoolExecutor(3) as clients:
        waiting = [clients.submit(server.predict, picture()) for _ in range(3)]
        until(lambda: figure(server, "paddlevit_requests_under_way") == 3)
        reply = server.predict(picture())
        assert reply.status == 503 and reply.headers["retry-after"] == "1" and "try again" in reply.content["error"]
        assert server.call("GET", "/health").status == 200
        model.free.set()
        assert [reply.result().status for reply in waiting] == [200] * 3
        assert server.predict(picture()).status == 200
        assert figure(server, 'paddlevit_requests_total{status="503"}') == 1
        assert figure(server, 'paddlevit_requests_total{status="200"}') == 4
        assert figure(server, "paddlevit_request_seconds_count") == 5


def test_overlays_have_a_bound_of_their_own(model):
    model.free.clear()
    with serve(model, max_overlays=2) as server, ThreadPoolExecutor(3) as clients:
        waiting = [clients.submit(server.predict, picture(), "?overlay=true") for _ in range(2)]
        until(lambda: figure(server, "paddlevit_requests_under_way") == 2)
        reply = server.predict(picture(), "?overlay=true")
        assert reply.status == 503 and reply.headers["retry-after"] == "1"
        assert reply.content["error"] == "2 overlays are under way: try again, or without"
        waiting.append(clients.submit(server.predict, picture()))
        model.free.set()
        assert [reply.result().status for reply in waiting] == [200] * 3
        assert server.predict(picture(), "?overlay=true").status == 200


def test_uploads_that_are_held_have_a_bound_together(model):
    large = picture() + bytes(60_000)  # Pillow does not look at what follows an image
    model.free.clear()
    with serve(model, max_memory=100_000) as server, ThreadPoolExecutor(1) as clients:
        waiting = clients.submit(server.predict, large)
        assert model.started.wait(10)
        assert server.predict(large).status == 503
        model.free.set()
        assert waiting.result().status == 200
        assert server.predict(large).status == 200


@pytest.mark.slow
def test_answer_that_takes_too_long(model):
    model.free.clear()
    with serve(model, timeout=0.3) as server:
        reply = server.predict(picture())
        assert reply.status == 504 and reply.content["error"] == "no answer within 0.3 s"
        assert server.predict(picture(GREEN)).status == 504
        model.batches.clear()
        model.free.set()
        assert server.predict(picture()).status == 200
        assert model.batches == [1], "nobody waits for the second image any more"


def test_model_that_fails(model, caplog):
    model.error = RuntimeError("no more memory")
    with serve(model) as server:
        reply = server.predict(picture())
        assert reply.status == 500 and "its log says why" in reply.content["error"]
        model.error = None
        assert server.predict(picture()).status == 200
        assert figure(server, 'paddlevit_requests_total{status="500"}') == 1
    assert "no more memory" in caplog.text


def test_logits_that_are_not_finite_are_no_answer(model):
    model.classify = lambda pixels, explain: (np.full([len(pixels), 3], np.nan), {})
    with serve(model) as server:
        reply = server.predict(picture())
        assert (reply.status, reply.content) == (422, {"error": "the model's logits for this image are not finite"})


def test_answers_under_way_are_given_before_the_end(model):
    model.free.clear()
    with ThreadPoolExecutor(1) as clients:
        with serve(model) as server:
            waiting = clients.submit(server.predict, picture())
            assert model.started.wait(10)
            threading.Timer(0.3, model.free.set).start()
        assert waiting.result().status == 200
