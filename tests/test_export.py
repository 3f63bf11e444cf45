"""Exported networks give the logits of the networks, for batches of any size; what lies beside them is enough to use
them; nothing is installed, and nothing is left half-written.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import paddle
import pytest
from PIL import Image

from paddlevit import build_model, export
from paddlevit.commands import export_model, predict
from paddlevit.config import get_config, with_values
from paddlevit.errors import UserError
from paddlevit.export import write

NEEDS = {"paddle": (), "onnx": ("paddle2onnx", "onnxruntime"), "openvino": ("paddle2onnx", "openvino")}
FILES = {"paddle": "model.json", "onnx": "model.onnx", "openvino": "model.xml"}
CLASSES = ["one", "two", "three"]


def need(fmt):
    for package in NEEDS[fmt]:
        pytest.importorskip(package, reason="it has no build for Python 3.13")


def small(name, **values):
    """A network of the family, with statistics of its normalisations as after some training."""
    paddle.seed(0)
    model = build_model(with_values(get_config(name), values))
    for buffer_name, buffer in model.named_buffers():
        if buffer_name.endswith("_variance"):
            buffer.set_value(paddle.rand(buffer.shape) + 0.5)
    return model


def logits_of(model, images):
    model.eval()
    with paddle.no_grad():
        return model(paddle.to_tensor(images)).numpy()


def random_images(n, side=32):
    return np.random.default_rng(n).standard_normal([n, 3, side, side], dtype="float32")


# OpenVINO's files are made of ONNX's: one family is enough for them.
@pytest.mark.parametrize(
    ("name", "formats"),
    [
        ("pit_digits", ["paddle", "onnx", "openvino"]),
        ("hvt_digits", ["onnx"]),
        ("cvt_digits", ["onnx"]),
        ("regnet_digits", ["onnx"]),
        ("hrformer_digits", ["onnx"]),
    ],
)
def test_exported_network_gives_the_same_logits(name, formats, tmp_path, monkeypatch):
    def no_process(*args, **options):
        raise AssertionError(f"an export starts {args}")

    network = small(name)
    for fmt in formats:
        need(fmt)
        network.train()
        environment = dict(os.environ)
        with monkeypatch.context() as patch:
            patch.setattr(subprocess.Popen, "__init__", no_process)
            path = export.export(network, [3, 32, 32], fmt, str(tmp_path / "new"))
        assert network.training and dict(os.environ) == environment
        opened = export.open_exported(str(path), threads=1)
        for batch in (2, 1, 5):
            images = random_images(batch)
            np.testing.assert_allclose(opened(images), logits_of(network, images), rtol=0, atol=1e-5)
    assert not [file for file in (tmp_path / "new").iterdir() if file.name.startswith(".")]
    network.train()
    network(paddle.to_tensor(random_images(2))).sum().backward()
    assert all(param.grad is not None for param in network.parameters() if not param.stop_gradient)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Weights of three classes beside their names, and images."""
    folder = tmp_path_factory.mktemp("trained")
    paddle.save(small("pit_digits", **{"MODEL.NUM_CLASSES": 3}).state_dict(), str(folder / "best.pdparams"))
    (folder / "class_names.txt").write_text("\n".join(CLASSES))
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 5)):
        for name in CLASSES:
            (folder / "data" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (*rng.integers(30, 70, 2), 3), "uint8")
                Image.fromarray(pixels).save(folder / "data" / split / name / f"{i}.png")
    return folder


def run(trained, output, *more, code=0):
    preprocessing = ["-opts", "DATA.CROP_PCT", "0.9", "DATA.INTERPOLATION", "bilinear"]
    own = ["-cfg", "pit_digits", "-pretrained", trained / "best.pdparams", "-num_classes", "3", "-output", output]
    assert export_model.main([str(word) for word in (*own, *more, *preprocessing)]) == code


def guesses(capsys, *argv):
    capsys.readouterr()
    assert predict.main([str(word) for word in (*argv, "-json")]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("fmt", export.FORMATS)
def test_command_and_predictions_from_what_it_wrote(trained, tmp_path, capsys, fmt):
    need(fmt)
    output, images = tmp_path / "out", trained / "data" / "val"
    run(trained, output, "-format", fmt, "-data_path", trained / "data")
    said = capsys.readouterr().out
    assert float(said.split("largest difference ")[1].split()[0]) < 1e-5
    assert "top-1 equal on 15 of 15 images" in said
    network, exported = said.split("accuracy: network ")[1].split(" %\n")[0].split(" %, exported ")
    assert network == exported
    weights = ["-cfg", "pit_digits", "-pretrained", trained / "best.pdparams", "-num_classes", "3"]
    first = guesses(capsys, images, "-exported", output)
    assert first == guesses(capsys, images, "-exported", output / FILES[fmt])
    assert {c["name"] for c in first[0]["classes"]} == set(CLASSES)
    # The configuration that the images were made by, to compare: the description says it, not the variant.
    described = export.read_description(output)
    assert described["preprocessing"]["resize_shorter_side_to"] == 35
    file = tmp_path / "config.yaml"
    file.write_text(
        with_values(get_config("pit_digits"), {"DATA.CROP_PCT": 0.9, "DATA.INTERPOLATION": "bilinear"}).dump()
    )
    weights[1] = file
    for exported, own in zip(first, guesses(capsys, images, *weights)):
        assert exported["image"] == own["image"]
        probabilities = [{c["name"]: c["probability"] for c in line["classes"]} for line in (exported, own)]
        assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-5)


def test_one_description_for_the_files_of_one_network(tmp_path):
    config = get_config("pit_digits")
    network = small("pit_digits")

    def write(file):
        description = export.with_file(export.describe(config, network, CLASSES), tmp_path, tmp_path / file)
        (tmp_path / "export.json").write_text(json.dumps(description))
        return export.read_description(tmp_path)["files"]

    assert [write(file) for file in ("a.onnx", "a.xml", "a.onnx")][-1] == ["a.xml", "a.onnx"]
    assert export.describe(config, network, CLASSES)["input"] == "images, float32 [N, 3, 32, 32], RGB"
    grey = with_values(config, {"DATA.IMAGE_CHANNELS": 1})
    assert export.describe(grey, network, CLASSES)["input"] == "images, float32 [N, 1, 32, 32], grey"
    network.head.bias.set_value(network.head.bias + 1.0)
    assert write("a.json") == ["a.json"], "the others have other weights"


def test_int8(trained, tmp_path, capsys):
    for package in (*NEEDS["openvino"], "nncf"):
        pytest.importorskip(package, reason="paddle2onnx has no build for Python 3.13")
    small_set = ["-images", trained / "data" / "val", "-num_images", "6"]
    run(trained, tmp_path, "-format", "openvino", "-int8", *small_set)
    difference = float(capsys.readouterr().out.split("largest difference ")[1].split()[0])
    assert 1e-4 < difference < 0.5, "of rounding to 8 bits"
    assert export.read_description(tmp_path)["files"] == ["model_int8.xml"]


def test_exporters_are_heard_only_where_they_fail(tmp_path, monkeypatch, capfd):
    def chatter(model, shape, stem):
        os.write(1, b"from C++\n")
        print("from Python")
        stem.with_suffix(".json").write_text("a program")
        return stem.with_suffix(".json")

    def fails(*args):
        chatter(*args)
        raise RuntimeError

    network = small("pit_digits")
    monkeypatch.setattr(write, "_save_program", chatter)
    export.export(network, [3, 32, 32], "paddle", tmp_path)
    print("afterwards")
    assert capfd.readouterr() == ("afterwards\n", "")
    monkeypatch.setattr(write, "_save_program", fails)
    with pytest.raises(RuntimeError):
        export.export(network, [3, 32, 32], "paddle", tmp_path)
    assert capfd.readouterr() == ("", "from C++\nfrom Python\n")


def test_a_failed_export_leaves_nothing(tmp_path, monkeypatch):
    def half(model, shape, stem):
        stem.with_suffix(".pdiparams").write_text("half")
        raise OSError(28, "No space left on device")

    (tmp_path / "model.json").write_text("an earlier one")
    monkeypatch.setattr(write, "_save_program", half)
    with pytest.raises(UserError, match="No space left"):
        export.export(small("pit_digits"), [3, 32, 32], "paddle", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.json"]
    assert (tmp_path / "model.json").read_text() == "an earlier one"


def test_mistakes_are_named(trained, tmp_path, capsys, monkeypatch):
    def said(*more, output=tmp_path / "out"):
        run(trained, output, *more, code=2)
        return capsys.readouterr().err

    assert "allowed: paddle, onnx, openvino" in said("-format", "tflite")
    with pytest.raises(UserError, match="format tflite, allowed: paddle, onnx, openvino"):
        export.export(small("pit_digits"), [3, 32, 32], "tflite", tmp_path)
    assert "-int8 goes with -format openvino" in said("-int8")
    with pytest.raises(UserError, match="int8, which goes with the format openvino, not onnx"):
        export.export(small("pit_digits"), [3, 32, 32], "onnx", tmp_path, calibration=[])
    assert "images to find ranges on" in said("-int8", "-format", "openvino")
    assert "there is no file none.png" in said("-images", "none.png")
    (tmp_path / "file").write_text("")
    assert "file/out cannot be written" in said(output=tmp_path / "file" / "out")
    monkeypatch.setitem(sys.modules, "paddle2onnx", None)
    assert "this format needs paddle2onnx" in said("-format", "onnx")


def test_what_cannot_be_opened_is_named(trained, tmp_path, capsys):
    def said(*argv):
        assert predict.main([str(word) for word in (trained / "data" / "val", *argv)]) == 2
        return capsys.readouterr().err

    assert "no such folder" in said("-exported", tmp_path / "none")
    assert "export.json" in said("-exported", tmp_path)
    assert "-pretrained FILE is required" in said()
    run(trained, tmp_path)
    capsys.readouterr()
    assert "-pretrained does not go with -exported" in said("-exported", tmp_path, "-pretrained", "x")
    assert "allowed: *.json, *.onnx, *.xml" in said("-exported", tmp_path / "model.pdiparams")
    opened = export.open_exported(tmp_path / "model.json", threads=1)
    with pytest.raises(UserError, match=r"takes images float32 \[N, 3, 32, 32\], not float32 \[1, 3, 64, 64\]"):
        opened(random_images(1, side=64))
    description = json.loads((tmp_path / "export.json").read_text())
    del description["preprocessing"]["mean"]
    (tmp_path / "export.json").write_text(json.dumps(description))
    assert "export.json is damaged" in said("-exported", tmp_path)
    (tmp_path / "model.pdiparams").unlink()
    with pytest.raises(UserError, match=r"there is no file .*model.pdiparams"):
        export.open_exported(tmp_path / "model.json")


@pytest.mark.parametrize(("fmt", "suffix"), [("paddle", ".json"), ("onnx", ".onnx"), ("openvino", ".xml")])
def test_damaged_files_are_named(fmt, suffix, tmp_path):
    need(fmt)
    for name in ("model.json", "model.pdiparams", "model.onnx", "model.xml", "model.bin"):
        (tmp_path / name).write_text("damaged")
    with pytest.raises(UserError, match="is damaged"):
        export.open_exported(tmp_path / f"model{suffix}", threads=1)
