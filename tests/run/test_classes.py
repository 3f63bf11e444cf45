"""Names decide which class an image is of, wherever weights and data both know them; a difference is an error."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import paddle
import pytest
import safetensors.numpy
from PIL import Image

from paddlevit import Classifier, build_model
from paddlevit.commands import export_model, predict
from paddlevit.commands.train import main
from paddlevit.config import get_config, with_values
from paddlevit.data import open_source
from paddlevit.data.cifar import CifarSource
from paddlevit.data.classes import Classes, classes_beside, follow
from paddlevit.errors import UserError
from paddlevit.run.build import _teacher

NAMES = ["ball", "brick", "leaf"]


def data(folder, names, splits=("train", "val")):
    """Noise, four images a class."""
    rng = np.random.default_rng(0)
    for split in splits:
        for name in names:
            (folder / split / name).mkdir(parents=True)
            for i in range(4):
                pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


def listed(folder, name, labels):
    rows = [f"{path.relative_to(folder)} {label}\n" for of, label in labels for path in (folder / "val" / of).iterdir()]
    (folder / name).write_text("".join(rows))
    return folder


def run_of(folder, names, **changed):
    """What a run with these classes leaves."""
    paddle.seed(0)
    config = with_values(get_config("pit_digits"), {"MODEL.NUM_CLASSES": len(names), **changed})
    folder.mkdir()
    paddle.save(build_model(config).state_dict(), str(folder / "best.pdparams"))
    (folder / "config.yaml").write_text(config.dump())
    (folder / "class_names.txt").write_text("\n".join(names))
    return folder / "best.pdparams"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("runs") / "run", NAMES)


def go(folder, output, *flags, cfg="pit_digits"):
    args = ["-cfg", cfg, "-data_path", folder, "-output", output, "-num_workers", 0, "-batch_size", 4]
    opts = ["-opts", "TRAIN.NUM_EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0]
    return main([str(arg) for arg in (*args, *flags, *opts)], nprocs=1)


def by_hand(weights, folder):
    """Top-1 of the images in folder/val/<class>, in percent."""
    classifier, paths = Classifier(weights), sorted((folder / "val").glob("*/*.png"))
    found = classifier.predict([str(path) for path in paths], topk=1)
    return 100 * np.mean([each[0]["label"] == path.parent.name for each, path in zip(found, paths)])


def labels(source):
    return {source.name(i).split("/")[-2]: source.label(i) for i in range(len(source))}


def test_some_of_the_classes_and_other_orders_are_scored_by_name(weights, tmp_path, capfd):
    some = data(tmp_path / "some", ["leaf", "brick"], splits=["val"])
    renumbered = data(tmp_path / "renumbered", NAMES, splits=["val"])
    (renumbered / "class_names.txt").write_text("leaf\nball\nbrick\n")
    from_one = listed(data(tmp_path / "from_one", NAMES, splits=["val"]), "val_list.txt", zip(NAMES, (1, 2, 3)))
    gaps = listed(data(tmp_path / "gaps", NAMES, splits=["val"]), "val_list.txt", zip(["brick", "leaf"], (4, 7)))
    for folder in (some, renumbered, from_one, gaps):
        assert go(folder, folder / "out", "-eval", "-pretrained", weights) == 0, capfd.readouterr().err
        result = json.loads((folder / "out" / "eval.json").read_text())
        if folder is gaps:
            for path in (folder / "val" / "ball").iterdir():
                path.unlink()
        assert result["acc1"] == pytest.approx(by_hand(weights, folder)), folder.name


def test_fewer_classes_than_a_model_without_names_has_are_told(weights, tmp_path, capfd):
    moved = shutil.copy(weights, tmp_path / "moved.pdparams")
    two = data(tmp_path / "two", NAMES[1:], splits=["val"])
    assert go(two, tmp_path / "out", "-eval", "-pretrained", moved, "-num_classes", 3) == 0
    assert "MODEL.NUM_CLASSES is 3, the data has 2 classes: labels are used unchanged" in capfd.readouterr().out


def test_a_model_without_a_head_is_not_evaluated(tmp_path, capfd):
    two, bare = data(tmp_path / "two", NAMES[1:], splits=["val"]), tmp_path / "bare.pdparams"
    paddle.save(build_model(get_config("pit_digits", ["MODEL.NUM_CLASSES", 0])).state_dict(), str(bare))
    assert go(two, tmp_path / "out", "-eval", "-pretrained", bare, "-num_classes", 0) == 2
    assert "MODEL.NUM_CLASSES is 0: a model without a head" in capfd.readouterr().err


def test_other_classes_are_an_error_everywhere(weights, tmp_path, capfd):
    other = data(tmp_path / "other", ["cat", "cup", "flower"])
    told = "class 0 of {} is 'cat', which {} does not have: class 0 is 'ball' there"
    told = told.format(other, weights.with_name("class_names.txt"))
    of = ["-pretrained", str(weights), "-data_path", str(other)]
    for refused, advice in (
        (lambda: go(other, tmp_path / "out", "-eval", "-pretrained", weights), ""),
        (lambda: go(other, tmp_path / "out", "-pretrained", weights), "\n-reinit_head starts with a new classifier"),
        (lambda: predict.main([*of, str(other)]), ""),
        (lambda: export_model.main([*of, "-output", str(tmp_path / "x")]), ""),
    ):
        assert refused() == 2
        assert f"error: {told}{advice}\n" in capfd.readouterr().err
    assert not (tmp_path / "out").exists() and not (tmp_path / "x").exists()
    assert go(other, tmp_path / "out", "-pretrained", weights, "-reinit_head") == 0
    assert (tmp_path / "out" / "class_names.txt").read_text().split() == ["cat", "cup", "flower"]


@pytest.mark.slow
def test_a_run_that_starts_from_weights_or_resumes_keeps_their_order(weights, tmp_path, capfd):
    folder = data(tmp_path / "data", NAMES)
    (folder / "class_names.txt").write_text("leaf\nball\nbrick\n")
    assert go(folder, tmp_path / "out", "-pretrained", weights) == 0
    assert (tmp_path / "out" / "class_names.txt").read_text().split() == NAMES
    again = ["-resume", "auto", "-opts", "TRAIN.NUM_EPOCHS", 2]
    assert go(folder, tmp_path / "out", *again) == 0
    assert (tmp_path / "out" / "class_names.txt").read_text().split() == NAMES
    (tmp_path / "out" / "class_names.txt").write_text("leaf\n")
    assert go(folder, tmp_path / "out", *again) == 0
    assert f"{tmp_path}/out/class_names.txt names 1 classes, the data has 3" in capfd.readouterr().out
    (tmp_path / "out" / "class_names.txt").write_text("\n".join(NAMES))
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.suffix != ".txt"}
    for names, told in ((NAMES[1:], "has 3"), ([*NAMES[1:], "zebra"], "is 'zebra', which")):
        other = data(tmp_path / names[-1], names)
        assert go(other, tmp_path / "out", *again) == 2
        assert told in (error := capfd.readouterr().err), error
    assert "resume with the same classes, or start another run with -pretrained" in error
    assert {path: path.read_bytes() for path in before} == before


def test_numbers_in_another_order_are_names_too(tmp_path):
    folder = data(tmp_path / "data", [str(i) for i in range(12)], splits=["val"])
    config = get_config("pit_digits", ["DATA.DATA_PATH", str(folder), "MODEL.NUM_CLASSES", 12])
    assert labels(open_source(config, "val"))["10"] == 2, "as text"
    by_value = Classes([str(i) for i in range(12)], "the run")
    assert labels(open_source(config, "val", by_value)) == {str(i): i for i in range(12)}


def test_images_in_memory_follow_names_too():
    source = CifarSource(np.zeros((3, 32, 32, 3), "uint8"), np.arange(3), ["cat", "dog", "ship"], place="x")
    follow(source, Classes(["ship", "frog", "cat", "dog"], "the run"), Path("cifar"), "val")
    assert [source.label(i) for i in range(3)] == [2, 3, 0] and source.num_classes == 4
    with pytest.raises(UserError, match="class 0 of cifar is 'ship', which the run does not have: class 0 is 'cat'"):
        follow(source, Classes(["cat", "dog"], "the run"), Path("cifar"), "val")


def test_some_of_imagenets_classes_by_their_identifiers(tmp_path):
    identifiers, words = ["n01", "n02", "n03"], ["tench", "kit fox", "crane"]
    folder = data(tmp_path / "data", ["n03", "n01"], splits=["val"])
    lines = (f"{identifier} {name}\n" for identifier, name in zip(identifiers, words))
    (folder / "LOC_synset_mapping.txt").write_text("".join(lines))
    opts = ["DATA.DATA_PATH", str(folder), "MODEL.NUM_CLASSES"]
    whole = open_source(get_config("pit_digits", [*opts, 3]), "val")
    assert labels(whole) == {"n01": 0, "n03": 2} and whole.class_names == words
    for known in (Classes(identifiers[::-1], "x"), Classes(words[::-1], "x")):
        assert labels(open_source(get_config("pit_digits", [*opts, 3]), "val", known)) == {"n01": 2, "n03": 0}
    in_other_words = Classes(["tench, Tinca tinca", "kit fox, Vulpes macrotis", "crane"], "x")
    assert labels(open_source(get_config("pit_digits", [*opts, 3]), "val", in_other_words)) == {"n01": 0, "n03": 2}
    assert labels(open_source(get_config("pit_digits", [*opts, 2]), "val")) == {"n01": 0, "n03": 1}


def test_lists_that_number_the_same_classes_otherwise_are_an_error(tmp_path):
    folder = data(tmp_path / "data", NAMES, splits=["val"])
    listed(listed(folder, "train_list.txt", zip(NAMES, (1, 2, 3))), "val_list.txt", zip(NAMES, (0, 1, 2)))
    with pytest.raises(UserError, match=r"val_list.txt, line 1: label 0 .* 'ball', but .*train_list.txt has '0'"):
        open_source(get_config("pit_digits", ["DATA.DATA_PATH", str(folder)]), "val")


@pytest.mark.slow
def test_labels_rename_all_classes_or_none(weights, tmp_path):
    assert Classifier(weights, labels=["Ball", "Ziegel", "Blatt"]).label(1) == "Ziegel"
    assert Classifier(weights, labels=NAMES).label(1) == "brick"
    for names, first in ((["leaf", "ball", "brick"], 0), (["ball", "brick", "Blatt"], 2)):
        (tmp_path / "labels.txt").write_text("\n".join(names))
        with pytest.raises(
            UserError, match=f"class {first} is '{NAMES[first]}' in .*run/class_names.txt and '{names[first]}"
        ):
            Classifier(weights, labels=tmp_path / "labels.txt")
    assert export_model.main(["-pretrained", str(weights), "-output", str(tmp_path / "exported")]) == 0
    with pytest.raises(UserError, match="class 0 is 'ball' in .*export.json and 'leaf' in labels"):
        Classifier(tmp_path / "exported", labels=["leaf", "ball", "brick"])


def test_a_teacher_names_the_same_classes(weights, tmp_path, capfd):
    folder = data(tmp_path / "data", NAMES)
    teacher = run_of(tmp_path / "teacher", ["ball", "leaf", "brick"])
    more = ["-teacher", "pit_digits", "-teacher_model_path"]
    hard = ["-opts", "TRAIN.DISTILLATION_TYPE", "hard"]
    assert go(folder, tmp_path / "out", *more, teacher, *hard) == 2
    assert "class 1 is 'leaf' in" in (error := capfd.readouterr().err) and f"and 'brick' in {folder}" in error
    assert go(folder, tmp_path / "out", *more, tmp_path / "none", *hard, cfg="pit_distilled_digits") == 2
    assert "same 3 classes" not in capfd.readouterr().err


@pytest.mark.parametrize(("flag", "level"), [("-eval", "WARNING"), ("-reinit_head", "INFO")])
def test_settings_of_images_that_differ_from_the_weights_run_are_told(weights, tmp_path, flag, level):
    folder = data(tmp_path / "data", NAMES)
    assert go(folder, tmp_path / "out", flag, "-pretrained", weights, "-opts", "DATA.CROP_PCT", 0.5) == 0
    told = re.findall(r"(\S+) +in the run of these weights (.*)", (tmp_path / "out" / "log.txt").read_text())
    assert told == [(level, "DATA.CROP_PCT was 1.0, now 0.5")]


def test_a_classifier_tells_settings_that_differ_from_the_weights_run(weights, tmp_path, capfd):
    image = str(data(tmp_path / "data", NAMES) / "val/ball/0.png")
    for flags, told in (([], []), (["-image_size", "64"], ["IMAGE_SIZE was 32, now 64"])):
        assert predict.main(["-pretrained", str(weights), *flags, image]) == 0
        assert re.findall(r"in the run of these weights DATA\.(.*)", capfd.readouterr().err) == told


def test_a_teacher_sees_images_as_its_run_did(tmp_path):
    teacher = run_of(tmp_path / "teacher", NAMES, **{"DATA.IMAGENET_MEAN": [0.1, 0.2, 0.3]})
    values = {"TEACHER_MODEL": "pit_digits", "TEACHER_MODEL_PATH": str(teacher)}
    opts = [word for key, value in values.items() for word in (f"TRAIN.{key}", value)]
    config = get_config("pit_distilled_digits", ["MODEL.NUM_CLASSES", 3, *opts])
    images = paddle.rand([2, 3, 32, 32])  # in [0, 1]
    mean, std = (paddle.to_tensor(of).reshape([3, 1, 1]) for of in ([0.1, 0.2, 0.3], config.DATA.IMAGENET_STD))
    given = paddle.to_tensor(config.DATA.IMAGENET_MEAN).reshape([3, 1, 1])
    student_sees, teacher_sees = (images - given) / std, (images - mean) / std
    expected = build_model(get_config("pit_digits", ["MODEL.NUM_CLASSES", 3]), weights=teacher)
    expected.eval()
    found = _teacher(config)
    found.eval()
    np.testing.assert_allclose(found(student_sees).numpy(), expected(teacher_sees).numpy(), atol=1e-4)


def test_classes_of_a_hugging_face_folder(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.touch()
    for content, names in (
        ({"id2label": {"1": "brick", "0": "ball"}}, ["ball", "brick"]),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, None),
        ({"id2label": {"0": "ball", "2": "brick"}}, None),
        ({"id2label": {}}, None),
        ([], None),
    ):
        (tmp_path / "config.json").write_text(json.dumps(content))
        found = classes_beside(weights)
        assert (found and list(found.names)) == names
    (tmp_path / "config.json").write_bytes(b'{"id2lab\xff')
    assert classes_beside(weights) is None


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A checkpoint whose model is always sure of "brick" and its average of "leaf", as three kinds of files have it."""
    folder, states = tmp_path_factory.mktemp("both"), {}
    for label, which in ((1, "model"), (2, "ema")):
        model = build_model("pit_digits", num_classes=3)
        model.head.bias.set_value(np.eye(3, dtype="float32")[label] * 100)
        states[which] = {name: value.numpy() for name, value in model.state_dict().items()}
    run = run_of(folder / "run", NAMES, **{"MODEL.WEIGHTS": "ema", "TRAIN.MODEL_EMA": True}).parent
    for name, which in (("best", "model"), ("epoch_001", "model"), ("epoch_001_ema", "ema")):
        paddle.save(states[which], str(run / f"{name}.pdparams"))
    (folder / "foreign.pdparams").write_bytes(pickle.dumps({"model": states["model"], "model_ema": states["ema"]}))
    hub = folder / "hub"
    hub.mkdir()
    (hub / "config.json").write_text(json.dumps({"id2label": dict(enumerate(NAMES))}))
    parts = {f"model-0000{i}-of-00002.safetensors": list(states["ema"])[i::2] for i in (0, 1)}
    for part, names in parts.items():
        safetensors.numpy.save_file({name: states["ema"][name] for name in names}, hub / part)
    index = {"weight_map": {name: part for part, names in parts.items() for name in names}}
    (hub / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    ("name", "which", "label"),
    [
        ("foreign.pdparams", "", "brick"),
        ("foreign.pdparams", "model", "brick"),
        ("foreign.pdparams", "ema", "leaf"),
        ("run", "", "brick"),
        ("run/epoch_001", "", "brick"),
        ("run/epoch_001.pdparams", "ema", "leaf"),
        ("hub", "", "leaf"),
    ],
)
def test_the_model_or_its_average_is_taken_wherever_weights_are_named(both, tmp_path, capfd, name, which, label):
    weights, flags = str(both / name), ["-weights", which] if which else []
    folder = data(tmp_path / "data", NAMES)
    config = [] if name.startswith("run") else ["-cfg", "pit_digits", "-num_classes", 3]
    capfd.readouterr()
    command = ["-pretrained", weights, *flags, "-topk", 1, "-json", *config, folder / "val" / label / "0.png"]
    assert predict.main([str(word) for word in command]) == 0
    found = json.loads(capfd.readouterr().out)["classes"][0]
    number = NAMES.index(label)
    assert found["class"] == number and found["name"] == (str(number) if name.startswith("foreign") else label)
    cfg = both / "run" / "config.yaml" if name.startswith("run") else "pit_digits"
    assert go(folder, tmp_path / "out", "-eval", "-pretrained", weights, *flags, cfg=cfg) == 0
    assert json.loads((tmp_path / "out" / "eval.json").read_text())["acc1"] == pytest.approx(100 / 3)


def test_an_average_that_is_not_there(both, tmp_path, capfd):
    folder = data(tmp_path / "data", NAMES)
    assert go(folder, tmp_path / "out", "-pretrained", both / "run" / "best", "-weights", "ema") == 2
    assert "run/best.pdparams: the file has no EMA weights" in capfd.readouterr().err
    assert go(folder, tmp_path / "out", "-pretrained", both / "run" / "best", "-weights", "both") == 2
    assert "-weights: MODEL.WEIGHTS must be one of model, ema, got 'both'" in capfd.readouterr().err
    assert go(folder, tmp_path / "out", "-pretrained", both / "run" / "epoch_001", "-weights", "ema", "-lr", 0) == 0
    image = str(folder / "val" / "ball" / "0.png")
    assert Classifier(tmp_path / "out").predict(image, topk=1)[0]["label"] == "leaf"
