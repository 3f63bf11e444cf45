"""Published weights, fetched from a server on this machine in place of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import paddle
import pytest
from safetensors.numpy import save

from paddlevit import build_model
from paddlevit.__main__ import main
from paddlevit.classifier import Classifier
from paddlevit.commands import train
from paddlevit.config import variant_names
from paddlevit.errors import UserError
from paddlevit.weights import hub, read_state_dict

CONTENT = save({"weight": np.arange(100_000, dtype="f4")})
REPO = "hf:someone/some-model"


class Hub(BaseHTTPRequestHandler):
    """Sends one on from the model's page to the file and names its checksum, as the Hugging Face hub does."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        server.asked.append((self.path, self.headers.get("Range", "")))
        if server.error:
            return self.send_error(server.error)
        if self.path == f"/someone/some-model/resolve/main/{server.name}":
            self.send_response(302)
            self.send_header("Location", "/file")
            self.send_header("X-Linked-ETag", f'"{server.sha256}"')
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if self.path != "/file":
            return self.send_error(404)
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
        if start >= len(CONTENT):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : start + server.most])
        self.close_connection = True
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.name, server.sha256, server.most = "model.safetensors", hashlib.sha256(CONTENT).hexdigest(), 1 << 30
        server.asked, server.error = [], 0
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("PADDLEVIT_CACHE", str(tmp_path / "cache"))
        yield server
        server.shutdown()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_are_fetched_once_and_read_by_their_address(server, tmp_path, name, capsys):
    server.name = name
    for _ in range(2):
        assert main(["weights", "pull", REPO]) == 0
        assert capsys.readouterr().out == f"{tmp_path}/cache/someone/some-model/{name}\n"
    assert [path for path, _ in server.asked].count("/file") == 1
    assert np.array_equal(read_state_dict(REPO)["weight"], np.arange(100_000, dtype="f4"))
    file = tmp_path / "cache" / "someone" / "some-model" / name
    assert (file.parent / f"{name}.sha256").read_text() == f"{server.sha256}  {name}\n"
    file.write_bytes(CONTENT[:-1] + b"!")
    assert main(["weights", "pull", REPO]) == 2
    assert "is not what was fetched" in capsys.readouterr().err


def test_of_two_threads_one_fetches(server, monkeypatch):
    receive = hub._receive
    monkeypatch.setattr(hub, "_receive", lambda *args: time.sleep(0.2) or receive(*args))
    with ThreadPoolExecutor(2) as pool:
        files = list(pool.map(hub.fetch, [REPO, REPO]))
    assert files[0] == files[1] and files[0].read_bytes() == CONTENT
    assert [path for path, _ in server.asked].count("/file") == 1


def test_an_interrupted_fetch_is_resumed(server, tmp_path):
    server.most = 1000
    with pytest.raises(UserError, match=r"ended after 1,000 of 400,\d+ bytes.\nThe same command resumes"):
        hub.fetch(REPO)
    with pytest.raises(UserError, match=r"ended after 2,000 of"):
        hub.fetch(REPO)
    server.most = 1 << 30
    file = hub.fetch(REPO)
    assert file.read_bytes() == CONTENT
    assert server.asked[-1] == ("/file", "bytes=2000-")
    assert sorted(path.name for path in file.parent.iterdir()) == [
        ".lock",
        "model.safetensors",
        "model.safetensors.sha256",
    ]
    file.rename(file.with_name("model.safetensors.part"))  # it ended before it had its name
    assert hub.fetch(REPO).read_bytes() == CONTENT


def test_what_has_another_checksum_is_not_kept(server, tmp_path):
    server.sha256 = "0" * 64
    with pytest.raises(UserError, match=r"came with the sha256 [0-9a-f]{64}, not 0{64}: it is deleted"):
        hub.fetch(REPO)
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [".lock"]


def test_where_nothing_can_be_fetched_the_address_and_the_place_are_named(server, tmp_path, monkeypatch, capsys):
    assert main(["weights", "pull", "hf:someone/other"]) == 2
    assert (
        "/someone/other/resolve/main/pytorch_model.bin: the server answers 'HTTP Error 404" in capsys.readouterr().err
    )
    server.error = 503
    with pytest.raises(UserError, match="HTTP Error 503"):
        hub.fetch(REPO)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    place = f"{tmp_path}/cache/timm/pit_ti_224.in1k/model.safetensors"
    with pytest.raises(UserError, match=rf"http://127.0.0.1:9/timm/.* could not be fetched: .*\n.*put it at {place}"):
        hub.fetch("pit_ti_224")
    monkeypatch.setenv("HF_ENDPOINT", "127.0.0.1:9/")
    with pytest.raises(UserError, match="https://127.0.0.1:9/timm/.* could not be fetched"):
        hub.fetch("pit_ti_224")
    for name, reason in {"hrt_tiny": "by hand|save them from https", "hf:one": "hf:OWNER/NAME"}.items():
        with pytest.raises(UserError, match=reason):
            hub.fetch(name)
    assert hub.fetch("pit_digits") is None


def test_the_table_names_variants_and_the_commands_know_them(tmp_path, monkeypatch, capsys):
    assert {row["variant"] for row in hub.published()} <= set(variant_names())
    assert main(["weights", "list", "pit_t*"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert " ".join(first.split()) == "pit_ti_224 Apache-2.0 sha256 by the hub hf:timm/pit_ti_224.in1k"
    assert train.parse_args(["-pretrained", "hf:timm/pit_ti_224.in1k"]).cfg == "pit_ti_224"
    monkeypatch.setenv("PADDLEVIT_CACHE", str(tmp_path))
    file = tmp_path / "timm" / "pit_ti_224.in1k" / "model.safetensors"  # put there by hand
    file.parent.mkdir(parents=True)
    paddle.seed(3)
    model = build_model("pit_ti_224")
    state = {name: array.numpy() for name, array in model.state_dict().items()}
    file.write_bytes(save(state))
    for weights in ("official", "pit_ti_224", "hf:timm/pit_ti_224.in1k"):
        loaded = build_model("pit_ti_224", weights=weights)
        assert np.array_equal(loaded.head.weight.numpy(), state["head.weight"])
    with pytest.raises(UserError, match="no published weights of 'pit_digits' are known"):
        build_model("pit_digits", weights="official")
    classifier = Classifier("pit_ti_224")
    assert (classifier.name, classifier.config.DATA.EXIF_ORIENTATION) == ("pit_ti_224", "apply")
    assert classifier.label(0) == "tench"
