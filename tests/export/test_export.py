"""Exported networks give the logits of the networks, for batches of any size; what lies beside them is enough to use
them; nothing is installed, and nothing is left half-written.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from PIL import Image

from paddlevit import build_model, export, paddle_internals
from paddlevit.commands import export_model, precisions, predict
from paddlevit.config import get_config, with_values
from paddlevit.errors import UserError
from paddlevit.export import description, write

NEEDS = {"paddle": (), "onnx": ("paddle2onnx", "onnxruntime"), "openvino": ("paddle2onnx", "openvino")}
FILES = {"paddle": "model.json", "onnx": "model.onnx", "openvino": "model.xml"}
CLASSES = ["one", "two", "three"]
FORMATS = [pytest.param(fmt, marks=[pytest.mark.slow] * (fmt != "paddle")) for fmt in write.FORMATS]


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
        pytest.param("pit_digits", ["paddle", "onnx", "openvino"], marks=pytest.mark.slow),
        ("hvt_digits", ["onnx"]),
        pytest.param("cvt_digits", ["onnx"], marks=pytest.mark.slow),
        pytest.param("regnet_digits", ["onnx"], marks=pytest.mark.slow),
        pytest.param("hrformer_digits", ["onnx"], marks=pytest.mark.slow),
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


def names_in(path):
    """(name, shape) of the input and of the output, as the file has them."""
    if path.suffix == ".xml":
        model = pytest.importorskip("openvino").Core().read_model(path)
        return [(side.any_name, str(side.partial_shape)) for side in (*model.inputs, *model.outputs)]
    if path.suffix == ".onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(str(path))
        return [(side.name, side.shape) for side in (*session.get_inputs(), *session.get_outputs())]
    (block,) = json.loads(path.read_text())["program"]["regions"][0]["blocks"]
    ends = [op for op in block["ops"] if op["#"] in ("1.data", "1.fetch")]
    names = [next(item["AT"]["D"] for item in op["A"] if item["N"] == "name") for op in ends]
    return [(name, op["O"][0]["TT"]["D"][1]) for name, op in zip(names, ends)]


NAMED = {
    "paddle": [("images", [-1, 3, 32, 32]), ("logits", [-1, 3])],
    "onnx": [("images", ["N", 3, 32, 32]), ("logits", ["N", 3])],
    "openvino": [("images", "[?,3,32,32]"), ("logits", "[?,3]")],
}


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


@pytest.mark.parametrize("fmt", FORMATS)
def test_command_and_predictions_from_what_it_wrote(trained, tmp_path, capsys, fmt):
    need(fmt)
    output, images = tmp_path / "out", trained / "data" / "val"
    run(trained, output, "-format", fmt, "-data_path", trained / "data")
    said = capsys.readouterr().out
    assert float(said.split("largest difference ")[1].split()[0]) < 1e-5
    assert "in f32; top-1 equal on 15 of 15 images" in said and "warning" not in said
    network, exported = said.split("accuracy: model ")[1].split(" %\n")[0].split(" %, exported ")
    assert network == exported
    weights = ["-cfg", "pit_digits", "-pretrained", trained / "best.pdparams", "-num_classes", "3"]
    first = guesses(capsys, images, "-exported", output)
    assert first == guesses(capsys, images, "-exported", output / FILES[fmt])
    assert {c["name"] for c in first[0]["classes"]} == set(CLASSES)
    # The configuration that the images were made by, to compare: the description says it, not the variant.
    described = description.read_description(output)
    assert (described["input"], described["output"]) == (
        "images, float32 [N, 3, 32, 32], RGB",
        "logits, float32 [N, 3]",
    )
    assert names_in(output / FILES[fmt]) == NAMED[fmt]
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

    def write(file, precision="f32"):
        described = description.with_file(description.describe(config, network, names), tmp_path, file, precision)
        (tmp_path / "export.json").write_text(json.dumps(described))
        (tmp_path / file).write_text("a model")
        return list(description.read_description(tmp_path)["precision"].items())

    names = [str(i) for i in range(10)]
    assert [write("a.onnx"), write("a.xml", "bf16"), write("a.onnx")][-1] == [("a.xml", "bf16"), ("a.onnx", "f32")]
    assert description.describe(config, network, CLASSES)["input"] == "images, float32 [N, 3, 32, 32], RGB"
    grey = with_values(config, {"DATA.IMAGE_CHANNELS": 1})
    assert description.describe(grey, network, CLASSES)["input"] == "images, float32 [N, 1, 32, 32], grey"
    names = names[::-1]
    with pytest.raises(UserError, match="holds another model"):
        write("a.json")
    names = names[::-1]
    network.head.bias.set_value(network.head.bias + 1.0)
    with pytest.raises(UserError, match=r"holds another model \(a.xml, a.onnx\): export into another folder"):
        write("a.json")
    (tmp_path / "a.onnx").unlink()
    assert write("a.xml") == [("a.xml", "f32")], "nothing is left of the other"


@pytest.fixture(scope="module", params=FORMATS)
def opened(request, tmp_path_factory):
    """A function of each format."""
    need(request.param)
    path = export.export(small("pit_digits"), [3, 32, 32], request.param, tmp_path_factory.mktemp("opened"))
    return export.open_exported(path, threads=1)


def test_threads_get_their_own_logits(opened):
    images = [random_images(1 + i % 3) + i for i in range(20)]
    alone = [opened(batch) for batch in images]
    kept = [logits.copy() for logits in alone]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda i: opened(images[i % 20]), range(80)))
    assert all(np.array_equal(logits, alone[i % 20]) for i, logits in enumerate(together))
    assert all(map(np.array_equal, alone, kept)), "a later call changes nothing of an earlier one's"


def test_forked_processes_are_refused(opened, capfd):
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            with pytest.raises(UserError, match="was opened before this process was forked: open it in this process"):
                opened(random_images(1))
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.slow
def test_int8(trained, tmp_path, capsys):
    for package in (*NEEDS["openvino"], "nncf"):
        pytest.importorskip(package, reason="paddle2onnx has no build for Python 3.13")
    small_set = ["-images", trained / "data" / "val", "-num_images", "6"]
    run(trained, tmp_path, "-format", "openvino", "-precision", "int8", *small_set)
    difference = float(capsys.readouterr().out.split("largest difference ")[1].split()[0])
    assert 1e-4 < difference < 0.5, "of rounding to 8 bits"
    described = description.read_description(tmp_path)
    assert described["files"] == ["model_int8.xml"] and described["precision"] == {"model_int8.xml": "int8"}
    assert names_in(tmp_path / "model_int8.xml") == NAMED["openvino"]
    guesses(capsys, trained / "data" / "val", "-exported", tmp_path, "-precision", "int8")
    argv = [str(trained / "data" / "val"), "-exported", str(tmp_path), "-precision", "f32"]
    assert predict.main(argv) == 2 and "allowed: auto, int8" in capsys.readouterr().err


@pytest.fixture(scope="module")
def openvino_file(tmp_path_factory):
    need("openvino")
    return export.export(small("pit_digits"), [3, 32, 32], "openvino", tmp_path_factory.mktemp("openvino"))


@pytest.mark.slow
def test_a_signal_after_models_were_closed_is_handled(openvino_file):
    """In a process of its own, as it was killed where the model that was opened first was closed first."""
    code = """
import os, signal, sys
from pathlib import Path
from paddlevit.export import open_exported
models = [open_exported(Path(sys.argv[1])) for _ in range(2)]
signal.signal(signal.SIGHUP, lambda *_: print("handled", flush=True))
while models:
    del models[0]
os.kill(os.getpid(), signal.SIGHUP)
"""
    command = [sys.executable, "-c", code, str(openvino_file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


@pytest.mark.slow
def test_batch_sizes_that_come_often_are_compiled_for(openvino_file, monkeypatch):
    core, shapes = sys.modules["openvino"].Core, []
    compile_model = core.compile_model

    def counted(self, model, *args):
        shapes.append(str(model.input(0).partial_shape))
        return compile_model(self, model, *args)

    monkeypatch.setattr(core, "compile_model", counted)
    opened, images = export.open_exported(openvino_file, threads=1), random_images(3)
    for size in [1, 2, 3] * 5:
        np.testing.assert_allclose(opened(images[:size]), opened(images)[:size], rtol=0, atol=1e-5)
    assert shapes == ["[?,3,32,32]", "[3,3,32,32]", "[1,3,32,32]"], "two sizes at most"


def test_bf16(openvino_file):
    if "BF16" not in sys.modules["openvino"].Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bfloat16")
    opened = [export.open_exported(openvino_file, threads=1, precision=precision) for precision in ("f32", "bf16")]
    assert [model.precision for model in opened] == ["f32", "bf16"]
    f32, bf16 = (model(random_images(4)) for model in opened)
    assert 1e-4 < np.abs(f32 - bf16).max() / np.abs(f32).max() < 0.05


@pytest.mark.slow
def test_processor_without_bf16(openvino_file, monkeypatch, caplog):
    monkeypatch.setattr(sys.modules["openvino"].Core, "get_property", lambda *args: ["FP32", "INT8"])
    opened = export.open_exported(openvino_file, threads=1, precision="bf16")
    assert opened.precision == "f32" and "this processor has no bfloat16" in caplog.text
    in_f32 = export.open_exported(openvino_file, threads=1)
    np.testing.assert_array_equal(opened(random_images(2)), in_f32(random_images(2)))


@pytest.mark.slow
def test_command_exports_for_bf16_and_predictions_run_in_it(trained, tmp_path, capsys):
    need("openvino")
    run(trained, tmp_path, "-format", "openvino", "-precision", "bf16", "-images", trained / "data" / "val")
    said = capsys.readouterr().out
    assert "; top-1 equal on" in said and ", in bf16" in said or ", in f32" in said
    assert description.read_description(tmp_path)["precision"] == {"model.xml": "bf16"}
    for flags, precision in (((), said.split(", in ")[1][:4]), (("-precision", "f32"), "f32")):
        argv = [trained / "data" / "val", "-exported", tmp_path, *flags]
        assert predict.main([str(word) for word in argv]) == 0
        assert f"model.xml runs by openvino in {precision.strip(';')}" in capsys.readouterr().err


class Faked:
    """A file whose answers are right but for the first `wrong` images."""

    def __init__(self, path, precision, wrong):
        self.path, self.precision, self.wrong = path, precision, wrong

    def __call__(self, images):
        logits = np.tile(np.float32([2, 1]), (len(images), 1))
        logits[: self.wrong] = [1, 2]
        return logits


@pytest.mark.parametrize(
    ("ms", "wrong", "max_drop", "taken", "tried"),
    [
        ([3, 2, 1], [0, 0, 0], 0, "int8", 3),
        ([3, 2, 1], [0, 0, 1], 12, "bf16", 4),  # one of eight is 12.5 points
        ([3, 2, 1, 1.5], [0, 0, 1, 0], 12, "int8 mixed", 4),
        ([3, 2, 1], [0, 0, 1], 12.5, "int8", 3),
        ([3, 2, 2.5], [0, 0, 1], 0, "bf16", 3),
        ([3, 2, 1], [1, 2, 2], 0, "f32", 4),
        ([3, None, 1], [0, 0, 1], 0, "f32", 4),  # a processor without bfloat16
    ],
)
def test_auto_takes_the_fastest_that_keeps_top1(ms, wrong, max_drop, taken, tried, tmp_path, monkeypatch):
    def fake_export(model, shape, fmt, folder, calibration=None, bound=None):
        path = folder / ("model.xml" if calibration is None else "model_int8.xml")
        path.write_text(f"{bound and bound.max_drop}")
        path.with_suffix(".bin").touch()
        return path

    def fake_open(path, precision):
        which = ("f32", "bf16", "int8").index(precision) + (path.read_text() == str(max_drop))
        return Faked(path, "f32" if which < 3 and ms[which] is None else precision, [*wrong, 2][which])

    milliseconds = dict(zip(("f32", "bf16", "int8", "int8 mixed"), [*ms, 0.5]))
    monkeypatch.setattr(precisions, "export", fake_export)
    monkeypatch.setattr(precisions, "open_exported", fake_open)
    monkeypatch.setattr(precisions, "by_turns", lambda steps, *_: {n: [milliseconds[n] * 8e-3] for n in steps})
    monkeypatch.setattr(precisions, "calibration_images", lambda *_: ["ranges"])
    batch = np.zeros([8, 3, 32, 32], "float32"), np.zeros(8, "int64")
    monkeypatch.setattr(precisions, "comparison_images", lambda *_: ([batch], "images"))
    classifier = SimpleNamespace(model=None, image_shape=[3, 32, 32], forward=Faked(None, None, 0))
    chosen = precisions.fastest_within(classifier, SimpleNamespace(max_drop=max_drop), tmp_path)
    assert chosen.measured["taken"] == taken and len(chosen.measured["rows"]) == tried - (None in ms)
    assert {file.name for file in tmp_path.iterdir()} == {chosen.path.name, f"{chosen.path.stem}.bin"}
    assert chosen.path.name == ("model_int8.xml" if "int8" in taken else "model.xml")
    (line,) = (line for line in precisions.as_text(chosen.measured).splitlines() if line.endswith("taken"))
    assert re.match(rf"{taken} +{milliseconds[taken]:.3f} ", line)


@pytest.mark.slow
def test_command_chooses_the_precision(trained, tmp_path, capsys):
    need("openvino")
    pytest.importorskip("nncf")
    run(trained, tmp_path, "-precision", "auto", "-max_drop", "100", "-data_path", trained / "data")
    said = capsys.readouterr().out
    assert re.search(r"\nprecision +ms/image +top-1 +drop\nf32 ", said) and said.count("taken") == 1
    described = description.read_description(tmp_path)
    ((file, measured),) = described["measured"].items()
    assert described["files"] == [file] and described["precision"] == {file: measured["taken"]}
    assert measured["max_drop"] == 100 and measured["images"] == 15
    assert min(measured["rows"], key=lambda row: row["ms_per_image"])["precision"] == measured["taken"]
    assert (tmp_path / "precisions.svg").exists()
    run(trained, tmp_path)
    assert description.read_description(tmp_path)["measured"] == {file: measured}, "it stays beside further files"
    assert guesses(capsys, trained / "data" / "val", "-exported", tmp_path / file)


@pytest.mark.slow
def test_mixed_int8_is_bound_by_top1(tmp_path, monkeypatch):
    need("openvino")
    nncf = pytest.importorskip("nncf")
    asked = {}

    def control(model, ranges, labelled, top1, **how):
        asked.update(how, top1=top1(openvino.Core().compile_model(model, "CPU"), labelled.get_data()))
        return model

    openvino = pytest.importorskip("openvino")
    monkeypatch.setattr(nncf, "quantize_with_accuracy_control", control)
    model, images = small("pit_digits"), random_images(8)
    labels = logits_of(model, images).argmax(1)
    labels[:2] += 1
    bound = write.Bound([(images[:5], labels[:5]), (images[5:], labels[5:])], 0.1)
    path = export.export(model, [3, 32, 32], "openvino", tmp_path, calibration=[images], bound=bound)
    assert asked["top1"] == (0.75, None) and asked["max_drop"] == pytest.approx(0.001)
    assert path.name == "model_int8.xml" and asked["subset_size"] == 1


@pytest.mark.parametrize("fmt", FORMATS)
def test_logits_that_are_not_finite_are_not_exported(trained, tmp_path, capsys, fmt):
    need(fmt)
    state = paddle.load(str(trained / "best.pdparams"))
    state["head.bias"][1] = float("nan")
    paddle.save(state, str(tmp_path / "nan.pdparams"))
    run(trained, tmp_path / "out", "-format", fmt, "-pretrained", tmp_path / "nan.pdparams", code=2)
    assert "the model gives logits that are not finite: nothing is written" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_a_folder_describes_one_model(trained, tmp_path, capsys):
    """Neither the command nor the function lets a description stand beside another model's file."""
    need("onnx")
    run(trained, tmp_path)
    other = small("pit_digits", **{"MODEL.NUM_CLASSES": 3, "DATA.CROP_PCT": 0.9})
    other.head.bias.set_value(other.head.bias + 1.0)
    paddle.save(other.state_dict(), str(tmp_path / "other.pdparams"))
    run(trained, tmp_path, "-pretrained", tmp_path / "other.pdparams", "-format", "onnx", code=2)
    assert "holds another model (model.json)" in capsys.readouterr().err
    assert not (tmp_path / "model.onnx").exists()
    with pytest.raises(UserError, match="describes another model.json"):
        export.export(other, [3, 32, 32], "paddle", tmp_path)
    run(trained, tmp_path, "-pretrained", tmp_path / "other.pdparams")
    assert description.read_description(tmp_path)["files"] == ["model.json"]


def test_exporters_are_heard_only_where_they_fail(tmp_path, monkeypatch, capfd):
    def chatter(model, shape, path):
        os.write(1, b"from C++\n")
        print("from Python")
        path.write_text("a program")

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
    def half(model, shape, path):
        path.with_suffix(".pdiparams").write_text("half")
        raise OSError(28, "No space left on device")

    (tmp_path / "model.json").write_text("an earlier one")
    monkeypatch.setattr(write, "_save_program", half)
    with pytest.raises(UserError, match="No space left"):
        export.export(small("pit_digits"), [3, 32, 32], "paddle", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.json"]
    assert (tmp_path / "model.json").read_text() == "an earlier one"


@pytest.mark.slow
def test_mistakes_are_named(trained, tmp_path, capsys, monkeypatch):
    def said(*more, output=tmp_path / "out"):
        run(trained, output, *more, code=2)
        return capsys.readouterr().err

    assert "invalid choice: 'tflite' (choose from" in said("-format", "tflite")
    with pytest.raises(UserError, match="format tflite, allowed: paddle, onnx, openvino"):
        export.export(small("pit_digits"), [3, 32, 32], "tflite", tmp_path)
    assert "-precision int8 of -format paddle, allowed: f32 (others: openvino)" in said(
        "-precision", "int8", "-format", "paddle"
    )
    assert "-precision bf16 of -format onnx, allowed: f32" in said("-precision", "bf16", "-format", "onnx")
    with pytest.raises(UserError, match="int8, which goes with the format openvino, not onnx"):
        export.export(small("pit_digits"), [3, 32, 32], "onnx", tmp_path, calibration=[])
    assert "images to find ranges on" in said("-precision", "int8")
    assert "-precision auto needs validation images with labels" in said("-precision", "auto", "-images", "x.png")
    assert "-max_drop 1.0 of -precision f32: it is for -precision auto" in said("-max_drop", "1")
    auto = ["-precision", "auto", "-data_path", trained / "data"]
    assert "-max_drop must be 0 or more, got -0.1" in said(*auto, "-max_drop", "-0.1")
    assert "there is no file none.png" in said("-images", "none.png")
    (tmp_path / "file").write_text("")
    assert "file/out cannot be written" in said(output=tmp_path / "file" / "out")
    monkeypatch.setitem(sys.modules, "paddle2onnx", None)
    assert "this format needs paddle2onnx" in said("-format", "onnx")


@pytest.mark.slow
def test_what_cannot_be_opened_is_named(trained, tmp_path, capsys):
    def said(*argv):
        assert predict.main([str(word) for word in (trained / "data" / "val", *argv)]) == 2
        return capsys.readouterr().err

    assert "there is no weights file" in said("-exported", tmp_path / "none")
    assert "is no exported model" in said("-exported", tmp_path)
    assert "required: -pretrained" in said()
    run(trained, tmp_path)
    capsys.readouterr()
    assert "name one model" in said("-exported", tmp_path, "-pretrained", "x")
    assert "pit_digits cannot be combined with" in said("-exported", tmp_path, "-cfg", "pit_digits")
    assert "DATA.IMAGE_SIZE 64 cannot be combined with" in said("-exported", tmp_path, "-image_size", "64")
    assert "is no exported model" in said("-exported", tmp_path / "model.pdiparams")
    assert "model.onnx is not in" in said("-exported", tmp_path / "model.onnx")
    assert "precision bf16" in said("-exported", tmp_path, "-precision", "bf16")
    with pytest.raises(UserError, match=r"allowed: \*.json, \*.onnx, \*.xml"):
        export.open_exported(tmp_path / "model.pdiparams")
    opened = export.open_exported(tmp_path / "model.json", threads=1)
    with pytest.raises(UserError, match=r"takes images float32 \[N, 3, 32, 32\], got float32 \[1, 3, 64, 64\]"):
        opened(random_images(1, side=64))
    description = json.loads((tmp_path / "export.json").read_text())
    for damage in ({"files": ["../model.json"]}, {"class_names": [1, 2, 3]}, {"files": 1}, {"preprocessing": {}}):
        (tmp_path / "export.json").write_text(json.dumps({**description, "num_classes": 3, **damage}))
        assert "export.json is damaged" in said("-exported", tmp_path), damage
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


def mkl_threads():
    """How many threads MKL would take now, in this process."""
    paddle.matmul(paddle.ones([8, 8]), paddle.ones([8, 8]))
    with open("/proc/self/maps") as maps:
        paths = {line.split()[-1] for line in maps if "libmklml" in line}
    if not paths:
        pytest.skip("this PaddlePaddle has no MKL")
    return ctypes.CDLL(paths.pop()).MKL_Get_Max_Threads()


@pytest.mark.slow
def test_a_program_leaves_the_threads_of_the_process_as_they_are(tmp_path, monkeypatch):
    """With others, a training run beside it would no longer repeat bit for bit."""
    before = mkl_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    paddle_internals.set_cpu_threads(2)
    try:
        path = export.export(small("pit_digits"), [3, 32, 32], "paddle", tmp_path)
        for threads in (0, 1, 3):
            opened = export.open_exported(path, threads=threads)
            assert mkl_threads() == 2
            opened(random_images(1))
            assert mkl_threads() == 2
    finally:
        paddle_internals.set_cpu_threads(before)
