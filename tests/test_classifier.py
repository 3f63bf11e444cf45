"""paddlevit.Classifier: every kind of image, trained and exported models, threads, and what it refuses."""

from __future__ import annotations

import io
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import paddle
import pytest
from PIL import Image

from paddlevit import build_model
from paddlevit.classifier import Classifier
from paddlevit.commands import export_model
from paddlevit.config import get_config, with_values
from paddlevit.errors import UserError

NAMES = ["one", "two", "three"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What a training run leaves, and an export of it."""
    folder = tmp_path_factory.mktemp("run")
    paddle.seed(0)
    config = with_values(get_config("pit_digits"), {"MODEL.NUM_CLASSES": 3, "DATA.CROP_PCT": 0.9})
    paddle.save(build_model(config).state_dict(), str(folder / "best.pdparams"))
    (folder / "config.yaml").write_text(config.dump())
    (folder / "class_names.txt").write_text("\n".join(NAMES))
    assert export_model.main(["-pretrained", str(folder / "best.pdparams"), "-output", str(folder / "exported")]) == 0
    return folder


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (45, 60, 3), "uint8")).save(path)
    return path


@pytest.mark.parametrize("of", ["run", "weights", "exported", "file"])
def test_every_kind_of_image_gives_the_same(run, photo, of):
    weights = {"run": run, "weights": run / "best.pdparams", "exported": run / "exported"}
    classifier = Classifier(weights.get(of, run / "exported" / "model.json"))
    kinds = [photo, str(photo), photo.read_bytes(), Image.open(photo), np.asarray(Image.open(photo))]
    one = classifier.predict(photo, topk=2)
    assert [list(each) for each in one] == [["label", "index", "probability"]] * 2
    assert [NAMES[each["index"]] for each in one] == [each["label"] for each in one]
    assert one[0]["probability"] >= one[1]["probability"]
    assert sum(each["probability"] for each in classifier.predict(photo)) == pytest.approx(1, abs=1e-6)
    logits = classifier.logits(photo)
    assert logits.shape == (3,) and logits.argmax() == one[0]["index"]
    np.testing.assert_allclose(classifier.logits(kinds), [logits] * 5, rtol=0, atol=1e-5)
    np.testing.assert_allclose(logits, Classifier(run).logits(photo), rtol=0, atol=1e-5)
    assert classifier.predict([]) == [] and classifier.logits([]).shape == (0, 3)


def test_the_users_own_folder(run, photo, monkeypatch):
    monkeypatch.setenv("HOME", str(run))
    logits = Classifier(run).logits(photo)
    for given in ({}, {"labels": "~/class_names.txt"}, {"cfg": "~/config.yaml"}):
        classifier = Classifier("~/best.pdparams", **given)
        assert list(classifier.class_names) == NAMES
        np.testing.assert_allclose(classifier.logits(photo), logits, rtol=0, atol=1e-5)
    assert Classifier("~/exported").class_names == NAMES
    assert build_model(get_config("~/config.yaml"), weights="~/best").state_dict()
    for nobody in ("~nobody_of_that_name", "~nobody_of_that_name/best.pdparams"):
        with pytest.raises(UserError, match="there is no weights file ~nobody"):
            Classifier(nobody)


def test_more_images_than_a_batch(run, photo):
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (33, 40, 3), "uint8") for _ in range(40)]
    classifier = Classifier(run)
    together = classifier.logits(images)
    np.testing.assert_allclose(together, [classifier.logits(image) for image in images], rtol=0, atol=1e-5)
    assert len(classifier.predict(tuple(images))) == 40


@pytest.mark.parametrize("of", ["", "exported"])
def test_threads_share_one(run, of):
    classifier = Classifier(run / of)
    images = [np.full([20, 20 + i, 3], 11 * i, "uint8") for i in range(20)]
    alone = [classifier.predict(image) for image in images]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda i: classifier.predict(images[i % 20]), range(80)))
    assert together == [alone[i % 20] for i in range(80)]


def test_classes(run, photo, tmp_path):
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    for weights in (run, run / "exported"):
        for labels in (["a\n", "b", "c "], tmp_path / "labels.txt"):
            best = Classifier(weights, labels=labels).predict(photo)[0]
            assert best["label"] == "abc"[best["index"]]
        with pytest.raises(UserError, match="labels has 2 names, but the model has 3 classes"):
            Classifier(weights, labels=["a", "b"])
    opts = ["MODEL.NUM_CLASSES", 3, "DATA.DATA_PATH", str(tmp_path)]
    (tmp_path / "w.pdparams").write_bytes((run / "best.pdparams").read_bytes())
    assert {each["label"] for each in Classifier(tmp_path / "w.pdparams", "pit_digits", opts=opts).predict(photo)} == {
        "0",
        "1",
        "2",
    }


def test_names_of_the_data_where_the_images_to_validate_with_cannot_be_used(run, photo, tmp_path):
    """They are asked first, and one of their folders is empty."""
    for split, classes in (("train", NAMES), ("val", NAMES[1:])):
        for name in classes:
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "1.png").write_bytes(photo.read_bytes())
    (tmp_path / "val" / NAMES[0]).mkdir()
    (tmp_path / "w.pdparams").write_bytes((run / "best.pdparams").read_bytes())
    opts = ["MODEL.NUM_CLASSES", 3, "DATA.DATA_PATH", str(tmp_path)]
    found = Classifier(tmp_path / "w.pdparams", "pit_digits", opts=opts).class_names
    assert list(found) == sorted(NAMES)


def test_mistakes(run, photo, tmp_path):
    classifier = Classifier(run)
    for image, told in (
        (np.zeros([3, 32, 32], "uint8"), r"uint8 \[H, W, 3\], got uint8 \[3, 32, 32\]"),
        (np.zeros([32, 32, 3], "float32"), r"got float32 \[32, 32, 3\]"),
        (np.zeros([2, 32, 32, 3], "uint8"), r"got uint8 \[2, 32, 32, 3\]"),
        (np.zeros([0, 32, 3], "uint8"), r"got uint8 \[0, 32, 3\]"),
        (None, "got NoneType"),
        (b"no image", "the image is not a readable image"),
        (Image.open(io.BytesIO(photo.read_bytes()[:2000])), "the image cannot be read: .*truncated"),
        (tmp_path / "none.png", "there is no file .*none.png"),
    ):
        with pytest.raises(UserError, match=told):
            classifier.predict(image)
        with pytest.raises(UserError, match=told):
            classifier.predict([photo, image])
    for topk in (0, -1):
        with pytest.raises(UserError, match="topk must be 1 or more, got -?[01]"):
            classifier.predict(photo, topk=topk)
    with pytest.raises(UserError, match="labels, index 2: 'cat' is given twice, first in index 0"):
        Classifier(run, labels=["cat", "dog", "cat ", "cow"])
    with pytest.raises(UserError, match="precision bf16 of trained weights by paddle, allowed: auto, f32"):
        Classifier(run, precision="bf16")
    with pytest.raises(UserError, match="cannot be combined with .*export.json defines it"):
        Classifier(run / "exported", "pit_digits")
    with pytest.raises(UserError, match="-cfg FILE is missing"):
        Classifier(tmp_path)
    with pytest.raises(UserError, match="there is no weights file .*gone.pdparams"):
        Classifier(tmp_path / "gone.pdparams")
    with pytest.raises(UserError, match="model.onnx is not in"):
        Classifier(run / "exported" / "model.onnx")


def test_logits_that_are_not_finite(run, photo, tmp_path):
    state = paddle.load(str(run / "best.pdparams"))
    state["head.bias"][1] = float("nan")
    paddle.save(state, str(tmp_path / "nan.pdparams"))
    classifier = Classifier(tmp_path / "nan.pdparams", run / "config.yaml")
    with pytest.raises(UserError, match="pit_digits gives logits that are not finite"):
        classifier.predict(photo)
    assert np.isnan(classifier.logits(photo)[1])


def test_exported_file_with_another_number_of_classes(run, photo, tmp_path):
    """As where somebody has copied the description of another file beside it."""
    shutil.copytree(run / "exported", tmp_path, dirs_exist_ok=True)
    described = json.loads((tmp_path / "export.json").read_text())
    (tmp_path / "export.json").write_text(json.dumps({**described, "class_names": [*NAMES, "four"], "num_classes": 4}))
    with pytest.raises(UserError, match="has 3 classes, not 4"):
        Classifier(tmp_path).predict(photo)


def test_bytes_are_read_as_files_are(run, photo):
    file = io.BytesIO()
    Image.open(photo).save(file, "JPEG")
    assert Classifier(run).predict(file.getvalue()) == Classifier(run).predict([file.getvalue()])[0]


@pytest.mark.slow
def test_orientation_is_the_runs_and_applied_where_there_is_none(run, tmp_path):
    """The left half of the file is white: upright, it is the top."""
    exif, pixels = Image.Exif(), np.zeros([32, 32, 3], "uint8")
    exif[0x0112], pixels[:, :16] = 6, 255
    Image.fromarray(pixels).save(tmp_path / "held.png", exif=exif)
    shutil.copy(run / "best.pdparams", tmp_path / "best.pdparams")
    opts = ["MODEL.NUM_CLASSES", 3]
    own = ["-cfg", "pit_digits", "-num_classes", "3", "-pretrained", str(tmp_path / "best.pdparams")]
    assert export_model.main([*own, "-output", str(tmp_path / "exported")]) == 0
    classifiers = [
        (Classifier(run), False),
        (Classifier(run, opts=["DATA.EXIF_ORIENTATION", "apply"]), True),
        (Classifier(run / "exported"), False),
        (Classifier(tmp_path / "exported"), True),
        (Classifier(tmp_path, "pit_digits", opts=opts), True),
        (Classifier(tmp_path, "pit_digits", opts=[*opts, "DATA.EXIF_ORIENTATION", "ignore"]), False),
    ]
    for classifier, upright in classifiers:
        for image in (tmp_path / "held.png", Image.open(tmp_path / "held.png"), (tmp_path / "held.png").read_bytes()):
            seen = classifier.pixels(image)
            assert (seen[2, 28, 0] > seen[28, 2, 0]) == upright


def test_deep_images_keep_their_levels(run):
    deep = Image.fromarray(np.full([32, 32], 25700, "uint16"))
    assert (Classifier(run).pixels(deep) == 100).all()
