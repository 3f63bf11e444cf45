"""Weights that are compiled in the process give Paddle's answers, in evaluation, prediction and serving."""

from __future__ import annotations

import csv
import importlib.util
import json

import numpy as np
import paddle
import pytest
from tiny import image_folder

from paddlevit import build_model
from paddlevit.classifier import Classifier
from paddlevit.commands import predict, serve
from paddlevit.commands.classifier import open_classifier
from paddlevit.commands.served import Served
from paddlevit.commands.train import main
from paddlevit.config import get_config
from paddlevit.errors import UserError
from paddlevit.export.engines import choose_engine


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    paddle.seed(0)
    config = get_config("pit_digits", ["MODEL.NUM_CLASSES", 10])
    paddle.save(build_model(config).state_dict(), str(folder / "best.pdparams"))
    (folder / "config.yaml").write_text(config.dump())
    return folder


def picture(side=40):
    return np.random.default_rng(side).integers(0, 256, (side, side, 3), "uint8")


def test_auto_is_openvino_where_it_is_installed_on_a_cpu(monkeypatch):
    missing, device = set(), "cpu"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else name)
    monkeypatch.setattr(paddle.device, "get_device", lambda: device)
    assert [choose_engine(name) for name in ("auto", "paddle", "onnx")] == ["openvino", "paddle", "onnx"]
    device = "gpu:0"
    assert choose_engine("auto") == "paddle"
    device, missing = "cpu", {"paddle2onnx"}
    assert choose_engine("auto") == "paddle" and choose_engine("openvino") == "openvino"


def test_compiled_weights_answer_and_still_explain(run):
    pytest.importorskip("paddle2onnx", reason="it has no build for Python 3.13")
    args = ["-pretrained", str(run)]
    classifiers = [open_classifier(serve.parse_args([*args, *more])) for more in ([], ["-engine", "onnx"])]
    assert [(each.engine, each.precision) for each in classifiers] == [("paddle", "f32"), ("onnx", "f32")]
    assert classifiers[0].name == classifiers[1].name == "pit_digits"
    logits = [each.logits(picture()) for each in classifiers]
    np.testing.assert_allclose(*logits, rtol=0, atol=1e-5)
    assert not np.array_equal(*logits), "another engine rounds in another way"
    served = Served(classifiers[1])
    _, heats = served.classify(served.prepare(picture(60))[None], [0])
    assert served.explains and heats[0].max() == 1


@pytest.mark.slow
def test_evaluation_by_openvino_gives_paddles_metrics(run, tmp_path):
    pytest.importorskip("paddle2onnx", reason="it has no build for Python 3.13")
    data = image_folder(tmp_path / "data", classes=10, train=10, val=50)

    def evaluated(engine, *more):
        output = tmp_path / "-".join((engine, *more))
        argv = ["-cfg", "pit_digits", "-pretrained", run / "best", "-data_path", data, "-output", output]
        words = [*argv, "-eval", "-engine", engine, *more, "-opts", "SAVE_PREDICTIONS", "true"]
        assert main([str(word) for word in words], nprocs=1) == 0
        with (output / "predictions.csv").open() as file:
            classes = [row["predicted"] for row in csv.DictReader(file)]
        return json.loads((output / "eval.json").read_text()), classes

    ours, our_classes = evaluated("paddle")
    assert ours.pop("engine") == "paddle"
    our_loss, our_weights = ours.pop("loss"), ours.pop("weights")
    pytest.importorskip("nncf")
    for precision in ("f32", "bf16", "int8"):
        theirs, classes = evaluated("openvino", "-precision", precision)
        told, loss, weights = (theirs.pop(name) for name in ("precision", "loss", "weights"))
        assert theirs.pop("engine") == "openvino" and weights == our_weights and theirs["num_images"] == 50
        assert our_loss == pytest.approx(loss, rel=1e-5 if told == "f32" else 1e-2) and told in (precision, "f32")
        assert (told == "int8") == (precision == "int8")
        if precision == "f32":
            assert theirs == ours and classes == our_classes


def test_mistakes(run, capsys, tmp_path):
    for words, told in (
        (["-engine", "tflite"], "engine tflite, allowed: auto, paddle, openvino, onnx"),
        (["-precision", "bf16"], "precision bf16 of trained weights by paddle, allowed: auto, f32"),
        (
            ["-precision", "int8", "-engine", "openvino"],
            "by openvino, allowed: auto, f32, bf16 (bf16: -engine openvino; ",
        ),
        (["-precision", "bf16", "-engine", "onnx"], "precision bf16 of trained weights by onnx, allowed: auto, f32 ("),
    ):
        assert predict.main(["-pretrained", str(run), *words, "x.png"]) == 2
        assert told in capsys.readouterr().err
    with pytest.raises(UserError, match="engine tpu, allowed: auto, paddle, openvino, onnx"):
        Classifier(run, engine="tpu")
    assert main(["-cfg", "pit_digits", "-engine", "onnx", "-output", str(tmp_path / "o")], nprocs=1) == 2
    assert "-engine onnx works only with -eval" in capsys.readouterr().err
