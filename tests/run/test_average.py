"""Averages of weights: the mean of the state dicts, and never worse than the best of them."""

from __future__ import annotations

import math
import shutil

import numpy as np
import paddle
import pytest
from tiny import image_folder

from paddlevit import build_model
from paddlevit.commands import weights
from paddlevit.config import get_config
from paddlevit.data import build_train_loader
from paddlevit.weights import read_state_dict

HEADS = {"pit_digits": "head", "regnet_digits": "head.2"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("data"), classes=2, train=20, val=4)


def written(path, name, bias, classes=2):
    """Random weights with the constant logits (bias, -bias): of two equally frequent classes one is right, and the
    loss grows with the bias on both sides of 0.
    """
    state = build_model(name, num_classes=classes).state_dict()
    random = np.random.default_rng(int(abs(bias) * 10))
    arrays = {key: np.abs(random.standard_normal(value.shape)) / 10 for key, value in state.items()}
    arrays[f"{HEADS[name]}.weight"] *= 0
    arrays[f"{HEADS[name]}.bias"] = np.array([bias, -bias] * (classes // 2))
    paddle.save({key: paddle.to_tensor(array.astype("float32")) for key, array in arrays.items()}, str(path))
    return path


def average(data, name, *words):
    opts = ["-opts", "DATA.BATCH_SIZE", 8]
    argv = ["average", *words, "-cfg", name, "-data_path", data, "-device", "cpu", *opts]
    return weights.main([str(word) for word in argv])


def loss(bias):
    return (math.log1p(math.exp(-2 * bias)) + math.log1p(math.exp(2 * bias))) / 2


@pytest.mark.parametrize("name", ["pit_digits", pytest.param("regnet_digits", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("method", "biases", "taken"),
    [
        ("greedy", (6, 1, -1.5), (1, -1.5)),  # with 6 it would get worse again
        ("uniform", (6, 1, -1.5), (1,)),
        ("uniform", (1, -1.5), (1, -1.5)),
    ],
)
def test_the_average_is_the_mean_of_those_that_make_it_no_worse(data, tmp_path, capsys, name, method, biases, taken):
    files = {bias: written(tmp_path / f"{bias}.pdparams", name, bias) for bias in biases}
    output = tmp_path / "average.pdparams"
    assert average(data, name, *files.values(), "-output", output, "-method", method) == 0
    found, parts = read_state_dict(output), [read_state_dict(files[bias]) for bias in taken]
    assert list(found) == list(parts[0])
    for key, value in found.items():
        if len(taken) == 1 or not key.endswith(("._mean", "._variance")):
            np.testing.assert_allclose(value, np.mean([part[key] for part in parts], axis=0), rtol=1e-6, err_msg=key)
    *lines, last = capsys.readouterr().out.splitlines()
    scores = {float(line.split()[line.split().index("loss") + 1].rstrip(":")) for line in lines}
    assert pytest.approx(sorted(scores), abs=1e-4) == sorted({loss(bias) for bias in (*biases, *added(method, biases))})
    assert last.startswith("no average is as good as " if len(taken) == 1 else f"written to {output}: the average of ")
    assert min(scores) == pytest.approx(loss(np.mean(taken)), abs=1e-4), "no worse than the best of its parts"


def added(method, biases):
    """The biases of the averages that are tried."""
    return [np.mean(biases)] if method == "uniform" else [np.mean([1, -1.5]), np.mean(biases)]


def test_running_statistics_are_those_of_training_images(data, tmp_path):
    files = [written(tmp_path / f"{bias}.pdparams", "regnet_digits", bias) for bias in (1, -1.5)]
    output = tmp_path / "average.pdparams"
    assert average(data, "regnet_digits", *files, "-output", output, "-method", "uniform") == 0
    model = build_model("regnet_digits", num_classes=2, weights=output)
    config = get_config("regnet_digits", ["DATA.DATA_PATH", str(data), "DATA.BATCH_SIZE", 8, "MODEL.NUM_CLASSES", 2])
    seen = [model.stem[0](images).numpy() for images, _ in build_train_loader(config).epoch(0)]
    assert len(seen) == 2
    found, axes = read_state_dict(output), (0, 2, 3)
    np.testing.assert_allclose(found["stem.1._mean"], np.mean([x.mean(axes) for x in seen], axis=0), atol=1e-5)
    np.testing.assert_allclose(found["stem.1._variance"], np.mean([x.var(axes) for x in seen], axis=0), rtol=1e-4)


def test_a_run_is_its_best_and_its_checkpoints(data, tmp_path, capsys):
    files = [written(tmp_path / f"epoch_00{i}.pdparams", "pit_digits", bias) for i, bias in enumerate((1, -1.5))]
    shutil.copy(files[0], tmp_path / "best.pdparams")
    output = tmp_path / "average.pdparams"
    assert average(data, "pit_digits", tmp_path, "-output", output) == 0
    out = capsys.readouterr().out
    assert "best.pdparams\n" in out and files[0].name not in out, "the same weights are scored once"
    mean = np.mean([read_state_dict(file)["head.bias"] for file in files], axis=0)
    np.testing.assert_allclose(read_state_dict(output)["head.bias"], mean, err_msg="the best counts once")


def test_runs_that_see_images_otherwise_are_told_of(data, tmp_path, capsys):
    files = []
    for of, bias in (("one", 1), ("other", 2)):
        (tmp_path / of).mkdir()
        files.append(written(tmp_path / of / "w.pdparams", "pit_digits", bias))
        values = ["DATA.IMAGENET_MEAN", [bias / 4] * 3]
        (tmp_path / of / "config.yaml").write_text(get_config("pit_digits", values).dump())
    words = ["average", *files, "-data_path", data, "-device", "cpu", "-output", tmp_path / "average.pdparams"]
    assert weights.main([str(word) for word in words]) == 0
    was = "in the run of these weights DATA.IMAGENET_MEAN was [0.5, 0.5, 0.5], now [0.25, 0.25, 0.25]"
    told = [line for line in capsys.readouterr().err.splitlines() if "MEAN" in line]
    assert told == [f"warning: {tmp_path / 'other'}: {was}"]


def test_mistakes(data, tmp_path, capsys):
    (tmp_path / "cats").mkdir()
    (tmp_path / "dogs").mkdir()
    one, other = (written(tmp_path / of / "w.pdparams", "pit_digits", bias) for of, bias in (("cats", 1), ("dogs", 2)))
    many = written(tmp_path / "many.pdparams", "pit_digits", 1, classes=4)
    regnet = written(tmp_path / "regnet.pdparams", "regnet_digits", 1)
    output = tmp_path / "average.pdparams"
    for words, said in (
        ((one, many, "-output", output), "the file has 4 classes, the model 2"),
        ((one, regnet, "-output", output), f"{regnet}: the weights are of no source known for this model"),
        ((one, "-output", output), "needs weights that differ"),
        ((one, other, "-output", other), f"-output {other} is one of the weights to average"),
        (
            (one, other, "-output", output, "-opts", "TTA", "flip"),
            "TTA works only with -eval: averages are scored by Paddle",
        ),
        ((one, other, "-output", "average.pth"), "-output must end in .pdparams, got average.pth"),
    ):
        assert average(data, "pit_digits", *words) == 2
        out, err = capsys.readouterr()
        assert said in err and (not out or len(words) == 3), "nothing is scored before"
    (one.parent / "class_names.txt").write_text("cat\nother\n")
    (other.parent / "class_names.txt").write_text("dog\nother\n")
    assert average(data, "pit_digits", one, other, "-output", output) == 2
    assert "class 0 is 'dog' in " in capsys.readouterr().err
    assert not output.exists()
