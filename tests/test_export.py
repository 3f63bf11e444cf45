"""Exported networks give the logits of the networks, for batches of any size; nothing is installed on the way."""

import os
import sys

import numpy as np
import paddle
import pytest

from paddlevit import build_model, export
from paddlevit.commands.export_model import main
from paddlevit.config import get_config

NEEDS = {"paddle": (), "onnx": ("paddle2onnx", "onnxruntime"), "openvino": ("paddle2onnx", "openvino")}


@pytest.fixture(scope="module", params=["pit_digits", "hvt_digits", "cvt_digits", "hrformer_digits"])
def network(request):
    paddle.seed(0)
    model = build_model(get_config(request.param))
    for name, buffer in model.named_buffers():
        if name.endswith("_variance"):
            buffer.set_value(paddle.rand(buffer.shape) + 0.5)
    return model


@pytest.mark.parametrize("fmt", export.FORMATS)
def test_exported_network_gives_the_same_logits(network, fmt, tmp_path):
    for package in NEEDS[fmt]:
        pytest.importorskip(package)
    network.train()
    environment = dict(os.environ)
    path = export.export(network, [3, 32, 32], fmt, tmp_path / "new")
    assert network.training and dict(os.environ) == environment
    predict = export.open_exported(path, threads=1)
    network.eval()
    for batch in (2, 1, 5):
        images = np.random.default_rng(batch).standard_normal([batch, 3, 32, 32], dtype="float32")
        with paddle.no_grad():
            logits = network(paddle.to_tensor(images)).numpy()
        np.testing.assert_allclose(predict(images), logits, rtol=0, atol=1e-5)


def test_the_network_can_be_trained_after_an_export(tmp_path):
    model = build_model(get_config("pit_digits"))
    export.export(model, [3, 32, 32], "paddle", tmp_path)
    model.train()
    model(paddle.randn([2, 3, 32, 32])).sum().backward()
    assert model.patch_embed.conv.weight.grad is not None


def test_command(tmp_path, capsys):
    model = build_model(get_config("pit_digits"))
    weights = tmp_path / "pit.pdparams"
    paddle.save(model.state_dict(), str(weights))
    flags = ["-cfg", "pit_digits", "-pretrained", str(weights), "-output", str(tmp_path / "out")]
    assert main(flags) == 0
    said = capsys.readouterr().out
    assert "largest difference" in said and (tmp_path / "out" / "model.json").is_file()
    assert float(said.split("largest difference ")[1].split()[0]) < 1e-5


def test_mistakes_are_named(tmp_path, capsys, monkeypatch):
    flags = ["-cfg", "pit_digits", "-pretrained", str(tmp_path / "pit.pdparams"), "-output", str(tmp_path / "out")]
    assert main([*flags, "-format", "tflite"]) == 2
    assert "allowed: paddle, onnx, openvino" in capsys.readouterr().err
    paddle.save(build_model(get_config("pit_digits")).state_dict(), str(tmp_path / "pit.pdparams"))
    monkeypatch.setitem(sys.modules, "paddle2onnx", None)
    assert main([*flags, "-format", "onnx"]) == 2
    assert "paddlevit[export]" in capsys.readouterr().err
