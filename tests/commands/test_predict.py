"""tools/predict.py: what evaluation sees, names for the classes, and images that cannot be read."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paddlevit.commands import convert_weights, visualize_attention
from paddlevit.commands.predict import main
from paddlevit.commands.train import main as train

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ["blue sea", "green", "red"]


def write_images(folder, count, seed):
    """Pictures of all sizes, modes and kinds of file; which colour is strongest says the class."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        for channel, name in zip((2, 1, 0), CLASSES):
            pixels = rng.integers(0, 150, (*rng.integers(20, 90, 2), 3), "uint8")
            pixels[..., channel] += np.uint8(rng.integers(0, 60))
            path = folder / name / f"{i}.{('png', 'JPG', 'jpeg')[i % 3]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(pixels)
            image.convert("RGBA").save(path) if i % 6 == 0 else image.save(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_images(folder / "train", 12, seed=1)
    write_images(folder / "val", 15, seed=2)
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A trained run's folder. The network is no good: its mistakes must be the same ones."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    values = ["TRAIN.NUM_EPOCHS", "2", "DATA.CROP_PCT", "0.9", "TRAIN.MODEL_EMA", "false", "TRAIN.HFLIP", "0.0"]
    argv = ["-cfg", "pit_digits", "-data_path", data, "-output", folder, "-batch_size", "6", "-device", "cpu"]
    assert train([*map(str, argv), "-opts", *values]) == 0
    (folder / "calibration.json").unlink()  # what it changes is for tests/test_calibration.py
    return folder


def weights(run):
    return str(run / "best.pdparams")


def predict(capsys, *argv, code=0):
    capsys.readouterr()
    assert main([str(word) for word in argv]) == code
    return capsys.readouterr()


def predict_json(capsys, *argv, code=0):
    return [json.loads(line) for line in predict(capsys, *argv, "-json", code=code).out.splitlines()]


def feed(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(os.fsencode(text))))


@pytest.mark.parametrize("batch", [["-batch_size", "7", "-num_workers", "2"], []])
def test_predictions_are_those_of_the_evaluation(data, run, capsys, batch, tmp_path):
    argv = ["-cfg", run / "config.yaml", "-pretrained", weights(run), "-output", tmp_path, "-eval"]
    assert train([*map(str, argv)]) == 0
    evaluated = json.loads((tmp_path / "eval.json").read_text())
    lines = predict_json(capsys, "-pretrained", weights(run), data / "val", *batch)
    true = [Path(line["image"]).parent.name for line in lines]
    assert len(lines) == evaluated["num_images"] == 45
    accuracy = 100 * np.mean([line["classes"][0]["name"] == name for line, name in zip(lines, true)])
    assert accuracy == evaluated["acc1"]
    told = [{c["name"]: c["probability"] for c in line["classes"]} for line in lines]
    loss = -np.mean([math.log(probability[name]) for probability, name in zip(told, true)])
    assert loss == pytest.approx(evaluated["loss"], abs=1e-5)  # probabilities are rounded
    assert len({line["classes"][0]["name"] for line in lines}) > 1


def test_a_lines_classes_are_sorted_and_as_many_as_asked_for(data, run, capsys):
    image = data / "val" / "red" / "1.JPG"
    (full,) = predict_json(capsys, image, "-pretrained", weights(run))
    (short,) = predict_json(capsys, image, "-pretrained", weights(run), "-topk", "2")
    assert full["image"] == str(image)
    assert sorted(c["class"] for c in full["classes"]) == [0, 1, 2]
    assert all(CLASSES[c["class"]] == c["name"] for c in full["classes"])
    probabilities = [c["probability"] for c in full["classes"]]
    assert probabilities == sorted(probabilities, reverse=True) and sum(probabilities) == pytest.approx(1, abs=1e-5)
    assert short["classes"] == full["classes"][:2]


def test_text_says_the_same(data, run, capsys):
    image = data / "val" / "red" / "1.JPG"
    (line,) = predict_json(capsys, image, "-pretrained", weights(run))
    text = predict(capsys, image, "-pretrained", weights(run)).out
    first, *rest = text.splitlines()
    assert first == str(image)
    assert [row.split(None, 2) for row in rest] == [
        [f"{100 * c['probability']:.2f}", "%", c["name"]] for c in line["classes"]
    ]


def test_order_of_images_and_folders(data, run, capsys, monkeypatch, tmp_path):
    pictures = tmp_path / "pictures"
    shown = [
        f"{folder}/{i}.{kind}" for folder in ("c", "b/deep", "a") for i, kind in ((2, "PNG"), (10, "jpg"), (1, "JPEG"))
    ]
    for name in [*shown, ".hidden/no.png", "a/.no.png"]:
        (pictures / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(data / "val" / "red" / "1.JPG", pictures / name)
    (pictures / "a" / "notes.txt").write_text("no image")
    first, listed = data / "val" / "red" / "4.JPG", data / "val" / "green" / "5.jpeg"
    feed(monkeypatch, f"{listed}\n\n  \n{first}\n")
    lines = predict_json(capsys, first, pictures, "-", "-topk", "1", "-pretrained", weights(run))
    below = sorted(str(pictures / name) for name in shown)
    assert [line["image"] for line in lines] == [str(first), *below, str(listed), str(first)]
    same = [line["classes"] for line in lines if line["image"] == str(first)]
    assert same[0] == same[1]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_images_that_cannot_be_read_are_named_and_the_others_go_on(data, run, capsys, tmp_path, workers):
    good = data / "val" / "red" / "1.JPG"
    broken, text, empty = tmp_path / "broken.jpg", tmp_path / "text.png", tmp_path / "empty"
    broken.write_bytes(good.read_bytes()[:200])
    text.write_text("no image")
    empty.mkdir()
    named = [broken, good, text, tmp_path / "missing.png", empty, good]
    argv = ["-pretrained", weights(run), "-json", "-batch_size", "2", "-num_workers", workers]
    told = predict(capsys, *named, *argv, code=2)
    lines = [json.loads(line) for line in told.out.splitlines()]
    assert [line["image"] for line in lines] == [str(good)] * 2
    (alone,) = predict_json(capsys, good, *argv)
    names, probabilities = (
        [[c[key] for c in line["classes"]] for line in (lines[0], alone)] for key in ("name", "probability")
    )
    assert names[0] == names[1]
    assert probabilities[0] == pytest.approx(
        probabilities[1], abs=2e-6
    )  # six digits, rounded; batches differ in the last
    errors = told.err.splitlines()
    for file, line in zip([broken, text, tmp_path / "missing.png", empty], errors):
        assert line.startswith("error: ") and str(file) in line
    assert len(errors) == 4
    assert f"there is no file {tmp_path}/missing.png" in errors[2] and "holds no images" in errors[3]


def test_file_name_that_is_no_text(data, run, capsys, tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    shutil.copy(data / "val" / "red" / "0.png", name)
    assert "caf\\udce9.png" in predict(capsys, name, "-pretrained", weights(run)).out
    (line,) = predict_json(capsys, name, "-pretrained", weights(run))
    assert line["image"] == name


def moved(run, folder):
    """The weights, away from what their run has saved beside them."""
    return shutil.copy(weights(run), folder / "moved.pdparams")


def best_name(capsys, data, *argv):
    (line,) = predict_json(capsys, data / "val" / "red" / "1.JPG", *argv)
    return line["classes"][0]["class"], line["classes"][0]["name"]


def test_names_are_found(data, run, capsys, tmp_path):
    label, name = best_name(capsys, data, "-pretrained", weights(run))
    assert name == CLASSES[label]
    file = moved(run, tmp_path)
    config = ["-cfg", "pit_digits", "-pretrained", file, "-num_classes", "3"]
    assert best_name(capsys, data, "-cfg", run / "config.yaml", "-pretrained", file) == (label, name)
    assert best_name(capsys, data, *config, "-data_path", data) == (label, name), "the data's class folders"
    assert best_name(capsys, data, *config, "-data_path", tmp_path / "none") == (label, str(label))
    assert predict(capsys, data, *config, "-num_classes", "4", code=2).err.startswith("error: ")
    assert "no names" in predict(capsys, data / "val" / "red", *config, "-data_path", tmp_path).err
    (tmp_path / "own.txt").write_text("sea\nmeadow\nfire\n")
    own = best_name(capsys, data, *config[:-2], "-labels", tmp_path / "own.txt", "-data_path", data)
    assert own == (label, ["sea", "meadow", "fire"][label])
    (tmp_path / "LOC_synset_mapping.txt").write_text("n3 c\nn1 a, one\nn2 b\n")
    mapped = best_name(capsys, data, *config, "-data_path", tmp_path / "ILSVRC" / "Data")
    assert mapped == (label, ["a, one", "b", "c"][label])


def test_names_of_other_data_are_not_taken(data, run, capsys, tmp_path):
    write_images(tmp_path / "val", 1, seed=3)
    (tmp_path / "val" / "a fourth").mkdir()
    shutil.copy(data / "val" / "red" / "1.JPG", tmp_path / "val" / "a fourth")
    argv = ["-cfg", "pit_digits", "-pretrained", moved(run, tmp_path), "-num_classes", "3", "-data_path", tmp_path]
    label, name = best_name(capsys, data, *argv)
    assert name == str(label)


def test_mistakes(data, run, capsys, tmp_path, monkeypatch):
    image, own = data / "val" / "red" / "1.JPG", ["-pretrained", weights(run)]

    def error(*argv):
        return predict(capsys, *argv, code=2).err

    assert "-topk must be 1 or more, got 0" in error(image, *own, "-topk", "0")
    assert "-batch_size must be 1 or more, got -1" in error(image, *own, "-batch_size", "-1")
    assert "-cfg FILE is missing" in error(image, "-pretrained", moved(run, tmp_path))
    (tmp_path / "two.txt").write_text("a\nb\n")
    assert "two.txt has 2 names, but the model has 3" in error(image, *own, "-labels", tmp_path / "two.txt")
    assert "there is no such file" in error(image, *own, "-labels", tmp_path / "none.txt")
    assert "none.pdparams" in error(image, "-cfg", "pit_digits", "-pretrained", tmp_path / "none.pdparams")
    feed(monkeypatch, "\n\n")
    assert "no image is named" in error("-", *own)
    assert "required" in error(*own)
    assert "required: -pretrained" in error(image)
    assert "precision bf16 of trained weights by paddle, allowed: auto, f32" in error(image, *own, "-precision", "bf16")


NOISY = """
import ctypes, os, sys
from paddlevit.classifier import Classifier
from paddlevit.commands.predict import main
forward = Classifier.forward

def noisy(self, images):
    os.write(1, b"from C++\\n")
    ctypes.CDLL(None).puts(b"from C, held back until the process ends")
    print("from Python")
    return forward(self, images)

Classifier.forward = noisy
sys.exit(main())
"""


@pytest.mark.slow
def test_standard_output_holds_results_only(data, run):
    words = [sys.executable, "-c", NOISY, data / "val" / "red", "-pretrained", weights(run), "-json"]
    # PYTHONUNBUFFERED holds for C too.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    result = subprocess.run([*map(str, words)], capture_output=True, text=True, check=True, env=environment, cwd=ROOT)
    assert len([json.loads(line) for line in result.stdout.splitlines()]) == 15
    assert {"from C", "from C++", "from Python"} <= {line.split(",")[0] for line in result.stderr.splitlines()}


def test_the_next_batch_is_decoded_while_the_model_computes(data, run, monkeypatch):
    """And no more than that: a folder of any size takes the memory of two batches."""
    from paddlevit.classifier import Classifier
    from paddlevit.commands.predict import _guesses, parse_args

    classifier, read, forward = Classifier(run), Classifier.pixels, Classifier.forward
    decoded, seen, third = [], [], threading.Event()

    def pixels(self, path):
        found = read(self, path)
        decoded.append(path)
        if len(decoded) == 6:
            third.set()
        return found

    def slow(self, images):
        if not seen:
            assert third.wait(30), "the second batch waits for the first"
        seen.append(len(decoded))
        return forward(self, images)

    monkeypatch.setattr(Classifier, "pixels", pixels)
    monkeypatch.setattr(Classifier, "forward", slow)
    paths = sorted(map(str, (data / "val").rglob("*.*")))[:12]
    args = parse_args(["-pretrained", "x", "-batch_size", "3", "-num_workers", "2", *paths])
    assert sum(1 for _ in _guesses(classifier, paths, args)) == 12
    assert seen[0] == 6 and seen[1] <= 9


def test_logits_that_are_not_finite_are_an_error_of_the_image(data, run, capsys, tmp_path):
    import paddle

    state = paddle.load(weights(run))
    state["head.bias"][1] = float("inf")
    paddle.save(state, str(tmp_path / "inf.pdparams"))
    argv = ["-cfg", run / "config.yaml", "-pretrained", tmp_path / "inf.pdparams", "-json"]
    told = predict(capsys, data / "val" / "red", *argv, code=2)
    assert told.out == "" and told.err.count("gives logits that are not finite") == 15
    assert f"error: {data}/val/red/0.png: pit_digits gives" in told.err
    flags = ["-cfg", str(run / "config.yaml"), "-pretrained", str(tmp_path / "inf.pdparams")]
    picture = ["-image", str(data / "val/red/0.png"), "-output", str(tmp_path / "heat.png")]
    assert visualize_attention.main([*flags, *picture]) == 2 and not (tmp_path / "heat.png").exists()
    converted = ["-cfg", flags[1], "-input", flags[3], "-output", str(tmp_path / "converted.pdparams")]
    assert convert_weights.main(converted) == 0
    assert "read again, its logits are not finite, as before it" in capsys.readouterr().out


@pytest.mark.slow
def test_whoever_reads_may_stop(data, run):
    """As `| head -1` does: no traceback."""
    words = [
        sys.executable,
        ROOT / "tools" / "predict.py",
        "-pretrained",
        weights(run),
        data / "val",
        "-batch_size",
        "1",
    ]
    process = subprocess.Popen([*map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait() == 141 and "Traceback" not in errors and "BrokenPipe" not in errors
