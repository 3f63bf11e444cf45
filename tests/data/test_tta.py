"""Test-time augmentation: the mean of separate forward passes, by every engine, and named wherever its numbers are."""

from __future__ import annotations

import json

import numpy as np
import paddle
import pytest
from tiny import image_folder

from paddlevit import Classifier, build_model
from paddlevit.commands import predict
from paddlevit.commands.train import main
from paddlevit.config import get_config
from paddlevit.errors import UserError

SIDE = 64  # of which shift moves images by 2


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = image_folder(tmp_path_factory.mktemp("run"), classes=3, val=7)
    paddle.seed(0)
    data = ["DATA.DATA_PATH", str(folder), "DATA.BATCH_SIZE", 3]
    config = get_config("pit_digits", ["MODEL.NUM_CLASSES", 3, "DATA.IMAGE_SIZE", SIDE, *data])
    paddle.save(build_model(config).state_dict(), str(folder / "best.pdparams"))
    (folder / "config.yaml").write_text(config.dump())
    return folder


def moved(image, down, right):
    """Copies of the outermost pixels come in from the other side."""
    rows, columns = (np.clip(np.arange(SIDE) - by, 0, SIDE - 1) for by in (down, right))
    return image[rows][:, columns]


VIEWS = {
    "none": lambda image: [image],
    "flip": lambda image: [image, image[:, ::-1]],
    "shift": lambda image: [image, *(moved(image, y, x) for y in (2, -2) for x in (2, -2))],
}


BY_PADDLE = [(tta, "paddle") for tta in VIEWS]


def skip_without(engine):
    if engine != "paddle":
        pytest.importorskip("paddle2onnx", reason="it has no build for Python 3.13")


@pytest.mark.parametrize(("tta", "engine"), [*BY_PADDLE, pytest.param("flip", "openvino", marks=pytest.mark.slow)])
def test_logits_are_the_mean_of_separate_forward_passes(run, tta, engine):
    skip_without(engine)
    images = list(np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), "uint8"))
    plain = Classifier(run)
    views = np.stack([plain.logits([np.ascontiguousarray(view) for view in VIEWS[tta](image)]) for image in images])
    assert tta == "none" or np.ptp(views, axis=1).max() > 1e-3
    np.testing.assert_allclose(Classifier(run, engine=engine, tta=tta).logits(images), views.mean(axis=1), atol=1e-5)


@pytest.mark.parametrize(("tta", "engine"), [*BY_PADDLE, pytest.param("shift", "onnx", marks=pytest.mark.slow)])
def test_evaluation_and_prediction_agree_and_say_so(run, tmp_path, capsys, tta, engine):
    skip_without(engine)
    argv = ["-eval", "-pretrained", run, "-output", tmp_path, "-device", "cpu", "-tta", tta, "-engine", engine]
    assert main([str(word) for word in argv], nprocs=1) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "top-1" in line]
    result = json.loads((tmp_path / "eval.json").read_text())
    said = ", with test-time augmentation (" in line, "tta" in result
    assert said == (tta != "none", tta != "none") and result.get("tta", "none") == tta
    images = sorted((run / "val").rglob("*.png"))
    logits = Classifier(run, tta=tta).logits([str(image) for image in images])
    labels = [int(image.parent.name) for image in images]
    assert result["acc1"] == pytest.approx(100 * np.mean(logits.argmax(axis=1) == labels))
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]
    assert result["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert predict.main(["-pretrained", str(run), "-tta", tta, "-json", str(images[0])]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.get("tta", "none") == tta and found["classes"][0]["class"] == logits[0].argmax()
    assert predict.main(["-pretrained", str(run), "-tta", tta, str(images[0])]) == 0
    assert capsys.readouterr().out.startswith(f"{images[0]}  (-tta {tta})\n") == (tta != "none")


def test_mistakes(run, capsys):
    with pytest.raises(UserError, match="tta ten, allowed: none, flip, shift"):
        Classifier(run, tta="ten")
    assert main(["-cfg", "pit_digits", "-tta", "flip"], nprocs=1) == 2
    assert "-tta flip works only with -eval" in capsys.readouterr().err
    for key in ("TTA", "ENGINE", "PRECISION", "SAVE_PREDICTIONS"):
        value = {"TTA": "flip", "SAVE_PREDICTIONS": "true"}.get(key, "auto")
        assert main(["-cfg", "pit_digits", "-opts", key, value], nprocs=1) == 2
        assert f"{key} works only with -eval: training does not use it" in capsys.readouterr().err
    with pytest.raises(UserError, match="TTA works only with -eval: here engine, precision and tta are arguments"):
        Classifier(run, opts=["TTA", "flip"])
    with pytest.raises(UserError, match="opts must be pairs of a key and a value"):
        Classifier(run, opts={"DATA.CROP_PCT": 1.0})
