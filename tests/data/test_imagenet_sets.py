"""V2, A, R, Sketch and ReaL in small made-up sets of their exact layout, scored as NumPy does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

from paddlevit import build_model
from paddlevit.commands.train import main
from paddlevit.data.index import imagenet_names

SYNSETS = list(imagenet_names(Path("/")))
TINY = ["MODEL.PATCH_SIZE", 8, "MODEL.STRIDE", 4, "MODEL.BASE_DIMS", "[8, 8, 8]", "MODEL.DEPTH", "[1, 1, 1]"]
TINY += ["MODEL.NUM_HEADS", "[1, 2, 4]", "DATA.IMAGE_SIZE", 32, "MODEL.NUM_CLASSES", 1000]


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    from paddlevit.config import get_config

    paddle.seed(1)
    model = build_model(get_config("pit_ti_224", TINY))
    model.head.weight.set_value(model.head.weight * 300)  # so that images differ in their prediction
    path = tmp_path_factory.mktemp("weights") / "w.pdparams"
    paddle.save(model.state_dict(), str(path))
    return path


def evaluated(name, data, weights, output, code=0):
    args = ["-cfg", "pit_ti_224", "-dataset", name, "-data_path", data, "-eval", "-pretrained", weights]
    args += ["-output", output, "-num_workers", 0, "-opts", "SAVE_PREDICTIONS", "true", *TINY]
    assert main([str(word) for word in args], nprocs=1) == code
    return json.loads((output / "eval.json").read_text()) if code == 0 else None


def predictions(output):
    """What was predicted, by the file's name."""
    lines = [line.split(",") for line in (output / "predictions.csv").read_text().splitlines()[1:]]
    return {line[0]: line[-2] for line in lines}


@pytest.fixture(scope="module")
def real(tmp_path_factory, weights):
    """A validation set of ImageNet, and what the model predicts of it when it may choose every class."""
    folder = tmp_path_factory.mktemp("real")
    for i in range(12):
        picture(folder / "val" / SYNSETS[5 * i] / f"ILSVRC2012_val_{i + 1:08d}.JPEG", i)
    for synset in SYNSETS:
        (folder / "val" / synset).mkdir(exist_ok=True)
    lines = [f"val/{SYNSETS[5 * i]}/ILSVRC2012_val_{i + 1:08d}.JPEG {5 * i}\n" for i in range(12)]
    (folder / "val_list.txt").write_text("".join(lines))
    evaluated("imagenet2012", folder, weights, folder / "out")
    return folder


def test_v2_has_folders_called_by_their_labels(tmp_path, weights, real):
    for i, label in enumerate((0, 7, 10, 100, 999)):
        picture(tmp_path / "v2" / str(label) / "a.jpeg", i)
    evaluated("imagenet-v2", tmp_path / "v2", weights, tmp_path / "out")
    names = list(imagenet_names(tmp_path).values())
    lines = (tmp_path / "out" / "per_class.csv").read_text().splitlines()[1:]
    images = [int(line.rsplit(",", 4)[1]) for line in lines]
    assert [label for label, count in enumerate(images) if count] == [0, 7, 10, 100, 999]
    assert lines[100].startswith((names[100], f'"{names[100]}'))


@pytest.mark.parametrize("name", ["imagenet-a", "imagenet-r", "imagenet-sketch"])
def test_sets_of_synsets_and_of_those_the_ones_that_may_be_predicted(tmp_path, weights, name):
    own = [3, 40, 500]
    for i, label in enumerate(own):
        for j in range(4):
            picture(tmp_path / "set" / SYNSETS[label] / f"{j}.jpg", 10 * i + j)
    result = evaluated(name, tmp_path / "set", weights, tmp_path / "out")
    names = list(imagenet_names(tmp_path).values())
    predicted = predictions(tmp_path / "out")
    among = {names[label] for label in own}
    assert (set(predicted.values()) <= among) == (name != "imagenet-sketch")
    right = [predicted[f"{SYNSETS[label]}/{j}.jpg"] == names[label] for label in own for j in range(4)]
    assert result["acc1"] == pytest.approx(100 * np.mean(right)) and result["num_images"] == 12


def test_real_counts_any_of_an_images_labels_and_leaves_out_those_without(tmp_path, weights, real):
    names = list(imagenet_names(tmp_path).values())
    found = predictions(real / "out").values()  # a list of some classes names no others
    predicted = [int(each) if each.isdigit() else names.index(each) for each in found]
    labels = [[]] + [[predicted[1], 4]] + [[(p + 1) % 1000] for p in predicted[2:7]] + [[2, p] for p in predicted[7:]]
    (real / "real.json").write_text(json.dumps(labels))
    result = evaluated("imagenet-real", real, weights, tmp_path / "out")
    assert result["acc1"] == pytest.approx(100 * 6 / 11) and result["num_images"] == 11
    assert result["loss"] is result["acc5"] is result["macro_f1"] is None, "they are of other labels"


def test_mistakes(tmp_path, weights, real, capsys):
    evaluated("imagenet-sketch", tmp_path / "none", weights, tmp_path / "out", code=2)
    assert "there is no data folder" in capsys.readouterr().err
    (tmp_path / "v2" / "n01440764").mkdir(parents=True)
    evaluated("imagenet-v2", tmp_path / "v2", weights, tmp_path / "out", code=2)
    assert "the class folders of imagenet-v2 are called by their labels, 0 to 999" in capsys.readouterr().err
    (real / "real.json").write_text("[[1]]")
    evaluated("imagenet-real", real, weights, tmp_path / "out", code=2)
    assert "has no number from 1 to 1, by which" in capsys.readouterr().err
    for text in ('{"1": [1]}', "[1, 2]"):
        (real / "real.json").write_text(text)
        evaluated("imagenet-real", real, weights, tmp_path / "out", code=2)
        assert "real.json must be a list, with a list of labels for each" in capsys.readouterr().err
    (real / "real.json").unlink()
    (real / "real.json").mkdir()
    evaluated("imagenet-real", real, weights, tmp_path / "out", code=2)
    assert "real.json cannot be read: Is a directory" in capsys.readouterr().err
    (real / "real.json").rmdir()
    evaluated("imagenet-real", real, weights, tmp_path / "out", code=2)
    assert "real.json is missing" in capsys.readouterr().err
    assert main(["-cfg", "pit_ti_224", "-dataset", "imagenet-a", "-data_path", str(tmp_path)], nprocs=1) == 2
    assert "DATA.DATASET imagenet-a is to evaluate on (-eval)" in capsys.readouterr().err
