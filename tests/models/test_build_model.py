"""build_model: any family by configuration, name or file, with weights of any source and number of classes."""

from __future__ import annotations

import re

import numpy as np
import paddle
import pytest
from tiny import but_slow

import paddlevit
from paddlevit.config import ConfigError, get_config
from paddlevit.errors import MissingFileError
from paddlevit.weights import WeightsError

# One small network of each family: by a configuration, a name as people type it, or a file.
SMALL = {
    "pit_digits": "head.",
    "pit_distilled_digits": ("head.", "head_dist."),
    "hvt_digits": "head.",
    "cvt_digits": "head.",
    "hrformer_digits": "classifier.",
    "regnet_digits": "head.2.",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    for name in SMALL:
        paddle.seed(0)
        paddle.save(paddlevit.build_model(name, num_classes=3).state_dict(), str(folder / f"{name}.pdparams"))
    return folder


def logits(model):
    model.eval()
    return model(paddle.full([1, 3, 32, 32], 0.5)).numpy()


def test_a_configuration_a_name_and_a_file_are_the_same(tmp_path):
    (tmp_path / "own.yaml").write_text("BASE: pit_digits\n", encoding="utf-8")
    given = [get_config("pit_digits"), "pit_digits", "PIT_DIGITS", tmp_path / "own.yaml"]
    models = []
    for config in given:
        paddle.seed(1)
        models.append(logits(paddlevit.build_model(config)))
    assert all(np.array_equal(model, models[0]) for model in models)


def test_classes_and_image_size_take_precedence():
    model = paddlevit.build_model(get_config("pit_digits"), num_classes=3, image_size=64)
    assert model(paddle.zeros([2, 3, 64, 64])).shape == [2, 3]
    features = paddlevit.build_model("pit_digits", num_classes=0)(paddle.zeros([2, 3, 32, 32]))
    assert features.shape[1] not in (0, 10)


@pytest.mark.parametrize(
    ("model", "given", "told"),
    [
        (3, {}, "build_model needs a configuration, a variant's name or a path, got 3"),
        (None, {}, "a variant's name or a path, got None"),
        ("pit_digits", {"num_classes": "3"}, "MODEL.NUM_CLASSES must be an integer, got '3'"),
        ("pit_digits", {"num_classes": -1}, "MODEL.NUM_CLASSES must be >= 0, got -1"),
        ("pit_digits", {"image_size": 0}, "DATA.IMAGE_SIZE must be >= 1, got 0"),
        ("pit_digits", {"image_size": 32.5}, "DATA.IMAGE_SIZE must be an integer, got 32.5"),
    ],
)
def test_arguments_are_checked(model, given, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        paddlevit.build_model(model, **given)


@pytest.mark.parametrize("name", SMALL)
def test_weights_of_as_many_classes_are_all_taken(files, name, caplog):
    paddle.seed(2)
    model = paddlevit.build_model(name, num_classes=3, weights=files / name)  # without its suffix
    saved = paddlevit.weights.read_state_dict(files / f"{name}.pdparams")
    assert all(np.array_equal(tensor.numpy(), saved[key]) for key, tensor in model.state_dict().items())
    assert not caplog.records


@pytest.mark.parametrize(("num_classes", "said"), [(7, 7), (None, 10)])
@pytest.mark.parametrize("name", but_slow(SMALL, "hrformer_digits"))
def test_another_number_of_classes_starts_a_new_head_and_says_so(files, name, num_classes, said, caplog):
    paddle.seed(3)
    model = paddlevit.build_model(name, num_classes=num_classes, weights=str(files / f"{name}.pdparams"))
    saved = paddlevit.weights.read_state_dict(files / f"{name}.pdparams")
    state = model.state_dict()
    new = {key for key in state if key.startswith(SMALL[name])}
    assert all(np.array_equal(state[key].numpy(), saved[key]) for key in set(state) - new)
    assert all(state[key].shape[-1] == said for key in new)
    [record] = caplog.records
    assert f"{name}.pdparams: the file has 3 classes, the model {said} " in record.getMessage()
    assert record.getMessage().endswith("it starts with a new classifier")


def test_without_classes_the_files_classifier_is_left_out(files, caplog):
    name = "pit_distilled_digits"
    paddlevit.build_model(name, num_classes=0, weights=files / name)
    assert "has 3 classes, the model 0 (MODEL.NUM_CLASSES): its classifier is unused" in caplog.text


def test_what_does_not_fit_otherwise_is_an_error(files, tmp_path):
    with pytest.raises(WeightsError, match="is of a distilled"):
        paddlevit.build_model("pit_digits", num_classes=7, weights=files / "pit_distilled_digits")
    with pytest.raises(WeightsError):
        paddlevit.build_model("pit_ti_224", weights=files / "pit_digits")
    with pytest.raises(MissingFileError, match="gone"):
        paddlevit.build_model("pit_digits", weights=tmp_path / "gone")
    with pytest.raises(MissingFileError, match="did you mean"):
        paddlevit.build_model("pit_digit")
    with pytest.raises(ConfigError, match="NUM_CLASSES must be >= 0, got -1"):
        paddlevit.build_model("pit_digits", num_classes=-1)
    with pytest.raises(ConfigError, match="IMAGE_SIZE must be an integer, got 'large'"):
        paddlevit.build_model("pit_digits", image_size="large")
