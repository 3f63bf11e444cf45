"""Temperature and energy, against other people's code, and what runs, exports and commands make of them."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from scipy import special

from paddlevit import Classifier
from paddlevit.calibration import Calibration, calibrate, energy, fit_temperature, reliability
from paddlevit.commands import export_model, predict, prepare_data, train, visualize_attention
from paddlevit.errors import UserError
from paddlevit.report.predictions import Predictions
from paddlevit.run.evaluation import Outputs
from paddlevit.runtime import process


def made_up(images, scale, classes=6, seed=0):
    """Labels that are drawn from softmax(logits), which then come `scale` times too large."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((images, classes))
    labels = np.array([rng.choice(classes, p=row) for row in special.softmax(logits, axis=1)])
    return (scale * logits + 5).astype("float32"), labels


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("images", [1, 30, 4000])
def test_the_temperature_is_that_of_scipy(images, scale):
    from scipy import optimize
    from sklearn.metrics import log_loss

    logits, labels = made_up(images, scale)

    def loss(b):
        own = log_loss(labels, special.softmax(b * logits.astype("float64"), axis=1), labels=range(6), normalize=False)
        return own + b - math.log(b)

    found = optimize.minimize_scalar(loss, bounds=(0.01, 100), method="bounded", options={"xatol": 1e-9})
    assert fit_temperature(logits, labels) == pytest.approx(1 / found.x, rel=1e-4)
    assert images < 4000 or fit_temperature(logits, labels) == pytest.approx(scale, rel=0.05)


def test_images_that_are_all_right_leave_a_finite_temperature():
    labels = np.arange(40) % 4
    assert 0.1 < fit_temperature(9 * np.eye(4, dtype="float32")[labels], labels) <= 1


def test_the_calibration_error_is_a_plain_loops():
    logits, labels = made_up(500, 3.0)
    probabilities = special.softmax(logits.astype("float64"), axis=1)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    error, expected = 0.0, []
    for low in range(15):
        inside = [i for i in range(500) if low / 15 <= confidence[i] < (low + 1) / 15]
        if inside:
            sure, hits = sum(confidence[i] for i in inside) / len(inside), sum(right[i] for i in inside) / len(inside)
            error += len(inside) / 500 * abs(sure - hits)
            expected.append((100 * sure, 100 * hits))
    found, points = reliability(confidence, right)
    assert found == pytest.approx(100 * error)
    np.testing.assert_allclose(points, expected, rtol=1e-5)


@pytest.mark.parametrize(("images", "accepted"), [(1, 1), (19, 19), (20, 19), (21, 20), (360, 342)])
def test_95_percent_of_the_images_are_known(images, accepted):
    logits, labels = made_up(images, 3.0)
    bad = np.full([1, 6], np.nan, "float32")
    found = calibrate(np.concatenate([bad, logits]), np.concatenate([[0], labels]))
    assert found.num_images == images
    assert sum(found.verdict(row)["known"] for row in logits) == accepted
    np.testing.assert_allclose(energy(logits), -special.logsumexp(logits, axis=1), rtol=1e-6)
    assert found.verdict(logits[0])["energy"] == pytest.approx(energy(logits[0]), abs=1e-6)
    np.testing.assert_allclose(
        found.probabilities(logits), special.softmax(logits / found.temperature, axis=1), rtol=1e-5
    )
    assert images < 360 or found.ece_after < found.ece_before / 3


def test_a_temperature_that_makes_it_worse_is_not_taken():
    labels = np.zeros(100, int)
    logits = np.tile(np.float32([1.5, 0, 0]), (100, 1))  # right, at 69 %
    logits[:5] = [0, 20, 0]
    found = calibrate(logits, labels)
    assert fit_temperature(logits, labels) > 1.5 and found.temperature == 1.0
    error = 95 * (1 - special.softmax([1.5, 0, 0])[0]) + 5
    assert found.ece_before == found.ece_after == pytest.approx(error, abs=1e-3)


def test_without_images_nothing_is_calibrated():
    logits = np.array([[1.0, np.nan], [3.0, np.inf]], "float32")
    assert calibrate(logits, np.array([0, 1])) is not None and not calibrate(logits, np.array([0, 1])).num_images
    np.testing.assert_array_equal(Calibration().probabilities(np.float32([1, 2])), special.softmax(np.float32([1, 2])))
    assert Calibration().verdict(np.float32([1, 2])) == {}


def test_several_processes_fit_what_one_does(tmp_path, monkeypatch):
    logits, labels = made_up(50, 3.0)
    predictions = Predictions(labels, logits.argmax(axis=1), np.ones(50, "float32"), {}, [], str, bytes)
    found = []
    for indices in (np.arange(50), np.arange(0, 50, 2)):
        others = logits.copy()
        others[indices] = 0
        monkeypatch.setattr(process, "all_reduce_sum", lambda mine, others=others: mine + paddle.to_tensor(others))
        loader = SimpleNamespace(num_images=50, indices=indices)
        outputs = Outputs(loader, keep_logits=True)
        for batch in (logits[indices][:9], logits[indices][9:]):
            outputs(paddle.to_tensor(batch))
        found.append(outputs.calibrated(predictions, tmp_path, "0f"))
        assert json.loads((tmp_path / "calibration.json").read_text()) == {
            **found[-1].calibration._asdict(),
            "weights_sha256": "0f",
        }
    assert found[0].calibration == found[1].calibration == calibrate(logits, labels)
    np.testing.assert_array_equal(found[0].confidence, found[1].confidence)
    (tmp_path / "calibration.json").unlink()
    assert Outputs(loader).calibrated(predictions, tmp_path, "0f") is predictions and not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def made(once):
    """A short run on a third of the digits 0 to 8, and all images of 9."""
    return once("made", a_short_run)


def a_short_run(folder):
    assert prepare_data.main(["digits", str(folder / "data")]) == 0
    for listed in (folder / "data").glob("*.txt"):
        listed.unlink()
    (folder / "other").mkdir()
    for split in ("train", "val"):
        shutil.move(str(folder / "data" / split / "9"), str(folder / "other" / split))
    for i, image in enumerate(images(folder / "data" / "train")):
        if i % 3:
            os.remove(image)
    argv = ["-cfg", "pit_digits", "-data_path", folder / "data", "-output", folder / "run", "-epochs", "2"]
    assert train.main([str(word) for word in argv], nprocs=1) == 0


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made / "run", tmp_path / "run")


def images(folder):
    return sorted(map(str, folder.rglob("*.png")))


def test_a_run_ends_with_a_calibration(made):
    classifier, files = Classifier(made / "run"), images(made / "data" / "val")
    labels = np.array([int(file.split("/")[-2]) for file in files])
    logits = classifier.logits(files)
    ours, found = calibrate(logits, labels), classifier.calibration
    assert found == pytest.approx(ours, rel=1e-4) and found.num_images == len(files)
    log = (made / "run" / "log.txt").read_text()
    assert f"calibrated on {len(files)} images: temperature {found.temperature:.3f}, " in log
    page = (made / "run" / "report.html").read_text()
    assert f"the {len(files)} validation images" in page and f"<b>{found.ece_after:.2f} %</b>" in page
    confidence = ours.probabilities(logits).max(axis=1)
    (worst, *_) = re.findall(r"predicted <b>.*?<span>([\d.]+) %", page)
    assert float(worst) == pytest.approx(100 * confidence[logits.argmax(axis=1) != labels].max(), abs=0.06)


def test_predictions_are_calibrated_and_say_what_is_none_of_the_classes(made, capsys):
    classifier, files = Classifier(made / "run"), images(made / "other")[:40]
    logits = classifier.logits(files)
    expected = special.softmax(logits / classifier.calibration.temperature, axis=1)
    known = -special.logsumexp(logits, axis=1) <= classifier.calibration.max_energy
    assert 0 < known.sum() < 40
    for found, row, each in zip(classifier.predict(files), expected, known):
        assert [guess["index"] for guess in found] == np.argsort(-row)[:5].tolist()
        assert [guess["probability"] for guess in found] == pytest.approx(np.sort(row)[:-6:-1], rel=1e-4)
        assert all(guess["known"] is bool(each) for guess in found)
    argv = ["-pretrained", str(made / "run"), *files]
    assert predict.main([*argv, "-json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["known"] for line in lines] == known.tolist()
    assert [line["energy"] for line in lines] == pytest.approx(energy(logits), abs=1e-4)
    assert predict.main([*argv, "-topk", "1"]) == 0
    assert capsys.readouterr().out.count("\n  none of these classes; the closest:\n") == 40 - known.sum()


def test_explain_says_what_is_none_of_the_classes(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    classifier, files = Classifier(made / "run"), images(made / "other")[:40]
    known = [guesses[0]["known"] for guesses in classifier.predict(files)]
    for said in (True, False):
        image = files[known.index(said)]
        assert visualize_attention.main(["-pretrained", str(made / "run"), "-image", image]) == 0
        assert ("none of these classes" in capsys.readouterr().out) is not said


@pytest.mark.parametrize(
    ("engine", "exported"),
    [
        ("paddle", True),
        pytest.param("onnx", False, marks=pytest.mark.slow),
        pytest.param("openvino", True, marks=pytest.mark.slow),
    ],
)
def test_exports_and_engines_say_the_same(made, tmp_path, engine, exported):
    if engine != "paddle":
        pytest.importorskip("paddle2onnx", reason="it has no build for Python 3.13")
    files = images(made / "other")[:60]
    trained = Classifier(made / "run")
    if exported:
        argv = ["-pretrained", str(made / "run"), "-format", engine, "-output", str(tmp_path)]
        assert export_model.main(argv) == 0
    other = Classifier(tmp_path) if exported else Classifier(made / "run", engine=engine)
    assert other.calibration == trained.calibration and other.engine == engine
    for ours, theirs in zip(trained.predict(files), other.predict(files)):
        assert [each["known"] for each in ours] == [each["known"] for each in theirs]
        probabilities = [[each["probability"] for each in found] for found in (ours, theirs)]
        assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-4)


def test_other_weights_are_not_calibrated(run, made, caplog):
    logging.getLogger("paddlevit").propagate = True
    image = images(made / "other")[0]
    (run / "best.pdparams").replace(run / "renamed.pdparams")
    assert "known" in Classifier(run / "renamed").predict(image)[0]
    shutil.copy(run / "epoch_001.pdparams", run / "renamed_ema.pdparams")
    assert "known" not in Classifier(run / "renamed", opts=["MODEL.WEIGHTS", "ema"]).predict(image)[0]
    shutil.copy(run / "epoch_001.pdparams", run / "best.pdparams")
    with caplog.at_level(logging.INFO):
        classifier = Classifier(run)
    assert "calibration.json is of other weights" in caplog.text
    (found,) = classifier.predict(image, topk=1)
    assert list(found) == ["label", "index", "probability"]
    assert found["probability"] == pytest.approx(special.softmax(classifier.logits(image)).max(), rel=1e-5)


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"weights_sha256": "", "temperature": 0}', '{"weights_sha256": "", "other": 1}']
)
def test_a_damaged_calibration_is_named(run, content):
    (run / "calibration.json").write_text(content)
    with pytest.raises(UserError, match=r"calibration\.json is damaged"):
        Classifier(run)


@pytest.mark.slow
def test_a_digit_that_was_left_out_is_told_by_its_energy(made, tmp_path):
    from sklearn.metrics import roc_auc_score

    argv = ["-cfg", "pit_digits", "-data_path", made / "data", "-output", tmp_path, "-epochs", "8"]
    assert train.main([str(word) for word in argv], nprocs=1) == 0
    classifier = Classifier(tmp_path)
    known, other = (energy(classifier.logits(images(made / part))) for part in ("data/val", "other"))
    truth = np.repeat([0, 1], [len(known), len(other)])
    assert roc_auc_score(truth, np.concatenate([known, other])) >= 0.9
    assert 0.94 <= (known <= classifier.calibration.max_energy).mean() <= 0.96
    assert (other <= classifier.calibration.max_energy).mean() < 0.5
