"""tools/serve.py with a real model, as a process: many clients, uploads that mean harm, its memory and its end."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image
from served import call, form, picture, png_header

from paddlevit.commands import predict
from paddlevit.commands.classifier import open_classifier
from paddlevit.commands.export_model import main as export
from paddlevit.commands.serve import _listen, main, parse_args
from paddlevit.commands.served import Served
from paddlevit.config import get_config
from paddlevit.models import build_model

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = 200


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    paddle.seed(0)
    file = tmp_path_factory.mktemp("weights") / "pit_digits.pdparams"
    paddle.save(build_model(get_config("pit_digits")).state_dict(), str(file))
    return file


@contextlib.contextmanager
def running(weights, *flags):
    """The process and its port, as soon as it serves."""
    words = [
        sys.executable,
        ROOT / "tools/serve.py",
        "-cfg",
        "pit_digits",
        "-pretrained",
        weights,
        "-port",
        "0",
        *flags,
    ]
    # Ctrl-C is ignored at first, as in a background job of a shell.
    process = subprocess.Popen(
        ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=weights.parent,
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("pit_digits is at http://"), line + process.stderr.read()
        yield process, int(re.search(r":(\d+) ", line).group(1))
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def port(weights):
    with running(weights) as (process, port):
        yield port
        assert process.poll() is None, "whatever came, it goes on"


def noise(i, kind="JPEG"):
    pixels = np.random.default_rng(i).integers(0, 255, (45, 60 + i, 3), "uint8")
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def ask(port, body, query="", **headers):
    return call(port, "POST", f"/predict?top_k=10{query}", body, **headers)


def probabilities(reply):
    assert reply.status == 200, reply
    return [c["probability"] for c in sorted(reply.content["classes"], key=lambda c: c["class"])]


def megabytes(port):
    """Resident memory of the server."""
    text = call(port, "GET", "/metrics").content
    return float(re.search(r"^process_resident_memory_bytes (.*)", text, re.M).group(1)) / 2**20


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_it_says_what_predict_says(port, weights, tmp_path, capsys, kind):
    file = tmp_path / "image"
    file.write_bytes(noise(7, kind))
    argv = ["-cfg", "pit_digits", "-pretrained", str(weights), str(file), "-topk", "10", "-json"]
    assert predict.main(argv) == 0
    expected = json.loads(capsys.readouterr().out)["classes"]
    told = ask(port, file.read_bytes()).content["classes"]
    assert [c["class"] for c in told] == [c["class"] for c in expected]
    assert [c["probability"] for c in told] == pytest.approx([c["probability"] for c in expected], abs=2e-6)


@pytest.mark.slow
def test_exported_model(weights, tmp_path):
    assert export(["-cfg", "pit_digits", "-pretrained", str(weights), "-output", str(tmp_path / "out")]) == 0
    model = Served(open_classifier(parse_args(["-exported", str(tmp_path / "out")])))
    data = noise(5)
    pixels = model.prepare(data)[None]
    probabilities, heats = model.classify(pixels, [])
    assert (model.num_classes, model.explains, model.name, heats) == (10, False, "out/model.json", {})
    model = Served(open_classifier(parse_args(["-cfg", "pit_digits", "-pretrained", str(weights)])))
    expected, heats = model.classify(pixels, [0])
    assert np.abs(probabilities - expected).max() < 1e-5
    assert heats[0].shape == (32, 32) and heats[0].max() == 1


@pytest.mark.slow
def test_overlay_shows_the_whole_image_dark_where_it_was_not_seen(port):
    reply = ask(port, picture((90, 150, 90), size=(300, 200)), query="&overlay=true").content
    shown = Image.open(io.BytesIO(base64.b64decode(reply["overlay"].partition(",")[2])))
    assert shown.size == (480, 320)
    pixels = np.asarray(shown).astype(int)
    unseen = np.concatenate([pixels[:, :79], pixels[:, 401:]], axis=1)  # evaluation cuts the square out of the middle
    assert np.abs(unseen - [36, 60, 36]).max() <= 1
    assert np.abs(pixels[:, 82:398] - [90, 150, 90]).max() > 30, "there is heat in the square"
    assert reply["classes"] == ask(port, picture((90, 150, 90), size=(300, 200))).content["classes"]


@pytest.mark.slow
def test_many_clients_at_once_are_answered_as_if_alone(port):
    images = [noise(i) for i in range(20)]
    alone = [probabilities(ask(port, image)) for image in images]
    assert len({tuple(answer) for answer in alone}) == len(images)
    start = threading.Barrier(CLIENTS)

    def client(i):
        start.wait()
        return probabilities(ask(port, images[i % 20]))

    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = list(clients.map(client, range(CLIENTS)))
        before = megabytes(port)
        answers += list(clients.map(client, range(CLIENTS)))
    worst = max(np.abs(np.subtract(answer, alone[i % 20])).max() for i, answer in enumerate(answers))
    assert worst <= 2e-6  # rounded to 1e-6; products of larger matrices are summed in another order
    assert megabytes(port) < before + 16
    batches = call(port, "GET", "/metrics").content
    largest = float(re.search(r'^paddlevit_batch_images_bucket{le="1.0"} (.*)', batches, re.M).group(1))
    assert largest < 2 * CLIENTS, "some were classified together"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["WEBP", "BMP", "TIFF", "GIF"])
def test_formats_are_those_of_training(port, kind):
    assert ask(port, picture(kind=kind)).status == 200


@pytest.mark.slow
def test_uploads_that_mean_harm_take_no_memory(port):
    good = noise(3)
    expected = probabilities(ask(port, good))
    hundred_megabytes = 100 * 2**20
    before = np.inf
    for _ in range(3):
        assert ask(port, png_header(50_000, 50_000)).status == 413
        assert ask(port, (bytes(2**20) for _ in range(100))).status == 413
        assert ask(port, good[: len(good) // 2] + b"\xff" * 9_000_000).status in (415, 422)
        body, content_type = form(bytes(9_000_000))
        assert ask(port, body, content_type=content_type).status == 415
        with contextlib.suppress(ConnectionError):  # it need not read what it has refused
            assert ask(port, bytes(hundred_megabytes)).status == 413
        before = min(before, megabytes(port))  # after the first time, each thread has the memory that it needs
    assert megabytes(port) < before + 40
    assert probabilities(ask(port, good)) == expected


@pytest.mark.parametrize(
    ("flags", "sent", "code"),
    [([], signal.SIGINT, 130), (["-host", "0.0.0.0", "-allowed_hosts", "photos.example.org"], signal.SIGTERM, 143)],
)
@pytest.mark.slow
def test_signal_ends_it_in_order(weights, flags, sent, code):
    with running(weights, "-max_wait", "2000", *flags) as (process, port), ThreadPoolExecutor(1) as clients:
        status = call(port, "GET", "/health", host="photos.example.org").status
        waiting = clients.submit(ask, port, picture())
        while "paddlevit_requests_under_way 1.0" not in call(port, "GET", "/metrics").content:
            assert not waiting.done(), "it waits for others"
        process.send_signal(sent)
        assert waiting.result().status == 200
        assert process.wait(20) == code
        told = process.stderr.read().splitlines()[1:]  # the first line is about the classes' names
    assert status == (200 if flags else 421)
    assert [line.split(",")[0] for line in told] == ["warning: 0.0.0.0 can be reached from other machines"][
        : len(flags)
    ]


def error(capsys, *argv):
    assert main(["-cfg", "pit_digits", *map(str, argv)]) == 2
    return capsys.readouterr().err


def test_mistakes(weights, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = error(capsys, "-pretrained", weights, "-port", port)
        assert told == f"error: cannot listen at 127.0.0.1, port {port}: Address already in use (-host, -port)\n"
    assert "-port is 70000" in error(capsys, "-pretrained", weights, "-port", 70000)
    assert "-max_batch is 0, allowed: above 0" in error(capsys, "-pretrained", weights, "-max_batch", 0)
    assert "-max_wait must be 0 or more, got -1" in error(capsys, "-pretrained", weights, "-max_wait", -1)
    assert "cannot listen at nowhere.invalid" in error(capsys, "-pretrained", weights, "-host", "nowhere.invalid")
    assert "none.pdparams" in error(capsys, "-pretrained", "none.pdparams", "-port", 0)


def test_model_whose_logits_are_not_finite_is_not_served(weights, tmp_path, capsys):
    state = paddle.load(str(weights))
    state["head.bias"][1] = float("nan")
    paddle.save(state, str(tmp_path / "nan.pdparams"))
    assert "gives logits that are not finite: it is not served" in error(
        capsys, "-pretrained", tmp_path / "nan.pdparams", "-port", 0
    )


def test_without_fastapi(weights, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install '.[serve]' in the clone" in error(capsys, "-pretrained", weights)


def test_the_body_of_an_answer_does_not_wait_for_the_receipt_of_its_head():
    with _listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
